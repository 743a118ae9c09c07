//! Which shard a key is at: what may not be changed in passing, and what a restored document leaves as it is.

use gilmok_config::document::Document;
use gilmok_config::name::ServiceName;
use gilmok_config::sharding::Sharding;
use serde_json::Value;

use super::{Context, Refusal, service, shares, with_service};

/// The key of a service's rule.
const KEY: &str = "sharding";

/// Refuses what would look for keys in other shards than those that hold them.
///
/// # Errors
/// The first service of which that is true.
pub(super) fn check(before: &Document, after: &Document, context: &Context<'_>) -> Result<(), Refusal> {
    if context.force {
        return Ok(());
    }
    for name in before.services.keys() {
        let Some(old) = rule(before, name).filter(|_| is_live(before, context, name)) else { continue };
        let stays = rule(after, name).is_some_and(|new| new.divides_as(old));
        if !stays {
            return Err(Refusal::Conflict(format!(
                "services.{name}.sharding: keys would be looked for in other shards than those that hold them; leave the rule as it is while the service has endpoints, or use ?force=true"
            )));
        }
    }
    Ok(())
}

/// A document that is put back, with the maps of live services as they are now: data does not move back with it.
pub(super) fn kept(mut next: Value, current: &Value, parsed: &Document, context: &Context<'_>) -> Value {
    // What is no sound document any more is refused as a whole.
    let Ok(then) = Document::parse_json(&next) else { return next };
    for name in parsed.services.keys().filter(|_| !context.force) {
        let (Some(old), Some(Value::Object(fields))) = (rule(parsed, name), service(&next, name)) else {
            continue;
        };
        let stays = rule(&then, name).is_some_and(|new| new.divides_as(old));
        if stays || !is_live(parsed, context, name) {
            continue;
        }
        let mut fields = fields.clone();
        fields.insert(KEY.to_owned(), service(current, name).map(|now| now[KEY].clone()).unwrap_or_default());
        next = with_service(&next, name, Some(Value::Object(fields)));
    }
    next
}

fn rule<'d>(document: &'d Document, name: &ServiceName) -> Option<&'d Sharding> {
    document.services.get(name)?.sharding.as_deref()
}

/// Whether anybody serves it, and so may hold data.
fn is_live(parsed: &Document, context: &Context<'_>, name: &ServiceName) -> bool {
    !shares::endpoints(parsed, context.alive, name).is_empty()
}
