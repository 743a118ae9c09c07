//! Flags as a whole: what a set says, for whom, and what is told of a set that says it wrongly.

#![expect(clippy::needless_pass_by_value, reason = "values are made where they are passed")]

use serde_json::{Map, Value as Json, json};

use super::*;

const NOW: u64 = 1_700_000_000;

pub(super) fn set_of(document: &Json) -> Result<FlagSet, String> {
    FlagSet::parse(document.to_string().as_bytes()).map_err(|problems| problems.to_string())
}

fn set(flags: Json) -> FlagSet {
    set_of(&json!({ "flags": flags })).unwrap()
}

/// Variant and reason, or the error's code.
fn asked(
    set: &FlagSet,
    key: &str,
    context: Json,
    follows: &dyn Fn(&str) -> Option<bool>,
) -> (String, &'static str) {
    let Json::Object(context) = context else { panic!("no context") };
    let context = Context::of_json(&context);
    match set.evaluate(key, &Asked { follows, ..Asked::of(&context, NOW) }) {
        Ok(found) => (found.variant().map_or("", Variant::name).to_owned(), found.reason.as_str()),
        Err(failure) => (failure.what, failure.code.as_str()),
    }
}

fn found(set: &FlagSet, key: &str, context: Json) -> (String, &'static str) {
    asked(set, key, context, &|_| None)
}

fn check(set: &FlagSet, key: &str, context: Json, expected: (&str, &str)) {
    let told = format!("{key} for {context}");
    let (variant, reason) = found(set, key, context);
    assert_eq!((variant.as_str(), reason), expected, "{told}");
}

/// A flag that is on or off, with what else it says.
pub(super) fn switch(more: Json) -> Json {
    let mut flag =
        json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off" });
    for (key, value) in more.as_object().unwrap() {
        flag[key] = value.clone();
    }
    flag
}

#[test]
fn the_suits_of_flagds_suite_fall_as_they_do_elsewhere() {
    let suits = json!([["clubs", 25], ["diamonds", 25], ["hearts", 25], ["spades", 25]]);
    let by = |seed: Json| {
        let buckets = suits.as_array().unwrap().iter().cloned();
        let rule: Vec<Json> =
            std::iter::once(json!({ "cat": [seed, { "var": "user.name" }] })).chain(buckets).collect();
        json!({ "state": "ENABLED", "defaultVariant": "wild", "targeting": { "fractional": rule },
                "variants": { "clubs": "c", "diamonds": "d", "hearts": "h", "spades": "s", "wild": "w" } })
    };
    let document = |version: Json| {
        set_of(&json!({ "metadata": { "hashVersion": version }, "flags": {
            "fractional-flag": by(json!({ "var": "$flagd.flagKey" })), "shared": by(json!("shared-seed")),
            "fractional-flag-shorthand": { "state": "ENABLED", "variants": { "heads": 1, "tails": 2, "draw": 3 },
                "defaultVariant": "draw", "targeting": { "fractional": [["heads"], ["tails", 1]] } },
        } }))
        .unwrap()
    };
    let (second, third) = (document(json!(2)), document(json!("3")));
    for (key, name, in_second, in_third) in [
        ("fractional-flag", "jack", "hearts", "diamonds"),
        ("fractional-flag", "queen", "spades", "diamonds"),
        ("fractional-flag", "ten", "clubs", "clubs"),
        ("fractional-flag", "nine", "diamonds", "clubs"),
        ("fractional-flag", "3", "clubs", "spades"),
        ("shared", "seven", "hearts", "hearts"),
        ("shared", "eight", "diamonds", "hearts"),
        ("shared", "nine", "clubs", "diamonds"),
        ("shared", "two", "spades", "diamonds"),
    ] {
        let context = json!({ "user": { "name": name } });
        check(&second, key, context.clone(), (in_second, "TARGETING_MATCH"));
        check(&third, key, context, (in_third, "TARGETING_MATCH"));
    }
    for (user, in_second, in_third) in [
        ("jon@company.com", "heads", "tails"),
        ("jane@company.com", "tails", "tails"),
        ("user-1", "heads", "heads"),
        ("user-2", "tails", "tails"),
        ("user-3", "tails", "heads"),
    ] {
        let context = json!({ "targetingKey": user });
        if user.ends_with("com") {
            check(&second, "fractional-flag-shorthand", context.clone(), (in_second, "TARGETING_MATCH"));
        }
        check(&third, "fractional-flag-shorthand", context, (in_third, "TARGETING_MATCH"));
    }
    for context in [json!({}), json!({ "targetingKey": "" }), json!({ "targetingKey": 12345 })] {
        check(&third, "fractional-flag-shorthand", context, ("draw", "DEFAULT"));
    }
}

