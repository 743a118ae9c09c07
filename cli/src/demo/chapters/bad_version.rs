//! A version that fails some of its users takes itself back, and says by which evidence.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::canary::in_lines;
use crate::demo::crowd::Crowd;
use crate::demo::mesh::Concerning;
use crate::demo::rollout::{Decision, Judged, ROLLOUT_MAX, Rollout};
use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::demo::tell::in_words;
use crate::demo::users::{User, versions_met};
use crate::table::indented;

pub(crate) const TITLE: &str = "A version with a bug takes itself back";

const SERVICE: &str = "checkout";
const APP: &str = "checkout-v3";
const USERS_PER_SECOND: u32 = 400;
/// Users who come after it is over.
const USERS: u64 = 400;
const LOOK: Duration = Duration::from_millis(50);
/// The plan, among the files of the demo, for whoever plays on.
pub(crate) const PLAN_FILE: &str = "rollout.json";

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    order(stage, "fail?percent=5").await?;
    stage.teller.say(
        "v3 fails 5 of 100 requests (POST /control/fail?percent=5), and its health checks see nothing of it",
    );
    let plan = plan();
    let file = stage.mesh.dir.join(PLAN_FILE);
    std::fs::write(&file, in_lines(&plan)).with_context(|| format!("cannot write {}", file.display()))?;
    let crowd = Crowd::start(&stage.mesh.layout, SERVICE, USERS_PER_SECOND)?;
    crowd.go_on_for(USERS).await?;
    stage.teller.say("users come as before, and v3 is to come to them:");
    stage.teller.show(&in_lines(&plan));
    Rollout::begin(stage, SERVICE, &plan).await?;
    let ended = until_ended(stage).await?;
    anyhow::ensure!(
        ended.state() == "rolled_back",
        "the rollout of v3 is {}: {}",
        ended.state(),
        ended.why()
    );
    stage.proxies_back().await?;
    // With two versions the newer one has the places from 0, so this is one of those who had v3.
    let user = User::who_comes(SERVICE, 0, 1)?;
    let met = versions_met(&stage.mesh.layout, SERVICE, &user).await?;
    anyhow::ensure!(met == ["v2", "v2"], "{} meets {met:?} after the rollback", user.name);
    crowd.go_on_for(USERS).await?;
    let counts = crowd.so_far();
    drop(crowd);
    counts.none_lost()?;
    anyhow::ensure!(counts.of("v2").failed == 0, "v2 failed, too");
    tell_why(stage, &ended)?;
    let decision = rollback(&ended)?;
    let v3 = counts.of("v3");
    stage.teller.say(&last_request(decision.at()?, v3.last_asked));
    stage.teller.say(&format!(
        "{} of {} users met v3 and {} of those had a failure; {} and all others are on v2, as before",
        v3.users,
        counts.users(),
        v3.failed,
        user.name
    ));
    order(stage, "ok").await?;
    stage.teller.say("the bug in v3 is mended (POST /control/ok)");
    Ok(())
}

fn rollback(ended: &Rollout) -> anyhow::Result<Decision<'_>> {
    ended.decisions("rolled_back").next().context("no rollback in the history")
}

/// How long it took, and the evidence that it rests on.
fn tell_why(stage: &Stage<'_>, ended: &Rollout) -> anyhow::Result<()> {
    let first = ended.decisions("step").next().context("no step was taken")?;
    let decision = rollback(ended)?;
    let seen_for = decision.at()?.duration_since(first.at()?).unwrap_or_default();
    stage.teller.say(&format!(
        "{} after v3 got its first users it was taken back. Why, in the control plane's own words:",
        in_words(seen_for)
    ));
    stage.teller.show(&format!("  {}", ended.why()));
    stage.teller.show(&indented(&evidence(decision)?));
    let (e_value, needed) = decision.e_value()?;
    stage.teller.say(&format!(
        "the e-value is what one coin has become that was bet, user by user, on v3 being worse: {e_value:.0} by now;"
    ));
    stage.teller.say(&format!(
        "were v3 as good as v2, it would come to {needed:.0} in at most one of {needed:.0} rollouts, however long one looks"
    ));
    Ok(())
}

/// A real one would begin with fewer users; the time that it takes to be sure of v3 is shorter so.
fn plan() -> Value {
    json!({
        "candidate": "v3",
        "steps": [{"percent": 10, "hold": "10s"}, {"percent": 50, "hold": "5s"}, {"percent": 100}],
        "analysis": {"max_ratio": 20, "floor_percent": 1, "latency": false},
    })
}

async fn order(stage: &Stage<'_>, what: &str) -> anyhow::Result<()> {
    let address = stage.mesh.layout.app(APP)?.address;
    talk::order(address, what).await.with_context(|| Concerning(APP.to_owned()))
}

async fn until_ended(stage: &Stage<'_>) -> anyhow::Result<Rollout> {
    let deadline = Instant::now() + ROLLOUT_MAX;
    loop {
        let rollout = Rollout::read(stage, SERVICE).await?;
        if !rollout.is_running() {
            return Ok(rollout);
        }
        anyhow::ensure!(Instant::now() < deadline, "the rollout does not end: {}", rollout.why());
        tokio::time::sleep(LOOK).await;
    }
}

fn evidence(decision: Decision<'_>) -> anyhow::Result<Vec<Vec<String>>> {
    let mut rows = vec![["version", "users counted", "with a failure", ""].map(str::to_owned).to_vec()];
    for (version, role) in [("v2", "stable"), ("v3", "candidate")] {
        let Judged { users, failures, percent } = decision.judged(role)?;
        rows.push(vec![
            version.to_owned(),
            users.to_string(),
            failures.to_string(),
            format!("{percent:.1} %"),
        ]);
    }
    Ok(rows)
}

/// How long the version went on to get requests.
fn last_request(decided: SystemTime, last: Option<SystemTime>) -> String {
    match last.map(|last| last.duration_since(decided)) {
        Some(Ok(after)) => {
            format!("the last request that met v3 was sent {} after the decision", in_words(after))
        }
        Some(Err(before)) => {
            format!(
                "no request met v3 after the decision; the last was sent {} before it",
                in_words(before.duration())
            )
        }
        None => "no request met v3".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use gilmok_control_plane::rollout::plan::Plan;

    use super::*;

    #[test]
    fn the_plan_is_sound_and_minds_what_v3_does() {
        let plan = Plan::parse(&plan(), 1).unwrap();
        assert!(plan.analysis.unwrap().criteria().floor < 0.05);
    }

    #[test]
    fn the_last_request_is_told_from_the_decision_on() {
        let decided = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
        let told = |ms| last_request(decided, SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
        assert_eq!(told(9_012), "the last request that met v3 was sent 12 ms after the decision");
        assert_eq!(told(8_988), "no request met v3 after the decision; the last was sent 12 ms before it");
    }
}
