//! What a feed's lines come to: a state machine from lines to snapshots, without IO.
//!
//! It outlives connections. Within one the order is Hello, Document, Endpoints…, Synced, then changes.
//! Rules: never back within a store; no foreign store unless an operator accepts it; a set that is unknown
//! to the control plane never replaces one that is known; a faulty document keeps the one before.

use std::collections::BTreeMap;
use std::sync::Arc;

use gilmok_config::document::Document;
use gilmok_config::hash::content_hash;
use gilmok_config::problem::Problems;
use gilmok_config::service::ENDPOINTS_MAX;
use gilmok_config::snapshot::{Membership, Snapshot};
use gilmok_config::wire::{Applied, FeedLine, Refused, WIRE_LEVEL, WIRE_LEVEL_MIN};
use thiserror::Error;

use crate::source::fences::Closed;
use crate::source::last_known_good::Remembered;

/// Most services that membership may speak of; those that the document does not name cost memory only.
const MEMBERSHIP_SERVICES_MAX: usize = 2 * gilmok_config::document::SERVICES_MAX;

/// Longest name of a store, in bytes.
pub(crate) const STORE_BYTES_MAX: usize = 200;

/// Whether a store may have this name; it goes into queries and log lines.
pub(crate) fn is_store(name: &str) -> bool {
    !name.is_empty() && name.len() <= STORE_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Joins what control planes say. One for the whole life of the process.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    /// Whose intent is followed: pinned by the first document that is taken, or by an operator.
    store: Option<String>,
    /// What is followed now, and where there is no way back from.
    known: Option<Known>,
    membership: Membership,
    /// By which visitors are known; see [`FeedLine::Hello`].
    visitor_keys: String,
    /// Whether what is known was said or confirmed by a control plane since this process began.
    confirmed: bool,
}

#[derive(Clone, Debug)]
struct Known {
    revision: u64,
    hash: String,
    text: Arc<str>,
    document: Arc<Document>,
}

/// One connection's progress.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    store: Option<String>,
    /// The first full set while it is coming in; `None` once it is complete.
    incoming: Option<Membership>,
    synced: bool,
    /// Something changed since [`Joiner::take`] was asked last.
    changed: bool,
    /// The last document was refused.
    refused: bool,
}

impl Connection {
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether what it says is what is in force.
    pub(crate) fn is_good(&self) -> bool {
        self.synced && !self.refused
    }
}

/// Why a connection is given up.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FeedError {
    #[error(
        "it speaks for the store {found}, and this proxy follows {ours}; if that is meant, tell it by `gilmok proxies accept-store {found}` or POST /accept-store"
    )]
    ForeignStore { ours: String, found: String },
    #[error("a line out of order: {0}")]
    Order(&'static str),
    #[error("its store has a name that no store has")]
    StoreName,
    #[error("it speaks of more than {0}")]
    TooMany(String),
    #[error("it speaks wire level {0}; this proxy understands {WIRE_LEVEL_MIN} to {WIRE_LEVEL}")]
    Wire(u32),
}

/// What a line has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Go on.
    Taken,
    /// Go on with what was there before; tell why, loudly.
    Refused(Refused),
}

impl Joiner {
    /// Starts from what an earlier process wrote down.
    pub(crate) fn from_remembered(remembered: Remembered, document: Document) -> Self {
        let Remembered { store, revision, hash, text, membership, visitor_keys } = remembered;
        let known = Known { revision, hash, text, document: Arc::new(document) };
        Self { store: Some(store), known: Some(known), membership, visitor_keys, confirmed: false }
    }

    pub(crate) fn store(&self) -> Option<&str> {
        self.store.as_deref()
    }

