//! The one place where an error becomes HTTP: `application/problem+json` (RFC 9457).

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use gilmok_config::name::ServiceName;
use gilmok_config::problem::Problems;
use serde::Serialize;
use utoipa::ToSchema;

use crate::intent::{Command, FlagDeed, Refusal};
use crate::membership::registry::RegistryRefusal;
use crate::publish::{FeedRefusal, Foreign};
use crate::state::WriteError;
use crate::store::StoreError;

/// Why a request was not done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    /// What is wrong here, and what to do.
    detail: String,
    /// Every fault of a document, with its path.
    #[serde(skip_serializing_if = "Problems::is_empty")]
    #[schema(value_type = Vec<Object>)]
    problems: Problems,
    #[serde(skip)]
    retry_after_s: Option<u16>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            problems: Problems::default(),
            retry_after_s: None,
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(super) fn no_move(service: &ServiceName, id: u64) -> Self {
        Self::not_found(format!(
            "there is no move {id} of the shards of `{service}`; GET /v1/services/{service}/sharding/moves lists those that are remembered"
        ))
    }

    pub(super) fn later(self, seconds: u16) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_s = self.retry_after_s;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl Problem {
    /// What is not sound, with every fault.
    pub(super) fn faulty(problems: Problems, detail: &str) -> Self {
        Self { problems, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// `If-Match` does not name the newest revision.
    pub(super) fn behind(head: u64) -> Self {
        let detail = format!("the newest revision is {head}; read it, and decide again");
        Self::new(StatusCode::PRECONDITION_FAILED, detail)
    }

    /// Why nothing was written.
    pub(super) fn of_write(error: WriteError, command: &Command) -> Self {
        match error {
            WriteError::Behind { head } => Self::behind(head),
            WriteError::Contended => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "too many writers at once; try again").later(1)
            }
            WriteError::Refused(refusal) => Self::of_refusal(refusal, command),
            WriteError::Store(error) => error.into(),
        }
    }

    /// Why a command would change nothing.
    pub(super) fn of_refusal(refusal: Refusal, command: &Command) -> Self {
        match refusal {
            Refusal::Conflict(why) => Self::new(StatusCode::CONFLICT, why),
            Refusal::NoFlag(key) => Self::not_found(format!("there is no flag `{key}`")),
            Refusal::NotScheduled(key, id) => {
                Self::not_found(format!("no change {id} of the flag `{key}` waits"))
            }
            Refusal::NoMove(name, id) => Self::no_move(&name, id),
            Refusal::NoRollout(name) => Self::not_found(format!("there is no rollout of `{name}`")),
            Refusal::NoService(name) => Self::not_found(format!("there is no service `{name}`")),
            Refusal::Warned(problems) => Self::faulty(
                problems,
                "flagd would take this and warn; nothing was changed. ?accept_warnings=true takes it here too",
            ),
            Refusal::Faulty(problems) => {
                let faulty = Self::faulty(problems, unsound(command));
                match command {
                    // Nothing is wrong with what was asked for; what is there stands against it.
                    Command::DeleteService(_)
                    | Command::Flag(_, FlagDeed::Delete)
                    | Command::Restore { .. }
                    | Command::RollBack(_) => {
                        Self { problems: faulty.problems, ..Self::new(StatusCode::CONFLICT, faulty.detail) }
                    }
                    Command::BeginMove(..)
                    | Command::Conduct(_)
                    | Command::ConductMove(_)
                    | Command::Flag(..)
                    | Command::ForceBreaker(..)
                    | Command::Move(..)
                    | Command::PatchService(..)
                    | Command::PutFlags(_)
                    | Command::PutMesh(_)
                    | Command::PutRollout(..)
                    | Command::PutService(..)
                    | Command::PutTraffic(..)
                    | Command::Rollout(..)
                    | Command::Switch(..) => faulty,
                }
            }
        }
    }
}

/// What of a command is faulty, for people.
fn unsound(command: &Command) -> &'static str {
    match command {
        Command::BeginMove(..) => "this cannot be moved; nothing was changed",
        Command::PutRollout(..) => "the plan cannot be carried out; nothing was changed",
        Command::Switch(..) => "nobody can be switched there; nothing was changed",
        Command::Conduct(_)
        | Command::ConductMove(_)
        | Command::DeleteService(_)
        | Command::Flag(..)
        | Command::ForceBreaker(..)
        | Command::Move(..)
        | Command::PatchService(..)
        | Command::PutFlags(_)
        | Command::PutMesh(_)
        | Command::PutService(..)
        | Command::PutTraffic(..)
        | Command::Restore { .. }
        | Command::RollBack(_)
        | Command::Rollout(..) => "the document would not be sound; nothing was changed",
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // The details are for the log: they name files of this machine.
        tracing::error!("{error}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the store does not work; the control plane's log says why",
        )
    }
}

impl From<RegistryRefusal> for Problem {
    fn from(refusal: RegistryRefusal) -> Self {
        let status = match refusal {
            RegistryRefusal::Id | RegistryRefusal::Ttl(_) => StatusCode::UNPROCESSABLE_ENTITY,
            RegistryRefusal::TooMany(_) => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<Foreign> for Problem {
    fn from(foreign: Foreign) -> Self {
        let status = match foreign {
            Foreign::App(_) | Foreign::Proxy(_) => StatusCode::FORBIDDEN,
            Foreign::Full => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, foreign.to_string()).later(10);
            }
        };
        Self::new(status, foreign.to_string())
    }
}

impl From<FeedRefusal> for Problem {
    fn from(refusal: FeedRefusal) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).later(2)
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::new(rejection.status(), "the body is longer than what is taken here");
        }
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        // The outermost error only says that there is another one below.
        let text = rejection.body_text();
        let what = text.split_once(": ").map_or(text.as_str(), |(_, what)| what);
        Self::bad_request(format!("the query is not understood: {what}"))
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::not_found(format!("there is nothing at {path}; /openapi.json lists what is there"))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    let detail = format!("{path} does not take {method}; /openapi.json lists what it takes");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}
