//! Saying of the apps beside this proxy that they are alive: while ready and healthy, and no longer on drain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gilmok_config::address::Address;
use gilmok_config::endpoint::{Endpoint, Role};
use gilmok_config::name::ServiceName;
use gilmok_config::unit::format_duration;
use gilmok_config::wire;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::http::{Client, HttpError, TokenHeader};
use crate::settings::{Registration, Server};
use crate::tls::Tls;

/// Heartbeats within one ttl, so that two may be lost.
const BEATS_PER_TTL: u32 = 3;
/// The pause after a failure, so that a server that comes back hears of us soon; with jitter.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the word that an app is gone may take, at each server; a stuck one must not hold up a drain.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// Consul forgets an instance that was critical for so long. It takes no less than a minute.
const CONSUL_FORGETS_AFTER: Duration = Duration::from_mins(1);

/// One app as membership is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    pub(crate) service: ServiceName,
    /// Unique within the service, and on a Consul agent.
    pub(crate) id: String,
    pub(crate) endpoint: Endpoint,
}

/// What an app's registration is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Not ready or not healthy: not registered.
    Away,
    /// Leaving: deregister and be done.
    Leave,
    Registered,
}

/// One app at one server.
#[derive(Debug)]
pub(crate) struct Registrar {
    client: Client,
    words: Words,
    app: Announced,
    ttl: Duration,
}

/// What the server understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    Consul,
    ControlPlane,
}

impl Registrar {
    /// One for each server that an app is registered at.
    pub(crate) fn all(
        registration: &Registration,
        control_planes: &[Server],
        token_file: Option<&PathBuf>,
        tls: &Arc<Tls>,
        app: &Announced,
    ) -> Vec<Self> {
        match registration {
            Registration::Nowhere => Vec::new(),
            Registration::ControlPlanes { ttl } => control_planes
                .iter()
                .map(|server| Self {
                    client: Client::new(server.clone(), token_file.cloned(), TokenHeader::Bearer)
                        .showing(tls),
                    words: Words::ControlPlane,
                    app: app.clone(),
                    ttl: *ttl,
                })
                .collect(),
            Registration::Consul { agent, token_file, ttl } => vec![Self {
                client: Client::new(agent.clone(), token_file.clone(), TokenHeader::Consul),
                words: Words::Consul,
                app: app.clone(),
                ttl: *ttl,
            }],
        }
    }

