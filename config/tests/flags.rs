//! Flags against what other evaluators of flagd's format say, and what holds for every set, rule and user.

use gilmok_config::decide::{Facts, Listener, decide, is_on_candidate, tell_flags};
use gilmok_config::document::Document;
use gilmok_config::explain::{Described, Question};
use gilmok_config::flag::{Asked, Context, FlagSet, Variant};
use gilmok_config::snapshot::{Membership, Snapshot};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const NOW: u64 = 1_700_000_000;

fn read(document: &Value) -> FlagSet {
    FlagSet::parse(document.to_string().as_bytes()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn variant<'s>(set: &'s FlagSet, key: &str, context: &Map<String, Value>) -> Option<&'s str> {
    let context = Context::of_json(context);
    set.evaluate(key, &Asked::of(&context, NOW)).ok()?.variant().map(Variant::name)
}

fn user(key: &str) -> Map<String, Value> {
    Map::from_iter([("targetingKey".to_owned(), Value::from(key))])
}

/// Cases on which `golden/flags/compare.py` found openfeature-flagd-core 2.0.0 (v3) or @openfeature/flagd-core 4.0.1 (v2)
/// to say the same.
#[test]
fn two_other_evaluators_say_the_same() {
    for (text, version) in
        [(include_str!("golden/flags/cases-3.ndjson"), 3), (include_str!("golden/flags/cases-2.ndjson"), 2)]
    {
        let mut cases = 0;
        for line in text.lines() {
            let told: Value = serde_json::from_str(line).unwrap();
            let set = read(&json!({ "flags": told["flags"], "metadata": { "hashVersion": version } }));
            for case in told["cases"].as_array().unwrap() {
                let [key, context, variant, reason] = case.as_array().unwrap().as_slice() else {
                    panic!("{case}")
                };
                let context = Context::of_json(context.as_object().unwrap());
                let found = set.evaluate(key.as_str().unwrap(), &Asked::of(&context, NOW));
                let found = match &found {
                    Ok(found) => (found.variant().map(Variant::name), found.reason.as_str()),
                    Err(failure) => (None, failure.code.as_str()),
                };
                assert_eq!(found, (variant.as_str(), reason.as_str().unwrap()), "{line}\n{case}");
                cases += 1;
            }
        }
        assert!(cases > 500, "{cases} cases of version {version}");
    }
}

fn split(weights: [u32; 2], version: u32) -> FlagSet {
    read(&json!({ "metadata": { "hashVersion": version }, "flags": { "new": {
        "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
        "targeting": { "fractional": [["on", weights[0]], ["off", weights[1]]] },
    } } }))
}

/// Any JSON, with the words of rules among its keys and texts.
fn some_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "if",
        "and",
        "or",
        "==",
        "===",
        "<",
        ">=",
        "!",
        "+",
        "-",
        "*",
        "/",
        "%",
        "min",
        "cat",
        "in",
        "substr",
        "merge",
        "missing",
        "missing_some",
        "map",
        "filter",
        "reduce",
        "all",
        "some",
        "none",
        "var",
        "fractional",
        "sem_ver",
        "starts_with",
        "ends_with",
        "$ref",
        "log",
        "x",
        "targetingKey",
        "$flagd.timestamp",
        "xs",
        "xs.0",
        "accumulator",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-4_i64..100).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            (word.clone(), inner.clone()).prop_map(|(word, inner)| json!({ word: inner })),
            (word.clone(), prop::collection::vec(inner.clone(), 0..4))
                .prop_map(|(word, all)| json!({ word: all })),
            prop::collection::vec((".{1,3}", inner), 0..3)
                .prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_growing_share_drops_nobody(
        users in prop::collection::vec("[a-z0-9-]{1,12}", 1..50), weights in prop::collection::vec(0_u32..=1_000, 2..6),
        version in 2_u32..=3,
    ) {
        let mut weights = weights;
        weights.sort_unstable();
        let sets: Vec<FlagSet> = weights.iter().map(|on| split([*on, 1_000 - on], version)).collect();
        for user in users.iter().map(|id| self::user(id)) {
            let on: Vec<bool> = sets.iter().map(|set| variant(set, "new", &user) == Some("on")).collect();
            prop_assert!(on.is_sorted(), "{user:?}: {weights:?} {on:?}");
        }
    }

    #[test]
    fn no_rule_and_no_context_is_too_strange(rule in some_json(), context in some_json(), version in 2_u32..=3) {
        let document = json!({
            "metadata": { "hashVersion": version },
            "flags": { "x": { "state": "ENABLED", "variants": { "x": 1, "true": 2, "1": 3 }, "targeting": rule } },
            "$evaluators": { "x": context.clone() },
        });
        let Ok(set) = FlagSet::parse(document.to_string().as_bytes()) else { return Ok(()) };
        let mut attributes = user("ann");
        attributes.insert("xs".to_owned(), json!([context.clone(), 1, [2]]));
        attributes.extend(context.as_object().cloned().unwrap_or_default());
        let context = Context::of_json(&attributes);
        let once = set.evaluate("x", &Asked::of(&context, NOW)).map(|found| found.place());
        let again = set.evaluate("x", &Asked::of(&context, NOW)).map(|found| found.place());
        prop_assert_eq!(once, again);
        prop_assert!(set.explain("x", &Asked::of(&context, NOW)).is_some());
    }

    #[test]
    fn any_json_is_a_set_or_is_told_why_not(document in some_json()) {
        for document in [json!({ "flags": document.clone() }), json!({ "flags": { "x": document.clone() } }), document] {
            if let Err(problems) = FlagSet::parse(document.to_string().as_bytes()) {
                prop_assert!(!problems.is_empty());
            }
        }
    }
}

