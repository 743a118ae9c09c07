//! A new version comes to everybody step by step, and whoever has it keeps it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::demo::crowd::Crowd;
use crate::demo::rollout::{Decision, Judged, ROLLOUT_MAX, Rollout};
use crate::demo::stage::Stage;
use crate::demo::users::{User, versions_met};
use crate::table::{indented, percent};

pub(crate) const TITLE: &str = "A new version comes to 1 % of the users, then 10 %, then all";

const SERVICE: &str = "checkout";
const STEPS: [u32; 4] = [1, 10, 50, 100];
const USERS_PER_SECOND: u32 = 400;
/// Users who come before the plan begins.
const USERS: u64 = 200;
/// How often the users who are followed look at the shop.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let crowd = Crowd::start(&stage.mesh.layout, SERVICE, USERS_PER_SECOND)?;
    crowd.go_on_for(USERS).await?;
    anyhow::ensure!(crowd.so_far().of("v2").users == 0, "v2 has users before anybody said so");
    stage.teller.say(&format!(
        "{USERS_PER_SECOND} users a second come to checkout on every machine, always others (X-User-Id); all get v1"
    ));
    let plan = plan();
    stage
        .teller
        .say("v2 of it runs, too. This is how it is to come to them (PUT /v1/services/checkout/rollout):");
    stage.teller.show(&in_lines(&plan));
    stage.teller.say(
        "each step lasts its `hold`, and longer until enough users of v2 were seen to say that it is no worse than v1;",
    );
    stage.teller.say(
        "here, that it fails less than 20 % of them (max_ratio × floor_percent): some 30 users show that, a demo is short.",
    );
    stage.teller.say(
        "A real plan holds for minutes and leaves `analysis` out: 1 %, which some 650 users without a failure show",
    );
    // One who comes with each step.
    let mut followed = Vec::new();
    for (before, percent) in std::iter::once(0).chain(STEPS).zip(STEPS) {
        followed.push(Followed::new(User::who_comes(SERVICE, before, percent)?));
    }
    look(stage, &mut followed, Some(0)).await?;
    Rollout::begin(stage, SERVICE, &plan).await?;
    let ended = follow(stage, &mut followed).await?;
    anyhow::ensure!(ended.state() == "done", "the rollout of v2 is {}: {}", ended.state(), ended.why());
    let taken: Vec<_> = ended.decisions("step").map(|step| step.percent()).collect();
    anyhow::ensure!(taken == STEPS.map(f64::from), "steps taken: {taken:?}");
    stage.proxies_back().await?;
    look(stage, &mut followed, Some(100)).await?;
    let counts = crowd.so_far();
    counts.none_failed()?;
    stage
        .teller
        .say("everybody has v2, and a next version will be compared with it. Four users who were followed:");
    stage.teller.show(&indented(&table(&followed)));
    stage.teller.say(
        "they came again and again, to the shop's page on web-1 and to checkout on app-2. Each proxy decides by itself,",
    );
    stage.teller.say(&format!(
        "both said the same, and whoever had v2 once never saw v1 again. {} users in all, none had a failure",
        counts.users()
    ));
    Ok(())
}

/// Short holds and a bound that few users are enough for; all else as it is when nothing is said.
fn plan() -> Value {
    let hold = |percent: u32| if percent < 50 { "4s" } else { "3s" };
    json!({
        "candidate": "v2",
        "steps": STEPS.map(|percent| json!({"percent": percent, "hold": hold(percent)})),
        "analysis": {"max_ratio": 20, "floor_percent": 1, "latency": false},
    })
}

/// A plan as it is sent, one line for each key.
pub(super) fn in_lines(plan: &Value) -> String {
    let lines = plan.as_object().into_iter().flatten().map(|(key, value)| format!("  \"{key}\": {value}"));
    format!("{{\n{}\n}}", lines.collect::<Vec<_>>().join(",\n"))
}

/// A user, and which version that user met at which share of v2.
#[derive(Debug)]
struct Followed {
    user: User,
    /// What was met last on each road.
    last: Option<[String; 2]>,
    /// By the share of v2 in percent, where both roads were asked while it was in force everywhere.
    at: BTreeMap<u32, String>,
}

impl Followed {
    fn new(user: User) -> Self {
        Self { user, last: None, at: BTreeMap::new() }
    }

    /// Takes what was met on each road, and the share of v2 if every proxy had it all the time.
    ///
    /// # Errors
    /// Somebody who had v2 got v1, or a proxy decided otherwise than it must.
    fn note(&mut self, met: [String; 2], share: Option<u32>) -> anyhow::Result<()> {
        let name = &self.user.name;
        for (before, now) in self.last.iter().flatten().zip(&met) {
            anyhow::ensure!(!(before == "v2" && now != "v2"), "{name} had v2 and then {now}");
        }
        if let Some(share) = share {
            let expected = if self.user.is_within(share) { "v2" } else { "v1" };
            anyhow::ensure!(met == [expected, expected], "{name} meets {met:?} at {share} %, not {expected}");
            self.at.insert(share, expected.to_owned());
        }
        self.last = Some(met);
        Ok(())
    }
}

