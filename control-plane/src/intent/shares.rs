//! Traffic tables in the document: who moves together, what shares become, and the table that moves the fewest users.

use std::collections::BTreeMap;

use gilmok_config::document::Document;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::traffic::Traffic;
use gilmok_config::unit::Ppm;
use serde_json::{Map, Value, json};

use super::{Refusal, with_service};
use crate::rollout::state::Tables;

/// The key of a service's table.
const KEY: &str = "traffic";
/// What of a traffic table says who is where. The rest, pins say, is left alone by whoever moves users.
const WHO_IS_WHERE: [&str; 4] = ["stable", "weights", "table", "salt"];

/// How a service's users are to be spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spread<'n> {
    /// Everybody to this version, which is the stable one from then on.
    All(&'n Name),
    /// This share to the candidate, the rest to the stable version.
    Share(&'n Name, Ppm),
}

/// One service's traffic table as the operators wrote it.
pub(crate) fn table<'d>(document: &'d Value, service: &ServiceName) -> Option<&'d Value> {
    super::service(document, service)?.get(KEY)
}

/// The document with another traffic table of a service, or none.
pub(super) fn with_table(document: &Value, service: &ServiceName, table: Option<Value>) -> Value {
    let mut fields = match super::service(document, service) {
        Some(Value::Object(fields)) => fields.clone(),
        _ => Map::new(),
    };
    match table {
        Some(table) => fields.insert(KEY.to_owned(), table),
        None => fields.remove(KEY),
    };
    with_service(document, service, Some(Value::Object(fields)))
}

/// A service's traffic as it is understood.
pub(super) fn traffic<'d>(document: &'d Document, service: &ServiceName) -> Option<&'d Traffic> {
    document.services.get(service)?.traffic.as_deref()
}

/// The service and whoever moves with it: the services of its group.
pub(super) fn together(document: &Document, service: &ServiceName) -> Vec<ServiceName> {
    let group = traffic(document, service).and_then(|traffic| traffic.group.as_ref());
    let others = document.services.iter().filter(|(name, policy)| {
        let theirs = policy.traffic.as_deref().and_then(|traffic| traffic.group.as_ref());
        *name != service && group.is_some() && theirs == group
    });
    std::iter::once(service).chain(others.map(|(name, _)| name)).cloned().collect()
}

/// The traffic tables of a service and whoever moves with it, as they are.
pub(super) fn tables(document: &Value, parsed: &Document, service: &ServiceName) -> Tables {
    let all = together(parsed, service).into_iter();
    all.filter_map(|name| table(document, &name).cloned().map(|table| (name, table))).collect()
}

/// The document in which the users of a service, and of whoever moves with it, are spread like this.
///
/// # Errors
/// When it is not plain which version of another service of the group is meant.
pub(super) fn spread(
    document: &Value,
    parsed: &Document,
    service: &ServiceName,
    how: &Spread<'_>,
) -> Result<Value, Refusal> {
    let all = together(parsed, service);
    let is_group = all.len() > 1;
    let mut next = document.clone();
    for name in &all {
        let known = traffic(parsed, name);
        let (Spread::All(to) | Spread::Share(to, _)) = how;
        let own = if name == service { (*to).clone() } else { counterpart(parsed, service, name, to)? };
        let stable = known.map_or(&own, Traffic::stable_name);
        let mut weights = Map::new();
        let mut weigh = |version: &Name, share: Ppm| {
            weights.insert(version.to_string(), percent(share));
        };
        let stable = match how {
            Spread::All(_) => {
                // A group's other versions stay named: else nobody could tell which ones belong together.
                if is_group && *stable != own {
                    weigh(stable, Ppm::NONE);
                }
                weigh(&own, Ppm::WHOLE);
                &own
            }
            Spread::Share(_, share) => {
                weigh(stable, share.rest());
                weigh(&own, *share);
                stable
            }
        };
        let mut fields = match table(&next, name) {
            Some(Value::Object(fields)) => fields.clone(),
            _ => Map::new(),
        };
        fields.insert("stable".to_owned(), json!(stable));
        fields.insert("weights".to_owned(), Value::Object(weights));
        fields.remove("table");
        next = with_table(&next, name, Some(Value::Object(fields)));
    }
    Ok(next)
}

