//! What is asked of documents before or without a write: which users would move, who is alive, how long a version drains.

use std::collections::BTreeMap;
use std::time::Duration;

use gilmok_config::document::Document;
use gilmok_config::name::{Name, ServiceName};
use gilmok_config::snapshot::Membership;
use gilmok_config::traffic::DRAIN_TIMEOUT;
use serde::Serialize;
use serde_json::Value;

use super::{Intent, shares};

/// How long what is under way to a version may go on when it has lost its users; `None` is for ever.
#[must_use]
pub fn drain_timeout(document: &Document, name: &ServiceName) -> Option<Duration> {
    shares::traffic(document, name).map_or(Some(DRAIN_TIMEOUT), |traffic| traffic.drain_timeout)
}

/// How many endpoints of each version of a service are known to be alive.
#[must_use]
pub fn versions_alive(document: &Document, alive: &Membership, name: &ServiceName) -> BTreeMap<Name, u64> {
    shares::alive(document, alive, name)
}

/// Which users of a service a write would move, before anything moves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Moves {
    /// Percentage of the subjects that would have another version.
    pub moves_percent: f64,
    pub moves: Vec<Move>,
    /// Whose each place would be: version, first place, end.
    pub table: Vec<(Name, u32, u32)>,
    /// The traffic table as it would be kept.
    pub traffic: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Users who would have another version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Move {
    pub from: Name,
    pub to: Name,
    pub percent: f64,
}

/// Which users a write would move, of each service whose traffic would be another one.
#[must_use]
pub fn moves(before: &Document, after: &Intent) -> BTreeMap<ServiceName, Moves> {
    let percent = |places: u32| f64::from(places) / 10_000.0;
    let mut all = BTreeMap::new();
    for name in after.document.services.keys() {
        let Some(new) = shares::traffic(&after.document, name) else { continue };
        let old = shares::traffic(before, name);
        if old == Some(new) {
            continue;
        }
        let moved = old.map(|old| old.table.moves(&new.table)).unwrap_or_default();
        let mut warnings = Vec::new();
        if old.is_none() {
            warnings
                .push("it has no traffic table yet: until now each request went to any version".to_owned());
        } else if old.is_some_and(|old| old.salt != new.salt || old.subject != new.subject) {
            warnings.push("another salt or subject deals all users anew".to_owned());
        }
        let told = Moves {
            moves_percent: percent(moved.iter().map(|(_, _, places)| places).sum()),
            moves: moved
                .into_iter()
                .map(|(from, to, places)| Move { from, to, percent: percent(places) })
                .collect(),
            table: new
                .table
                .ranges()
                .iter()
                .map(|range| (range.version.clone(), range.start, range.end))
                .collect(),
            traffic: shares::table(&after.json, name).cloned().unwrap_or_default(),
            warnings,
        };
        all.insert(name.clone(), told);
    }
    all
}
