//! What an operator plans: which version is to get whose share when, what is asked of it, and who is told.

use std::time::Duration;

use gilmok_config::grammar::{Faults, Value};
use gilmok_config::name::Name;
use gilmok_config::node::Node;
use gilmok_config::problem::Problems;
use gilmok_config::unit::{Ppm, format_duration};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::analysis::Criteria;
use super::preset;
use crate::webhook::{OF_ROLLOUTS, Webhook, read_webhooks, write_duration};

/// Most steps of a plan.
pub const STEPS_MAX: usize = 100;
/// Longest time that a step is held, or a gate waits.
const HOLD_MAX: Duration = Duration::from_hours(24 * 60);
/// What a step may ask for at most.
const COUNT_MAX: i64 = 1_000_000_000_000;
/// Longest salt, in bytes; as long as that of a document.
const SALT_BYTES_MAX: usize = 256;

/// A plan, with every default filled in and its preset spelled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Json")]
pub struct Plan {
    /// The version that is to get everybody.
    pub candidate: Name,
    /// The version that has them; what the service's traffic says when it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<Name>,
    /// At least one; the last is everybody.
    pub steps: Vec<Step>,
    /// Absent is "off": then only hard stops end a rollout.
    #[serde(serialize_with = "write_analysis")]
    pub analysis: Option<Judging>,
    pub on_fail: OnFail,
    /// Above this share a failure freezes instead of rolling back: the point of no return.
    #[serde(serialize_with = "write_percent")]
    pub rollback_safe_until: Ppm,
    /// Which users are the first ones; that of the service's traffic when it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<Webhook>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Step {
    /// Somebody has to say yes.
    Gate { gate: Gate },
    /// The candidate gets a share.
    Share(Share),
}

/// A share of the subjects, and what is asked before the next step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    #[serde(serialize_with = "write_percent")]
    pub percent: Ppm,
    /// How long it lasts at least. Time in which no control plane runs does not count.
    #[serde(serialize_with = "write_duration")]
    pub hold: Duration,
    /// Requests that the candidate has answered in this step.
    pub min_requests: u64,
    /// Subjects that the candidate has answered in this step.
    pub min_subjects: u64,
    /// Endpoints that the candidate has before the step begins.
    pub min_endpoints: u64,
}

/// Where a plan waits for a word.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// How long it waits; for ever when it is absent.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "write_optional_duration")]
    pub timeout: Option<Duration>,
    pub on_timeout: OnTimeout,
}

/// What becomes of a rollout whose gate nobody opened in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It stays where it is until somebody says something.
    #[default]
    Pause,
    Promote,
    Rollback,
}

/// What becomes of a rollout whose candidate is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFail {
    /// Shares stay as they are until somebody says something: for what cannot be taken back.
    Freeze,
    #[default]
    Rollback,
}

/// How the candidate is judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judging {
    /// How often at most a candidate that is as good is taken for worse, over the whole rollout.
    pub alpha: f64,
    /// It is promoted once it is shown to fail at most so many times as often as the stable version.
    pub max_ratio: f64,
    /// Failures that nobody minds: the stable version's are taken for at least so many percent.
    #[serde(rename = "floor_percent", serialize_with = "write_percent")]
    pub floor: Ppm,
    /// Whether it may not be slower either.
    pub latency: bool,
    /// Trials of the candidate before it is taken for worse.
    pub min_trials: u64,
    /// Hard stop: so many of its tries in two seconds in a row met nobody.
    #[serde(rename = "connect_failures_percent", serialize_with = "write_percent")]
    pub connect_failures: Ppm,
}

impl Default for Judging {
    fn default() -> Self {
        Self {
            alpha: 0.01,
            max_ratio: 2.0,
            floor: Ppm::new(5_000).unwrap_or_default(),
            latency: true,
            min_trials: 30,
            connect_failures: Ppm::HALF,
        }
    }
}

impl Judging {
    /// What the analysis goes by.
    #[must_use]
    pub fn criteria(&self) -> Criteria {
        let Self { alpha, max_ratio, floor, latency, .. } = *self;
        Criteria { alpha, max_ratio, floor: floor.percent() / 100.0, latency }
    }
}

