//! A feature comes to a tenth of the users and to all of them, and goes off in one call; one with a bug turns itself off.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::demo::crowd::Crowd;
use crate::demo::mesh::Concerning;
use crate::demo::settings::{NEW_PAGE, ONE_CLICK, share};
use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::demo::tell::in_words;

pub(crate) const TITLE: &str = "A feature goes on and off without a deploy, and a bad one turns itself off";

/// Users who are followed.
const USERS: u32 = 60;
const SERVICE: &str = "checkout";
/// Where everybody is by now.
const APP: &str = "checkout-v2";
const USERS_PER_SECOND: u32 = 400;
/// Users who come before the bad feature, and after it.
const COME: u64 = 200;
/// How many percent get the bad one. A real one would begin with fewer; the time that it takes to be sure is shorter so.
const PERCENT: u32 = 30;
/// Longest that a guard may take on a machine that is busy with other things.
const KILLED_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    a_good_one(stage).await?;
    a_bad_one(stage).await
}

async fn a_good_one(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let nobody = on_for(stage).await?;
    anyhow::ensure!(nobody.is_empty(), "{NEW_PAGE} is on already for {nobody:?}");
    stage.teller.say(&format!(
        "the shop asks the proxy beside it for {NEW_PAGE}, as OpenFeature's SDKs do (OFREP), and reads Feature-Flags: off for {USERS} users"
    ));
    give(stage, NEW_PAGE, 10).await?;
    let tenth = on_for(stage).await?;
    anyhow::ensure!((1..USERS as usize / 3).contains(&tenth.len()), "on for {tenth:?} at 10 %");
    stage.teller.say(&format!("on for 10 %: {} of the {USERS} have it, by both roads", tenth.len()));
    give(stage, NEW_PAGE, 100).await?;
    let all = on_for(stage).await?;
    anyhow::ensure!(all.len() == USERS as usize && tenth.is_subset(&all), "on for {all:?} at 100 %");
    stage.teller.say("on for 100 %: all have it, and nobody who had it lost it on the way");
    let began = Instant::now();
    let kill = format!("/v1/flags/{NEW_PAGE}/kill");
    let revision = stage.write_and_wait(Method::POST, &kill, &json!({})).await?;
    let took = began.elapsed();
    let left = on_for(stage).await?;
    anyhow::ensure!(left.is_empty(), "{NEW_PAGE} is killed, and on for {left:?}");
    stage.teller.say(&format!(
        "POST {kill}: revision {revision} runs in every proxy {} later, and it is off for everybody",
        in_words(took)
    ));
    Ok(())
}

async fn a_bad_one(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    order(stage, &format!("fail?percent=50&flag={ONE_CLICK}")).await?;
    stage.teller.say(&format!(
        "{ONE_CLICK} has a bug: half of the requests that it is on for fail; its flag has a guard with onFail = kill"
    ));
    let crowd = Crowd::start(&stage.mesh.layout, SERVICE, USERS_PER_SECOND)?;
    crowd.go_on_for(COME).await?;
    crowd.so_far().none_failed()?;
    give(stage, ONE_CLICK, PERCENT).await?;
    stage.teller.say(&format!("on for {PERCENT} % of the users who come"));
    let began = Instant::now();
    let why = until_killed(stage).await?;
    stage.teller.say(&format!(
        "{} later it is off. Why, in the control plane's own words:",
        in_words(began.elapsed())
    ));
    stage.teller.show(&format!("  {why}"));
    stage.proxies_back().await?;
    // What was on its way may still fail.
    crowd.go_on_for(COME).await?;
    let failed = crowd.so_far();
    crowd.go_on_for(COME).await?;
    let counts = crowd.so_far();
    drop(crowd);
    counts.none_lost()?;
    let all_failed = |counts: &crate::demo::crowd::Counts| counts.of("v2").failed;
    anyhow::ensure!(all_failed(&counts) == all_failed(&failed), "requests fail although it is off");
    stage.teller.say(&format!(
        "{} of {} users had a failure meanwhile, and none of the last {COME}",
        all_failed(&counts),
        counts.users()
    ));
    order(stage, "ok").await
}

/// Puts a feature on for so many percent of the users; done when every proxy knows.
async fn give(stage: &Stage<'_>, flag: &str, percent: u32) -> anyhow::Result<()> {
    let patch = json!({ "targeting": share(percent) });
    stage.write_and_wait(Method::PATCH, &format!("/v1/flags/{flag}"), &patch).await.map(drop)
}

/// For which of the users the new page is on: as the shop was told by OFREP, and by the header of the very request.
async fn on_for(stage: &Stage<'_>) -> anyhow::Result<BTreeSet<u32>> {
    let machine = stage.mesh.layout.machines.first().context("the demo has no machines")?;
    let client = talk::client(machine.outbound)?;
    let mut on_for = BTreeSet::new();
    for user in 0..USERS {
        let request = talk::of_service("shop", "/features?format=json")?;
        let answer = client.send(&talk::as_user(request, &format!("user-{user}"))?).await?;
        let said = talk::json(&answer, StatusCode::OK)?;
        let by_ofrep = said["features"][NEW_PAGE]["value"] == true;
        let by_header =
            said["flags"].as_str().is_some_and(|flags| flags.contains(&format!("{NEW_PAGE};v=on")));
        anyhow::ensure!(by_ofrep == by_header, "two answers for user-{user}: {said}");
        if by_ofrep {
            on_for.insert(user);
        }
    }
    Ok(on_for)
}

/// Waits until the guard has turned the feature off; why it did.
async fn until_killed(stage: &Stage<'_>) -> anyhow::Result<String> {
    let deadline = Instant::now() + KILLED_WITHIN;
    loop {
        let overview = stage.mesh.read("/v1/flags?overview=true").await?;
        let mut rows = overview["flags"].as_array().into_iter().flatten();
        let row = rows
            .find(|row| row["flag"] == ONE_CLICK)
            .with_context(|| format!("no {ONE_CLICK}: {overview}"))?;
        if row["killed"] == true {
            return why(row);
        }
        anyhow::ensure!(Instant::now() < deadline, "{ONE_CLICK} does not turn itself off: {row}");
        tokio::time::sleep(LOOK).await;
    }
}

fn why(row: &Value) -> anyhow::Result<String> {
    let said = &row["killed_by"];
    anyhow::ensure!(said["by"] == "guard", "killed by somebody else: {row}");
    said["why"].as_str().map(str::to_owned).with_context(|| format!("nobody says why: {row}"))
}

async fn order(stage: &Stage<'_>, what: &str) -> anyhow::Result<()> {
    let address = stage.mesh.layout.app(APP)?.address;
    talk::order(address, what).await.with_context(|| Concerning(APP.to_owned()))
}
