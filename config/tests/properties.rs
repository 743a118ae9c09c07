//! What holds for every text and every mesh: reading never panics, deciding is total and follows the document's order.

use std::sync::Arc;

use gilmok_config::decide::{Facts, Listener, Refusal, decide};
use gilmok_config::document::Document;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::host::canonical;
use gilmok_config::name::ServiceName;
use gilmok_config::node::Node;
use gilmok_config::snapshot::{Membership, Snapshot};
use gilmok_config::wire::FeedLine;
use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;

const SOUND: &str = include_str!("golden/documents/sound.toml");
const LINES: &str = include_str!("golden/wire/feed-1.ndjson");

/// Pieces that documents are made of, in any order.
const PIECES: [&str; 24] = [
    "[services.a]",
    "[[routes]]",
    "[services.a.health_check]",
    "[[services.a.endpoints]]",
    "\n",
    "hosts",
    "=",
    "path_regex",
    "service",
    "\"a\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    ".",
    "1",
    "-",
    "1e400",
    "nan",
    "\u{feff}",
    "\r\n",
];

/// Everything that reads what others wrote.
fn read_everywhere(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(document) = Document::parse_toml(&text) {
        let snapshot = Snapshot::join(&document, &Membership::new());
        assert_eq!(snapshot.services().len(), document.services.len());
    }
    if let Ok(node) = Node::parse_json(bytes) {
        let again = Document::read(&node).is_ok();
        assert_eq!(again, Document::parse_json(&node.to_json()).is_ok(), "the same through JSON");
    }
    if let Ok(line) = FeedLine::parse(bytes) {
        assert_eq!(FeedLine::parse(&line.to_bytes()), Ok(line), "what is written is read back");
    }
    if let Some(host) = canonical(&text) {
        assert_eq!(canonical(&host).as_deref(), Some(&*host), "canonical is a fixed point");
        assert!(!host.is_empty() && host.is_ascii() && !host.bytes().any(|b| b.is_ascii_uppercase()));
    }
}

fn mutated(text: &str, changes: &[(usize, u8, u8)]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (at, kind, byte) in changes {
        let at = at % bytes.len().max(1);
        match kind % 4 {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            2 => bytes.truncate(at.max(1)),
            _ => drop(bytes.splice(at..(at + 9).min(bytes.len()), []).count()),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        read_everywhere(&bytes);
    }

    #[test]
    fn no_pieces_of_documents_make_a_reader_panic(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES.to_vec()), 0..60),
    ) {
        read_everywhere(pieces.concat().as_bytes());
    }

    #[test]
    fn no_change_to_what_is_sound_makes_a_reader_panic(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..8),
        line in 0..7_usize,
    ) {
        read_everywhere(&mutated(SOUND, &changes));
        read_everywhere(&mutated(LINES.lines().nth(line).unwrap(), &changes));
    }
}

const HOSTS: [&str; 4] = ["a", "b.mesh", "shop.example.com", "nobody.example.com"];
const PATHS: [&str; 5] = ["/", "/x", "/x/y", "/xy", "*"];

/// A route told by indices: hosts, kind and value of the path, method, header, service.
type Told = (Vec<usize>, u8, usize, bool, bool, usize);

fn document_of(routes: &[Told]) -> String {
    let mut text = "[services.a]\n[services.b]\n[services.c]\n".to_owned();
    for (hosts, kind, path, get, header, service) in routes {
        text.push_str("[[routes]]\n");
        if !hosts.is_empty() {
            let mut hosts: Vec<_> = hosts.iter().map(|host| HOSTS[*host]).collect();
            hosts.sort_unstable();
            hosts.dedup();
            text.push_str(&format!("hosts = {hosts:?}\n"));
        }
        let path = PATHS[*path % 4];
        match kind % 4 {
            0 => {}
            1 => text.push_str(&format!("path = {path:?}\n")),
            2 => text.push_str(&format!("path_prefix = {path:?}\n")),
            _ => text.push_str(&format!("path_regex = \"{path}.?\"\n")),
        }
        if *get {
            text.push_str("methods = [\"GET\"]\n");
        }
        if *header {
            text.push_str("headers = { x-beta = \"1\" }\n");
        }
        text.push_str(&format!("service = {:?}\n", ["a", "b", "c"][*service]));
    }
    text
}