#[test]
fn a_missing_value_falls_back_to_the_targeting_key_in_the_second_way_only() {
    let rule = json!({ "fractional": [{ "var": "nowhere" }, ["on", 1]] });
    let of = |version: u32| {
        let flags = json!({ "new": switch(json!({ "targeting": rule })) });
        set_of(&json!({ "flags": flags, "metadata": { "hashVersion": version } })).unwrap()
    };
    check(&of(2), "new", json!({ "targetingKey": "ann" }), ("on", "TARGETING_MATCH"));
    check(&of(2), "new", json!({}), ("off", "DEFAULT"));
    check(&of(3), "new", json!({ "targetingKey": "ann" }), ("off", "DEFAULT"));
}

#[test]
fn what_decides_first_decides() {
    let rule = json!({ "if": [{ "==": [{ "var": "tier" }, "gold"] }, "on", null] });
    let kill = |active: bool| json!({ "kill": { "active": active, "variant": "off" } });
    let needs = json!({ "prerequisites": [{ "flag": "base", "variant": "on" }] });
    let set = set(json!({
        "base": switch(json!({ "targeting": { "if": [{ "var": "base" }, "on"] } })),
        "plain": switch(json!({})),
        "none": { "state": "ENABLED", "variants": { "a": 1 } },
        "ruled": switch(json!({ "targeting": rule })),
        "empty": switch(json!({ "targeting": {} })),
        "disabled": switch(json!({ "targeting": rule, "state": "DISABLED" })),
        "killed": switch(json!({ "targeting": rule, "state": "DISABLED", "x-gilmok": kill(true) })),
        "spared": switch(json!({ "targeting": rule, "x-gilmok": kill(false) })),
        "needy": switch(json!({ "targeting": rule, "x-gilmok": needs })),
        "shared": switch(json!({ "targeting": rule, "x-gilmok": { "buckets": { "table": [["on", 0, 1_000_000]] } } })),
    }));
    let gold = || json!({ "tier": "gold", "targetingKey": "ann" });
    for (key, context, expected) in [
        ("plain", gold(), ("off", "STATIC")),
        ("none", gold(), ("", "DEFAULT")),
        ("ruled", gold(), ("on", "TARGETING_MATCH")),
        ("ruled", json!({}), ("off", "DEFAULT")),
        ("empty", gold(), ("off", "STATIC")),
        ("disabled", gold(), ("", "DISABLED")),
        ("killed", gold(), ("off", "DISABLED")),
        ("spared", gold(), ("on", "TARGETING_MATCH")),
        ("needy", gold(), ("off", "DEFAULT")),
        ("needy", json!({ "tier": "gold", "base": true }), ("on", "TARGETING_MATCH")),
        ("needy", json!({ "base": true }), ("off", "DEFAULT")),
        ("shared", gold(), ("on", "TARGETING_MATCH")),
        ("shared", json!({ "targetingKey": "ann" }), ("on", "SPLIT")),
        ("shared", json!({}), ("off", "DEFAULT")),
        ("nowhere", json!({}), ("there is no such flag", "FLAG_NOT_FOUND")),
    ] {
        check(&set, key, context, expected);
    }
    let static_ones: Vec<&str> = set.flags().iter().filter(|flag| flag.is_static()).map(Flag::key).collect();
    assert_eq!(static_ones, ["disabled", "empty", "killed", "none", "plain"]);
}

