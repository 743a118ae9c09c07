//! Every rule of the store, and that no caller ever gets what was made for another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::fallback::LastGood;
use gilmok_config::name::{Name, ServiceName};
use http::header::{AGE, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use proptest::prelude::*;

use super::shelf::{BESIDE_BYTES, VARIANTS_MAX};
use super::{Answered, Asked, LastGoodStore, Question};

const POLICY: LastGood =
    LastGood { max_age: Duration::from_mins(5), max_body: 64 << 10, per_credentials: false };
const PER_CREDENTIALS: LastGood = LastGood { per_credentials: true, ..POLICY };

/// A request that can be asked again with a difference.
#[derive(Clone, Debug)]
struct Call {
    policy: LastGood,
    service: &'static str,
    version: Option<&'static str>,
    shard: Option<&'static str>,
    host: &'static str,
    path: &'static str,
    method: Method,
    headers: Vec<(&'static str, &'static str)>,
    has_body: bool,
    personal: Vec<&'static str>,
}

const GET: Call = Call {
    policy: POLICY,
    service: "ads",
    version: None,
    shard: None,
    host: "ads.mesh",
    path: "/ad?x=1",
    method: Method::GET,
    headers: Vec::new(),
    has_body: false,
    personal: Vec::new(),
};

impl Call {
    fn ask(&self, store: &LastGoodStore) -> Option<Question> {
        let name = |name: Option<&str>| name.map(|name| Name::parse(name).unwrap());
        let personal: Vec<&[u8]> = self.personal.iter().map(|input| input.as_bytes()).collect();
        let (version, shard) = (name(self.version), name(self.shard));
        let asked = Asked {
            service: &ServiceName::parse(self.service).unwrap(),
            version: version.as_ref(),
            shard: shard.as_ref(),
            host: self.host.as_bytes(),
            path_and_query: self.path,
            method: &self.method,
            headers: &fields(&self.headers),
            has_body: self.has_body,
            personal: &personal,
        };
        store.question(&self.policy, &asked)
    }

    fn with(headers: &[(&'static str, &'static str)]) -> Self {
        Self { headers: headers.to_vec(), ..GET }
    }
}

fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    map
}

fn store() -> Arc<LastGoodStore> {
    Arc::new(LastGoodStore::new(1 << 20))
}

/// An answer of an endpoint that is what the question was decided for.
fn record(
    store: &Arc<LastGoodStore>,
    question: &Question,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now_ms: u64,
) {
    answer_from(store, question, ("", ""), status, headers, body, now_ms);
}

fn answer_from(
    store: &Arc<LastGoodStore>,
    question: &Question,
    (version, shard): (&str, &str),
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now_ms: u64,
) {
    let answered = Answered {
        version: &Name::parse(version).unwrap(),
        shard: &Name::parse(shard).unwrap(),
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        length: None,
    };
    if let Some(mut recorder) = store.record(question, &answered, now_ms) {
        recorder.data(&Bytes::copy_from_slice(body));
        recorder.finish();
    }
}

