//! Changes of flags at a time: said, taken back, and carried out, which removes them in the same step.

use gilmok_config::document::Document;
use gilmok_config::problem::{Problem, Problems};
use serde_json::Value;

use super::command::FlagDeed;
use super::{Changed, Command, Context, Refusal, apply, flags};
use crate::schedule::{PATCH_BYTES_MAX, SCHEDULED_MAX, Schedule, Scheduled};

/// A change that is to be made later.
///
/// # Errors
/// There is no such flag, its time has passed, or it could not be made now either.
pub(super) fn said(
    current: &Value,
    key: &str,
    at_ms: u64,
    patch: &Value,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let faulty = |path: &str, what: String, hint: &str| Refusal::Faulty(Problem::at(path, what, hint).into());
    if flags::flag(current, key).is_none() {
        return Err(Refusal::NoFlag(key.to_owned()));
    }
    if at_ms <= context.now_ms {
        return Err(faulty("at", "this moment has passed".to_owned(), "a moment to come"));
    }
    let bytes = patch.to_string().len();
    if bytes > PATCH_BYTES_MAX {
        return Err(faulty("patch", format!("{bytes} bytes"), &format!("at most {PATCH_BYTES_MAX}")));
    }
    if context.schedule.len() >= SCHEDULED_MAX {
        return Err(Refusal::Conflict(format!(
            "{SCHEDULED_MAX} changes wait already; take some out, those that failed first"
        )));
    }
    // Faults are told to whoever says it, not to whoever sleeps when its time comes.
    apply(current, &Command::Flag(key.to_owned(), FlagDeed::Patch(patch.clone())), context)?;
    let mut schedule = context.schedule.clone();
    schedule.push(Scheduled {
        id: context.number + 1,
        flag: key.to_owned(),
        at_ms,
        patch: patch.clone(),
        by: context.by.to_owned(),
        why: context.why.to_owned(),
        force: context.force,
        accept_warnings: context.accept_warnings,
        failed: None,
    });
    Ok(Changed { schedule: Some(schedule), ..Changed::nothing(current) })
}

/// A change that is not to be made.
///
/// # Errors
/// There is none of this id.
pub(super) fn taken_back(
    current: &Value,
    key: &str,
    id: u64,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let mut schedule = context.schedule.clone();
    schedule.remove(place(key, id, context)?);
    Ok(Changed { schedule: Some(schedule), ..Changed::nothing(current) })
}

/// A change whose time has come: made and taken out, or kept with why it could not be made.
///
/// # Errors
/// It was carried out or taken back already.
pub(super) fn carried_out(
    current: &Value,
    key: &str,
    id: u64,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let at = place(key, id, context)?;
    let mut schedule = context.schedule.clone();
    let patch = FlagDeed::Patch(schedule[at].patch.clone());
    Ok(match apply(current, &Command::Flag(key.to_owned(), patch), context) {
        Ok(outcome) => {
            schedule.remove(at);
            Changed { schedule: Some(schedule), ..Changed::nothing(&outcome.intent.json) }
        }
        Err(refusal) => {
            schedule[at].failed = Some(why(&refusal));
            Changed { schedule: Some(schedule), ..Changed::nothing(current) }
        }
    })
}

fn place(key: &str, id: u64, context: &Context<'_>) -> Result<usize, Refusal> {
    let place = context.schedule.iter().position(|one| one.id == id && one.flag == key);
    place.ok_or_else(|| Refusal::NotScheduled(key.to_owned(), id))
}

/// In one line, for whoever asks later.
fn why(refusal: &Refusal) -> String {
    let first = |problems: &Problems| problems.0.first().map(ToString::to_string).unwrap_or_default();
    match refusal {
        Refusal::Conflict(why) => why.clone(),
        Refusal::Faulty(problems) => first(problems),
        Refusal::Warned(problems) => format!("flagd would warn: {}", first(problems)),
        Refusal::NoFlag(_) | Refusal::NotScheduled(..) => "there is no such flag any more".to_owned(),
        Refusal::NoMove(..) | Refusal::NoRollout(_) | Refusal::NoService(_) => {
            "there is no such service any more".to_owned()
        }
    }
}

/// What waits from now on, if that is something else than before: changes of flags that are gone go with them.
pub(super) fn kept(schedule: Option<Schedule>, after: &Document, context: &Context<'_>) -> Option<Schedule> {
    let is_there = |one: &Scheduled| after.flags.as_ref().is_some_and(|set| set.get(&one.flag).is_some());
    if schedule.is_none() && context.schedule.iter().all(is_there) {
        return None;
    }
    let mut schedule = schedule.unwrap_or_else(|| context.schedule.clone());
    schedule.retain(is_there);
    (schedule != *context.schedule).then_some(schedule)
}