#[test]
fn more_is_told_than_openfeature_has_words_for() {
    let flags = json!({
        "a": switch(json!({ "metadata": { "owner": "me", "n": 1 }, "x-gilmok": { "kill": { "active": true } } })),
        "b": switch(json!({ "x-gilmok": { "prerequisites": [{ "flag": "a", "variant": "on" }] } })),
    });
    let set =
        set_of(&json!({ "flags": flags, "metadata": { "owner": "all", "flagSetId": "shop" } })).unwrap();
    let context = Context::default();
    let metadata = |key: &str| Json::Object(set.evaluate(key, &Asked::of(&context, NOW)).unwrap().metadata());
    assert_eq!(
        metadata("a"),
        json!({ "owner": "me", "flagSetId": "shop", "n": 1, "gilmok.reason": "kill-switch" })
    );
    assert_eq!(
        metadata("b"),
        json!({ "owner": "all", "flagSetId": "shop", "gilmok.reason": "prerequisite:a" })
    );
}

#[test]
fn shares_are_told_as_splits_where_a_flag_is_more_than_flagds() {
    let half = json!({ "fractional": [["on", 1]] });
    let flags = json!({
        "plain": switch(json!({ "targeting": half })),
        "ours": switch(json!({ "targeting": half, "x-gilmok": { "type": "release" } })),
    });
    let context = || json!({ "targetingKey": "ann" });
    let set = set_of(&json!({ "flags": flags })).unwrap();
    check(&set, "plain", context(), ("on", "TARGETING_MATCH"));
    check(&set, "ours", context(), ("on", "SPLIT"));
    let set = set_of(&json!({ "flags": flags, "metadata": { "reasons": "openfeature" } })).unwrap();
    check(&set, "plain", context(), ("on", "SPLIT"));
}

#[test]
fn buckets_have_the_places_of_rollouts() {
    // The place of ["checkout-v2", "user-123"] is 888071, as mmh3 5.3.1 and cbor2 5.9.0 have it.
    let of = |border: u32| {
        let table = json!([["off", 0, border], ["on", border, 1_000_000]]);
        set(json!({ "checkout-v2": switch(json!({ "x-gilmok": { "buckets": { "table": table } } })) }))
    };
    let user = || json!({ "targetingKey": "user-123" });
    check(&of(888_071), "checkout-v2", user(), ("on", "SPLIT"));
    check(&of(888_072), "checkout-v2", user(), ("off", "SPLIT"));
}

#[test]
fn a_flag_follows_a_services_candidate() {
    let set = set(json!({
        "short": switch(json!({ "x-gilmok": { "follow": "checkout" } })),
        "long": switch(json!({ "x-gilmok": { "follow": { "service": "checkout", "variant": "on" } } })),
    }));
    for key in ["short", "long"] {
        for (answer, expected) in
            [(Some(true), ("on", "SPLIT")), (Some(false), ("off", "SPLIT")), (None, ("off", "DEFAULT"))]
        {
            let (variant, reason) = asked(&set, key, json!({}), &|service| {
                assert_eq!(service, "checkout");
                answer
            });
            assert_eq!((variant.as_str(), reason), expected, "{key} {answer:?}");
        }
        assert_eq!(set.get(key).unwrap().follows(), Some("checkout"));
    }
}

#[test]
fn a_rule_that_cannot_be_evaluated_fails_for_its_flag_only() {
    let set = set(json!({
        "fine": switch(json!({})),
        "unknown": switch(json!({ "targeting": { "if": [{ "frobnicate": 1 }, "on"] } })),
        "unref": switch(json!({ "targeting": { "if": [false, { "$ref": "nobody" }] } })),
        "wrong": switch(json!({ "targeting": { "if": [true, "maybe"] } })),
        "list": switch(json!({ "targeting": { "merge": ["on"] } })),
    }));
    check(&set, "fine", json!({}), ("off", "STATIC"));
    check(&set, "unknown", json!({}), ("there is no operator `frobnicate`", "PARSE_ERROR"));
    check(&set, "unref", json!({}), ("there is no evaluator `nobody`", "PARSE_ERROR"));
    let missing = "the rule gave a variant that the flag does not have";
    check(&set, "wrong", json!({}), (missing, "GENERAL"));
    check(&set, "list", json!({}), (missing, "GENERAL"));
    let warnings: Vec<String> = set.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "flags.unknown.targeting.\"if\"[0].\"frobnicate\": there is no operator `frobnicate`",
            "flags.unref.targeting.\"if\"[1].\"$ref\": there is no evaluator `nobody`",
            "flags.wrong.targeting: there is no variant `maybe`",
        ]
    );
}