const ON_FAIL: [(&str, OnFail); 2] = [("freeze", OnFail::Freeze), ("rollback", OnFail::Rollback)];
const ON_TIMEOUT: [(&str, OnTimeout); 3] =
    [("pause", OnTimeout::Pause), ("promote", OnTimeout::Promote), ("rollback", OnTimeout::Rollback)];

impl Plan {
    /// Reads a plan. `hosts` is on how many hosts the service runs, for the presets that go host by host.
    ///
    /// # Errors
    /// Every fault, with its path.
    pub fn parse(json: &Json, hosts: usize) -> Result<Self, Problems> {
        let node = Node::from(json);
        let faults = Faults::new();
        let plan = Self::read(&Value::root(&node, &faults), hosts);
        match faults.into_result(plan)? {
            Some(plan) => Ok(plan),
            None => Err(Problems::whole("this is no plan")),
        }
    }

    fn read(root: &Value<'_>, hosts: usize) -> Option<Self> {
        let mut table = root.table()?;
        let candidate = table.required("candidate").and_then(|v| v.named(Name::parse_given));
        let stable = table.optional("stable").and_then(|v| v.named(Name::parse_given));
        let (preset, steps) = (table.optional("preset"), table.optional("steps"));
        let analysis = table.optional("analysis").map_or(Some(Judging::default()), |v| read_analysis(&v));
        let on_fail = table.optional("on_fail").and_then(|v| v.choice(&ON_FAIL));
        let safe = table.optional("rollback_safe_until").and_then(|v| v.percent());
        let salt = table.optional("salt").and_then(|v| read_salt(&v));
        let webhooks =
            table.optional("webhooks").map(|v| read_webhooks(&v, &OF_ROLLOUTS)).unwrap_or_default();
        let steps = match (&preset, &steps) {
            (Some(preset), None) => preset.text().and_then(|name| match preset::steps(name, hosts) {
                Some(steps) => Some(steps),
                None => {
                    preset.fault("no preset has this name", preset::NAMES);
                    None
                }
            }),
            (None, Some(steps)) => read_steps(steps),
            (Some(preset), Some(_)) => {
                preset.fault("both `preset` and `steps`", "one of them");
                None
            }
            (None, None) => {
                table.value().fault("`steps` is missing", "steps, or a preset");
                None
            }
        };
        table.finish();
        Some(Self {
            candidate: candidate?,
            stable,
            steps: steps?,
            analysis,
            on_fail: on_fail.unwrap_or_default(),
            rollback_safe_until: safe.unwrap_or(Ppm::WHOLE),
            salt,
            webhooks,
        })
    }

    /// The share of the step at this place, or of the last one before it: gates change nothing.
    #[must_use]
    pub fn share_at(&self, step: usize) -> Option<&Share> {
        self.steps.iter().take(step + 1).rev().find_map(|step| match step {
            Step::Share(share) => Some(share),
            Step::Gate { .. } => None,
        })
    }
}

impl TryFrom<Json> for Plan {
    type Error = Problems;

    /// A plan as it was kept.
    fn try_from(json: Json) -> Result<Self, Problems> {
        Self::parse(&json, 1)
    }
}

fn read_salt(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if text.is_empty() || text.len() > SALT_BYTES_MAX {
        value.fault(format!("{} bytes", text.len()), format!("1 to {SALT_BYTES_MAX}"));
        return None;
    }
    Some(text.to_owned())
}

fn read_steps(value: &Value<'_>) -> Option<Vec<Step>> {
    let items = value.items()?;
    if items.is_empty() || items.len() > STEPS_MAX {
        value.fault(format!("{} steps", items.len()), format!("1 to {STEPS_MAX}"));
        return None;
    }
    let steps: Vec<Step> = items.iter().filter_map(read_step).collect();
    if steps.len() != items.len() {
        return None;
    }
    let mut before = Ppm::NONE;
    for (step, item) in steps.iter().zip(&items) {
        let Step::Share(share) = step else { continue };
        if share.percent <= before {
            let hint = format!("more than {}, which it has then", before.percent());
            item.fault(format!("{} % is no step up", share.percent.percent()), hint);
        }
        before = share.percent;
    }
    if !matches!(steps.last(), Some(Step::Share(share)) if share.percent == Ppm::WHOLE) {
        value.fault("the plan has no end", "the last step is { percent = 100 }");
    }
    Some(steps)
}

