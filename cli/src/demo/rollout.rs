//! A rollout as the control plane tells it: begun, where it stands, what it decided, and by which evidence.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::stage::Stage;
use super::talk;
use crate::table::percent;

/// Longest that a rollout of the story may take where the machine is busy.
pub(crate) const ROLLOUT_MAX: Duration = Duration::from_mins(1);

/// What was known of one version when something was decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Judged {
    /// Whose first request was counted.
    pub(crate) users: u64,
    pub(crate) failures: u64,
    /// Failures in a hundred users.
    pub(crate) percent: f64,
}

/// A service's last rollout, as of when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Rollout(Value);

impl Rollout {
    /// Tells the control plane to begin one.
    ///
    /// # Errors
    /// When it refuses.
    pub(crate) async fn begin(stage: &Stage<'_>, service: &str, plan: &Value) -> anyhow::Result<()> {
        let answer = stage.write(Method::PUT, &target(service), plan).await?;
        anyhow::ensure!(answer.status == StatusCode::CREATED, "no rollout begins: {}", talk::brief(&answer));
        Ok(())
    }

    /// Asks where it stands.
    ///
    /// # Errors
    /// When nobody says.
    pub(crate) async fn read(stage: &Stage<'_>, service: &str) -> anyhow::Result<Self> {
        stage.mesh.read(&target(service)).await.map(Self)
    }

    pub(crate) fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_default()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.0["ended_ms"].is_null()
    }

    /// What it waits for, or why it ended, in its own words.
    pub(crate) fn why(&self) -> &str {
        self.0["why"].as_str().unwrap_or_default()
    }

    /// The candidate's share now.
    pub(crate) fn percent(&self) -> f64 {
        self.0["percent"].as_f64().unwrap_or_default()
    }

    /// What it decided of this kind, in order: `step`, `rolled_back`, …
    pub(crate) fn decisions(&self, what: &'static str) -> impl Iterator<Item = Decision<'_>> {
        let history = self.0["history"].as_array().into_iter().flatten();
        history.filter(move |event| event["what"] == what).map(Decision)
    }
}

fn target(service: &str) -> String {
    format!("/v1/services/{service}/rollout")
}

/// One entry of a rollout's history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision<'r>(&'r Value);

impl Decision<'_> {
    /// The candidate's share from then on; of a rollback, until then.
    pub(crate) fn percent(&self) -> f64 {
        self.0["percent"].as_f64().unwrap_or_default()
    }

    /// When it was made, by the clock of the machine.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) fn at(&self) -> anyhow::Result<SystemTime> {
        let ms = self.0["at_ms"].as_u64().with_context(|| format!("no time in {}", self.0))?;
        Ok(UNIX_EPOCH + Duration::from_millis(ms))
    }

    /// What was known of the `stable` or the `candidate` version.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) fn judged(&self, role: &str) -> anyhow::Result<Judged> {
        let seen = &self.0["evidence"]["failures"][role];
        let judged = seen["trials"].as_u64().zip(seen["events"].as_u64()).zip(seen["percent"].as_f64());
        let ((users, failures), percent) = judged.with_context(|| format!("no {role} in {}", self.0))?;
        Ok(Judged { users, failures, percent })
    }

    /// Below which share the candidate's failures were shown to be, if they were.
    pub(crate) fn bound(&self) -> Option<String> {
        let most = self.0["evidence"]["failures"]["percent_at_most"].as_f64()?;
        // Rounded up: it is a bound.
        Some(percent((most * 10.0).ceil() / 10.0))
    }

    /// How strongly what was seen speaks against the candidate, and from where on that is enough.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) fn e_value(&self) -> anyhow::Result<(f64, f64)> {
        let failures = &self.0["evidence"]["failures"];
        let values = failures["e_value"].as_f64().zip(failures["e_value_needed"].as_f64());
        values.with_context(|| format!("no e-value in {}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decisions_are_told_with_their_evidence() {
        let seen = |trials, events, percent| json!({"trials": trials, "events": events, "percent": percent});
        let failures = json!({"e_value": 437.5, "e_value_needed": 100.0, "percent_at_most": 12.34,
            "stable": seen(900, 1, 0.1), "candidate": seen(100, 5, 5.0)});
        let rollout = Rollout(json!({"state": "rolled_back", "ended_ms": 9_000, "history": [
            {"what": "step", "percent": 10.0, "at_ms": 7_000},
            {"what": "rolled_back", "percent": 10.0, "at_ms": 9_000, "evidence": {"failures": failures}},
        ]}));
        assert!(!rollout.is_running());
        assert_eq!(rollout.decisions("step").count(), 1);
        let decision = rollout.decisions("rolled_back").next().unwrap();
        assert_eq!(decision.at().unwrap(), UNIX_EPOCH + Duration::from_secs(9));
        assert_eq!(decision.judged("candidate").unwrap(), Judged { users: 100, failures: 5, percent: 5.0 });
        assert_eq!(decision.bound().as_deref(), Some("12.4 %"));
        assert_eq!(decision.e_value().unwrap(), (437.5, 100.0));
        assert!(rollout.decisions("step").next().unwrap().judged("stable").is_err());
    }
}
