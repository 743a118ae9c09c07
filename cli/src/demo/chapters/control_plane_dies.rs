//! The control plane is killed and traffic goes on; when it is back, the proxies find it by themselves.

use std::time::Instant;

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::demo::layout::CONTROL_PLANE;
use crate::demo::mesh::Concerning;
use crate::demo::stage::Stage;
use crate::demo::tell::in_words;
use crate::demo::traffic::Traffic;

pub(crate) const TITLE: &str = "The control plane dies, and traffic goes on";

const HOST: &str = "offers.example.com";
/// Pages without a control plane, and after it is back.
const PAGES: u64 = 100;

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let before = stage.revision().await?;
    let traffic = Traffic::start(&stage.mesh.layout.machines[0], "shop")?;
    traffic.go_on_for(PAGES / 4).await?;

    stage.mesh.process(CONTROL_PLANE)?.kill().await?;
    stage.teller.say("the control plane was killed (kill -9)");
    let without = traffic.so_far().answered;
    traffic.go_on_for(PAGES).await?;
    let tally = traffic.none_failed()?;
    stage.teller.say(&format!(
        "{} pages without it, none failed: the proxies go on with what they know",
        tally.answered - without
    ));

    stage.mesh.process(CONTROL_PLANE)?.begin()?;
    let began = Instant::now();
    stage.mesh.control_plane_ready().await?;
    let after = stage.revision().await?;
    anyhow::ensure!(before == after, "it came back with revision {after}, and had {before}");
    stage.teller.say(&format!("it was started again and still has revision {after}"));
    stage.proxies_back().await?;
    stage.teller.say(&format!("all proxies have reconnected, {} after its start", in_words(began.elapsed())));
    let began = Instant::now();
    let revision = stage
        .write_and_wait(Method::PATCH, "/v1/services/ads", &json!({"hosts": [HOST]}))
        .await
        .with_context(|| Concerning(CONTROL_PLANE.to_owned()))?;
    let took = began.elapsed();
    let statuses = stage.statuses_of(HOST).await?;
    anyhow::ensure!(statuses.iter().all(|status| *status == StatusCode::OK), "{HOST}: {statuses:?}");
    traffic.go_on_for(PAGES / 2).await?;
    let tally = traffic.none_failed()?;
    stage
        .teller
        .say(&format!("the next change runs everywhere after {}, as revision {revision}", in_words(took)));
    stage.teller.say(&format!("{} pages in all, none failed", tally.answered));
    Ok(())
}
