//! Moving everybody at once: to another version, and back.

use std::collections::BTreeMap;

use gilmok_config::document::Document;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::problem::{Problem, Problems};
use serde_json::Value;

use super::shares::{self, Spread};
use super::{Changed, Context, Refusal};
use crate::record::{Release, ReleaseKind};

/// Everybody to a version.
pub(super) fn switched(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    to: &Name,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let known = shares::traffic(parsed, service);
    let alive = shares::alive(parsed, context.alive, service);
    let named = known.is_some_and(|traffic| traffic.place_of(to).is_some());
    if !context.force && !named && !alive.contains_key(to) {
        return Err(unknown_version("to", service, to, alive.keys()));
    }
    expect_alive(service, to.as_str(), &alive, context)?;
    let record = context.records.get(service).cloned().unwrap_or_default();
    if let Some(rollout) = record.running().filter(|_| !context.force) {
        return Err(Refusal::Conflict(format!(
            "a rollout of {} at {} % runs; abort or promote it (gilmok rollout abort {service}), or use ?force=true, which ends it",
            rollout.plan.candidate,
            rollout.percent().percent(),
        )));
    }
    let is_there = known.is_some_and(|traffic| {
        traffic.stable_name() == to && !traffic.is_split() && traffic.versions()[traffic.owner(0)] == *to
    });
    if is_there {
        return Ok(Changed::nothing(document));
    }
    let next = shares::spread(document, parsed, service, &Spread::All(to))?;
    let from = known.map(|traffic| traffic.stable_name()).filter(|from| *from != to);
    // Who was asked to take everybody while two shared: the other one is left.
    let other = known.and_then(|traffic| traffic.weights.keys().find(|version| *version != to));
    let release = Release {
        kind: ReleaseKind::Switch,
        revision: context.number + 1,
        at_ms: context.now_ms,
        by: context.by.to_owned(),
        from: from.or(other).cloned().unwrap_or_default(),
        to: to.clone(),
        before: shares::tables(document, parsed, service),
    };
    let mut changed = Changed::document(next);
    let mut record = record;
    super::rollouts::overrule(&mut record, context, &format!("switched to {to}"));
    record.release = Some(release);
    changed.records.push((service.clone(), Some(record)));
    Ok(changed)
}

/// Back to where everybody was before the last switch or rollout.
pub(super) fn rolled_back(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let record = context.records.get(service).cloned().unwrap_or_default();
    if record.running().is_some() {
        return super::rollouts::told(document, parsed, service, &super::Deed::Abort, context);
    }
    let Some(last) = &record.release else {
        return Err(Refusal::Conflict(format!(
            "nobody has switched `{service}` yet, so there is nothing to roll back; gilmok traffic switch moves everybody to a version"
        )));
    };
    if last.kind == ReleaseKind::Rollback {
        return Err(Refusal::Conflict(format!(
            "`{service}` was rolled back in revision {} already; to go forward again: gilmok traffic switch {service} {}",
            last.revision, last.from,
        )));
    }
    if last.before.is_empty() {
        return Err(Refusal::Conflict(format!(
            "`{service}` had no traffic table before revision {}, so there is nothing to go back to; switch to a version",
            last.revision
        )));
    }
    // The old version may have been stopped since: it was told drainable.
    if let Some(stable) = last.before.get(service).and_then(|table| table.get("stable")?.as_str()) {
        expect_alive(service, stable, &shares::alive(parsed, context.alive, service), context)?;
    }
    let release = Release {
        kind: ReleaseKind::Rollback,
        revision: context.number + 1,
        at_ms: context.now_ms,
        by: context.by.to_owned(),
        from: last.to.clone(),
        to: last.from.clone(),
        before: Default::default(),
    };
    let mut changed = Changed::document(shares::brought_back(document, &last.before));
    changed.records.push((service.clone(), Some(crate::record::Record { release: Some(release), ..record })));
    Ok(changed)
}

/// Nobody is moved to where nobody answers, unless that is forced.
fn expect_alive(
    service: &ServiceName,
    version: &str,
    alive: &BTreeMap<Name, u64>,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    let is_alive = alive.iter().any(|(known, count)| known.as_str() == version && *count > 0);
    if is_alive || context.force {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "no endpoint of `{service}` with the version `{version}` is alive, so everybody would get an error; start it first, or use ?force=true"
    )))
}

pub(super) fn unknown_version<'n>(
    path: &str,
    service: &ServiceName,
    version: &Name,
    known: impl Iterator<Item = &'n Name>,
) -> Refusal {
    let known: Vec<&str> = known.filter(|name| !name.is_empty()).map(Name::as_str).collect();
    let hint = if known.is_empty() {
        "no version is known; start its endpoints first, or use ?force=true".to_owned()
    } else {
        format!("one of: {}", known.join(", "))
    };
    Refusal::Faulty(Problems(vec![Problem {
        path: path.to_owned(),
        line: None,
        what: format!("no endpoint of `{service}` has the version `{version}`"),
        hint: Some(hint),
    }]))
}
