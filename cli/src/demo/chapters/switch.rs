//! Everybody goes to another version in one revision, and back in another: blue and green.

use std::time::Instant;

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::demo::crowd::Crowd;
use crate::demo::layout::CONTROL_PLANE;
use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::demo::tell::in_words;
use crate::demo::users::{User, versions_met};

pub(crate) const TITLE: &str = "Everybody switches at once, and back";

const SERVICE: &str = "checkout";
const USERS_PER_SECOND: u32 = 100;
/// Users who come before, between and after.
const USERS: u64 = 50;

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let crowd = Crowd::start(&stage.mesh.layout, SERVICE, USERS_PER_SECOND)?;
    crowd.go_on_for(USERS).await?;
    everybody_meets(stage, "v2").await?;
    let began = Instant::now();
    let revision =
        stage.write_and_wait(Method::POST, "/v1/services/checkout/switch", &json!({"to": "v1"})).await?;
    let took = began.elapsed();
    everybody_meets(stage, "v1").await?;
    stage.teller.say(&format!(
        "POST /v1/services/checkout/switch {{\"to\": \"v1\"}}: revision {revision} runs in every proxy {} later",
        in_words(took)
    ));
    let why = until_drainable(stage).await?;
    stage.teller.say(&format!(
        "v2 may be stopped (\"drainable\") {} after the switch: {why}",
        in_words(began.elapsed())
    ));
    crowd.go_on_for(USERS).await?;

    let began = Instant::now();
    let revision = stage.write_and_wait(Method::POST, "/v1/services/checkout/rollback", &json!({})).await?;
    let took = began.elapsed();
    everybody_meets(stage, "v2").await?;
    crowd.go_on_for(USERS).await?;
    let counts = crowd.so_far();
    counts.none_failed()?;
    stage.teller.say(&format!(
        "POST /v1/services/checkout/rollback: revision {revision} {} later, and everybody is on v2 again",
        in_words(took)
    ));
    stage.teller.say(&format!("{} users came meanwhile, none had a failure", counts.users()));
    Ok(())
}

/// Asks for one of the first users and one of the last, on both roads.
async fn everybody_meets(stage: &Stage<'_>, version: &str) -> anyhow::Result<()> {
    for (before, percent) in [(0, 1), (50, 100)] {
        let user = User::who_comes(SERVICE, before, percent)?;
        let met = versions_met(&stage.mesh.layout, SERVICE, &user).await?;
        anyhow::ensure!(met == [version, version], "{} meets {met:?}, not {version}", user.name);
    }
    Ok(())
}

/// Waits until the version that lost its users may be stopped; why so.
async fn until_drainable(stage: &mut Stage<'_>) -> anyhow::Result<String> {
    let control_plane = stage.mesh.control_plane()?;
    stage
        .mesh
        .eventually(CONTROL_PLANE, "v2 to be drainable", async || {
            let answer = talk::ask_by(&control_plane, "/v1/services/checkout/traffic").await?;
            let said = talk::json(&answer, StatusCode::OK)?;
            let drain = &said["release"]["drain"];
            anyhow::ensure!(drain["version"] == "v2" && drain["drainable"] == true, "{drain}");
            Ok(drain["why"].as_str().unwrap_or_default().to_owned())
        })
        .await
}
