//! What a path names: a service, an endpoint of one, a move of its shards, a flag. What is no name is a problem like any other.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use gilmok_config::flag::KEY_BYTES_MAX;
use gilmok_config::name::ServiceName;

use super::problem::Problem;

/// The service that the path names.
#[derive(Debug)]
pub(super) struct Named(pub(super) ServiceName);

/// The key of a flag.
#[derive(Debug)]
pub(super) struct NamedFlag(pub(super) String);

/// The key of a flag and the id of a change of it.
#[derive(Debug)]
pub(super) struct NamedChange(pub(super) String, pub(super) u64);

/// The service and the id of one of its endpoints.
#[derive(Debug)]
pub(super) struct NamedEndpoint(pub(super) ServiceName, pub(super) String);

/// The service and the id of a move of its shards.
#[derive(Debug)]
pub(super) struct NamedMove(pub(super) ServiceName, pub(super) u64);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(name) = Path::<String>::from_request_parts(parts, state).await?;
        Ok(Self(parse(&name)?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NamedEndpoint {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((service, id)) = Path::<(String, String)>::from_request_parts(parts, state).await?;
        Ok(Self(parse(&service)?, id))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NamedMove {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((service, id)) = Path::<(String, u64)>::from_request_parts(parts, state).await?;
        Ok(Self(parse(&service)?, id))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NamedFlag {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(key) = Path::<String>::from_request_parts(parts, state).await?;
        if key.len() > KEY_BYTES_MAX {
            return Err(Problem::bad_request(format!("the key of a flag has at most {KEY_BYTES_MAX} bytes")));
        }
        Ok(Self(key))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for NamedChange {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((key, id)) = Path::<(String, u64)>::from_request_parts(parts, state).await?;
        Ok(Self(key, id))
    }
}

fn parse(name: &str) -> Result<ServiceName, Problem> {
    ServiceName::parse(name).map_err(Problem::bad_request)
}
