//! Why a flag is what it is for somebody: everything that was looked at, for people.

use serde_json::{Value as Json, json};

use super::evaluate::{Asked, Evaluation, Failure};
use super::extension::Share;
use super::rule::Trace;
use super::rule::trace::told;
use super::{Flag, FlagSet, FlagType, Targeting, Variant};
use crate::moment::format_moment;

impl FlagSet {
    /// The evaluation of a flag as it is explained, with everything that it followed from; `None` if there is no such flag.
    #[must_use]
    pub fn explain(&self, key: &str, asked: &Asked<'_>) -> Option<Json> {
        let flag = self.get(key)?;
        let evaluation = self.evaluate_flag(flag, asked);
        let mut explained = json!({
            "flag": flag.key(),
            "type": flag.kind().map(FlagType::as_str),
            "targeting_key": asked.context.targeting_key(),
            "state": if flag.is_enabled() { "ENABLED" } else { "DISABLED" },
            "default_variant": flag.default_variant().map(Variant::name),
        });
        match &evaluation {
            Ok(evaluation) => {
                explained["variant"] = Json::from(evaluation.variant().map(Variant::name));
                explained["value"] = evaluation.value().cloned().unwrap_or_default();
                explained["reason"] = Json::from(evaluation.reason.as_str());
                explained["metadata"] = Json::Object(evaluation.metadata());
            }
            Err(failure) => {
                explained["reason"] = Json::from("ERROR");
                explained["error"] = json!({ "code": failure.code.as_str(), "what": failure.what });
            }
        }
        explained["steps"] = Json::Array(self.steps(flag, asked, &evaluation));
        Some(explained)
    }

    /// What was looked at, in order, to the one that decided.
    fn steps(
        &self,
        flag: &Flag,
        asked: &Asked<'_>,
        evaluation: &Result<Evaluation<'_>, Failure>,
    ) -> Vec<Json> {
        let mut steps = Vec::new();
        if let Some(extension) = &flag.extension {
            let off = extension.off.map(|at| flag.variant_name(at));
            let mut step = json!({ "step": "kill", "active": extension.is_killed(), "variant": off });
            if let Some((by, why)) = flag.killed_by() {
                step["by"] = Json::from(by);
                step["why"] = Json::from(why);
            }
            steps.push(step);
            if extension.is_killed() {
                return steps;
            }
        }
        steps.push(json!({ "step": "state", "enabled": flag.is_enabled }));
        if !flag.is_enabled {
            return steps;
        }
        for required in flag.extension.iter().flat_map(|extension| &extension.prerequisites) {
            let other = &self.flags[required.flag];
            let found = self.evaluate_flag(other, asked);
            let variant = found.as_ref().ok().and_then(Evaluation::variant).map(Variant::name);
            let wanted = other.variant_name(required.variant);
            let is_met = variant == Some(wanted);
            steps.push(json!({
                "step": "prerequisite", "flag": other.key(), "required": wanted, "variant": variant, "met": is_met,
            }));
            if !is_met {
                return steps;
            }
        }
        let decided = self.targeting_step(flag, asked, &mut steps);
        if decided || evaluation.is_err() {
            return steps;
        }
        match flag.extension.as_ref().and_then(|extension| extension.share.as_ref()) {
            None => {}
            Some(Share::Buckets(buckets)) => {
                let place = buckets.place(asked);
                let variant = place.map(|place| flag.variant_name(buckets.at(place)));
                steps.push(json!({
                    "step": "buckets", "unit": buckets.unit, "salt": buckets.salt.as_str(), "place": place,
                    "variant": variant,
                }));
                if variant.is_some() {
                    return steps;
                }
            }
            Some(Share::Follow(follow)) => {
                let is_on = (asked.follows)(follow.service.as_str());
                steps.push(json!({ "step": "follow", "service": follow.service, "on_candidate": is_on }));
            }
        }
        steps.push(json!({ "step": "default", "variant": flag.default_variant().map(Variant::name) }));
        steps
    }

    /// Whether the rule decided.
    fn targeting_step(&self, flag: &Flag, asked: &Asked<'_>, steps: &mut Vec<Json>) -> bool {
        if let Targeting::Broken(what) = &flag.targeting {
            steps.push(json!({ "step": "targeting", "error": what }));
            return true;
        }
        let Some(rule) = flag.rule() else { return false };
        let outcome = self.machine(flag, asked).traced().run(rule);
        let result = outcome.value.as_ref().map(told).unwrap_or_default();
        let is_null = result.is_null();
        let mut step = json!({
            "step": "targeting",
            "result": result,
            "path": outcome.trace.map(Trace::into_json),
        });
        if flag.reads_time {
            step["at"] = Json::from(format_moment(asked.now));
        }
        if let Some(split) = outcome.split {
            step["fractional"] = json!({
                "hash_version": self.hashing.number(),
                "hash": format!("{:08x}", split.hash),
                "bucket": split.bucket,
                "of": split.total,
            });
        }
        steps.push(step);
        !is_null
    }
}
