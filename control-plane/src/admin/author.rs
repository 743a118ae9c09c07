//! Who writes, why, and on what terms: taken from the request's head.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts, Query};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header, request};
use axum::response::{IntoResponse, Response};
use gilmok_config::document::Document;
use gilmok_config::name::ServiceName;
use gilmok_config::unit::parse_duration;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::{Admin, WAIT_MAX};
use crate::intent::{self, Command, Intent, Moves};
use crate::state;
use crate::store::By;
use crate::tokens::Caller;

/// Longest name and reason that the audit keeps, in characters.
const WORDS_MAX: usize = 500;

/// What a write can be asked to do beside writing.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Terms {
    /// Wait until every live proxy runs it, e.g. `30s`; at most 5 minutes.
    wait: Option<String>,
    /// Why, for the audit; the header `Gilmok-Reason` does the same.
    reason: Option<String>,
    /// Do what is refused because another command is the right one, or because it would hurt; the audit says so.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    force: bool,
    /// Take flags that flagd would take with a warning.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    accept_warnings: bool,
    /// Write nothing, and say what would become of it: whether anything would change, and which users would move.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    dry_run: bool,
}

/// The headers of a write, for its description; [`Author`] reads them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes; nothing is read into it")]
pub(super) struct Heads {
    /// The revision in quotes that must be the newest one, as `ETag` told it; `*` for any.
    #[param(rename = "If-Match")]
    if_match: Option<String>,
    /// Who, for the audit; the caller's address when nothing is said.
    #[param(rename = "Gilmok-Who")]
    who: Option<String>,
    /// Why, for the audit.
    #[param(rename = "Gilmok-Reason")]
    reason: Option<String>,
}

/// A write's author and terms.
#[derive(Debug)]
pub(super) struct Author {
    author: state::Author,
    wait: Option<Duration>,
    dry_run: bool,
}

/// A write that was done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Done {
    /// The revision that holds what was asked for.
    revision: u64,
    /// With `wait`: whether every live proxy runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    converged: Option<bool>,
    /// With `wait`: the live proxies that do not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lagging: Vec<String>,
}

/// What a write would do.
#[derive(Debug, Serialize)]
pub(super) struct Foreseen {
    /// The newest revision, from which it would begin.
    pub(super) revision: u64,
    pub(super) changed: bool,
    /// Of each service whose traffic would be another one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) services: BTreeMap<ServiceName, Moves>,
}

impl Author {
    pub(super) fn who(&self) -> &str {
        &self.author.who
    }

    /// Whether it is only asked what would become of it.
    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// What is to be said of a deed that makes no revision.
    ///
    /// # Errors
    /// When it must say why, and does not.
    pub(super) fn deed(&self, admin: &Admin) -> Result<By, Problem> {
        self.check_reason(admin)?;
        Ok(By { who: self.author.who.clone(), reason: self.author.reason.clone() })
    }

    fn check_reason(&self, admin: &Admin) -> Result<(), Problem> {
        if admin.access.reason_required && self.author.reason.is_empty() {
            return Err(Problem::bad_request(
                "writes say why here: in ?reason= or in the header Gilmok-Reason",
            ));
        }
        Ok(())
    }

    /// What a write would do. Writes nothing.
    pub(super) fn foresee(&self, admin: &Admin, command: &Command) -> Result<Foreseen, Problem> {
        let head = admin.state.store.head();
        let number = head.as_ref().map_or(0, |head| head.number);
        if self.author.expected.is_some_and(|expected| expected != number) {
            return Err(Problem::behind(number));
        }
        let empty = serde_json::json!({});
        let current = head.as_ref().map_or(&empty, |head| &head.document);
        let outcome = admin
            .state
            .decide(current, number, command, &self.author)
            .map_err(|refusal| Problem::of_refusal(refusal, command))?;
        let same = head.as_ref().is_some_and(|head| head.hash == outcome.intent.hash);
        let before = Intent::parse(current).map_or_else(|_| Document::default(), |intent| intent.document);
        Ok(Foreseen {
            revision: number,
            changed: !same || !outcome.records.is_empty() || outcome.schedule.is_some(),
            services: intent::moves(&before, &outcome.intent),
        })
    }
}

impl FromRequestParts<Arc<Admin>> for Author {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, admin: &Arc<Admin>) -> Result<Self, Problem> {
        let Query(terms) = Query::<Terms>::from_request_parts(parts, admin).await?;
        let wait = match &terms.wait {
            None => None,
            Some(text) => match parse_duration(text) {
                Ok(wait) => Some(wait.min(WAIT_MAX)),
                Err(hint) => return Err(Problem::bad_request(format!("wait: {hint}"))),
            },
        };
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
        // Whoever shows a token may say who it is for, but not that it was another one.
        let caller = parts.extensions.get::<Caller>().and_then(Caller::told);
        let who = match (words(&parts.headers, "gilmok-who"), caller) {
            (Some(who), Some(caller)) => Some(format!("{who}, {caller}")),
            (who, caller) => who.or(caller),
        };
        let reason = terms.reason.as_deref().map(bounded);
        let author = state::Author {
            who: who.or_else(|| peer.map(|ip| ip.to_string())).unwrap_or_default(),
            reason: words(&parts.headers, "gilmok-reason").or(reason).unwrap_or_default(),
            expected: if_match(&parts.headers, || admin.state.store.head().is_some())?,
            force: terms.force,
            accept_warnings: terms.accept_warnings,
        };
        Ok(Self { author, wait, dry_run: terms.dry_run })
    }
}

