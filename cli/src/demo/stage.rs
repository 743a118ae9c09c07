//! What every chapter of the story works with: the mesh, who tells the story, and what both are asked for.

use std::time::Instant;

use anyhow::Context as _;
use gilmok_control_plane::http_client::{Request, Response};
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::layout::{App, CONTROL_PLANE, proxy_of};
use super::mesh::Mesh;
use super::talk;
use super::tell::Teller;

/// What every chapter works with.
#[derive(Debug)]
pub(crate) struct Stage<'m> {
    pub(crate) mesh: &'m mut Mesh,
    pub(crate) teller: &'m Teller,
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

    /// Waits until every proxy follows the control plane again and runs what is in force.
    ///
    /// # Errors
    /// When one does not come.
    pub(crate) async fn proxies_back(&mut self) -> anyhow::Result<()> {
        let wanted = self.mesh.layout.machines.len();
        let control_plane = self.mesh.control_plane()?;
        self.mesh
            .eventually(CONTROL_PLANE, "every proxy to reconnect", async || {
                let answer = control_plane.send(&Request::get("/v1/status")).await?;
                let status = talk::json(&answer, StatusCode::OK)?;
                let proxies = &status["proxies"];
                let all = |key: &str| proxies[key].as_u64() == u64::try_from(wanted).ok();
                let in_step = proxies["lagging"].as_array().is_some_and(Vec::is_empty);
                anyhow::ensure!(all("live") && all("following") && in_step, "{status}");
                Ok(())
            })
            .await
    }

    /// Waits until every proxy counts an app among its service's endpoints, or none does; when that was.
    ///
    /// # Errors
    /// When that does not come.
    pub(crate) async fn until_known(&mut self, app: &App, wanted: bool) -> anyhow::Result<Instant> {
        let address = app.inbound.to_string();
        for machine in self.mesh.layout.machines.clone() {
            let what = format!("{} to be {}", app.name, if wanted { "known" } else { "forgotten" });
            let proxy = proxy_of(&machine);
            self.mesh
                .eventually(&proxy, &what, async || {
                    let answer = talk::ask(machine.admin, Method::GET, "/endpoints").await?;
                    let said = talk::json(&answer, StatusCode::OK)?;
                    let services = said["services"].as_array().map(Vec::as_slice).unwrap_or_default();
                    let of_service = services.iter().find(|service| service["service"] == app.service);
                    let endpoints = of_service.and_then(|service| service["endpoints"].as_array());
                    let known =
                        endpoints.into_iter().flatten().any(|endpoint| endpoint["address"] == *address);
                    anyhow::ensure!(known == wanted, "{said}");
                    Ok(())
                })
                .await?;
        }
        Ok(Instant::now())
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