    /// The revision that is followed; 0 for none.
    pub(crate) fn revision(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.revision)
    }

    pub(crate) fn hash(&self) -> Option<&str> {
        self.known.as_ref().map(|known| known.hash.as_str())
    }

    /// An operator says that this store's intent is to be followed, whatever its numbers.
    pub(crate) fn accept(&mut self, store: &str) {
        self.store = Some(store.to_owned());
        if let Some(known) = &mut self.known {
            // What runs goes on; whatever the store says next is newer than it.
            known.revision = 0;
            known.hash.clear();
        }
        self.confirmed = false;
    }

    /// By which visitors are known, one a line; empty where no control plane has said.
    pub(crate) fn visitor_keys(&self) -> &str {
        &self.visitor_keys
    }

    /// Acts on one line.
    ///
    /// # Errors
    /// Why this connection must end.
    pub(crate) fn line(&mut self, connection: &mut Connection, line: FeedLine) -> Result<Step, FeedError> {
        if !matches!(line, FeedLine::Hello { .. }) && connection.store.is_none() {
            return Err(FeedError::Order("something before the hello"));
        }
        match line {
            FeedLine::Hello { store, wire, visitor_keys, .. } => {
                let step = self.hello(connection, store, wire)?;
                // One from before it had any does not take them away.
                if !visitor_keys.is_empty() {
                    self.visitor_keys = visitor_keys;
                }
                Ok(step)
            }
            FeedLine::Document { revision, hash, document, .. } => {
                let step = self.document(connection, revision, hash, &document);
                connection.refused = matches!(step, Step::Refused(_));
                Ok(step)
            }
            FeedLine::Endpoints { service, endpoints, .. } => {
                if endpoints.len() > ENDPOINTS_MAX {
                    return Err(FeedError::TooMany(format!("{ENDPOINTS_MAX} endpoints of `{service}`")));
                }
                let known = connection.incoming.as_mut().unwrap_or(&mut self.membership);
                if known.len() >= MEMBERSHIP_SERVICES_MAX && !known.contains_key(&service) {
                    return Err(FeedError::TooMany(format!("{MEMBERSHIP_SERVICES_MAX} services")));
                }
                if known.get(&service).is_none_or(|before| **before != *endpoints) {
                    known.insert(service, endpoints.into());
                    connection.changed = true;
                }
                Ok(Step::Taken)
            }
            FeedLine::Forget { service } => {
                let known = connection.incoming.as_mut().unwrap_or(&mut self.membership);
                connection.changed |= known.remove(&service).is_some();
                Ok(Step::Taken)
            }
            FeedLine::Heartbeat { .. } => Ok(Step::Taken),
            FeedLine::Synced { .. } => {
                let Some(incoming) = connection.incoming.take() else {
                    return Err(FeedError::Order("synced twice"));
                };
                // What this control plane does not know (yet) stays as it was.
                self.membership.extend(incoming);
                connection.synced = true;
                connection.changed = true;
                Ok(Step::Taken)
            }
        }
    }

    fn hello(&self, connection: &mut Connection, store: String, wire: u32) -> Result<Step, FeedError> {
        if connection.store.is_some() {
            return Err(FeedError::Order("a second hello"));
        }
        if !(WIRE_LEVEL_MIN..=WIRE_LEVEL).contains(&wire) {
            return Err(FeedError::Wire(wire));
        }
        if !is_store(&store) {
            return Err(FeedError::StoreName);
        }
        if let Some(ours) = self.store.as_ref().filter(|ours| **ours != store) {
            return Err(FeedError::ForeignStore { ours: ours.clone(), found: store });
        }
        connection.store = Some(store);
        connection.incoming = Some(BTreeMap::new());
        Ok(Step::Taken)
    }

    fn document(
        &mut self,
        connection: &mut Connection,
        revision: u64,
        hash: String,
        document: &serde_json::Value,
    ) -> Step {
        let Some(store) = connection.store.clone() else { return Step::Taken };
        // The hash says whether there is anything new and what is acknowledged, so it must be that of these words.
        let text = document.to_string();
        if content_hash(text.as_bytes()) != hash {
            let mut problems = Problems::whole("the document is not the one that its hash names");
            let hint = "it was damaged on its way or in the store; write it again, or restore a revision";
            problems.0[0].hint = Some(hint.to_owned());
            return Step::Refused(Refused { store, revision, hash, problems });
        }
        if let Some(known) = &mut self.known {
            if known.hash == hash {
                // The same words under a later number, or under an earlier one at a replica that is behind.
                known.revision = known.revision.max(revision);
                connection.changed = true;
                return Step::Taken;
            }
            if revision <= known.revision {
                let what = format!(
                    "revision {revision} says something else, and this proxy runs {} already",
                    known.revision
                );
                let hint = "a replica that is behind catches up by itself; if the store was set back, tell this proxy by POST /accept-store";
                let mut problems = Problems::whole(what);
                problems.0[0].hint = Some(hint.to_owned());
                return Step::Refused(Refused { store, revision, hash, problems });
            }
        }
        match Document::parse_json(document) {
            Ok(parsed) => {
                self.known = Some(Known { revision, hash, text: text.into(), document: Arc::new(parsed) });
                self.store = Some(store);
                connection.changed = true;
                Step::Taken
            }
            Err(problems) => Step::Refused(Refused { store, revision, hash, problems }),
        }
    }

    /// The snapshot to put in force, if there is a new one that is complete.
    pub(crate) fn take(&mut self, connection: &mut Connection) -> Option<(Snapshot, Applied)> {
        if !connection.synced || !std::mem::take(&mut connection.changed) {
            return None;
        }
        self.confirmed = true;
        self.snapshot(false)
    }

    /// What is known although no control plane has confirmed it; `None` when one has, or nothing is known.
    pub(crate) fn fall_back(&self) -> Option<(Snapshot, Applied)> {
        if self.confirmed { None } else { self.snapshot(true) }
    }

    fn snapshot(&self, last_known_good: bool) -> Option<(Snapshot, Applied)> {
        let known = self.known.as_ref()?;
        let applied = Applied {
            store: self.store.clone()?,
            revision: known.revision,
            hash: known.hash.clone(),
            last_known_good,
        };
        Some((Snapshot::join(&known.document, &self.membership), applied))
    }

    /// What is closed in what is followed.
    pub(crate) fn closed(&self) -> Closed {
        let known = self.store.as_deref().zip(self.known.as_ref());
        known.map(|(store, known)| Closed::of(store, &known.document)).unwrap_or_default()
    }

    /// What the next process shall know.
    pub(crate) fn remember(&self) -> Option<Remembered> {
        let known = self.known.as_ref()?;
        Some(Remembered {
            store: self.store.clone()?,
            revision: known.revision,
            hash: known.hash.clone(),
            text: Arc::clone(&known.text),
            membership: self.membership.clone(),
            visitor_keys: self.visitor_keys.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hello(store: &str, revision: u64) -> FeedLine {
        FeedLine::Hello {
            store: store.to_owned(),
            revision,
            hash: format!("h{revision}"),
            wire: WIRE_LEVEL,
            visitor_keys: String::new(),
            required: Vec::new(),
        }
    }

    fn document(revision: u64, services: &[&str]) -> FeedLine {
        let services: serde_json::Map<_, _> =
            services.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
        hashed(revision, json!({ "services": services }))
    }

    fn hashed(revision: u64, document: serde_json::Value) -> FeedLine {
        let hash = content_hash(document.to_string().as_bytes());
        FeedLine::Document { revision, hash, document, required: Vec::new() }
    }

    fn endpoints(service: &str, addresses: &[&str]) -> FeedLine {
        let endpoints =
            addresses.iter().map(|address| gilmok_config::endpoint::Endpoint::at(address.parse().unwrap()));
        FeedLine::Endpoints {
            service: gilmok_config::name::ServiceName::parse(service).unwrap(),
            endpoints: endpoints.collect(),
            required: Vec::new(),
        }
    }

    const SYNCED: FeedLine = FeedLine::Synced { revision: 1 };

    /// Plays lines on one new connection; what is put in force, and what was refused or ended it.
    fn play(joiner: &mut Joiner, lines: Vec<FeedLine>) -> (Vec<(Snapshot, Applied)>, Vec<String>) {
        let mut connection = Connection::default();
        let (mut put, mut told) = (Vec::new(), Vec::new());
        for line in lines {
            match joiner.line(&mut connection, line) {
                Ok(Step::Taken) => {}
                Ok(Step::Refused(refused)) => told.push(refused.problems.to_string()),
                Err(error) => {
                    told.push(error.to_string());
                    break;
                }
            }
            put.extend(joiner.take(&mut connection));
        }
        (put, told)
    }

    fn addresses(snapshot: &Snapshot, service: &str) -> Vec<String> {
        let index = snapshot.service_index(service).unwrap();
        snapshot.services()[index].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn nothing_is_in_force_before_the_first_set_is_complete() {
        let lines = vec![hello("s", 1), document(1, &["ads"]), endpoints("ads", &["10.0.0.1:1"])];
        let (put, told) = play(&mut Joiner::default(), lines.clone());
        assert!(put.is_empty() && told.is_empty());
        let mut joiner = Joiner::default();
        let (put, _) = play(&mut joiner, [lines, vec![SYNCED, endpoints("ads", &[])]].concat());
        assert_eq!(put.len(), 2);
        assert_eq!(addresses(&put[0].0, "ads"), ["10.0.0.1:1"]);
        assert_eq!(addresses(&put[1].0, "ads"), [""; 0]);
        let hash = content_hash(br#"{"services":{"ads":{}}}"#);
        let applied = Applied { store: "s".into(), revision: 1, hash, last_known_good: false };
        assert_eq!(put[1].1, applied);
    }

    #[test]
    fn an_unknown_set_never_replaces_a_known_one() {
        let mut joiner = Joiner::default();
        let whole = vec![hello("s", 1), document(1, &["ads"]), endpoints("ads", &["10.0.0.1:1"]), SYNCED];
        play(&mut joiner, whole);
        // A control plane that has not heard of Consul yet.
        let (put, _) = play(&mut joiner, vec![hello("s", 1), document(1, &["ads"]), SYNCED]);
        assert_eq!(addresses(&put[0].0, "ads"), ["10.0.0.1:1"]);
        let empty = vec![hello("s", 1), document(1, &["ads"]), endpoints("ads", &[]), SYNCED];
        let (put, _) = play(&mut joiner, empty);
        assert_eq!(addresses(&put[0].0, "ads"), [""; 0], "known to be none");
    }

    #[test]
    fn there_is_no_way_back_within_a_store() {
        let mut joiner = Joiner::default();
        play(&mut joiner, vec![hello("s", 5), document(5, &["a"]), SYNCED]);
        let (put, told) = play(
            &mut joiner,
            vec![hello("s", 4), document(4, &["b"]), endpoints("a", &["10.0.0.1:1"]), SYNCED],
        );
        assert!(told[0].contains("revision 4 says something else, and this proxy runs 5"), "{told:?}");
        assert_eq!(put[0].1.revision, 5, "its endpoints are good all the same");
        assert_eq!(addresses(&put[0].0, "a"), ["10.0.0.1:1"]);
        let (_, told) = play(&mut joiner, vec![hello("s", 5), document(5, &["b"])]);
        assert_eq!(told.len(), 1, "the same number with another hash");
        let (put, told) = play(&mut joiner, vec![hello("s", 4), document(4, &["a"]), SYNCED]);
        assert_eq!((put[0].1.revision, told.len()), (5, 0), "the same words under an earlier number");
        joiner.accept("s");
        let (put, told) = play(&mut joiner, vec![hello("s", 4), document(4, &["b"]), SYNCED]);
        assert_eq!((put[0].1.revision, told.len()), (4, 0), "an operator said so");
    }

    #[test]
    fn a_foreign_store_is_refused_until_it_is_accepted() {
        let mut joiner = Joiner::default();
        play(&mut joiner, vec![hello("ours", 5), document(5, &["a"]), SYNCED]);
        let foreign = vec![hello("theirs", 9), document(9, &["b"]), SYNCED];
        let (put, told) = play(&mut joiner, foreign.clone());
        assert!(put.is_empty() && told[0].contains("it speaks for the store theirs"), "{told:?}");
        joiner.accept("theirs");
        let (put, told) = play(&mut joiner, foreign);
        assert!(told.is_empty());
        assert_eq!(put[0].1.store, "theirs");
        let (_, told) = play(&mut joiner, vec![hello("ours", 6)]);
        assert_eq!(told.len(), 1, "and ours is the foreign one now");
    }

    #[test]
    fn a_faulty_document_keeps_the_one_before_and_tells_why() {
        let mut joiner = Joiner::default();
        let faulty = hashed(2, json!({"services": {"a": {"protocol": "smtp"}}}));
        let lines = vec![hello("s", 1), document(1, &["a"]), SYNCED, faulty, endpoints("a", &["10.0.0.1:1"])];
        let (put, told) = play(&mut joiner, lines);
        assert!(told[0].contains("services.a.protocol"), "{told:?}");
        assert_eq!(put.last().unwrap().1.revision, 1);
        assert_eq!(addresses(&put.last().unwrap().0, "a"), ["10.0.0.1:1"]);
    }

    #[test]
    fn a_document_that_is_not_what_its_hash_names_is_refused() {
        let mut joiner = Joiner::default();
        play(&mut joiner, vec![hello("s", 1), document(1, &["a"]), SYNCED]);
        let FeedLine::Document { hash, .. } = document(1, &["a"]) else { unreachable!("it makes documents") };
        // Damaged under a new number, and other words under the hash of what is in force.
        for (revision, hash) in [(2, "0".repeat(32)), (2, hash.clone()), (1, hash)] {
            let document = json!({"services": {"b": {}}});
            let damaged = FeedLine::Document { revision, hash, document, required: Vec::new() };
            let (put, told) = play(&mut joiner, vec![hello("s", revision), damaged, SYNCED]);
            assert!(told[0].contains("not the one that its hash names"), "{told:?}");
            assert_eq!((put[0].1.revision, put[0].0.service_index("a")), (1, Some(0)));
        }
        let (put, told) = play(&mut joiner, vec![hello("s", 2), document(2, &["b"]), SYNCED]);
        assert_eq!((put[0].1.revision, told.len()), (2, 0), "whole again");
    }

    #[test]
    fn lines_out_of_order_end_a_connection() {
        for (lines, expected) in [
            (vec![document(1, &[])], "something before the hello"),
            (vec![SYNCED], "something before the hello"),
            (vec![hello("s", 1), hello("s", 1)], "a second hello"),
            (vec![hello("s", 1), SYNCED, SYNCED], "synced twice"),
            (vec![hello(&"s".repeat(1_000), 1)], "a name that no store has"),
            (vec![hello("s\nERROR all is lost", 1)], "a name that no store has"),
        ] {
            let (put, told) = play(&mut Joiner::default(), lines);
            assert!(put.is_empty() && told[0].contains(expected), "{told:?}");
        }
        let old = FeedLine::Hello {
            store: "s".into(),
            revision: 1,
            hash: "h".into(),
            wire: WIRE_LEVEL + 1,
            visitor_keys: String::new(),
            required: Vec::new(),
        };
        assert!(play(&mut Joiner::default(), vec![old]).1[0].contains("wire level"));
    }

    #[test]
    fn what_is_remembered_serves_until_a_control_plane_has_spoken() {
        let mut before = Joiner::default();
        let whole = vec![hello("s", 3), document(3, &["ads"]), endpoints("ads", &["10.0.0.1:1"]), SYNCED];
        play(&mut before, whole.clone());
        let remembered = before.remember().unwrap();
        let parsed = Document::parse_json(&serde_json::from_str(&remembered.text).unwrap()).unwrap();
        let mut joiner = Joiner::from_remembered(remembered, parsed);
        let (snapshot, applied) = joiner.fall_back().unwrap();
        assert!(applied.last_known_good && applied.revision == 3);
        assert_eq!(addresses(&snapshot, "ads"), ["10.0.0.1:1"]);
        let (put, _) = play(&mut joiner, whole);
        assert!(!put[0].1.last_known_good);
        assert!(joiner.fall_back().is_none());
    }
}
