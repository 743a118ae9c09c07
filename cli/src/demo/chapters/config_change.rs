//! A change over REST is in force in every proxy within a moment.

use std::time::Instant;

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::demo::stage::Stage;
use crate::demo::tell::in_words;

pub(crate) const TITLE: &str = "A change over REST reaches every proxy";

const HOST: &str = "banners.example.com";

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let before = stage.statuses_of(HOST).await?;
    anyhow::ensure!(
        before.iter().all(|status| *status == StatusCode::NOT_FOUND),
        "{HOST} before: {before:?}"
    );
    stage.teller.say(&format!("{HOST} is a name that no proxy knows: 404 on every machine"));

    let change = json!({"hosts": [HOST]});
    let began = Instant::now();
    let revision = stage.write_and_wait(Method::PATCH, "/v1/services/ads", &change).await?;
    let took = began.elapsed();
    let after = stage.statuses_of(HOST).await?;
    anyhow::ensure!(after.iter().all(|status| *status == StatusCode::OK), "{HOST} after: {after:?}");
    stage.teller.say(&format!("the operator gives it to ads: PATCH /v1/services/ads?wait=10s {change}"));
    stage.teller.say(&format!(
        "answered {} later: revision {revision} runs in all {} proxies. {HOST}: 200 on every machine",
        in_words(took),
        after.len()
    ));
    Ok(())
}