#[test]
fn evaluations_end_whatever_a_rule_says() {
    let doubling = json!({ "reduce": [{ "var": "xs" }, { "cat": [{ "var": "accumulator" }, { "var": "accumulator" }] }, "x"] });
    let nested =
        json!({ "map": [{ "var": "xs" }, { "map": [{ "var": "" }, { "map": [{ "var": "" }, 1] }] }] });
    let wrapped = json!({ "reduce": [{ "var": "xs" }, [{ "var": "accumulator" }], 1] });
    let squared =
        json!({ "map": [{ "var": "xs" }, { "in": [{ "var": "" }, { "merge": [[1], [2], [3]] }] }] });
    let set = set(json!({
        "doubling": switch(json!({ "targeting": { "in": ["y", doubling] } })),
        "nested": switch(json!({ "targeting": nested })),
        "wrapped": switch(json!({ "targeting": wrapped })),
        "squared": switch(json!({ "targeting": squared })),
    }));
    let xs: Vec<u32> = (0..10_000).collect();
    let lists: Vec<&Vec<u32>> = (0..100).map(|_| &xs).collect();
    let steps = ("the rule takes too many steps", "GENERAL");
    check(&set, "doubling", json!({ "xs": xs }), steps);
    check(&set, "nested", json!({ "xs": lists }), steps);
    check(&set, "squared", json!({ "xs": xs }), steps);
    check(&set, "wrapped", json!({ "xs": xs }), ("the rule makes lists that nest too deeply", "GENERAL"));
}

#[test]
fn an_evaluator_is_used_by_many_and_knows_which_flag_it_is_used_by() {
    let document = json!({
        "flags": {
            "a": switch(json!({ "targeting": { "if": [{ "$ref": "is_a" }, "on"] } })),
            "b": switch(json!({ "targeting": { "if": [{ "$ref": "is_a" }, "on"] } })),
        },
        "$evaluators": { "is_a": { "==": [{ "var": "$flagd.flagKey" }, "a"] }, "time": { "var": "$flagd.timestamp" } },
    });
    let set = set_of(&document).unwrap();
    check(&set, "a", json!({}), ("on", "TARGETING_MATCH"));
    check(&set, "b", json!({}), ("off", "DEFAULT"));
    assert!(!set.reads_time());
}

#[test]
fn the_time_is_an_argument() {
    let rule = json!({ "if": [{ ">": [{ "var": "$flagd.timestamp" }, { "var": "at" }] }, "on"] });
    let set = set(json!({ "timed": switch(json!({ "targeting": rule })) }));
    check(&set, "timed", json!({ "at": NOW - 1 }), ("on", "TARGETING_MATCH"));
    check(&set, "timed", json!({ "at": NOW }), ("off", "DEFAULT"));
    assert!(set.reads_time() && set.get("timed").unwrap().reads_time());
}

#[test]
fn applications_ask_for_a_type() {
    let set = set(json!({
        "n": { "state": "ENABLED", "variants": { "a": 1, "b": 0.5 }, "defaultVariant": "a" },
        "t": { "state": "ENABLED", "variants": { "a": "x" }, "defaultVariant": "a" },
        "o": { "state": "ENABLED", "variants": { "a": {} }, "defaultVariant": "a" },
        "none": { "state": "ENABLED", "variants": { "a": {} } },
    }));
    let context = Context::default();
    let code = |key: &str, expected| {
        set.evaluate_as(key, expected, &Asked::of(&context, NOW)).map(drop).map_err(|failure| failure.code)
    };
    for (key, sound) in [
        ("n", [Expected::Integer, Expected::Float].as_slice()),
        ("t", &[Expected::String]),
        ("o", &[Expected::Object]),
    ] {
        for expected in
            [Expected::Boolean, Expected::Float, Expected::Integer, Expected::Object, Expected::String]
        {
            let wanted = if sound.contains(&expected) { Ok(()) } else { Err(ErrorCode::TypeMismatch) };
            assert_eq!(code(key, expected), wanted, "{key} as {expected:?}");
        }
    }
    assert_eq!(code("none", Expected::Boolean), Ok(()), "the application's own default");
    let kind = |key: &str| set.get(key).unwrap().kind();
    assert_eq!(kind("n"), Some(FlagType::Number { whole: false }));
    assert_eq!((kind("t"), kind("o")), (Some(FlagType::String), Some(FlagType::Object)));
}

