//! From intent and membership to what proxies are told. Pure: the same input makes the same lines on every replica.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gilmok_config::document::Document;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::ServiceName;
use gilmok_config::snapshot::{Membership, Snapshot};
use gilmok_config::wire::{FeedLine, WIRE_LEVEL};

use crate::intent::Intent;
use crate::membership::View;
use crate::store::{Identity, Revision};

/// What is true now: one revision and who is alive, with every line that says so made once for all proxies.
#[derive(Debug)]
pub struct Published {
    pub store: Arc<str>,
    pub revision: u64,
    pub hash: String,
    pub hello: Bytes,
    pub document: Bytes,
    pub synced: Bytes,
    pub heartbeat: Bytes,
    pub endpoints: BTreeMap<ServiceName, Arc<EndpointSet>>,
    /// What it says, for those who ask here.
    intent: Document,
    snapshot: OnceLock<Snapshot>,
}

/// The endpoints of one service, and the line that tells them.
#[derive(Debug)]
pub struct EndpointSet {
    pub endpoints: Arc<[Endpoint]>,
    pub line: Bytes,
}

impl Published {
    /// What operators want, as this version understands it.
    #[must_use]
    pub fn intent(&self) -> &Document {
        &self.intent
    }

    /// The snapshot that proxies join of the same lines; made when it is first asked for.
    pub fn snapshot(&self) -> &Snapshot {
        self.snapshot.get_or_init(|| {
            let alive = self.endpoints.iter().map(|(name, set)| (name.clone(), Arc::clone(&set.endpoints)));
            Snapshot::join(&self.intent, &alive.collect::<Membership>())
        })
    }

    /// The lines that bring a proxy from `before` (or from nothing) to here.
    #[must_use]
    pub fn lines_since(&self, before: Option<&Self>) -> Vec<Bytes> {
        let Some(before) = before else {
            let endpoints = self.endpoints.values().map(|set| set.line.clone());
            let begin = [self.hello.clone(), self.document.clone()];
            return begin.into_iter().chain(endpoints).chain([self.synced.clone()]).collect();
        };
        let mut lines = Vec::new();
        if self.revision != before.revision {
            lines.push(self.document.clone());
        }
        for (name, set) in &self.endpoints {
            let known = before.endpoints.get(name);
            if known.is_none_or(|known| !Arc::ptr_eq(known, set) && known.endpoints != set.endpoints) {
                lines.push(set.line.clone());
            }
        }
        let gone = before.endpoints.keys().filter(|name| !self.endpoints.contains_key(*name));
        lines.extend(gone.map(|name| line(&FeedLine::Forget { service: name.clone() })));
        lines
    }
}

/// Compiles a revision and a view; sets that are as they were in `before` are taken over with their lines.
///
/// Proxies are sent the document as it was written and hashed. It was sound then; should this version find fault
/// with it, they judge for themselves, and only what is asked here is answered as if nothing were wanted.
#[must_use]
pub fn compile(
    identity: &Identity,
    revision: &Revision,
    view: &View,
    before: Option<&Published>,
) -> Published {
    let intent = Intent::parse(&revision.document).unwrap_or_else(|_| Intent::empty());
    let endpoints = view.endpoints.iter().map(|(name, endpoints)| {
        let kept = before.and_then(|before| before.endpoints.get(name));
        let set = match kept.filter(|kept| *kept.endpoints == **endpoints) {
            Some(kept) => Arc::clone(kept),
            None => Arc::new(EndpointSet::new(name, endpoints)),
        };
        (name.clone(), set)
    });
    let (number, hash) = (revision.number, revision.hash.clone());
    Published {
        store: Arc::clone(&identity.store),
        revision: number,
        hello: line(&FeedLine::Hello {
            store: identity.store.to_string(),
            revision: number,
            hash: hash.clone(),
            wire: WIRE_LEVEL,
            visitor_keys: identity.visitor_keys.to_string(),
            required: Vec::new(),
        }),
        document: line(&FeedLine::Document {
            revision: number,
            hash: hash.clone(),
            document: revision.document.clone(),
            required: Vec::new(),
        }),
        synced: line(&FeedLine::Synced { revision: number }),
        heartbeat: line(&FeedLine::Heartbeat { revision: number }),
        hash,
        endpoints: endpoints.collect(),
        intent: intent.document,
        snapshot: OnceLock::new(),
    }
}

