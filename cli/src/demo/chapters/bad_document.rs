//! A document that makes no sense is refused as a whole, every fault is told, and nothing changes.

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::table::indented;

pub(crate) const TITLE: &str = "A bad document is refused, and nothing changes";

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let before = stage.revision().await?;
    let bad = json!({"request_timeout": "soon", "load_balanser": "random", "max_concurrent": 0});
    let answer = stage.write(Method::PATCH, "/v1/services/ads", &bad).await?;
    let said = talk::json(&answer, StatusCode::UNPROCESSABLE_ENTITY)?;
    let problems = said["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let rows =
        problems.iter().map(|problem| ["path", "what", "hint"].map(|key| text(&problem[key])).to_vec());
    let rows: Vec<_> = rows.collect();
    for path in ["request_timeout", "load_balanser", "max_concurrent"] {
        let told = rows.iter().any(|row| row[0].contains(path) || row[1].contains(path));
        anyhow::ensure!(told, "the fault in `{path}` is not told: {said}");
    }
    let after = stage.revision().await?;
    anyhow::ensure!(before == after, "revision {before} became {after}");
    let ads = stage.statuses_of("ads").await?;
    anyhow::ensure!(ads.iter().all(|status| *status == StatusCode::OK), "ads: {ads:?}");
    stage.teller.say(&format!("PATCH /v1/services/ads {bad}"));
    stage.teller.say(&format!("answered 422 with every fault; revision {after} stays in force:"));
    stage.teller.show(&indented(&rows));
    Ok(())
}