#[test]
fn shares_are_exact_to_a_tenth_of_a_percent() {
    for version in [2, 3] {
        let set = split([100, 900], version);
        let on = (0..200_000)
            .filter(|id| variant(&set, "new", &user(&format!("user-{id}"))) == Some("on"))
            .count();
        assert!((19_600..=20_400).contains(&on), "{on} of 200000 by version {version}");
    }
}

const MESH: &str = r#"
[flags.set.flags.new-ui]
state = "ENABLED"
variants = { on = true, off = false }
defaultVariant = "off"
targeting = { if = [{ "==" = [{ var = "tier" }, "gold"] }, "on", { fractional = [["on", 50], ["off", 50]] }] }
[flags.set.flags.page-size]
state = "ENABLED"
variants = { small = 10, big = 25 }
defaultVariant = "small"
[flags.set.flags.like-checkout]
state = "ENABLED"
variants = { on = true, off = false }
defaultVariant = "off"
x-gilmok = { follow = "checkout" }
[flags.set.flags.timed]
state = "ENABLED"
variants = { on = true, off = false }
defaultVariant = "off"
targeting = { if = [{ ">" = [{ var = "$flagd.timestamp" }, 100] }, "on"] }

[services.checkout.traffic]
stable = "v1"
weights = { v1 = 50, v2 = 50 }

[services.shop.flags]
emit = ["page-size", "new-ui", "like-checkout"]
subject = ["cookie:who", "header:x-user-id"]
context = { tier = "header:x-tier" }

[services.new-shop.flags]
subject = ["header:x-other"]

[[routes]]
hosts = ["shop.example.com"]
when_flag = "new-ui:on"
service = "new-shop"
[[routes]]
hosts = ["shop.example.com"]
when_flag = "timed:on"
path = "/timed"
service = "new-shop"
[[routes]]
hosts = ["shop.example.com"]
service = "shop"
"#;

fn told(text: &str) -> String {
    Document::parse_toml(text).map(|_| String::new()).unwrap_or_else(|problems| problems.to_string())
}

fn snapshot() -> Snapshot {
    let document = Document::parse_toml(MESH).unwrap_or_else(|problems| panic!("{problems}"));
    Snapshot::join(&document, &Membership::new())
}

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    all.iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value")))
        .collect()
}

