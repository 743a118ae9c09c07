//! What holds for every text that comes as a document, as flags or as a line of the wire; shared with the fuzzers in tests/fuzz.

use gilmok_config::decide::{Facts, Listener, decide};
use gilmok_config::document::Document;
use gilmok_config::flag::{Asked, Context, FlagSet};
use gilmok_config::node::Node;
use gilmok_config::snapshot::{Membership, Snapshot};
use gilmok_config::wire::{Ack, FeedLine, Registration};
use http::{HeaderMap, Method};

/// Reads a text as a document. A sound one says the same as JSON, and everything can be decided by it.
pub(crate) fn document(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let node = if text.starts_with('{') { Node::parse_json(bytes) } else { Node::parse_toml(text) };
    let Ok(node) = node else { return };
    let document = match Document::read(&node) {
        Ok(document) => document,
        Err(problems) => {
            assert!(!problems.is_empty() && !problems.to_string().is_empty(), "refused without a reason");
            return;
        }
    };
    let again = Document::parse_json(&node.to_json());
    let again = again.unwrap_or_else(|told| panic!("sound as TOML, but not as JSON: {told}"));
    assert_eq!(again.services, document.services, "another meaning as JSON");
    let snapshot = Snapshot::join(&document, &Membership::new());
    let hosts = document.services.keys().map(|name| name.to_string()).chain(["nobody.example".to_owned()]);
    for host in hosts.take(8) {
        for listener in [Listener::Outbound, Listener::Edge] {
            let headers = HeaderMap::new();
            let facts = Facts::of(listener, &host, "/a/b", &Method::GET, &headers);
            if let Ok(decision) = decide(&snapshot, &facts, &|target| target.version % 2 == 0) {
                assert!(decision.service < snapshot.services().len());
            }
        }
    }
}

/// Reads bytes as each thing that the wire knows. What is understood is written and read back the same.
pub(crate) fn wire(bytes: &[u8]) {
    if let Ok(line) = FeedLine::parse(bytes) {
        let written = line.to_bytes();
        assert_eq!(written.last(), Some(&b'\n'));
        assert_eq!(FeedLine::parse(&written), Ok(line));
    }
    if let Ok(ack) = serde_json::from_slice::<Ack>(bytes) {
        let written = serde_json::to_vec(&ack).expect("an ack can be written");
        assert_eq!(serde_json::from_slice::<Ack>(&written).ok(), Some(ack));
    }
    if let Ok(registration) = serde_json::from_slice::<Registration>(bytes) {
        let written = serde_json::to_vec(&registration).expect("a registration can be written");
        assert_eq!(serde_json::from_slice::<Registration>(&written).ok(), Some(registration));
    }
}

/// Reads bytes as flagd's document. Every flag of a sound one can be evaluated, explained and told.
pub(crate) fn flags(bytes: &[u8]) {
    let set = match FlagSet::parse(bytes) {
        Ok(set) => set,
        Err(problems) => {
            assert!(!problems.is_empty() && !problems.to_string().is_empty(), "refused without a reason");
            return;
        }
    };
    // The document itself is as good a context as any.
    let context = serde_json::from_slice(bytes).unwrap_or_default();
    for context in [Context::of_json(&context), Context::of_texts(Some("ann"), &[("tier", "gold".into())])] {
        let asked =
            Asked { follows: &|service| Some(service.len() > 4), ..Asked::of(&context, 1_700_000_000) };
        for flag in set.flags() {
            let found = set.evaluate_flag(flag, &asked);
            if let Ok(found) = &found {
                assert!(found.place().is_none_or(|at| at < flag.variants().len()));
            }
            let told = set.explain(flag.key(), &asked).expect("the flag is there");
            assert_eq!(told["reason"] == "ERROR", found.is_err(), "{told}");
        }
    }
}
