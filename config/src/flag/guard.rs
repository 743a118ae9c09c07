//! `x-gilmok.guard`: by what a flag is judged while it is in use, and which flags can be judged.

use super::Variant;
use crate::grammar::Value;

/// Most variants of a guarded flag: of each it is remembered who got it.
pub const GUARDED_VARIANTS_MAX: usize = 8;

/// By what a flag is judged while it is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    pub metrics: Vec<Metric>,
    /// Whether it is killed when it fails; else that is only told.
    pub kills: bool,
}

/// What is compared between a guarded flag's variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Errors,
    Latency,
}

const METRICS: [(&str, Metric); 2] = [("errors", Metric::Errors), ("latency", Metric::Latency)];

impl Guard {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let metrics = table.required("metrics").and_then(|v| v.list(|v| v.choice(&METRICS)));
        let kills = table.optional("onFail").map(|v| v.choice(&[("kill", true), ("tell", false)]));
        table.finish();
        let metrics = metrics?;
        if metrics.is_empty() {
            value.fault("a guard without metrics", "[\"errors\"], [\"latency\"] or both");
        }
        Some(Self { metrics, kills: kills.flatten().unwrap_or_default() })
    }
}

/// A guard compares variants with the one that is served when the flag is killed.
pub(super) fn check(value: &Value<'_>, variants: &[Variant], off: Option<usize>, shares: usize) {
    if off.is_none() {
        value.fault(
            "there is no variant to compare with, nor one to go back to",
            "`kill.variant`, a variant named `off`, or a `defaultVariant`",
        );
    }
    if variants.len() > GUARDED_VARIANTS_MAX {
        value.fault(
            format!("{} variants of a guarded flag", variants.len()),
            format!("at most {GUARDED_VARIANTS_MAX}"),
        );
    }
    check_alike(value, shares);
}

/// Those who get a variant by one share are alike in everything but the variant. Two shares, say of paying users and of
/// others, would bring more of the ones to one variant, and what they differ in would be taken for the variant's fault.
fn check_alike(value: &Value<'_>, shares: usize) {
    if shares > 1 {
        value.fault(
            "users have variants by several shares, so that the variants' users cannot be compared",
            "one `fractional` whose buckets are the same for all, or `buckets`; for other users a flag of their own",
        );
    }
}

/// Whoever has a flag on because of a service's candidate meets the candidate's faults, which are not the flag's.
pub(super) fn check_follow(value: &Value<'_>, follows: bool) {
    if follows {
        value.fault(
            "a flag that follows a service cannot be guarded: it would be killed for the candidate's faults",
            "no `guard`: the service's rollout guards it, and takes the flag back with the candidate",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value as Json, json};

    use super::super::GUARDED_MAX;
    use super::super::tests::{set_of, switch};
    use super::*;

    #[test]
    fn a_guard_needs_something_to_go_back_to_and_has_its_limits() {
        let guard = json!({ "guard": { "metrics": ["errors"] } });
        let guarded = |variants: Json| json!({ "flags": { "a": { "state": "ENABLED", "variants": variants, "x-gilmok": guard } } });
        let lonely = set_of(&guarded(json!({ "on": true }))).unwrap_err();
        assert!(lonely.contains("flags.a.x-gilmok.guard: there is no variant to compare with"), "{lonely}");
        let nine: Map<String, Json> = (0..9).map(|at| (format!("v{at}"), json!(at))).collect();
        let wide = set_of(&guarded(Json::Object(nine))).unwrap_err();
        assert!(wide.contains("9 variants of a guarded flag (at most 8)"), "{wide}");
        let many = |count: usize| {
            let flags: Map<String, Json> =
                (0..count).map(|at| (format!("f{at:03}"), switch(json!({ "x-gilmok": guard })))).collect();
            set_of(&json!({ "flags": flags }))
        };
        let set = many(GUARDED_MAX).unwrap();
        assert_eq!(set.flags()[0].off_variant().map(Variant::name), Some("off"));
        assert!(!set.flags()[0].is_watched(), "everybody gets the same");
        assert!(many(GUARDED_MAX + 1).unwrap_err().contains("257 flags with a guard (at most 256)"));
    }

    #[test]
    fn a_guard_compares_the_users_of_one_share() {
        let extended = |targeting: &Json, extension: Json| {
            let flag = switch(json!({ "targeting": targeting, "x-gilmok": extension }));
            let evaluators = json!({ "tenth": { "fractional": [["on", 10], ["off", 90]] } });
            set_of(&json!({ "$evaluators": evaluators, "flags": { "a": flag } }))
        };
        let guard = json!({ "metrics": ["errors"] });
        let guarded = |targeting: Json| extended(&targeting, json!({ "guard": guard }));
        let share = |on: Json| json!({ "fractional": [["on", on], ["off", 50]] });
        let tier = json!({ "==": [{ "var": "tier" }, "gold"] });
        let either = |then: Json, otherwise: Json| json!({ "if": [tier, then, otherwise] });
        let tenth = json!({ "$ref": "tenth" });
        for targeting in [
            either(share(json!(10)), json!("off")),
            either(json!("on"), tenth.clone()),
            share(json!({ "-": [{ "var": "$flagd.timestamp" }, 1_000_000] })),
            json!({ "fractional": [{ "var": "account" }, ["on", 1], ["off", 1]] }),
        ] {
            let told = guarded(targeting.clone());
            assert!(told.is_ok(), "{targeting}: {told:?}");
        }
        let several = "flags.a.x-gilmok.guard: users have variants by several shares";
        for targeting in [
            either(share(json!(10)), share(json!(90))),
            either(tenth.clone(), tenth),
            share(either(json!(10), json!(90))),
            json!({ "fractional": [[either(json!("on"), json!("off")), 1], ["off", 1]] }),
        ] {
            let told = guarded(targeting.clone()).unwrap_err();
            assert!(told.contains(several), "{targeting}: {told}");
            assert!(extended(&targeting, json!({})).is_ok(), "without a guard: {targeting}");
        }
        let buckets = json!({ "table": [["on", 0, 5], ["off", 5, 1_000_000]] });
        let both = json!({ "guard": guard, "buckets": buckets });
        assert!(extended(&share(json!(10)), both.clone()).unwrap_err().contains(several));
        assert!(extended(&either(json!("on"), Json::Null), both).is_ok());
    }

    #[test]
    fn a_flag_that_follows_a_service_is_guarded_by_the_services_rollout() {
        let flag =
            |extension: Json| set_of(&json!({ "flags": { "a": switch(json!({ "x-gilmok": extension })) } }));
        assert!(flag(json!({ "follow": "shop" })).is_ok());
        let told = flag(json!({ "follow": "shop", "guard": { "metrics": ["errors"] } })).unwrap_err();
        assert!(
            told.contains("flags.a.x-gilmok.guard: a flag that follows a service cannot be guarded"),
            "{told}"
        );
        assert!(told.contains("the service's rollout guards it"), "{told}");
    }
}