#[test]
fn a_service_is_told_what_it_asks_for_with_its_own_subject_and_context() {
    let snapshot = snapshot();
    let shop = snapshot.service_index("shop").unwrap();
    let of = |all: &[(&'static str, &str)]| {
        let (request, mut told) = (headers(all), HeaderMap::new());
        let facts = Facts::of(Listener::Outbound, "shop", "/", &Method::GET, &request);
        let mut seen = Vec::new();
        tell_flags(&snapshot, &facts, shop, &mut told, &mut |found| {
            seen.push(snapshot.flags().unwrap().flags()[found.flag].key());
        });
        assert_eq!(seen, ["page-size", "new-ui", "like-checkout"]);
        told["feature-flags"].to_str().unwrap().to_owned()
    };
    // The place of ["checkout", "user-4"] is on the candidate or not as traffic has it.
    let checkout =
        snapshot.services()[snapshot.service_index("checkout").unwrap()].policy.traffic.clone().unwrap();
    for user in ["user-1", "user-2", "user-3", "user-4", "user-5"] {
        let follows = if checkout.salt.place(user.as_bytes()) < 500_000 {
            "like-checkout;v=on"
        } else {
            "like-checkout=?0;v=off"
        };
        assert_eq!(is_on_candidate(&snapshot, "checkout", user, None), Some(follows.ends_with("on")));
        let told = of(&[("x-user-id", user), ("x-tier", "gold")]);
        assert_eq!(told, format!("page-size=10;v=small, new-ui;v=on, {follows}"));
    }
    assert_eq!(of(&[]), "page-size=10;v=small, new-ui=?0;v=off, like-checkout=?0;v=off", "nobody");
    let set = snapshot.flags().unwrap();
    let with = |wanted: &str| {
        let ids = (0..).map(|id| format!("user-{id}"));
        ids.into_iter().find(|id| variant(set, "new-ui", &user(id)) == Some(wanted)).unwrap()
    };
    let (on, off) = (with("on"), with("off"));
    let is_on = |all: &[(&'static str, &str)]| of(all).contains("new-ui;v=on");
    assert!(is_on(&[("x-user-id", &on)]) && !is_on(&[("x-user-id", &off)]));
    assert!(is_on(&[("x-user-id", &off), ("cookie", &format!("who={on}"))]), "the first one present");
    assert_eq!(is_on_candidate(&snapshot, "nobody", "user-1", None), None);
    let names: Vec<_> = snapshot.services().iter().filter(|service| service.emission.is_some()).collect();
    assert_eq!(names.len(), 1, "who asks for nothing is told nothing");
}

#[test]
fn a_route_may_depend_on_a_flag_for_its_own_services_subject() {
    let snapshot = snapshot();
    assert!(snapshot.wants_now() && snapshot.wants_uid());
    let to = |path: &str, all: &[(&'static str, &str)], now: u64| {
        let request = headers(all);
        let facts =
            Facts { now, ..Facts::of(Listener::Edge, "shop.example.com", path, &Method::GET, &request) };
        let decision = decide(&snapshot, &facts, &|_| true).unwrap();
        snapshot.services()[decision.service].name.to_string()
    };
    let set = snapshot.flags().unwrap();
    let mut on = 0;
    for id in 0..40 {
        let key = format!("user-{id}");
        let is_on = variant(set, "new-ui", &user(&key)) == Some("on");
        on += usize::from(is_on);
        let expected = if is_on { "new-shop" } else { "shop" };
        assert_eq!(to("/", &[("x-other", &key)], 0), expected, "{key}");
        assert_eq!(to("/", &[("x-user-id", &key)], 0), "shop", "the other service's subject");
    }
    assert!((10..=30).contains(&on), "{on} of 40");
    assert_eq!((to("/timed", &[], 100), to("/timed", &[], 101)), ("shop".to_owned(), "new-shop".to_owned()));
}

#[test]
fn what_would_be_told_is_explained() {
    let snapshot = snapshot();
    let described = Described { host: "shop", subject: Some("user-4"), ..Described::default() };
    let question = Question::new(&described, [("x-tier", "gold")]).unwrap();
    let told = question.explain(&snapshot, None, &[], &|_| true).unwrap().decision.unwrap().1;
    assert!(told["flags"]["header"].as_str().unwrap().contains("new-ui;v=on"), "{told}");
    assert_eq!(
        told["flags"]["evaluated"][1],
        json!({ "flag": "new-ui", "variant": "on", "reason": "TARGETING_MATCH", "detail": null })
    );
    let set = snapshot.flags().unwrap();
    let on = (0..)
        .map(|id| format!("user-{id}"))
        .find(|id| variant(set, "new-ui", &user(id)) == Some("on"))
        .unwrap();
    let described =
        Described { host: "shop.example.com", subject: Some(&on), listener: Some("edge"), ..described };
    let explained = Question::new(&described, []).unwrap().explain(&snapshot, None, &[], &|_| true).unwrap();
    let told = explained.decision.unwrap().1;
    assert_eq!((&told["service"], &told["route"]["when_flag"]), (&json!("new-shop"), &json!("new-ui:on")));
}

#[test]
fn every_fault_of_flags_in_a_document_says_where() {
    let flag = "[flags.set.flags.a]\nstate = \"ENABLED\"\nvariants = { on = true }\n";
    for (text, expected) in [
        ("[flags]\n", "line 1: flags: neither `file` nor `set`"),
        ("[flags]\nfile = \"flags.json\"\n", "line 2: flags.file: a document that did not come from a file"),
        ("[flags]\nfile = \"flags.json\"\nset = { flags = {} }\n", "flags: only one of `file` and `set`"),
        ("[flags]\nsets = 1\n", "flags.sets: unknown key (did you mean `set`?)"),
        (
            "[flags.set.flags.a]\nstate = \"ON\"\nvariants = { on = true }\n",
            "line 2: flags.set.flags.a.state: \"ON\" is not known",
        ),
        (
            "[services.s.flags]\nemit = [\"b\"]\n",
            "line 2: services.s.flags.emit[0]: there is no flag `b` (a flag of the set)",
        ),
        ("[services.s.flags]\nemit = [\"*\", \"a\"]\n", "services.s.flags.emit[0]: `*` is every flag"),
        ("[services.s.flags]\nemit = [\"a\", \"a\"]\n", "services.s.flags.emit[1]: `a` is listed twice"),
        (
            "[services.s.flags]\nsubject = [\"baggage\"]\n",
            "services.s.flags.subject: in baggage there are hashes",
        ),
        (
            "[services.s.flags]\ncontext = { targetingKey = \"header:x\" }\n",
            "services.s.flags.context.targetingKey: `targetingKey` is",
        ),
        (
            "[services.s.flags]\ncontext = { tier = \"x\" }\n",
            "services.s.flags.context.tier: \"x\" is not understood",
        ),
        (
            "[services.s]\n[[routes]]\nservice = \"s\"\nwhen_flag = \"a\"\n",
            "line 4: routes[0].when_flag: not a flag and a variant",
        ),
        (
            "[services.s]\n[[routes]]\nservice = \"s\"\nwhen_flag = \"b:on\"\n",
            "routes[0].when_flag: there is no flag `b`",
        ),
        (
            "[services.s]\n[[routes]]\nservice = \"s\"\nwhen_flag = \"a:off\"\n",
            "routes[0].when_flag: `a` has no variant `off` (one of: on)",
        ),
    ] {
        let told =
            self::told(&if text.contains("[flags") { text.to_owned() } else { format!("{text}{flag}") });
        assert!(told.contains(expected), "{text}\n{told}");
    }
    let follow = format!("{flag}x-gilmok = {{ follow = \"s\" }}\n[services.s]\n");
    assert!(
        told(&follow).contains("flags: the flag `a` follows `s`, whose traffic nobody says"),
        "{}",
        told(&follow)
    );
    let upper = "[services.s.flags]\nemit = [\"New\"]\n[flags.set.flags.New]\nstate = \"ENABLED\"\nvariants = { on = true }\n";
    assert!(
        told(upper).contains("emit[0]: `New` is no key of the header (`x-gilmok.header.name` of the flag)")
    );
    assert_eq!(told("[services.s.flags]\nemit = [\"*\"]\n"), "", "flags may come later");
    let many: String = (0..101)
        .map(|at| format!("[flags.set.flags.f{at}]\nstate = \"ENABLED\"\nvariants = {{ on = true }}\ntargeting = {{ var = \"x\" }}\n"))
        .collect();
    let told = told(&format!("[services.s.flags]\nemit = [\"*\"]\n{many}"));
    assert!(
        told.contains("line 2: services.s.flags.emit: 101 flags to be evaluated for each request"),
        "{told}"
    );
}

#[test]
fn a_route_behind_a_flag_hides_only_routes_behind_the_same() {
    let routes = |first: &str, second: &str| {
        let flag =
            "[flags.set.flags.a]\nstate = \"ENABLED\"\nvariants = { on = true, off = false }\n[services.s]\n";
        told(&format!("{flag}[[routes]]\nservice = \"s\"\n{first}\n[[routes]]\nservice = \"s\"\n{second}\n"))
    };
    let (on, off) = ("when_flag = \"a:on\"", "when_flag = \"a:off\"");
    assert_eq!((routes(on, off), routes(on, "")), (String::new(), String::new()));
    assert!(
        routes(on, on).contains("no request reaches this route")
            && routes("", on).contains("no request reaches")
    );
}

#[test]
fn warnings_of_a_set_are_warnings_of_its_document() {
    let text = "[flags.set.flags.a]\nstate = \"ENABLED\"\nvariants = { on = true }\ntargeting = { frobnicate = 1 }\n";
    let warnings = Document::parse_toml(text).unwrap().warnings();
    assert_eq!(
        warnings,
        ["line 4: flags.set.flags.a.targeting.\"frobnicate\": there is no operator `frobnicate`"]
    );
}