impl Author {
    /// Writes, waits if that was asked for, and says what was done. `created` of a PUT is 201.
    pub(super) async fn write(self, admin: &Admin, command: Command) -> Result<Response, Problem> {
        if self.dry_run {
            return Ok(Json(self.foresee(admin, &command)?).into_response());
        }
        self.check_reason(admin)?;
        let state = Arc::clone(&admin.state);
        let author = self.author;
        // In a task of its own, which ends with the write: a caller who leaves half-way must not leave
        // a revision behind that is on disk and that nobody is told of.
        let writing = tokio::spawn(async move {
            let written = state.write(&command, &author).await;
            count(&command, &written);
            if let Ok(state::Written { revision, changed: true, .. }) = written {
                tracing::info!("revision {revision}: {}, by {:?}", command.what(), author.who);
            }
            written.map_err(|error| Problem::of_write(error, &command))
        });
        let ended = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the control plane is about to end");
        let written = writing.await.map_err(ended)??;
        let mut done = Done { revision: written.revision, converged: None, lagging: Vec::new() };
        let mut status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        if let Some(wait) = self.wait {
            // Whoever waits asks what became of it, not whether it is new.
            status = StatusCode::OK;
            let (acks, store) = (&admin.state.publisher.acks, admin.state.store.id());
            let mut stop = admin.stop.clone();
            done.lagging = tokio::select! {
                lagging = acks.converged(store, written.revision, wait) => lagging,
                // A process that ends says what it knows rather than nothing.
                _ = stop.wait_for(|stop| *stop) => acks.lagging(store, written.revision),
            };
            done.converged = Some(done.lagging.is_empty());
            if !done.lagging.is_empty() {
                status = StatusCode::ACCEPTED;
            }
        }
        Ok((status, [(header::ETAG, etag(done.revision))], Json(done)).into_response())
    }
}

fn count(command: &Command, written: &Result<state::Written, state::WriteError>) {
    let result = match written {
        Ok(written) if written.changed => "written",
        Ok(_) => "unchanged",
        Err(state::WriteError::Behind { .. } | state::WriteError::Contended) => "conflict",
        Err(state::WriteError::Refused(_)) => "refused",
        Err(state::WriteError::Store(_)) => "failed",
    };
    metrics::counter!("gilmok_writes_total", "kind" => command.kind(), "result" => result).increment(1);
}

/// A revision as a strong validator.
pub(super) fn etag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"0\""))
}

fn if_match(headers: &HeaderMap, is_written: impl FnOnce() -> bool) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        // Any revision will do, but there must be one: nobody has written revision 0.
        return if is_written() { Ok(None) } else { Err(Problem::behind(0)) };
    }
    let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    match number.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Problem::bad_request("If-Match names one revision: If-Match: \"41\"")),
    }
}

fn words(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = bounded(&String::from_utf8_lossy(headers.get(name)?.as_bytes()));
    (!text.is_empty()).then_some(text)
}

/// What people read in tables and logs: one line of bounded length.
fn bounded(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::super::Access;
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn what_a_writer_who_leaves_half_way_has_written_is_published() {
        let folder = std::env::temp_dir().join(format!("gilmok-author-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        let state = state::State::new(Store::open(&folder, 10).unwrap(), false).unwrap();
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let (_end, stop) = watch::channel(false);
        let access = Access::default();
        let conductor = crate::conductor::Conductor::new(Arc::clone(&state), None);
        let mover = crate::conductor::Mover::new(Arc::clone(&state), None);
        let guardian = crate::conductor::Guardian::new(Arc::clone(&state));
        let admin = Admin {
            state: Arc::clone(&state),
            conductor,
            mover,
            guardian,
            access,
            authority: None,
            stop,
            contacts: None,
            metrics,
        };
        let command = Command::PutService(ServiceName::parse("ads").unwrap(), serde_json::json!({}));
        let author = Author { author: state::Author::default(), wait: None, dry_run: false };
        tokio::select! {
            biased;
            _ = author.write(&admin, command) => panic!("the disk was waited for"),
            // The caller leaves while the disk is busy.
            () = tokio::task::yield_now() => {}
        }
        let mut heads = state.store.heads();
        let published = async {
            drop(heads.wait_for(Option::is_some).await.unwrap());
            while state.publisher.current().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), published).await.expect("it is on disk and published");
        drop(std::fs::remove_dir_all(&folder));
    }
}