impl EndpointSet {
    fn new(service: &ServiceName, endpoints: &Arc<[Endpoint]>) -> Self {
        let line = line(&FeedLine::Endpoints {
            service: service.clone(),
            endpoints: endpoints.to_vec(),
            required: Vec::new(),
        });
        Self { endpoints: Arc::clone(endpoints), line }
    }
}

fn line(line: &FeedLine) -> Bytes {
    line.to_bytes().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity() -> Identity {
        Identity { store: "s".into(), visitor_keys: "the key of visitors".into() }
    }

    fn revision(number: u64) -> Revision {
        let intent = Intent::parse(&json!({"services": {"ads": {"max_concurrent": number}}})).unwrap();
        Revision {
            number,
            at_ms: 0,
            who: String::new(),
            what: String::new(),
            reason: String::new(),
            hash: intent.hash,
            document: intent.json,
        }
    }

    fn view(ports: &[u16]) -> View {
        let endpoints: Vec<_> =
            ports.iter().map(|port| Endpoint::at(format!("10.0.0.1:{port}").parse().unwrap())).collect();
        let mut view = View::default();
        view.endpoints.insert(ServiceName::parse("ads").unwrap(), endpoints.into());
        view
    }

    fn kinds(lines: &[Bytes]) -> Vec<String> {
        lines
            .iter()
            .map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["line"].to_string())
            .collect()
    }

    #[test]
    fn a_proxy_is_told_everything_once_and_then_what_changes() {
        let first = compile(&identity(), &revision(1), &view(&[1]), None);
        assert_eq!(
            kinds(&first.lines_since(None)),
            ["\"hello\"", "\"document\"", "\"endpoints\"", "\"synced\""]
        );
        let same = compile(&identity(), &revision(1), &view(&[1]), Some(&first));
        assert!(same.lines_since(Some(&first)).is_empty());
        let moved = compile(&identity(), &revision(1), &view(&[1, 2]), Some(&same));
        assert_eq!(kinds(&moved.lines_since(Some(&same))), ["\"endpoints\""]);
        let written = compile(&identity(), &revision(2), &view(&[1, 2]), Some(&moved));
        assert_eq!(kinds(&written.lines_since(Some(&moved))), ["\"document\""]);
        let gone = compile(&identity(), &revision(2), &View::default(), Some(&written));
        assert_eq!(kinds(&gone.lines_since(Some(&written))), ["\"forget\""]);
    }

    #[test]
    fn the_document_is_sent_as_it_is_hashed() {
        let published = compile(&identity(), &revision(7), &view(&[]), None);
        let line = serde_json::from_slice::<serde_json::Value>(&published.document).unwrap();
        let text = line["document"].to_string();
        assert_eq!(gilmok_config::hash::content_hash(text.as_bytes()), published.hash);
    }

    #[test]
    fn a_document_that_this_version_finds_faulty_is_sent_as_it_was_written() {
        let document = json!({"services": {"ads": {"protocol": "of the past"}}});
        let hash = gilmok_config::hash::content_hash(document.to_string().as_bytes());
        let old = Revision { hash: hash.clone(), document: document.clone(), ..revision(1) };
        let published = compile(&identity(), &old, &view(&[]), None);
        let line = serde_json::from_slice::<serde_json::Value>(&published.document).unwrap();
        assert_eq!((&line["document"], line["hash"].as_str()), (&document, Some(hash.as_str())));
    }

    #[test]
    fn ten_thousand_endpoints_are_compiled_again_without_writing_their_lines_again() {
        let mut view = View::default();
        for service in 0..1_000 {
            let endpoints: Vec<_> = (1..=10)
                .map(|port| {
                    Endpoint::at(format!("10.0.{}.{}:{port}", service / 250, service % 250).parse().unwrap())
                })
                .collect();
            view.endpoints.insert(ServiceName::parse(&format!("s{service}")).unwrap(), endpoints.into());
        }
        let first = compile(&identity(), &revision(1), &view, None);
        let second = compile(&identity(), &revision(2), &view, Some(&first));
        assert!(first.endpoints.iter().all(|(name, set)| Arc::ptr_eq(set, &second.endpoints[name])));
    }
}