/// Whether an answer with this status and these fields is given again.
fn is_kept(status: u16, headers: &[(&'static str, &str)]) -> bool {
    let store = store();
    let question = GET.ask(&store).unwrap();
    record(&store, &question, status, &fields(headers), b"ad", 1);
    store.give(&question, 2).is_some()
}

fn given(store: &LastGoodStore, call: &Call) -> Option<String> {
    let kept = store.give(&call.ask(store)?, 2)?;
    Some(String::from_utf8(kept.body.to_vec()).unwrap())
}

#[test]
fn a_good_answer_is_given_again_with_its_age() {
    let store = store();
    let question = GET.ask(&store).unwrap();
    let headers = fields(&[
        ("date", "Mon, 23 Nov 2026 17:00:00 GMT"),
        ("age", "7"),
        ("content-type", "image/png"),
        ("link", "</a>"),
        ("link", "</b>"),
        ("content-length", "99"),
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x-sum"),
        ("proxy-status", "cdn; hit"),
        ("gilmok-decision", "version=v1"),
        ("x-request-id", "somebody's"),
        ("ratelimit", "default;r=3"),
    ]);
    record(&store, &question, 203, &headers, b"picture", 1_000);
    let kept = store.give(&question, 4_999).unwrap();
    assert_eq!((kept.status.as_u16(), &kept.body[..]), (203, &b"picture"[..]));
    let left = fields(&[
        ("date", "Mon, 23 Nov 2026 17:00:00 GMT"),
        ("age", "10"),
        ("content-type", "image/png"),
        ("link", "</a>"),
        ("link", "</b>"),
        ("content-length", "7"),
    ]);
    assert_eq!(kept.headers, left);
}

#[test]
fn the_newest_answer_is_given_until_it_is_too_old() {
    let store = store();
    let question = GET.ask(&store).unwrap();
    record(&store, &question, 200, &HeaderMap::new(), b"one", 1_000);
    record(&store, &question, 200, &HeaderMap::new(), b"two", 2_000);
    // Its head came first, and only its body took longer.
    record(&store, &question, 200, &HeaderMap::new(), b"slow", 1_500);
    // Of something else.
    record(&store, &Call { path: "/", ..GET }.ask(&store).unwrap(), 200, &HeaderMap::new(), b"root", 3_000);
    let kept = store.give(&question, 302_000).unwrap();
    assert_eq!((&kept.body[..], &kept.headers[AGE]), (&b"two"[..], &HeaderValue::from(300)));
    assert!(store.give(&question, 302_001).is_none());
    // And it is gone.
    assert!(store.give(&question, 2_000).is_none());
}

#[test]
fn a_head_is_answered_without_a_body_and_never_kept() {
    let store = store();
    let head = Call { method: Method::HEAD, ..GET };
    record(&store, &head.ask(&store).unwrap(), 200, &HeaderMap::new(), b"", 1);
    assert!(given(&store, &GET).is_none());
    record(&store, &GET.ask(&store).unwrap(), 200, &HeaderMap::new(), b"picture", 1);
    let kept = store.give(&head.ask(&store).unwrap(), 1).unwrap();
    assert!(kept.body.is_empty());
    assert_eq!(kept.headers[CONTENT_LENGTH], "7");
}

#[test]
fn personal_requests_and_writes_are_no_questions() {
    let store = store();
    for name in [
        "authorization",
        "cookie",
        "x-api-key",
        "x-auth-token",
        "x-forwarded-user",
        "proxy-authorization",
        "upgrade",
    ] {
        assert!(Call::with(&[("accept", "*/*"), (name, "")]).ask(&store).is_none(), "{name}");
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH, Method::CONNECT]
    {
        assert!(Call { method: method.clone(), ..GET }.ask(&store).is_none(), "{method}");
    }
    assert!(Call { has_body: true, ..GET }.ask(&store).is_none());
    assert!(Call { personal: vec![""], ..GET }.ask(&store).is_none());
    assert!(GET.ask(&store).is_some());
}

#[test]
fn what_may_not_be_kept_is_not() {
    assert!(is_kept(200, &[]));
    assert!(is_kept(204, &[]));
    assert!(is_kept(200, &[("cache-control", "public, max-age=60, must-revalidate"), ("vary", "accept")]));
    for status in [206, 226, 301, 304, 404, 429, 500, 503] {
        assert!(!is_kept(status, &[]), "{status}");
    }
    for line in [
        ("set-cookie", "a=1"),
        ("set-cookie2", "a=1"),
        ("authentication-info", "nextnonce=\"a\""),
        ("cache-control", "private"),
        ("cache-control", "No-Store"),
        ("cache-control", "max-age=60,no-cache"),
        ("cache-control", "no-cache=\"set-cookie\", max-age=60"),
        ("cache-control", "max-age=60; PRIVATE"),
        ("pragma", "no-cache"),
        ("vary", "*"),
        ("vary", "accept, *"),
        ("vary", "a b"),
        ("proxy-status", "gilmok; error=destination_unavailable; details=\"breaker=open fallback=respond\""),
    ] {
        assert!(!is_kept(200, &[line]), "{line:?}");
        // In the second line of two as well.
        let before = if line.0 == "vary" { "accept" } else { "x" };
        assert!(!is_kept(200, &[(line.0, before), line]), "{line:?}");
    }
}

#[test]
fn what_is_public_no_longer_is_forgotten() {
    let store = store();
    let question = GET.ask(&store).unwrap();
    let public = || record(&store, &question, 200, &HeaderMap::new(), b"public", 1);
    public();
    for (status, line) in
        [(500, ("x", "y")), (200, ("set-cookie", "a=1")), (503, ("cache-control", "no-store"))]
    {
        record(&store, &question, status, &fields(&[line]), b"", 2);
        assert!(given(&store, &GET).is_some(), "{status} {line:?}");
    }
    for line in [("cache-control", "no-store"), ("vary", "*")] {
        public();
        record(&store, &question, 200, &fields(&[line]), b"mine", 2);
        assert!(given(&store, &GET).is_none(), "{line:?}");
    }
}

#[test]
fn a_caller_may_ask_for_its_answer_not_to_be_kept() {
    let store = store();
    let silent = Call::with(&[("cache-control", "no-store")]);
    record(&store, &silent.ask(&store).unwrap(), 200, &HeaderMap::new(), b"mine", 1);
    assert!(given(&store, &GET).is_none());
    record(&store, &GET.ask(&store).unwrap(), 200, &HeaderMap::new(), b"all", 1);
    assert_eq!(given(&store, &silent).as_deref(), Some("all"));
}

#[test]
fn every_part_of_a_question_tells_it_from_others() {
    let store = store();
    let others = [
        Call { service: "house", ..GET },
        Call { version: Some("v1"), ..GET },
        Call { version: Some("v2"), ..GET },
        Call { shard: Some("v1"), ..GET },
        Call { host: "other.mesh", ..GET },
        Call { path: "/ad?x=2", ..GET },
        Call { path: "/ad", ..GET },
        Call { path: "/AD?x=1", ..GET },
        Call::with(&[("feature-flags", "new-ui;v=on")]),
        Call::with(&[("x-forwarded-host", "evil.example")]),
        Call::with(&[("x-original-url", "/admin")]),
        Call { policy: PER_CREDENTIALS, ..Call::with(&[("cookie", "a=1")]) },
        Call { policy: PER_CREDENTIALS, ..Call::with(&[("authorization", "a=1")]) },
        Call { policy: PER_CREDENTIALS, ..Call::with(&[("authorization", "a=1"), ("cookie", "a=1")]) },
        Call { policy: PER_CREDENTIALS, personal: vec!["a=1"], ..GET },
        Call { policy: PER_CREDENTIALS, personal: vec!["cookie", "a=1"], ..GET },
    ];
    for (at, call) in others.iter().enumerate() {
        let from = (call.version.unwrap_or(""), call.shard.unwrap_or(""));
        let body = at.to_string();
        answer_from(&store, &call.ask(&store).unwrap(), from, 200, &HeaderMap::new(), body.as_bytes(), 1);
    }
    assert_eq!(given(&store, &GET), None);
    for (at, call) in others.iter().enumerate() {
        assert_eq!(given(&store, call), Some(at.to_string()), "{call:?}");
    }
    // The host's letters mean the same, large or small.
    record(&store, &GET.ask(&store).unwrap(), 200, &HeaderMap::new(), b"ad", 1);
    assert_eq!(given(&store, &Call { host: "ADS.mesh", ..GET }).as_deref(), Some("ad"));
}

#[test]
fn only_what_was_decided_for_counts_where_something_decides() {
    let store = store();
    let candidate = Call { version: Some("v2"), ..GET };
    answer_from(&store, &candidate.ask(&store).unwrap(), ("v1", ""), 200, &HeaderMap::new(), b"v1", 1);
    assert!(given(&store, &candidate).is_none());
    let owner = Call { shard: Some("3"), ..GET };
    answer_from(&store, &owner.ask(&store).unwrap(), ("v1", "2"), 200, &HeaderMap::new(), b"2", 1);
    assert!(given(&store, &owner).is_none());
    // One pool: the newest of any.
    let question = GET.ask(&store).unwrap();
    answer_from(&store, &question, ("v1", "2"), 200, &HeaderMap::new(), b"v1", 1);
    answer_from(&store, &question, ("v2", "3"), 200, &HeaderMap::new(), b"v2", 2);
    assert_eq!(given(&store, &GET).as_deref(), Some("v2"));
}

#[test]
fn answers_are_told_apart_by_all_that_any_of_them_varies_by() {
    let store = store();
    let call = |language, accept| Call::with(&[("accept-language", language), ("accept", accept)]);
    let keep = |call: &Call, vary: &[(&'static str, &str)], body: &[u8]| {
        record(&store, &call.ask(&store).unwrap(), 200, &fields(vary), body, 1);
    };
    // An answer that does not say so, before one that does.
    keep(&call("en", "a"), &[], b"any");
    assert!(given(&store, &call("ko", "b")).is_some());
    let before = store.bytes();
    keep(&call("en", "a"), &[("vary", "Accept-Language")], b"en");
    assert!(store.bytes() < before * 2, "what nobody finds any more stays");
    assert_eq!(given(&store, &call("ko", "a")), None);
    assert_eq!(given(&store, &call("en", "b")).as_deref(), Some("en"));
    // And after.
    keep(&call("ko", "a"), &[], b"ko");
    assert_eq!(given(&store, &call("en", "b")).as_deref(), Some("en"));
    assert_eq!(given(&store, &call("", "b")), None);
    // One more field.
    keep(&call("ko", "a"), &[("vary", "accept")], b"ko a");
    assert_eq!(given(&store, &call("en", "b")), None);
    assert_eq!(given(&store, &call("ko", "b")), None);
    assert_eq!(given(&store, &call("ko", "a")).as_deref(), Some("ko a"));
}

#[test]
fn an_encoding_is_only_given_to_those_who_asked_for_it() {
    let store = store();
    let gzip = Call::with(&[("accept-encoding", "gzip")]);
    record(&store, &gzip.ask(&store).unwrap(), 200, &fields(&[("content-encoding", "gzip")]), b"gz", 1);
    assert!(given(&store, &GET).is_none());
    assert_eq!(given(&store, &gzip).as_deref(), Some("gz"));
}

#[test]
fn more_variants_than_there_is_place_for_push_out_the_least_used() {
    let store = store();
    let vary = fields(&[("vary", "x-n")]);
    let languages: Vec<&'static str> =
        (0..=VARIANTS_MAX).map(|n| &*Box::leak(n.to_string().into_boxed_str())).collect();
    for language in &languages {
        record(&store, &Call::with(&[("x-n", language)]).ask(&store).unwrap(), 200, &vary, b"n", 1);
        // Used again and again.
        assert!(given(&store, &Call::with(&[("x-n", languages[0])])).is_some());
    }
    assert!(given(&store, &Call::with(&[("x-n", languages[1])])).is_none());
    assert!(given(&store, &Call::with(&[("x-n", languages[2])])).is_some());
    // What varies by more than anyone looks up is not kept.
    let names: Vec<String> = (0..=super::answer::VARY_NAMES_MAX).map(|n| format!("x-{n}")).collect();
    assert!(!is_kept(200, &[("vary", &names.join(","))]));
    assert!(is_kept(200, &[("vary", &names[1..].join(","))]));
}

#[test]
fn only_whole_bodies_within_the_limit_are_kept() {
    let store = store();
    let question = Call { policy: LastGood { max_body: 8, ..POLICY }, ..GET }.ask(&store).unwrap();
    let name = Name::default();
    let headers = fields(&[("content-type", "a/b")]);
    let begin = |length| {
        let status = StatusCode::OK;
        store.record(
            &question,
            &Answered { version: &name, shard: &name, status, headers: &headers, length },
            1,
        )
    };
    for (length, frames, kept) in [
        (None, &["12345678"][..], true),
        (None, &["1", "", "234", "5678"], true),
        (None, &[], true),
        (Some(0), &[], true),
        (Some(8), &["1234", "5678"], true),
        (None, &["1234", "56789"], false),
        (None, &["123456789", "1"], false),
        // Broken off, or more than was told.
        (Some(8), &["1234", "567"], false),
        (Some(7), &["12345678"], false),
    ] {
        let mut recorder = begin(length).unwrap();
        frames.iter().for_each(|frame| recorder.data(&Bytes::copy_from_slice(frame.as_bytes())));
        recorder.finish();
        let given = store.give(&question, 1).map(|kept| kept.body);
        assert_eq!(given, kept.then(|| Bytes::from(frames.concat())), "{length:?} {frames:?}");
        drop(store.shelf().forget(question.key()));
    }
    assert!(begin(Some(9)).is_none());
    // Dropped on the way: the caller left, or trailers came.
    let mut recorder = begin(None).unwrap();
    recorder.data(&Bytes::from_static(b"1234"));
    assert!(store.bytes() > 0);
    drop(recorder);
    assert_eq!(store.bytes(), 0);
    assert!(store.give(&question, 1).is_none());
}

#[test]
fn the_least_recently_used_goes_first() {
    let call = |path| Call { path, ..GET };
    let keep = |store: &Arc<LastGoodStore>, path| {
        record(store, &call(path).ask(store).unwrap(), 200, &HeaderMap::new(), &[b'x'; 4096], 1);
    };
    let one = store();
    keep(&one, "/a");
    assert!(one.bytes() > 4096 + BESIDE_BYTES);
    // Room for three, and a quarter for what is under way.
    let store = Arc::new(LastGoodStore::new(one.bytes() * 4));
    for path in ["/a", "/b", "/c"] {
        keep(&store, path);
    }
    assert_eq!(store.bytes(), one.bytes() * 3);
    // Given and kept again are uses; to be asked for in vain is none.
    assert!(given(&store, &call("/a")).is_some());
    keep(&store, "/b");
    keep(&store, "/d");
    let there = |path| store.shelf().give(&call(path).ask(&store).unwrap(), 1).is_some();
    assert_eq!(["/a", "/b", "/c", "/d"].map(there), [true, true, false, true]);
    keep(&store, "/e");
    assert_eq!(["/a", "/b", "/d", "/e"].map(there), [false, true, true, true]);
}

#[test]
fn answers_under_way_never_push_out_what_is_kept() {
    let store = Arc::new(LastGoodStore::new(64 << 10));
    record(&store, &GET.ask(&store).unwrap(), 200, &HeaderMap::new(), &[b'x'; 4096], 1);
    let name = Name::default();
    let (status, headers) = (StatusCode::OK, &HeaderMap::new());
    let slow = Call { path: "/slow", ..GET }.ask(&store).unwrap();
    let begin =
        |length| store.record(&slow, &Answered { version: &name, shard: &name, status, headers, length }, 1);
    let recorders: Vec<_> = std::iter::from_fn(|| begin(Some(4096))).take(100).collect();
    assert_eq!(recorders.len(), 4);
    // What grows beyond is passed on and not kept.
    let mut grows = begin(None).unwrap();
    grows.data(&Bytes::from_static(b"1"));
    grows.finish();
    assert!(store.give(&slow, 1).is_none() && given(&store, &GET).is_some());
    drop(recorders);
    assert_eq!(store.recording.load(Relaxed), 0);
}

#[test]
fn workers_at_the_same_time_keep_within_the_limit() {
    let store = Arc::new(LastGoodStore::new(40 << 10));
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                let paths = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9"];
                for turn in 0..500_u64 {
                    let path = paths[usize::try_from((turn * 7 + worker) % 10).unwrap()];
                    let question = Call { path, ..GET }.ask(store).unwrap();
                    record(store, &question, 200, &HeaderMap::new(), path.repeat(1000).as_bytes(), turn);
                    if let Some(kept) = store.give(&question, turn) {
                        assert_eq!(kept.body, path.repeat(1000));
                    }
                    assert!(store.bytes() <= 40 << 10);
                }
            });
        }
    });
    assert!(store.shelf().is_sound());
    assert_eq!(store.recording.load(Relaxed), 0);
}

