//! Moves of shards as commands: beginning one, what operators say of it, and carrying out what it came to by itself.

use gilmok_config::document::Document;
use gilmok_config::name::ServiceName;
use gilmok_config::sharding::plan::{self, Plan, Wanted};
use serde_json::Value;

use super::{Changed, ConductMove, Context, MoveDeed, Refusal, shards};
use crate::record::Record;
use crate::resharding::deed::Unfit;
use crate::resharding::state::{Edit, Hand, ShardMove};
use crate::resharding::table::{NEXT, edited, followed, rule};
use crate::resharding::wanted;

/// What would have to move for what is wanted.
///
/// # Errors
/// Why nobody can tell.
pub fn planned(document: &Value, service: &ServiceName, body: &Value) -> Result<Plan, Refusal> {
    let asked = wanted::read(body).map_err(Refusal::Faulty)?;
    plan_of(table(document, service)?, service, &asked.wanted)
}

fn plan_of(table: &Value, service: &ServiceName, wanted: &Wanted) -> Result<Plan, Refusal> {
    if table.get(NEXT).is_some() {
        return Err(Refusal::Conflict(format!(
            "a batch of keys of `{service}` moves now; plan again when its move has ended or was taken back (gilmok shards reverse {service})"
        )));
    }
    plan::plan(table, wanted).map_err(Refusal::Faulty)
}

/// Begins a move. Its first batch is moved by whoever conducts it.
pub(super) fn begun(
    document: &Value,
    service: &ServiceName,
    body: &Value,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let table = table(document, service)?;
    let mut record = context.records.get(service).cloned().unwrap_or_default();
    if let Some(running) = record.running_move() {
        return Err(Refusal::Conflict(format!(
            "the move {} of its shards runs already, with {} batches to go; let it end, or take it back (gilmok shards reverse {service})",
            running.id,
            running.batches_left(),
        )));
    }
    let asked = wanted::read(body).map_err(Refusal::Faulty)?;
    let plan = plan_of(table, service, &asked.wanted)?;
    if plan.batches.is_empty() {
        return Err(Refusal::Conflict(format!("there is nothing to move: {}", plan.notes.join("; "))));
    }
    if let Some(problems) = asked.loses() {
        return Err(Refusal::Faulty(problems));
    }
    let moving = ShardMove::new(rule(table), wanted::batches(table, &plan), asked.webhooks, &hand(context));
    record.begin_move(moving);
    let mut changed = Changed::nothing(document);
    changed.records.push((service.clone(), Some(record)));
    Ok(changed)
}

/// Carries out what an operator says of a move.
pub(super) fn told(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    id: u64,
    deed: MoveDeed,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let mut record = context.records.get(service).cloned().unwrap_or_default();
    let is_past = record.moved.iter().any(|moved| moved.id == id);
    let Some(moving) = record.moving.as_deref_mut().filter(|moving| moving.id == id) else {
        return Err(if is_past {
            Refusal::Conflict(format!("the move {id} has ended, and another one was begun since"))
        } else {
            Refusal::NoMove(service.clone(), id)
        });
    };
    let hand = hand(context);
    let done = match deed {
        MoveDeed::Pause => moving.told_to_pause(&hand),
        MoveDeed::Resume => moving.told_to_resume(context.force, &hand),
        MoveDeed::Reverse if !moving.is_running() && !is_as_left(document, parsed, service, moving) => {
            Err(Unfit::Overruled)
        }
        MoveDeed::Reverse => moving.told_to_reverse(&hand),
    };
    let edit = done.map_err(|unfit| Refusal::Conflict(unfit.to_string()))?;
    carried_out(document, service, record, edit, context)
}

/// Carries out what a move came to by itself.
pub(super) fn conducted(
    document: &Value,
    conduct: &ConductMove,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let service = &conduct.service;
    let known = context.records.get(service);
    let Some(known) = known.filter(|known| known.seq == conduct.seq) else {
        return Err(Refusal::Conflict(format!("what is kept of `{service}` is not what was read")));
    };
    let record = Record { moving: Some(conduct.moving.clone()), ..known.clone() };
    carried_out(document, service, record, Some(conduct.edit), context)
}

fn carried_out(
    document: &Value,
    service: &ServiceName,
    record: Record,
    edit: Option<Edit>,
    context: &Context<'_>,
) -> Result<Changed, Refusal> {
    let mut changed = Changed::nothing(document);
    if let (Some(edit), Some(moving)) = (edit, record.moving.as_deref()) {
        let next = edited(table(document, service)?, edit, &moving.next_rule(), context.number + 1);
        changed.document = shards::with_table(document, service, next);
    }
    changed.records.push((service.clone(), Some(record)));
    Ok(changed)
}

/// Ends a move whose map somebody else decides about now.
pub(super) fn overrule(record: &mut Record, context: &Context<'_>, why: &str) {
    if let Some(moving) = record.moving.as_deref_mut().filter(|moving| moving.is_running()) {
        moving.overruled(&Hand { why, ..hand(context) });
    }
}

/// Whether keys are where a move that has ended left them.
fn is_as_left(document: &Value, parsed: &Document, service: &ServiceName, moving: &ShardMove) -> bool {
    let Ok(table) = table(document, service) else { return false };
    let left = followed(table, &moving.rule_after(moving.moved));
    let left = Document::parse_json(&shards::with_table(document, service, left));
    let rules =
        left.as_ref().ok().and_then(|left| shards::rule(left, service)).zip(shards::rule(parsed, service));
    rules.is_some_and(|(left, now)| left.divides_as(now) && now.next().is_none())
}

/// A service's table of shards.
fn table<'d>(document: &'d Value, service: &ServiceName) -> Result<&'d Value, Refusal> {
    let fields = super::service(document, service).ok_or_else(|| Refusal::NoService(service.clone()))?;
    fields.get(shards::KEY).filter(|table| table.is_object()).ok_or_else(|| {
        Refusal::Conflict(format!("`{service}` has no shards; give it a table `sharding` first"))
    })
}

fn hand<'c>(context: &Context<'c>) -> Hand<'c> {
    Hand { by: context.by, why: context.why, now_ms: context.now_ms, revision: context.number + 1 }
}
