//! Rollouts as commands: beginning one, what operators say of it, and carrying out what it came to by itself.

use std::collections::BTreeSet;

use gilmok_config::document::Document;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::problem::{Problem, Problems};
use gilmok_config::unit::Ppm;
use serde_json::{Value, json};

use super::release::unknown_version;
use super::shares::{self, Spread};
use super::{Changed, Conduct, Context, Deed, Refusal};
use crate::record::{Record, Release, ReleaseKind};
use crate::rollout::plan::Plan;
use crate::rollout::state::{Hand, Rollout, Shift, Tables};

/// Begins a rollout. Its first step is taken by whoever conducts it.
pub(super) fn begun(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    plan: &Value,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    super::service(document, service).ok_or_else(|| Refusal::NoService(service.clone()))?;
    let record = context.records.get(service).cloned().unwrap_or_default();
    if let Some(running) = record.running() {
        return Err(Refusal::Conflict(format!(
            "a rollout of {} runs already, at {} %; end it first (gilmok rollout abort {service})",
            running.plan.candidate,
            running.percent().percent(),
        )));
    }
    let plan = Plan::parse(plan, hosts(parsed, service, context)).map_err(Refusal::Faulty)?;
    let stable = stable_of(parsed, service, &plan)?;
    let alive = shares::alive(parsed, context.alive, service);
    if !context.force && !alive.contains_key(&plan.candidate) {
        return Err(unknown_version("candidate", service, &plan.candidate, alive.keys()));
    }
    let known = shares::traffic(parsed, service);
    let mut shared =
        known.into_iter().flat_map(|traffic| &traffic.weights).filter(|(_, share)| share.get() > 0);
    if let Some((third, _)) = shared.find(|(version, _)| **version != stable && **version != plan.candidate) {
        return Err(Refusal::Conflict(format!(
            "`{third}` has a share as well; a rollout is from one version to another"
        )));
    }
    let is_split = known.is_some_and(gilmok_config::traffic::Traffic::is_split);
    let none = shares::spread(document, parsed, service, &Spread::Share(&plan.candidate, Ppm::NONE))?;
    let mut next = if known.is_some() { document.clone() } else { with_whole(document, service, &stable) };
    // Where it is taken back to: whoever had the candidate by hand before has the stable version then.
    let before_of = if is_split { &none } else { &next };
    let mut before = Tables::new();
    for name in shares::together(parsed, service) {
        before.extend(shares::table(before_of, &name).cloned().map(|table| (name, table)));
    }
    if let Some(salt) = &plan.salt
        && known.is_none_or(|traffic| traffic.salt.as_str() != salt)
    {
        if is_split {
            return Err(Refusal::Conflict(
                "salt: another one would deal all users anew while two versions have a share".to_owned(),
            ));
        }
        for name in before.keys() {
            let mut table = shares::table(&next, name).cloned().unwrap_or_default();
            table["salt"] = json!(salt);
            next = shares::with_table(&next, name, Some(table));
        }
    }
    let alive = alive.get(&plan.candidate).copied().unwrap_or_default();
    let hand = context.hand(alive);
    let rollout = Rollout::new(format!("{:016x}", context.dice), plan, stable, before, &hand);
    let mut changed = Changed::document(next);
    changed.records.push((service.clone(), Some(Record { rollout: Some(Box::new(rollout)), ..record })));
    Ok(changed)
}

fn stable_of(parsed: &Document, service: &ServiceName, plan: &Plan) -> Result<Name, Refusal> {
    let fault = |path: &str, what: String, hint: &str| {
        Refusal::Faulty(Problems(vec![Problem {
            path: path.to_owned(),
            line: None,
            what,
            hint: Some(hint.to_owned()),
        }]))
    };
    let known = shares::traffic(parsed, service).map(|traffic| traffic.stable_name().clone());
    let stable = match (known, &plan.stable) {
        (Some(known), Some(said)) if known != *said => {
            return Err(fault("stable", format!("the stable version is `{known}`"), "leave it out"));
        }
        (Some(known), _) => known,
        (None, Some(said)) => said.clone(),
        (None, None) => {
            let what = "`stable` is missing, and the service has no traffic table that says it".to_owned();
            return Err(fault("stable", what, "the version that everybody has now"));
        }
    };
    if stable == plan.candidate {
        let what = format!("`{stable}` is the stable version already");
        return Err(fault("candidate", what, "another version"));
    }
    Ok(stable)
}