fn read_step(value: &Value<'_>) -> Option<Step> {
    let mut table = value.table()?;
    let gate = table.optional("gate");
    let percent = table.optional("percent");
    let hold = table.optional("hold");
    let counts = ["min_requests", "min_subjects", "min_endpoints"].map(|key| table.optional(key));
    table.finish();
    match (gate, percent) {
        (Some(gate), None) => {
            for other in hold.iter().chain(counts.iter().flatten()) {
                other.fault("a gate only waits for a word", "a step of its own");
            }
            read_gate(&gate).map(|gate| Step::Gate { gate })
        }
        (None, Some(percent)) => {
            let count = |value: &Option<Value<'_>>, default: u64| match value {
                None => Some(default),
                Some(value) => value.integer(0, COUNT_MAX).and_then(|count| u64::try_from(count).ok()),
            };
            let percent = percent.percent();
            let hold = hold.map_or(Some(Duration::ZERO), |hold| hold.duration(Duration::ZERO, HOLD_MAX));
            let [requests, subjects, endpoints] =
                [count(&counts[0], 0), count(&counts[1], 0), count(&counts[2], 1)];
            // Only now, so that every fault is told.
            Some(Step::Share(Share {
                percent: percent?,
                hold: hold?,
                min_requests: requests?,
                min_subjects: subjects?,
                min_endpoints: endpoints?,
            }))
        }
        (Some(_), Some(percent)) => {
            percent.fault("a step is a share or a gate", "one of them");
            None
        }
        (None, None) => {
            value.fault("a step is a share or a gate", "{ percent = 10, hold = \"5m\" } or { gate = {} }");
            None
        }
    }
}

fn read_gate(value: &Value<'_>) -> Option<Gate> {
    if !value.is_table() {
        // `gate = true` is a gate that waits for ever.
        if value.boolean()? {
            return Some(Gate { timeout: None, on_timeout: OnTimeout::default() });
        }
        value.fault("a gate that is none", "leave the step out");
        return None;
    }
    let mut table = value.table()?;
    let timeout = table.optional("timeout").map(|v| v.duration(Duration::from_secs(1), HOLD_MAX));
    let on_timeout = table.optional("on_timeout").map(|v| v.choice(&ON_TIMEOUT));
    table.finish();
    let timeout = match timeout {
        None => None,
        Some(timeout) => Some(timeout?),
    };
    Some(Gate { timeout, on_timeout: on_timeout.map_or(Some(OnTimeout::default()), |choice| choice)? })
}

#[expect(clippy::option_option, reason = "faulty, off and on are three")]
fn read_analysis_or_off(value: &Value<'_>) -> Option<Option<Judging>> {
    if value.is_text() {
        return value.choice(&[("off", ())]).map(|()| None);
    }
    let mut table = value.table()?;
    let default = Judging::default();
    let number = |value: Option<Value<'_>>, default: f64, least: f64, most: f64| {
        value.map_or(Some(default), |value| value.number(least, most))
    };
    let alpha = number(table.optional("alpha"), default.alpha, 1e-6, 0.5);
    let max_ratio = number(table.optional("max_ratio"), default.max_ratio, 1.05, 1_000.0);
    let floor = table.optional("floor_percent").map_or(Some(default.floor), |v| v.percent());
    let latency = table.optional("latency").map_or(Some(default.latency), |v| v.boolean());
    let min_trials = table.optional("min_trials").map_or(Some(default.min_trials), |v| {
        v.integer(0, COUNT_MAX).and_then(|count| u64::try_from(count).ok())
    });
    let connect_failures =
        table.optional("connect_failures_percent").map_or(Some(default.connect_failures), |v| v.percent());
    table.finish();
    Some(Some(Judging {
        alpha: alpha?,
        max_ratio: max_ratio?,
        floor: floor?,
        latency: latency?,
        min_trials: min_trials?,
        connect_failures: connect_failures?,
    }))
}