/// Lets everybody look at the shop on both roads.
async fn look(stage: &Stage<'_>, followed: &mut [Followed], share: Option<u32>) -> anyhow::Result<()> {
    let met = meet(stage, followed).await?;
    for (one, met) in followed.iter_mut().zip(met) {
        one.note(met, share)?;
    }
    Ok(())
}

async fn meet(stage: &Stage<'_>, followed: &[Followed]) -> anyhow::Result<Vec<[String; 2]>> {
    let mut met = Vec::new();
    for one in followed {
        met.push(versions_met(&stage.mesh.layout, SERVICE, &one.user).await?);
    }
    Ok(met)
}

/// Follows users and rollout until that has ended, and tells each step.
async fn follow(stage: &mut Stage<'_>, followed: &mut [Followed]) -> anyhow::Result<Rollout> {
    let deadline = Instant::now() + ROLLOUT_MAX;
    let mut told = 0;
    loop {
        let before = Rollout::read(stage, SERVICE).await?;
        for step in before.decisions("step").skip(told) {
            stage.teller.say(&as_told(step, told)?);
            told += 1;
        }
        if !before.is_running() {
            return Ok(before);
        }
        anyhow::ensure!(Instant::now() < deadline, "the rollout does not end: {}", before.why());
        stage.proxies_back().await?;
        let met = meet(stage, followed).await?;
        let after = Rollout::read(stage, SERVICE).await?;
        // While a step was being taken, one proxy may have been ahead of the other.
        let share =
            STEPS.into_iter().find(|step| [before.percent(), after.percent()] == [f64::from(*step); 2]);
        for (one, met) in followed.iter_mut().zip(met) {
            one.note(met, share)?;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn as_told(step: Decision<'_>, place: usize) -> anyhow::Result<String> {
    let Judged { users, failures, .. } = step.judged("candidate")?;
    let known = match step.bound() {
        Some(bound) if place > 0 => format!(
            "; of the {users} users of v2 so far {failures} had a failure: it is shown to fail less than {bound} of them"
        ),
        Some(_) | None => String::new(),
    };
    Ok(format!("step {} of {}: {} get v2{known}", place + 1, STEPS.len(), percent(step.percent())))
}

fn table(followed: &[Followed]) -> Vec<Vec<String>> {
    let shares = || std::iter::once(0).chain(STEPS);
    let head = ["who", "place among a million", "before"].map(str::to_owned).into_iter();
    let head = head.chain(STEPS.map(|share| format!("{share} %"))).collect();
    let rows = followed.iter().map(|Followed { user, at, .. }| {
        // A step that was over before everybody could be asked has no answer.
        let met = shares().map(|share| at.get(&share).map_or("-", String::as_str).to_owned());
        [user.name.clone(), user.place.to_string()].into_iter().chain(met).collect()
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use gilmok_control_plane::rollout::plan::Plan;

    use super::*;

    fn met(versions: [&str; 2]) -> [String; 2] {
        versions.map(str::to_owned)
    }

    #[test]
    fn the_plan_is_sound() {
        let read = Plan::parse(&plan(), 1).unwrap();
        assert_eq!(read.steps.len(), STEPS.len());
        assert_eq!(serde_json::from_str::<Value>(&in_lines(&plan())).unwrap(), plan());
    }

    #[test]
    fn whoever_falls_back_to_v1_is_noticed_on_either_road() {
        let user = User::who_comes(SERVICE, 1, 10).unwrap();
        let mut followed = Followed::new(user);
        followed.note(met(["v1", "v1"]), Some(1)).unwrap();
        // A step is under way, and one proxy is ahead.
        followed.note(met(["v2", "v1"]), None).unwrap();
        followed.note(met(["v2", "v2"]), Some(10)).unwrap();
        assert!(followed.note(met(["v2", "v1"]), None).is_err());
        assert!(followed.note(met(["v1", "v2"]), None).is_err());
        assert_eq!(table(&[followed])[1][2..], ["-", "v1", "v2", "-", "-"]);
    }

    #[test]
    fn proxies_that_do_not_agree_are_noticed() {
        let mut followed = Followed::new(User::who_comes(SERVICE, 1, 10).unwrap());
        assert!(followed.note(met(["v1", "v2"]), Some(10)).is_err());
        assert!(followed.note(met(["v2", "v2"]), Some(1)).is_err());
    }
}