/// Which version of another service of the group belongs to this version of this one.
fn counterpart(
    parsed: &Document,
    service: &ServiceName,
    other: &ServiceName,
    version: &Name,
) -> Result<Name, Refusal> {
    let theirs = traffic(parsed, other);
    if traffic(parsed, service).is_some_and(|own| own.stable_name() == version)
        && let Some(theirs) = theirs
    {
        return Ok(theirs.stable_name().clone());
    }
    let mut candidates = theirs
        .into_iter()
        .flat_map(|theirs| theirs.weights.keys().filter(|name| *name != theirs.stable_name()));
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) | (_, Some(_)) => Err(Refusal::Conflict(format!(
            "`{other}` is of the same group, and which of its versions goes with `{version}` is not plain: its weights name the stable version and one other"
        ))),
    }
}

/// The document with users where these tables have them.
pub(super) fn brought_back(document: &Value, before: &Tables) -> Value {
    let mut next = document.clone();
    for (name, table_before) in before {
        if super::service(&next, name).is_none() {
            continue;
        }
        let mut fields = match table(&next, name) {
            Some(Value::Object(fields)) => fields.clone(),
            _ => Map::new(),
        };
        for key in WHO_IS_WHERE {
            match table_before.get(key) {
                Some(value) => fields.insert(key.to_owned(), value.clone()),
                None => fields.remove(key),
            };
        }
        next = with_table(&next, name, Some(Value::Object(fields)));
    }
    next
}

/// The document with the tables that move the fewest users, where its author left that to us; `None` where nothing is to
/// be written.
pub(super) fn with_least_moves(document: &Value, before: &Document, after: &Document) -> Option<Value> {
    let mut next = None;
    for (name, policy) in &after.services {
        let Some(traffic) = policy.traffic.as_deref().filter(|traffic| !traffic.has_table) else { continue };
        let Some(known) = self::traffic(before, name) else { continue };
        if known.salt != traffic.salt || known.subject != traffic.subject {
            continue;
        }
        let Ok(least) = known.table.reweighed(traffic.stable_name(), &traffic.weights) else { continue };
        if least == traffic.table {
            continue;
        }
        let ranges: Vec<Value> =
            least.ranges().iter().map(|range| json!([range.version, range.start, range.end])).collect();
        let base = next.as_ref().unwrap_or(document);
        let Some(Value::Object(fields)) = table(base, name) else { continue };
        let mut fields = fields.clone();
        fields.insert("table".to_owned(), Value::Array(ranges));
        next = Some(with_table(base, name, Some(Value::Object(fields))));
    }
    next
}

/// A share as documents write it: whole numbers where it is one.
fn percent(share: Ppm) -> Value {
    if share.get().is_multiple_of(10_000) { json!(share.get() / 10_000) } else { json!(share.percent()) }
}

/// How many endpoints of each version are known to be alive: as membership says, or as the document lists them.
pub(super) fn alive(
    parsed: &Document,
    membership: &gilmok_config::snapshot::Membership,
    service: &ServiceName,
) -> BTreeMap<Name, u64> {
    let mut alive = BTreeMap::new();
    for endpoint in endpoints(parsed, membership, service) {
        *alive.entry(endpoint.version.clone()).or_default() += u64::from(endpoint.weight > 0);
    }
    alive
}

/// Who serves a service: as membership says, or as the document lists them.
pub(crate) fn endpoints<'a>(
    parsed: &'a Document,
    membership: &'a gilmok_config::snapshot::Membership,
    service: &ServiceName,
) -> &'a [Endpoint] {
    let told = membership.get(service).filter(|endpoints| !endpoints.is_empty());
    let listed = parsed.services.get(service).map_or(&[][..], |policy| &policy.endpoints);
    told.map_or(listed, |told| told)
}
