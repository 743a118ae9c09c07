//! What a body tells: JSON, whatever the caller calls it, with the path of what is not understood.
//!
//! The media type is not asked for: `curl -d` calls everything a form, and pages in a browser are kept out by `access`.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use gilmok_config::problem::{Problem as Fault, Problems};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::Problem;

/// A body of JSON, not longer than the route's limit.
#[derive(Debug)]
pub(super) struct Told<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Told<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await?;
        if bytes.is_empty() {
            return Err(Problem::bad_request("there is no body; it is JSON, as /openapi.json tells"));
        }
        // In two steps: what is no JSON at all is another mistake than JSON that says something else.
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
        serde_path_to_error::deserialize(json).map(Self).map_err(|error| {
            let path = error.path().to_string();
            let fault = Fault {
                path: if path == "." { String::new() } else { path },
                line: None,
                what: error.into_inner().to_string(),
                hint: None,
            };
            Problem::faulty(Problems(vec![fault]), "the body is not understood; nothing was changed")
        })
    }
}