#[test]
fn flags_may_be_a_list() {
    let document = json!({ "flags": [
        { "key": "b", "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" },
        { "key": "a", "state": "DISABLED", "variants": { "on": true } },
    ] });
    let set = set_of(&document).unwrap();
    check(&set, "b", json!({}), ("on", "STATIC"));
    assert_eq!(set.flags().iter().map(Flag::key).collect::<Vec<_>>(), ["a", "b"]);
    let twice = json!({ "flags": [{ "key": "a" }, { "key": "a" }, {}] });
    let told = set_of(&twice).unwrap_err();
    assert!(
        told.contains("flags[1]: the key `a` stands twice") && told.contains("flags[2]: `key` is missing"),
        "{told}"
    );
}

#[test]
fn every_fault_says_where() {
    let one = |flag: Json| json!({ "flags": { "a": flag, "b": switch(json!({})) } });
    let ours = |extension: Json| one(switch(json!({ "x-gilmok": extension })));
    let needs =
        |flag: &str, variant: &str| json!({ "prerequisites": [{ "flag": flag, "variant": variant }] });
    let circle = json!({ "flags": {
        "a": switch(json!({ "x-gilmok": needs("b", "on") })), "b": switch(json!({ "x-gilmok": needs("c", "on") })),
        "c": switch(json!({ "x-gilmok": needs("a", "on") })),
    } });
    let same = json!({ "flags": {
        "a": switch(json!({ "x-gilmok": { "header": { "single": "Feature-A" } } })),
        "b": switch(json!({ "x-gilmok": { "header": { "single": "feature-a", "name": "a" } } })),
    } });
    for (document, expected) in [
        (json!([]), "expected a table, found a list"),
        (json!({}), "`flags` is missing"),
        (json!({ "flags": 1 }), "flags: expected a table, found 1"),
        (json!({ "flags": {}, "metadata": { "hashVersion": 1 } }), "metadata: `hashVersion` says how"),
        (one(json!({ "variants": { "on": 1 } })), "flags.a: `state` is missing"),
        (one(switch(json!({ "state": "DISABELD" }))), "flags.a.state: \"DISABELD\" is not known here"),
        (one(switch(json!({ "variants": {} }))), "flags.a.variants: 0 variants"),
        (one(json!({ "state": "ENABLED" })), "flags.a: `variants` is missing"),
        (
            one(switch(json!({ "defaultVariant": "no" }))),
            "flags.a.defaultVariant: there is no variant `no` (one of: off, on)",
        ),
        (one(switch(json!({ "defaultVariant": 1 }))), "flags.a.defaultVariant: expected a text, found 1"),
        (ours(json!({ "typ": "release" })), "flags.a.x-gilmok.typ: unknown key (did you mean `type`?)"),
        (ours(json!({ "type": "x" })), "flags.a.x-gilmok.type: \"x\" is not known here"),
        (ours(json!({ "expires": "soon" })), "flags.a.x-gilmok.expires: not a day"),
        (
            ours(json!({ "kill": { "active": true, "variant": "x" } })),
            "kill.variant: there is no variant `x`",
        ),
        (ours(json!({ "kill": {} })), "kill: `active` is missing"),
        (ours(needs("a", "on")), "prerequisites[0]: a flag that requires itself"),
        (ours(needs("x", "on")), "prerequisites[0]: there is no flag `x`"),
        (ours(needs("b", "x")), "prerequisites[0]: `b` has no variant `x`"),
        (circle, "flags.a.x-gilmok.prerequisites[0]: the prerequisites of `a` lead back to it"),
        (ours(json!({ "buckets": { "table": [["on", 0, 5]] } })), "buckets.table: the table ends at 5"),
        (
            ours(json!({ "buckets": { "table": [["on", 0, 5], ["off", 6, 1_000_000]] } })),
            "table[1]: the range is empty",
        ),
        (ours(json!({ "follow": "a b" })), "follow: \"a b\" is not understood"),
        (
            ours(json!({ "follow": "s", "buckets": { "table": [["on", 0, 1_000_000]] } })),
            "follows a service has no buckets",
        ),
        (ours(json!({ "header": { "name": "New" } })), "header.name: not a key of the header"),
        (
            ours(json!({ "header": { "single": "Host" } })),
            "header.single: not the name of a header for a flag",
        ),
        (
            ours(json!({ "header": { "single": "Gilmok-Shard" } })),
            "header.single: not the name of a header for a flag",
        ),
        (same.clone(), "`a` and `b` are both told as `a`"),
        (same, "`a` and `b` both have the header `feature-a`"),
        (ours(json!({ "guard": { "metrics": [] } })), "guard: a guard without metrics"),
        (ours(json!({ "guard": { "metrics": ["cpu"] } })), "guard.metrics[0]: \"cpu\" is not known here"),
        (ours(json!({ "kill": { "active": true, "why": "x".repeat(1_001) } })), "kill.why: 1001 bytes"),
    ] {
        let told = set_of(&document).unwrap_err();
        assert!(told.contains(expected), "{document}\n{told}");
    }
    let many = set_of(&json!({ "flags": { "a": {}, "b": {}, "c": { "state": 1 } } })).unwrap_err();
    assert_eq!(many.lines().count(), 6, "every fault at once: {many}");
}

