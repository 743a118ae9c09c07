//! The proxies: what they are told, and what they say they run.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use gilmok_config::problem::Problems;
use gilmok_config::wire::{Ack, WIRE_LEVEL, WIRE_LEVEL_MIN};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::Admin;
use super::ack_bounds;
use super::problem::Problem;
use super::told::Told;
use crate::tokens::Caller;

/// Longest name of a proxy, in bytes.
const NODE_BYTES_MAX: usize = 200;

/// Who follows. What else a proxy says of itself here is for people who read logs.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Follower {
    /// The proxy's name.
    node: String,
    /// The wire level it speaks.
    wire: u32,
    /// The store it follows, if it follows one.
    store: Option<String>,
    /// The revision it has.
    revision: Option<u64>,
}

#[utoipa::path(get, path = "/v1/feed", tag = "proxies", summary = "What is true, and from then on what changes, as NDJSON",
    params(Follower), responses((status = 200, content_type = "application/x-ndjson", body = String),
        (status = 403, description = "The proxy is one of other services than the caller's", body = Problem),
        (status = 409, description = "The proxy speaks another wire level", body = Problem),
        (status = 503, description = "The store was never written", body = Problem)))]
pub(super) async fn feed(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    follower: Result<Query<Follower>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(follower) = follower?;
    if !(WIRE_LEVEL_MIN..=WIRE_LEVEL).contains(&follower.wire) {
        let detail = format!(
            "this control plane speaks wire levels {WIRE_LEVEL_MIN} to {WIRE_LEVEL}, the proxy {}",
            follower.wire
        );
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    admin.state.publisher.acks.may_speak(&caller, &follower.node)?;
    let lines = admin.state.publisher.follow(admin.stop.clone())?;
    let bounded = |text: &str| text.chars().take(NODE_BYTES_MAX).collect::<String>();
    let store = follower.store.as_deref().map_or_else(|| "no store".to_owned(), bounded);
    let node = bounded(&follower.node);
    tracing::info!(
        "the proxy {node:?} follows; it had revision {} of {store:?}",
        follower.revision.unwrap_or(0)
    );
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    // Else whoever has stolen a token would follow for as long as the connection holds.
    let body = match caller {
        Caller::Token(token) => {
            let end = Box::pin(admin.state.store.until_worthless(token));
            Body::new(Until { lines: Lines(lines), end })
        }
        Caller::Identity(_) | Caller::Loopback | Caller::Operator => Body::new(Lines(lines)),
    };
    Ok((kind, body).into_response())
}

/// Lines as they come, until something is no longer true. Lines that wait then are not told.
struct Until {
    lines: Lines,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl hyper::body::Body for Until {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.lines).poll_frame(cx)
    }
}

/// A body of lines as they come.
pub(super) struct Lines(pub(super) mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[utoipa::path(post, path = "/v1/feed/acks", tag = "proxies", summary = "A proxy says what it runs", request_body = Value,
    responses((status = 204),
        (status = 403, description = "It speaks for other services than the caller's", body = Problem),
        (status = 422, description = "It says more than a proxy says", body = Problem),
        (status = 503, description = "Too many proxies are known", body = Problem)))]
pub(super) async fn ack(
    State(admin): State<Arc<Admin>>,
    Extension(caller): Extension<Caller>,
    Told(ack): Told<Ack>,
) -> Result<StatusCode, Problem> {
    // It becomes a label of a metric.
    if !is_node(&ack.node) {
        let detail = "node: 1 to 200 letters, digits, '-', '_' and '.'";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let faults = ack_bounds::faults(&ack);
    if !faults.is_empty() {
        return Err(Problem::faulty(
            Problems(faults),
            "this is more than a proxy says; nothing of it was taken",
        ));
    }
    admin.state.hear(&caller, ack)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a text may name a node, as the proxy's own settings have it.
fn is_node(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= NODE_BYTES_MAX && text.bytes().all(allowed)
}

#[utoipa::path(get, path = "/v1/proxies", tag = "proxies",
    summary = "Who runs which revision, how far behind, who refused and why",
    responses((status = 200, body = Value)))]
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let now = Instant::now();
    let store = admin.state.store.id();
    let head = admin.state.store.head().map_or(0, |head| head.number);
    let reports = admin.state.publisher.acks.all().into_iter().map(|report| {
        let heard_ms = now.saturating_duration_since(report.heard).as_millis();
        let ours = report.ack.applied.as_ref().filter(|applied| applied.store == store);
        json!({
            "node": report.ack.node,
            "instance": report.ack.instance,
            "version": report.ack.version,
            "wire": report.ack.wire,
            "state": report.ack.state,
            "live": report.is_live(now),
            "replaced": report.is_replaced,
            "heard_ms_ago": u64::try_from(heard_ms).unwrap_or(u64::MAX),
            "applied": report.ack.applied,
            "refused": report.ack.refused,
            "behind": ours.map(|applied| head.saturating_sub(applied.revision)),
        })
    });
    Json(json!(reports.collect::<Vec<_>>()))
}
