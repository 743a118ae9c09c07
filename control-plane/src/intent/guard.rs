//! What may not be changed in passing: who is where while a rollout moves it, and what deals everybody anew.

use std::collections::BTreeSet;

use gilmok_config::document::Document;
use gilmok_config::name::ServiceName;
use gilmok_config::traffic::Traffic;

use super::Refusal;
use super::shares::traffic;
use crate::record::Records;

/// Looks at what a write would do to users; answers whose rollouts it would overrule, when it is forced to.
///
/// # Errors
/// The first thing that needs another command, or force.
pub(super) fn check(
    before: &Document,
    after: &Document,
    records: &Records,
    force: bool,
) -> Result<BTreeSet<ServiceName>, Refusal> {
    let mut overruled = BTreeSet::new();
    for name in before.services.keys() {
        let (old, new) = (traffic(before, name), traffic(after, name));
        let rollout = records.iter().find_map(|(service, record)| {
            let rollout = record.running()?;
            (service == name || rollout.before.contains_key(name)).then_some((service, rollout))
        });
        if let Some((service, rollout)) = rollout
            && moves(old, new)
        {
            if !force {
                return Err(Refusal::Conflict(format!(
                    "a rollout of {} at {} % moves the users of `{name}`; let it go on or end it (gilmok rollout abort {service}), leave `traffic` as it is, or use ?force=true, which ends it",
                    rollout.plan.candidate,
                    rollout.percent().percent(),
                )));
            }
            overruled.insert(service.clone());
            continue;
        }
        if let (Some(old), Some(new), false) = (old, new, force) {
            check_deal(name, old, new)?;
        }
    }
    Ok(overruled)
}

/// Whether anybody's version could be another one.
fn moves(old: Option<&Traffic>, new: Option<&Traffic>) -> bool {
    match (old, new) {
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
        (Some(old), Some(new)) => {
            old.stable_name() != new.stable_name() || old.table != new.table || deals_anew(old, new).is_some()
        }
    }
}

/// What of it deals everybody anew, if anything does.
fn deals_anew(old: &Traffic, new: &Traffic) -> Option<&'static str> {
    if old.salt != new.salt {
        Some("salt")
    } else if old.subject != new.subject {
        Some("subject")
    } else if old.when_no_subject != new.when_no_subject {
        Some("when_no_subject")
    } else if old.group != new.group {
        Some("group")
    } else {
        None
    }
}

fn check_deal(name: &ServiceName, old: &Traffic, new: &Traffic) -> Result<(), Refusal> {
    if old.stable_name() != new.stable_name() && new.is_split() {
        return Err(Refusal::Conflict(format!(
            "services.{name}.traffic.stable: `{}` cannot become the stable version while two versions have a share; give it everybody first (gilmok traffic switch {name} {}), or use ?force=true",
            new.stable_name(),
            new.stable_name(),
        )));
    }
    match deals_anew(old, new).filter(|_| old.is_split() && new.is_split()) {
        None => Ok(()),
        Some(key) => Err(Refusal::Conflict(format!(
            "services.{name}.traffic.{key}: another one would deal all users anew while two versions have a share; give one version everybody first, or use ?force=true"
        ))),
    }
}