#[test]
fn who_pulled_a_switch_is_told_while_it_is_pulled() {
    for (kill, expected) in [
        (json!({ "active": true, "by": "ann", "why": "it hurts" }), Some(("ann", "it hurts"))),
        (json!({ "active": true, "by": "ann" }), Some(("ann", ""))),
        (json!({ "active": true }), None),
        (json!({ "active": false, "by": "ann", "why": "it hurts" }), None),
    ] {
        let set =
            set_of(&json!({ "flags": { "a": switch(json!({ "x-gilmok": { "kill": kill } })) } })).unwrap();
        assert_eq!(set.flags()[0].killed_by(), expected, "{kill}");
        let context = Context::default();
        let explained = set.explain("a", &Asked::of(&context, 0)).unwrap();
        let step = &explained["steps"][0];
        assert_eq!(step.get("why").and_then(Json::as_str), expected.map(|(_, why)| why), "{step}");
    }
}

#[test]
fn prerequisites_of_prerequisites_are_bounded() {
    // Each flag requires the next two: 2^n evaluations.
    let flags: Map<String, Json> = (0..20)
        .map(|at| {
            let next = [at + 1, at + 2].into_iter().filter(|next| *next < 20);
            let needs: Vec<Json> =
                next.map(|next| json!({ "flag": format!("f{next:02}"), "variant": "on" })).collect();
            (format!("f{at:02}"), switch(json!({ "x-gilmok": { "prerequisites": needs } })))
        })
        .collect();
    let told = set_of(&json!({ "flags": flags })).unwrap_err();
    assert!(told.contains("more than 64 flags are evaluated for `f00`"), "{told}");
    // A chain as long as a set is refused too, without a stack as long.
    let chain: Map<String, Json> = (0..5_000)
        .map(|at| {
            let needs: Vec<Json> = (at < 4_999)
                .then(|| json!({ "flag": format!("f{}", at + 1), "variant": "on" }))
                .into_iter()
                .collect();
            (format!("f{at}"), switch(json!({ "x-gilmok": { "prerequisites": needs } })))
        })
        .collect();
    assert!(set_of(&json!({ "flags": chain })).unwrap_err().contains("more than 64 flags"));
}

