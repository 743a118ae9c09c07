//! The story that the demo tells: its chapters in order, and what they share.

use std::time::Duration;

use anyhow::Context as _;
use gilmok_control_plane::http_client::{Request, Response};
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::chapters;
use super::layout::CONTROL_PLANE;
use super::mesh::Mesh;
use super::tell::Teller;
use super::{settings, talk};

/// Longest that the story may take; a story that hangs is a failed one.
pub(crate) const STORY_MAX: Duration = Duration::from_secs(140);

/// What every chapter works with.
#[derive(Debug)]
pub(crate) struct Stage<'m> {
    pub(crate) mesh: &'m mut Mesh,
    pub(crate) teller: &'m Teller,
}

/// Sets the mesh up and plays every chapter.
///
/// # Errors
/// The first outcome that is not as it is told.
pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    raise_the_curtain(stage).await.context("the mesh did not come up")?;
    chapters::endpoint_dies::play(stage).await.context(chapters::endpoint_dies::TITLE)?;
    chapters::config_change::play(stage).await.context(chapters::config_change::TITLE)?;
    chapters::bad_document::play(stage).await.context(chapters::bad_document::TITLE)?;
    chapters::control_plane_dies::play(stage).await.context(chapters::control_plane_dies::TITLE)?;
    stage.mesh.whole().await.context("the shop is not whole at the end")
}

/// Waits for the processes and tells the mesh what it should be.
async fn raise_the_curtain(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.mesh.control_plane_ready().await?;
    stage.teller.say("the control plane is up; it is told the mesh document over REST (PUT /v1/mesh)");
    let answer = stage.write(Method::PUT, "/v1/mesh", &settings::document()).await?;
    anyhow::ensure!(answer.status.is_success(), "PUT /v1/mesh: {}", talk::brief(&answer));
    stage.mesh.whole().await?;
    stage.teller.say("every proxy is ready, and every app is reached from every machine");
    Ok(())
}

impl Stage<'_> {
    /// A write to the control plane; any status is an answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn write(&self, method: Method, target: &str, body: &Value) -> anyhow::Result<Response> {
        let sent = format!("{method} {target}");
        self.mesh.control_plane()?.send(&talk::with_json(method, target, body)).await.context(sent)
    }

    /// A write that is answered once every proxy runs it; the revision that it made.
    ///
    /// # Errors
    /// When it is refused, or a proxy lags behind.
    pub(crate) async fn write_and_wait(
        &self,
        method: Method,
        target: &str,
        body: &Value,
    ) -> anyhow::Result<u64> {
        let answer = self.write(method, &format!("{target}?wait=10s"), body).await?;
        let said = talk::json(&answer, StatusCode::OK)?;
        anyhow::ensure!(said["converged"] == true, "not every proxy runs it: {said}");
        said["revision"].as_u64().with_context(|| format!("no revision in {said}"))
    }

    /// The revision that is in force.
    ///
    /// # Errors
    /// When the control plane does not say.
    pub(crate) async fn revision(&self) -> anyhow::Result<u64> {
        let said = self.mesh.read("/v1/status").await?;
        said["revision"].as_u64().with_context(|| format!("no revision in {said}"))
    }

    /// Waits until the control plane has heard of every proxy, and each runs what is in force.
    ///
    /// # Errors
    /// When one does not come.
    pub(crate) async fn proxies_heard(&mut self) -> anyhow::Result<()> {
        let wanted = self.mesh.layout.machines.len();
        let revision = self.revision().await?;
        let control_plane = self.mesh.control_plane()?;
        self.mesh
            .eventually(CONTROL_PLANE, "every proxy to reconnect", async || {
                let answer = control_plane.send(&Request::get("/v1/proxies")).await?;
                let said = talk::json(&answer, StatusCode::OK)?;
                let proxies = said.as_array().map(Vec::as_slice).unwrap_or_default();
                let current = proxies.iter().filter(|proxy| proxy["applied"]["revision"] == revision).count();
                anyhow::ensure!(current == wanted, "{said}");
                Ok(())
            })
            .await
    }

    /// What a host is answered with through the proxy of each machine.
    ///
    /// # Errors
    /// When a proxy does not answer.
    pub(crate) async fn statuses_of(&self, host: &str) -> anyhow::Result<Vec<StatusCode>> {
        let mut statuses = Vec::new();
        for machine in &self.mesh.layout.machines {
            let request = talk::of_service(host, "/")?;
            statuses.push(talk::client(machine.outbound)?.send(&request).await?.status);
        }
        Ok(statuses)
    }
}