    /// Keeps the registration as it is wanted until it is to leave.
    pub(crate) async fn keep(mut self, mut wanted: watch::Receiver<Wanted>) {
        let mut known = false;
        let mut failing = false;
        loop {
            let now = *wanted.borrow_and_update();
            let done = match now {
                Wanted::Registered => self.register(known).await.map(|()| true),
                // Also when it was never known: a process before this one may have left it there.
                Wanted::Leave => {
                    self.leave().await;
                    return;
                }
                Wanted::Away if known => self.deregister().await.map(|()| false),
                Wanted::Away => Ok(false),
            };
            let wait = match done {
                Ok(registered) => {
                    if registered != known {
                        let what = if registered { "registered" } else { "deregistered" };
                        tracing::info!(
                            "{} is {what} at {} as {}",
                            self.app.service,
                            self.client.server(),
                            self.app.endpoint.address
                        );
                    }
                    (known, failing) = (registered, false);
                    self.ttl / BEATS_PER_TTL
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            "cannot tell {} of {} as wanted; trying on: {error}",
                            self.client.server(),
                            self.app.service
                        );
                    }
                    // What the server knows now is uncertain: next time the whole is told.
                    known = known && matches!(now, Wanted::Away);
                    RETRY_AFTER
                }
            };
            let jittered = wait.mul_f64(0.9 + 0.1 * fastrand::f64());
            if let Ok(Err(_no_more_news)) = timeout(jittered, wanted.changed()).await {
                return;
            }
        }
    }

    async fn leave(&mut self) {
        match timeout(DEREGISTER_TIMEOUT, self.deregister()).await {
            Ok(Ok(())) => {
                tracing::info!("{} is deregistered at {}", self.app.service, self.client.server());
            }
            Ok(Err(error)) => {
                tracing::warn!("cannot deregister {} at {}: {error}", self.app.service, self.client.server());
            }
            Err(_elapsed) => tracing::warn!(
                "cannot deregister {} at {}: no answer within {DEREGISTER_TIMEOUT:?}",
                self.app.service,
                self.client.server()
            ),
        }
    }

    async fn register(&mut self, known: bool) -> Result<(), HttpError> {
        match self.words {
            Words::ControlPlane => {
                let body = wire::Registration {
                    endpoint: self.app.endpoint.clone(),
                    ttl: Some(format_duration(self.ttl)),
                };
                let body = serde_json::to_vec(&body).unwrap_or_default();
                self.client.send(Method::PUT, &self.membership_path(), Some(body.into())).await.map(drop)
            }
            Words::Consul => {
                if known {
                    // Registering anew would make the check critical for a moment.
                    let pass = format!("/v1/agent/check/pass/service:{}", self.app.id);
                    match self.client.send(Method::PUT, &pass, None).await {
                        Ok(_) => return Ok(()),
                        // The agent has lost it: 404, or 500 in older versions.
                        Err(HttpError::Status { status, .. })
                            if status == StatusCode::NOT_FOUND
                                || status == StatusCode::INTERNAL_SERVER_ERROR => {}
                        Err(error) => return Err(error),
                    }
                }
                let body = Bytes::from(self.consul_body().to_string());
                let path = "/v1/agent/service/register?replace-existing-checks=true";
                self.client.send(Method::PUT, path, Some(body)).await.map(drop)
            }
        }
    }

    async fn deregister(&mut self) -> Result<(), HttpError> {
        let (method, path) = match self.words {
            Words::ControlPlane => (Method::DELETE, self.membership_path()),
            Words::Consul => (Method::PUT, format!("/v1/agent/service/deregister/{}", self.app.id)),
        };
        match self.client.send(method, &path, None).await {
            Ok(_) => Ok(()),
            // It is not there, which is what was wanted.
            Err(HttpError::Status { status, .. }) if status == StatusCode::NOT_FOUND => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn membership_path(&self) -> String {
        format!("/v1/membership/{}/{}", self.app.service, self.app.id)
    }

    fn consul_body(&self) -> serde_json::Value {
        let endpoint = &self.app.endpoint;
        let (address, port) = match &endpoint.address {
            Address::Socket(socket) => (socket.ip().to_string(), socket.port()),
            Address::Name { host, port } => (host.to_string(), *port),
            Address::Unix(_) => (endpoint.address.to_string(), 0),
        };
        let mut meta = serde_json::Map::new();
        for (key, name) in
            [("version", &endpoint.version), ("shard", &endpoint.shard), ("zone", &endpoint.zone)]
        {
            if !name.is_empty() {
                meta.insert(key.to_owned(), json!(name));
            }
        }
        if endpoint.role == Role::Replica {
            meta.insert("role".to_owned(), json!("replica"));
        }
        if endpoint.inbound {
            meta.insert("gilmok-inbound".to_owned(), json!("true"));
        }
        if endpoint.mtls {
            meta.insert("gilmok-mtls".to_owned(), json!("true"));
        }
        json!({
            "ID": self.app.id,
            "Name": self.app.service,
            "Address": address,
            "Port": port,
            "Meta": meta,
            "Check": {
                "CheckID": format!("service:{}", self.app.id),
                "Name": "gilmok-proxy",
                "TTL": format_duration(self.ttl),
                "Status": "passing",
                "DeregisterCriticalServiceAfter": format_duration(CONSUL_FORGETS_AFTER),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Calls, eventually, recording};

    fn app() -> Announced {
        let mut endpoint = Endpoint::at("10.0.0.5:15006".parse().unwrap());
        endpoint.version = gilmok_config::name::Name::parse("v1").unwrap();
        (endpoint.inbound, endpoint.mtls) = (true, true);
        Announced { service: ServiceName::parse("shop").unwrap(), id: "web-1-15006".to_owned(), endpoint }
    }

    fn registrations(calls: &Calls) -> usize {
        let calls = calls.lock().unwrap();
        calls.iter().filter(|(line, _)| line.starts_with("PUT /v1/agent/service/register")).count()
    }

    #[tokio::test]
    async fn an_app_is_registered_while_wanted_and_deregistered_when_it_leaves() {
        let (server, calls) = recording(|_| 200).await;
        let registration = Registration::ControlPlanes { ttl: Duration::from_secs(1) };
        let mut all = Registrar::all(&registration, &[server], None, &Arc::default(), &app());
        let wanted = watch::Sender::new(Wanted::Away);
        let task = tokio::spawn(all.remove(0).keep(wanted.subscribe()));
        wanted.send_replace(Wanted::Registered);
        eventually("two heartbeats", || calls.lock().unwrap().len() >= 2).await;
        wanted.send_replace(Wanted::Leave);
        task.await.unwrap();
        let calls = calls.lock().unwrap();
        assert_eq!(calls[0].0, "PUT /v1/membership/shop/web-1-15006");
        assert_eq!(
            calls[0].1,
            json!({"address": "10.0.0.5:15006", "version": "v1", "inbound": true, "mtls": true, "ttl": "1s"})
        );
        assert_eq!(calls.last().unwrap().0, "DELETE /v1/membership/shop/web-1-15006");
    }

    #[tokio::test]
    async fn a_consul_agent_that_forgot_an_app_is_told_again() {
        // The second call is the heartbeat, to which the agent knows nothing.
        let (agent, calls) = recording(|call| if call == 2 { 404 } else { 200 }).await;
        let registration = Registration::Consul { agent, token_file: None, ttl: Duration::from_secs(1) };
        let mut all = Registrar::all(&registration, &[], None, &Arc::default(), &app());
        let wanted = watch::Sender::new(Wanted::Registered);
        let task = tokio::spawn(all.remove(0).keep(wanted.subscribe()));
        eventually("registered twice", || registrations(&calls) == 2).await;
        wanted.send_replace(Wanted::Leave);
        task.await.unwrap();
        let calls = calls.lock().unwrap();
        assert_eq!(
            calls[0].1["Meta"],
            json!({"version": "v1", "gilmok-inbound": "true", "gilmok-mtls": "true"})
        );
        assert_eq!(calls[0].1["Check"]["TTL"], "1s");
        assert_eq!(
            calls[0].1["Check"]["DeregisterCriticalServiceAfter"],
            format_duration(CONSUL_FORGETS_AFTER)
        );
        assert_eq!(calls[1].0, "PUT /v1/agent/check/pass/service:web-1-15006");
        assert_eq!(calls.last().unwrap().0, "PUT /v1/agent/service/deregister/web-1-15006");
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_reached_does_not_hold_up_leaving() {
        let registration = Registration::ControlPlanes { ttl: Duration::from_secs(1) };
        let nobody = "http://127.0.0.1:1".parse().unwrap();
        let mut all = Registrar::all(&registration, &[nobody], None, &Arc::default(), &app());
        let wanted = watch::Sender::new(Wanted::Leave);
        timeout(Duration::from_secs(5), all.remove(0).keep(wanted.subscribe())).await.unwrap();
    }
}
