//! Four shards become eight while users come, and four again: no visit is lost, and none is counted at the wrong shard.

use std::time::Instant;

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::demo::layout::{App, CONTROL_PLANE};
use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::demo::tell::in_words;
use crate::demo::visitors::{Seen, Visitors};

pub(crate) const TITLE: &str = "Four shards become eight while users come, and four again";

const MOVES: &str = "/v1/services/profile/sharding/moves";
/// Visits before anything moves, and after each move.
const VISITS: usize = 400;

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let mut visitors = Visitors::start(&stage.mesh.layout)?;
    let began = Instant::now();
    visitors.go_on_for(VISITS).await?;
    stage.teller.say("profile has four shards; each remembers in its memory how often its users came, and nobody else does");

    let late: Vec<App> = stage.mesh.layout.apps.iter().filter(|app| app.later).cloned().collect();
    for app in &late {
        stage.mesh.process(app.name)?.begin()?;
    }
    for app in &late {
        stage.until_known(app, true).await?;
    }
    let wanted: Vec<String> = (0..8).map(|shard: u8| shard.to_string()).collect();
    let plan =
        stage.write(Method::POST, "/v1/services/profile/sharding/plan", &json!({"shards": wanted})).await?;
    let plan = talk::json(&plan, StatusCode::OK)?;
    let batches = plan["batches"].as_array().context("a plan without batches")?.len();
    stage.teller.say(&format!(
        "four more were started; no key is theirs yet. POST …/sharding/plan: {batches} batches, {} % of all keys move, each to the one place it can go",
        percent(&plan)
    ));

    let quiet = (began, Instant::now());
    let grown = moved(stage, &mut visitors, json!({"shards": wanted})).await?;
    tell_of(stage, "grown to eight", &visitors.so_far(), quiet, &grown);
    visitors.go_on_for(VISITS).await?;
    let shrunk = moved(stage, &mut visitors, json!({"shards": wanted[..4]})).await?;
    tell_of(stage, "back to four", &visitors.so_far(), quiet, &shrunk);
    visitors.go_on_for(VISITS).await?;

    let seen = visitors.leave().await?;
    every_counter_is_exact(stage, &seen).await?;
    stage.teller.say(&format!(
        "{} visits of {} users, and every counter is exact: each visit was counted once, at the shard that had the user",
        seen.visits.values().sum::<u64>(),
        seen.visits.len()
    ));
    Ok(())
}

/// What one move came to.
struct Moved {
    began: Instant,
    ended: Instant,
    batches: usize,
    /// Users whose shard is another one now.
    users: usize,
}

/// Moves what has to move, and waits until it has.
async fn moved(stage: &mut Stage<'_>, visitors: &mut Visitors, wanted: Value) -> anyhow::Result<Moved> {
    let copier = stage.mesh.layout.app("profile-0")?.address;
    let users = visitors.so_far().visits.into_keys().collect::<Vec<_>>();
    let before = shards_of(stage, &users).await?;
    let mut body = wanted;
    body["webhooks"] = json!([{"url": format!("http://{copier}/moves"), "on": ["copy", "fenced"]}]);
    let began = Instant::now();
    let answer = stage.write(Method::POST, MOVES, &body).await?;
    let said = talk::json(&answer, StatusCode::CREATED)?;
    let id = said["revision"].as_u64().with_context(|| format!("no move in {said}"))?;
    let control_plane = stage.mesh.control_plane()?;
    let ended = stage
        .mesh
        .eventually(CONTROL_PLANE, "the shards to have moved", async || {
            let answer = talk::ask_by(&control_plane, &format!("{MOVES}/{id}")).await?;
            let said = talk::json(&answer, StatusCode::OK)?;
            anyhow::ensure!(said["state"] == "done", "{said}");
            Ok(said)
        })
        .await?;
    visitors.none_failed()?;
    let moved = Instant::now();
    let after = shards_of(stage, &users).await?;
    Ok(Moved {
        began,
        ended: moved,
        batches: ended["batches"].as_array().map_or(0, Vec::len),
        users: before.iter().zip(&after).filter(|(before, after)| before != after).count(),
    })
}

/// Where the control plane says that each user is.
async fn shards_of(stage: &Stage<'_>, users: &[String]) -> anyhow::Result<Vec<Value>> {
    let client = stage.mesh.control_plane()?;
    let mut shards = Vec::with_capacity(users.len());
    for user in users {
        let request = gilmok_control_plane::http_client::Request::get(format!(
            "/v1/explain?service=profile&key={user}"
        ));
        let said = talk::json(&client.send(&request).await?, StatusCode::OK)?;
        shards.push(said["decision"]["shard"]["shard"].clone());
    }
    Ok(shards)
}

fn tell_of(stage: &Stage<'_>, what: &str, seen: &Seen, quiet: (Instant, Instant), moved: &Moved) {
    let (visits, _, slow) = seen.between(moved.began, moved.ended);
    let (_, _, usually) = seen.between(quiet.0, quiet.1);
    stage.teller.say(&format!(
        "{what} after {}: {} batches, {} of {} users are at another shard; {visits} visits meanwhile, 99 of 100 within {} (before: {}), asked to come again: {}",
        in_words(moved.ended - moved.began),
        moved.batches,
        moved.users,
        seen.visits.len(),
        in_words(slow),
        in_words(usually),
        seen.again,
    ));
}

/// Every user is asked for on every machine.
async fn every_counter_is_exact(stage: &Stage<'_>, seen: &Seen) -> anyhow::Result<()> {
    for machine in &stage.mesh.layout.machines {
        let client = talk::client(machine.outbound)?;
        for (user, visits) in &seen.visits {
            let answer = client.send(&talk::of_service("profile", &format!("/users/{user}"))?).await?;
            let said = talk::json(&answer, StatusCode::OK)?;
            anyhow::ensure!(
                said["visits"] == *visits,
                "{user} came {visits} times, and {said} counts otherwise"
            );
        }
    }
    Ok(())
}

fn percent(plan: &Value) -> String {
    plan["moves_percent"].as_f64().map_or_else(|| "?".to_owned(), |percent| percent.to_string())
}