/// What the contract says, read literally: the first route that matches, else the service's own name.
fn by_the_book(document: &Document, facts: &Facts<'_>) -> Result<(String, Option<usize>), Refusal> {
    let is_routed = document.routes.iter().any(|route| route.hosts.iter().any(|host| host == facts.host));
    if facts.listener == Listener::Edge && !is_routed {
        return Err(Refusal::NoDestination);
    }
    for (index, route) in document.routes.iter().enumerate() {
        let host = route.hosts.is_empty() || route.hosts.iter().any(|host| host == facts.host);
        if host && route.matches(facts.method, facts.path, facts.headers) {
            return Ok((route.service.to_string(), Some(index)));
        }
    }
    let own = |name: &&ServiceName| {
        let rest = facts.host.strip_prefix(name.as_str());
        matches!(rest, Some("" | ".mesh" | ".service.consul"))
    };
    let own = document.services.keys().find(own).filter(|_| facts.listener != Listener::Edge);
    own.map(|name| (name.to_string(), None)).ok_or(Refusal::NoDestination)
}

proptest! {
    #[test]
    fn deciding_follows_the_documents_order_for_every_request(
        routes in proptest::collection::vec(
            (proptest::collection::vec(0..4_usize, 0..3), any::<u8>(), 0..5_usize, any::<bool>(), any::<bool>(), 0..3_usize),
            0..6,
        ),
    ) {
        // Unreachable routes are refused; what is left is decided on.
        let Ok(document) = Document::parse_toml(&document_of(&routes)) else { return Ok(()) };
        let snapshot = Snapshot::join(&document, &Membership::new());
        let mut beta = HeaderMap::new();
        beta.insert("x-beta", HeaderValue::from_static("1"));
        for listener in [Listener::Edge, Listener::Inbound, Listener::Outbound] {
            for host in HOSTS.iter().copied().chain(["b", "c.service.consul", ""]) {
                for (path, method, headers) in PATHS.iter().flat_map(|path| {
                    [(path, Method::GET, HeaderMap::new()), (path, Method::POST, beta.clone())]
                }) {
                    let facts = Facts::of(listener, host, path, &method, &headers);
                    let decided = decide(&snapshot, &facts, &|_| true).map(|decision| {
                        (snapshot.services()[decision.service].name.to_string(), decision.route)
                    });
                    prop_assert_eq!(decided, by_the_book(&document, &facts));
                }
            }
        }
    }

    #[test]
    fn membership_joins_the_same_in_whatever_order_it_was_heard(
        names in proptest::sample::subsequence(vec!["a", "b", "c", "d", "e"], 0..5).prop_shuffle(),
    ) {
        let document = Document::parse_toml("[services.b]\n[[services.b.endpoints]]\naddress = \"10.0.0.9:1\"\n").unwrap();
        let endpoints: Arc<[Endpoint]> = [Endpoint::at("10.0.0.1:80".parse().unwrap())].into();
        let heard = |names: &[&str]| -> Membership {
            names.iter().map(|name| (ServiceName::parse(name).unwrap(), Arc::clone(&endpoints))).collect()
        };
        let mut sorted = names.clone();
        sorted.sort_unstable();
        let told = |membership: &Membership| format!("{:?}", Snapshot::join(&document, membership).services());
        prop_assert_eq!(told(&heard(&names)), told(&heard(&sorted)));
    }
}

#[test]
fn the_largest_mesh_is_read_and_joined_without_hosts_times_routes() {
    let mut text = String::new();
    for service in 0..10_000 {
        text.push_str(&format!("[services.s{service}]\nhosts = [\"h{service}.example.com\"]\n"));
    }
    for route in 0..5_000 {
        text.push_str(&format!("[[routes]]\npath = \"/p{route}\"\nservice = \"s{route}\"\n"));
        text.push_str(&format!("[[routes]]\nhosts = [\"h{route}.example.com\"]\nservice = \"s0\"\n"));
    }
    let document = Document::parse_toml(&text).unwrap();
    let snapshot = Snapshot::join(&document, &Membership::new());
    let headers = HeaderMap::new();
    let to = |host, path| {
        let facts = Facts::of(Listener::Outbound, host, path, &Method::GET, &headers);
        decide(&snapshot, &facts, &|_| true)
            .ok()
            .map(|decision| snapshot.services()[decision.service].name.to_string())
    };
    assert_eq!(to("s9999.mesh", "/").as_deref(), Some("s9999"));
    assert_eq!(to("elsewhere", "/p4999").as_deref(), Some("s4999"));
    // The route for every host comes first, the one for this host after it.
    assert_eq!(to("h7.example.com", "/p7").as_deref(), Some("s7"));
    assert_eq!(to("h7.example.com", "/p8").as_deref(), Some("s0"));
}