#[test]
fn what_flagd_only_warns_of_is_a_warning() {
    let rule = |targeting: Json| switch(json!({ "targeting": targeting }));
    for (flag, expected) in [
        (
            json!({ "state": "ENABLED", "variants": { "a": 1, "b": "x" } }),
            "variants: the variants are of several types",
        ),
        (json!({ "state": "ENABLED", "variants": { "a": [1] } }), "variants.a: a variant is a boolean"),
        (
            json!({ "state": "ENABLED", "variants": { "a": 9_007_199_254_740_993_i64 } }),
            "variants.a: a whole number beyond",
        ),
        (switch(json!({ "metadata": { "a": null } })), "metadata.a: metadata are texts"),
        (rule(json!("on")), "targeting: a rule is an object"),
        (rule(json!({ "sem_ver": [{ "var": "v" }, "===", "1.0.0"] })), "versions are compared by"),
        (rule(json!({ "sem_ver": [{ "var": "v" }, "="] })), "2 arguments where the operator takes 3"),
        (rule(json!({ "sem_ver": [{ "var": "v" }, "=", "x"] })), "not a version"),
        (rule(json!({ "starts_with": [1, "x"] })), "two texts are compared"),
        (rule(json!({ "==": [1] })), "1 arguments where the operator takes 2"),
        (rule(json!({ "<": [1] })), "1 arguments where the operator takes 2 to 3"),
        (rule(json!({ "fractional": [["on", -5]] })), "a weight of -5"),
        (rule(json!({ "fractional": [["on", 0.5]] })), "a weight of 0.5"),
        (rule(json!({ "fractional": [["on", "x"]] })), "a weight is a whole number"),
        (rule(json!({ "fractional": ["x", "on"] })), "a bucket is a list"),
        (rule(json!({ "fractional": [["on", 1, 2]] })), "a bucket of 3 values"),
        (rule(json!({ "var": "$flagd.time" })), "only `$flagd.flagKey`"),
        (rule(json!({ "if": [true, { "a": 1, "b": 2 }] })), "2 keys: this is a value"),
    ] {
        let set = set_of(&json!({ "flags": { "a": flag } })).unwrap();
        let warnings: Vec<String> = set.warnings().iter().map(ToString::to_string).collect();
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{expected}: {warnings:?}");
        assert!(warnings.iter().all(|warning| warning.starts_with("flags.a.")), "{warnings:?}");
    }
    let sound = rule(
        json!({ "if": [{ "in": ["@x.com", { "var": "email" }] }, "on", { "fractional": [["on", 1], ["off", 9]] }] }),
    );
    assert!(set_of(&json!({ "flags": { "a": sound } })).unwrap().warnings().is_empty());
}

#[test]
fn a_rule_may_be_large_but_not_too_large() {
    let rule = |parts: usize| {
        let parts: Vec<Json> = (0..parts).map(|at| json!(at)).collect();
        json!({ "flags": { "a": switch(json!({ "targeting": { "in": [{ "var": "x" }, parts] } })) } })
    };
    assert!(set_of(&rule(9_000)).is_ok());
    assert!(set_of(&rule(10_000)).unwrap_err().contains("flags.a.targeting: the rule is too large"));
    let deep = (0..100).fold(json!(1), |inner, _| json!({ "!": inner }));
    let deep = json!({ "flags": { "a": switch(json!({ "targeting": deep })) } });
    assert!(set_of(&deep).unwrap_err().contains("nested deeper than 64"));
}

#[test]
fn why_is_told_step_by_step() {
    let rule =
        json!({ "if": [{ "==": [{ "var": "tier" }, "gold"] }, { "fractional": [["on", 10], ["off", 90]] }] });
    let set = set(json!({
        "base": switch(json!({ "defaultVariant": "on" })),
        "new-ui": switch(json!({ "targeting": rule, "x-gilmok": {
            "prerequisites": [{ "flag": "base", "variant": "on" }],
            "buckets": { "salt": "s", "table": [["off", 0, 1_000_000]] },
        } })),
    }));
    let explained = |context: Json| {
        let Json::Object(context) = context else { panic!() };
        set.explain("new-ui", &Asked::of(&Context::of_json(&context), NOW)).unwrap()
    };
    let told = explained(json!({ "targetingKey": "user-1", "tier": "gold" }));
    assert_eq!(told["reason"], "SPLIT");
    let steps = told["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(names, ["kill", "state", "prerequisite", "targeting"]);
    assert_eq!(steps[2]["met"], true);
    assert_eq!(steps[3]["fractional"]["hash_version"], 3);
    assert_eq!(steps[3]["fractional"]["of"], 100);
    let path: Vec<&str> =
        steps[3]["path"].as_array().unwrap().iter().map(|line| line["rule"].as_str().unwrap()).collect();
    assert_eq!(path, ["if", "==", "var tier", "fractional"]);
    let told = explained(json!({ "targetingKey": "user-1" }));
    let steps = told["steps"].as_array().unwrap();
    assert_eq!(steps[3]["result"], Json::Null);
    assert_eq!(
        (&steps[4]["step"], &steps[4]["salt"], &steps[4]["variant"]),
        (&json!("buckets"), &json!("s"), &json!("off"))
    );
    let told = explained(json!({}));
    assert_eq!(told["steps"][5], json!({ "step": "default", "variant": "off" }));
    assert_eq!(set.explain("nowhere", &Asked::of(&Context::default(), NOW)), None);
}