/// Values that are easily taken for one another when they are written side by side.
fn value() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "a", "b", "ab", "a, b", "x-b"])
}

fn call() -> impl Strategy<Value = Call> {
    let names = "accept-language authorization cookie feature-flags feature-flags-override x-a x-api-key x-b";
    let headers =
        prop::collection::vec((prop::sample::select(names.split(' ').collect::<Vec<_>>()), value()), 0..4);
    let decided = || prop::option::of(prop::sample::select(vec!["v1", "v2"]));
    let place = (prop::sample::select(vec!["ads", "shop"]), decided(), decided());
    let url = (prop::sample::select(vec!["a", "ab"]), prop::sample::select(vec!["/", "/b"]));
    let personal = prop::collection::vec(value(), 0..3);
    (place, url, headers, personal, any::<bool>()).prop_map(
        |(place, url, headers, personal, per_credentials)| {
            let policy = LastGood { per_credentials, ..POLICY };
            let (service, version, shard) = place;
            // Most people have no more than one way to say who they are.
            Call { policy, service, version, shard, host: url.0, path: url.1, headers, personal, ..GET }
        },
    )
}

/// All that must be the same for an answer to be given again, apart from `Vary`.
fn identity(call: &Call) -> String {
    let mut who: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &call.headers {
        if ["authorization", "cookie", "feature-flags", "feature-flags-override", "x-api-key"].contains(name)
        {
            who.entry(name).or_default().push(value);
        }
    }
    let place = (call.service, call.version, call.shard, call.host, call.path);
    format!("{place:?} {who:?} {:?}", call.personal)
}