/// "off", or settings; what is faulty was noted and is judged as if nothing had been said.
fn read_analysis(value: &Value<'_>) -> Option<Judging> {
    read_analysis_or_off(value).unwrap_or_else(|| Some(Judging::default()))
}

fn write_percent<S: Serializer>(percent: &Ppm, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(percent.percent())
}

#[expect(clippy::ref_option, reason = "serde's form")]
fn write_optional_duration<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(format_duration).serialize(serializer)
}

#[expect(clippy::ref_option, reason = "serde's form")]
fn write_analysis<S: Serializer>(judging: &Option<Judging>, serializer: S) -> Result<S::Ok, S::Error> {
    match judging {
        Some(judging) => judging.serialize(serializer),
        None => json!("off").serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &Json) -> String {
        Plan::parse(json, 4).map(|plan| json!(plan).to_string()).unwrap_or_else(|faults| faults.to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default_and_a_kept_plan_is_read_back() {
        let said = json!({"candidate": "v2", "steps": [{"percent": 0.5}, {"gate": true}, {"percent": 100}]});
        let plan = Plan::parse(&said, 1).unwrap();
        assert_eq!(plan.share_at(1).unwrap().percent.percent(), 0.5);
        assert_eq!((plan.on_fail, plan.rollback_safe_until), (OnFail::Rollback, Ppm::WHOLE));
        let kept = serde_json::to_value(&plan).unwrap();
        assert_eq!(serde_json::from_value::<Plan>(kept).unwrap(), plan);
        let off = json!({"candidate": "v2", "analysis": "off", "preset": "AllAtOnce",
            "webhooks": [{"url": "http://127.0.0.1/", "on": ["step"]}]});
        let plan = Plan::parse(&off, 1).unwrap();
        assert_eq!(plan.analysis, None);
        assert_eq!(serde_json::from_value::<Plan>(json!(plan)).unwrap(), plan);
    }

    #[test]
    fn every_fault_says_where() {
        for (said, expected) in [
            (json!({}), "`candidate` is missing"),
            (json!({"candidate": "v2"}), "`steps` is missing"),
            (json!({"candidate": "v2", "steps": []}), "steps: 0 steps"),
            (json!({"candidate": "v2", "steps": [{"percent": 10}]}), "the plan has no end"),
            (json!({"candidate": "v2", "steps": [{"percent": 100}, {"gate": true}]}), "the plan has no end"),
            (
                json!({"candidate": "v2", "steps": [{"percent": 10}, {"percent": 5}, {"percent": 100}]}),
                "steps[1]: 5 % is no step up",
            ),
            (
                json!({"candidate": "v2", "steps": [{"percent": 130}]}),
                "steps[0].percent: 130 is no percentage",
            ),
            (
                json!({"candidate": "v2", "steps": [{"percent": -1, "hold": 5, "min_requests": -3}]}),
                "steps[0].hold: expected a text, found 5",
            ),
            (
                json!({"candidate": "v2", "steps": [{"percent": -1, "hold": 5, "min_requests": -3}]}),
                "steps[0].min_requests: -3 is out of range",
            ),
            (json!({"candidate": "v2", "steps": [{"hold": "5m"}]}), "steps[0]: a step is a share or a gate"),
            (json!({"candidate": "v2", "preset": "Canary5"}), "preset: no preset has this name"),
            (
                json!({"candidate": "v2", "preset": "AllAtOnce", "analysis": {"alpha": 2}}),
                "analysis.alpha: 2 is out of range",
            ),
            (json!({"candidate": "v2", "preset": "AllAtOnce", "analysis": "on"}), "analysis: \"on\""),
            (
                json!({"candidate": "v2", "preset": "AllAtOnce", "step": []}),
                "step: unknown key (did you mean `steps`?)",
            ),
        ] {
            let told = told(&said);
            assert!(told.contains(expected), "{said}\n{told}");
        }
    }
}
