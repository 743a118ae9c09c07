//! The few calls of Consul's HTTP API that membership needs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::answer::{AgentSelf, Answer, Meta, ServiceEntry, decode};
use super::error::{Error, checked};
use super::settings::Settings;
use super::token::Token;
use super::watch::{Ask, Consistency};
use crate::http_client::{self, Request};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// What all clients of one Consul share.
#[derive(Debug)]
pub struct Shared {
    settings: Settings,
    token: Option<Token>,
}

impl Shared {
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        let token = settings.token_file.clone().map(Token::new);
        Arc::new(Self { settings, token })
    }
}

/// A client with one connection: to the agent that answered last, or, once that has failed, to the next in line.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    links: Vec<http_client::Client>,
    /// Which of `links` is asked. Relaxed: it orders nothing.
    current: AtomicUsize,
    /// The token of the last question. A std mutex: nothing is awaited under it.
    shown: Mutex<Option<HeaderValue>>,
}

impl Client {
    /// A client that begins with the address of number `first` (modulo their number).
    ///
    /// # Errors
    /// TLS files that cannot be used, or no address.
    pub fn new(shared: &Arc<Shared>, first: usize) -> Result<Self, http_client::Error> {
        let settings = &shared.settings;
        if settings.addresses.is_empty() {
            return Err(http_client::Error::Settings("no address of consul".to_owned()));
        }
        let link = |origin: &http_client::Origin| {
            http_client::Client::new(http_client::Settings {
                tls: settings.tls.clone(),
                ..http_client::Settings::new(origin.clone())
            })
        };
        let links: Vec<_> = settings.addresses.iter().map(link).collect::<Result<_, _>>()?;
        let current = AtomicUsize::new(first % links.len());
        Ok(Self { shared: Arc::clone(shared), links, current, shown: Mutex::default() })
    }

    /// Whether the next question goes where the last one went, and as the same one: over the same connection, behind
    /// which is the same count of indexes, and with the same token, which sees the same.
    #[must_use]
    pub fn is_continued(&self) -> bool {
        self.link().is_connected() && *self.shown() == self.token()
    }

    /// Every instance of a service with its node and its checks, whatever their state: what counts is decided here.
    ///
    /// # Errors
    /// By kind.
    pub async fn health(&self, service: &str, ask: &Ask) -> Result<Answer<Vec<ServiceEntry>>, Error> {
        self.read(&format!("/v1/health/service/{}", encoded(service)), ask).await
    }

    /// Every service with the tags of all of its instances.
    ///
    /// # Errors
    /// By kind.
    pub async fn services(&self, ask: &Ask) -> Result<Answer<BTreeMap<String, Option<Vec<String>>>>, Error> {
        self.read("/v1/catalog/services", ask).await
    }

    /// What the agent says of itself.
    ///
    /// # Errors
    /// By kind; 403 where the token lacks agent:read.
    pub async fn agent(&self) -> Result<AgentSelf, Error> {
        let request = Request::get("/v1/agent/self");
        decode(&self.send(request).await?.body)
    }

    /// The address of the leader; empty when there is none.
    ///
    /// # Errors
    /// By kind.
    pub async fn leader(&self) -> Result<String, Error> {
        decode(&self.send(Request::get("/v1/status/leader")).await?.body)
    }

    async fn read<T: DeserializeOwned + Default>(&self, path: &str, ask: &Ask) -> Result<Answer<T>, Error> {
        let mut target = path.to_owned();
        let mut parameter = |text: std::fmt::Arguments<'_>| {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(&text.to_string());
        };
        match ask.consistency {
            Consistency::Consistent => parameter(format_args!("consistent")),
            Consistency::Default => {}
            Consistency::Stale => parameter(format_args!("stale")),
        }
        if ask.cached {
            parameter(format_args!("cached"));
        }
        if ask.index > 0 {
            parameter(format_args!("index={}&wait={}ms", ask.index, ask.wait.as_millis()));
        }
        if let Some(datacenter) = &self.shared.settings.datacenter {
            parameter(format_args!("dc={}", encoded(datacenter)));
        }
        let mut request = Request::get(target).timeout(ask.timeout());
        // Behind a new connection may be an agent that counts anew: an index must not go there unseen.
        request.redial = ask.index == 0;
        let response = self.send(request).await?;
        Ok(Answer { meta: Meta::read(&response.headers), value: decode(&response.body)? })
    }

    async fn send(&self, mut request: Request) -> Result<http_client::Response, Error> {
        let token = self.token();
        self.shown().clone_from(&token);
        if let Some(token) = token {
            request = request.header(TOKEN, token);
        }
        let current = self.current.load(Ordering::Relaxed);
        let sent = match self.links[current].send(&request).await {
            Ok(response) => checked(response),
            Err(error) => Err(error.into()),
        };
        // An agent that is gone, or has lost its servers; no leader is everybody's trouble.
        if matches!(sent, Err(Error::Unreachable(_) | Error::Refused { status: 500.., .. })) {
            self.links[current].disconnect();
            self.current.store((current + 1) % self.links.len(), Ordering::Relaxed);
        }
        sent
    }

    /// The token as it is now.
    fn token(&self) -> Option<HeaderValue> {
        self.shared.token.as_ref().and_then(|token| token.current(Instant::now()))
    }

    fn shown(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> &http_client::Client {
        &self.links[self.current.load(Ordering::Relaxed)]
    }
}

/// Percent-encodes what may not stand in a path segment or a query value.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_in_a_path_is_encoded() {
        assert_eq!(encoded("a-b_c.d"), "a-b_c.d");
        assert_eq!(encoded("a/b?c=d&e%"), "a%2Fb%3Fc%3Dd%26e%25");
    }
}