/// The lines of the fields that an answer says it varies by.
fn varied(call: &Call, vary: &str) -> Vec<Vec<&'static str>> {
    let lines =
        |name: &str| call.headers.iter().filter(|(of, _)| *of == name).map(|(_, line)| *line).collect();
    vary.split(", ").map(lines).collect()
}

proptest! {
    #[test]
    fn nobody_gets_what_was_made_for_another(
        calls in prop::collection::vec(
            (call(), prop::sample::select(vec!["", "x-a", "x-b", "accept-language", "accept-language, x-a", "cookie"])),
            1..40,
        )
    ) {
        let store = store();
        for (at, (call, vary)) in calls.iter().enumerate() {
            let Some(question) = call.ask(&store) else { continue };
            let from = (call.version.unwrap_or("v1"), call.shard.unwrap_or("v1"));
            answer_from(&store, &question, from, 200, &fields(&[("vary", vary)]), at.to_string().as_bytes(), 1);
            prop_assert_eq!(given(&store, call), Some(at.to_string()));
            prop_assert!(store.shelf().is_sound());
        }
        for (call, _) in &calls {
            let Some(body) = given(&store, call) else { continue };
            let (before, vary) = &calls[body.parse::<usize>().unwrap()];
            prop_assert_eq!(identity(before), identity(call));
            prop_assert_eq!(varied(before, vary), varied(call, vary));
            let credentials = ["authorization", "cookie", "x-api-key"];
            let personal = !call.personal.is_empty() || call.headers.iter().any(|(name, _)| credentials.contains(name));
            prop_assert!(call.policy.per_credentials || !personal);
        }
    }

    #[test]
    fn what_is_held_never_exceeds_the_limit(
        limit in 0_usize..20_000,
        answers in prop::collection::vec((call(), 0_usize..4_000, any::<bool>(), 0_u8..3), 1..60),
    ) {
        let store = Arc::new(LastGoodStore::new(limit));
        let mut open = Vec::new();
        let name = Name::default();
        for (at, (call, length, is_told, end)) in answers.into_iter().enumerate() {
            let call = Call { version: None, shard: None, ..call };
            let Some(question) = call.ask(&store) else { continue };
            let headers = fields(&[("vary", "x-a"), ("content-type", "text/plain")]);
            let length_told = is_told.then_some(length as u64);
            let status = StatusCode::OK;
            let answered = Answered { version: &name, shard: &name, status, headers: &headers, length: length_told };
            let Some(mut recorder) = store.record(&question, &answered, at as u64) else { continue };
            for frame in vec![b'x'; length].chunks(700) {
                recorder.data(&Bytes::copy_from_slice(frame));
                prop_assert!(store.bytes() <= limit);
            }
            match end {
                0 => drop(recorder),
                1 => recorder.finish(),
                _ => open.push(recorder),
            }
            prop_assert!(store.bytes() <= limit);
            prop_assert!(store.shelf().is_sound());
        }
        drop(open);
        prop_assert_eq!(store.recording.load(Relaxed), 0);
        prop_assert!(store.bytes() <= limit);
    }
}