/// A service without a table gets one in which everybody has the stable version.
fn with_whole(document: &Value, service: &ServiceName, stable: &Name) -> Value {
    let table = json!({ "stable": stable, "weights": { stable.as_str(): 100 } });
    shares::with_table(document, service, Some(table))
}

/// On how many hosts the service runs.
fn hosts(parsed: &Document, service: &ServiceName, context: &Context<'_>) -> usize {
    let told = context.alive.get(service).filter(|endpoints| !endpoints.is_empty());
    let listed = parsed.services.get(service).map_or(&[][..], |policy| &policy.endpoints);
    let hosts: BTreeSet<String> = told
        .map_or(listed, |told| told)
        .iter()
        .map(|endpoint| {
            let address = endpoint.address.to_string();
            address.rsplit_once(':').map_or(address.clone(), |(host, _)| host.to_owned())
        })
        .collect();
    hosts.len()
}

/// Does what an operator says of a rollout.
pub(super) fn told(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    deed: &Deed,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let mut record = context.records.get(service).cloned().unwrap_or_default();
    let none = || Refusal::NoRollout(service.clone());
    if *deed == Deed::Forget {
        let rollout = record.rollout.take().ok_or_else(none)?;
        if rollout.is_running() {
            return Err(Refusal::Conflict(format!(
                "it runs; abort it first (gilmok rollout abort {service})"
            )));
        }
        let mut changed = Changed::nothing(document);
        changed.records.push((service.clone(), Some(record)));
        return Ok(changed);
    }
    let rollout = record.rollout.as_deref_mut().ok_or_else(none)?;
    let alive = shares::alive(parsed, context.alive, service);
    let hand = context.hand(alive.get(&rollout.plan.candidate).copied().unwrap_or_default());
    let shift = match deed {
        Deed::Abort => rollout.told_to_abort(&hand).map(Some),
        Deed::Forget => Ok(None),
        Deed::Pause => rollout.told_to_pause(&hand).map(|()| None),
        Deed::Promote { to_end } => rollout.told_to_promote(context.force, *to_end, &hand),
        Deed::Resume => rollout.told_to_resume(&hand),
    };
    let shift = shift.map_err(|unfit| Refusal::Conflict(unfit.to_string()))?;
    carried_out(document, parsed, service, record, shift, context)
}

/// Carries out what a rollout came to by itself.
pub(super) fn conducted(
    document: &Value,
    parsed: &Document,
    conduct: &Conduct,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let service = &conduct.service;
    let known = context.records.get(service);
    if known.is_none_or(|known| known.seq != conduct.seq) {
        return Err(Refusal::Conflict(format!("what is kept of `{service}` is not what was read")));
    }
    let record = Record { rollout: Some(conduct.rollout.clone()), ..known.cloned().unwrap_or_default() };
    carried_out(document, parsed, service, record, conduct.shift, context)
}

fn carried_out(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    mut record: Record,
    shift: Option<Shift>,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let mut next = document.clone();
    if let (Some(shift), Some(rollout)) = (shift, record.rollout.as_deref()) {
        let (stable, candidate) = (&rollout.stable, &rollout.plan.candidate);
        let release = |kind, from: &Name, to: &Name, before| Release {
            kind,
            revision: context.number + 1,
            at_ms: context.now_ms,
            by: context.by.to_owned(),
            from: from.clone(),
            to: to.clone(),
            before,
        };
        match shift {
            Shift::To(share) => {
                next = shares::spread(document, parsed, service, &Spread::Share(candidate, share))?;
            }
            Shift::Finish => {
                next = shares::spread(document, parsed, service, &Spread::All(candidate))?;
                let before = rollout.before.clone();
                record.release = Some(release(ReleaseKind::Rollout, stable, candidate, before));
            }
            Shift::Back => {
                next = shares::brought_back(document, &rollout.before);
                record.release = Some(release(ReleaseKind::Rollback, candidate, stable, Tables::new()));
            }
        }
    }
    let mut changed = Changed::document(next);
    changed.records.push((service.clone(), Some(record)));
    Ok(changed)
}

/// Ends a rollout whose traffic somebody else decides about now.
pub(super) fn overrule(record: &mut Record, context: &Context<'_>, why: &str) {
    if let Some(rollout) = record.rollout.as_deref_mut().filter(|rollout| rollout.is_running()) {
        rollout.overruled(&Hand { why, ..context.hand(0) });
    }
}
