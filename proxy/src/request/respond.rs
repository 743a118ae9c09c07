//! The only place where an outcome becomes an answer to the caller.

use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use std::time::Duration;

use super::Call;
use super::body::Answer;
use super::fallback::StandIn;
use super::fault::Fault;
use super::headers::{
    GILMOK_DECISION, GILMOK_SHARD, GILMOK_SHARD_MAP, PROXY_STATUS, can_close, prepare_answer,
};
use super::record::Record;
use super::tried::Answered;
use super::tunnel::{self, Tunnel};
use crate::last_good::Recorder;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The proxy answers itself.
    Own(Fault),
    /// An endpoint answered.
    Relay {
        answered: Answered,
        upload_ended: bool,
        idle: Duration,
        upgrade: Option<OnUpgrade>,
        recorder: Option<Box<Recorder>>,
    },
    /// A fallback.
    StandIn(StandIn),
    /// A CONNECT was granted: the tunnel begins when the answer is out.
    Tunnel(Tunnel),
}

/// What of the request the answer depends on.
#[derive(Debug)]
pub(crate) struct Terms {
    method: Method,
    version: Version,
    /// Whether more may follow the head that is unread when an answer of our own goes out: a body, or
    /// bytes of the protocol that an upgrade asked for.
    has_body: bool,
    upgrades: bool,
    draining: bool,
}

impl Terms {
    pub(crate) fn of(request: &Request<Incoming>, draining: bool) -> Self {
        let (has_body, upgrades) = (!request.body().is_end_stream(), request.headers().contains_key(UPGRADE));
        Self { method: request.method().clone(), version: request.version(), has_body, upgrades, draining }
    }

    /// The whole body was read.
    pub(super) fn read(&mut self) {
        self.has_body = false;
    }
}

impl Outcome {
    /// What became of trying a service's endpoints.
    pub(crate) fn of(
        answered: Result<Answered, Fault>,
        call: &mut Call,
        record: &Record,
        idle: Duration,
    ) -> Self {
        match answered {
            Ok(answered) => Self::Relay {
                recorder: call
                    .question
                    .take()
                    .and_then(|question| record.recorder(&question, &answered.response)),
                answered,
                upload_ended: call.deadline.upload_ended(),
                idle,
                upgrade: call.upgrade.take(),
            },
            Err(fault) => Self::Own(fault),
        }
    }
}

/// Makes the answer, and gives it the record that ends with it.
pub(crate) fn respond(outcome: Outcome, terms: &Terms, mut record: Box<Record>) -> Response<Answer> {
    let comparison = record.comparison.take().map(|comparison| (comparison, record.decided().elapsed()));
    let response = answer(outcome, terms, record);
    if let Some((comparison, took)) = comparison {
        comparison.answered(response.status(), took);
    }
    response
}

fn answer(outcome: Outcome, terms: &Terms, mut record: Box<Record>) -> Response<Answer> {
    match outcome {
        Outcome::Own(fault) => own(fault, terms, record),
        Outcome::StandIn(answer) => stand_in(answer, terms, record),
        Outcome::Tunnel(tunnel) => {
            record.answered(StatusCode::OK);
            tunnel.begin(record);
            Response::new(Answer::none())
        }
        Outcome::Relay { answered, upgrade, .. }
            if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS =>
        {
            match upgrade {
                Some(upgrade) => switch(answered, upgrade, record),
                // Nobody asked for it.
                None => own(Fault::Reset, terms, record),
            }
        }
        Outcome::Relay { answered, upload_ended, idle, upgrade, recorder } => {
            // After a refused upgrade the caller may have sent bytes of the other protocol already.
            let close = !upload_ended || upgrade.is_some() || terms.draining;
            relay(answered, terms, close, idle, recorder, record)
        }
    }
}

fn relay(
    answered: Answered,
    terms: &Terms,
    close: bool,
    idle: Duration,
    recorder: Option<Box<Recorder>>,
    mut record: Box<Record>,
) -> Response<Answer> {
    let (mut head, body) = answered.response.into_parts();
    prepare_answer(&mut head.headers, head.status, &terms.method, body.size_hint().exact());
    if close && can_close(terms.version) {
        head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    head.version = Version::HTTP_11;
    record.answered(head.status);
    tell_fallback(&mut head.headers, head.status, &mut record);
    if let Some(visitor) = record.new_visitor() {
        visitor.tell_caller(&mut head.headers, record.caller().secure);
    }
    explain(&mut head.headers, &record);
    Response::from_parts(head, Answer::relay(body, answered.lease, record, idle, recorder))
}

/// Both sides change their protocol: from here on bytes are passed on as they are.
fn switch(mut answered: Answered, upgrade: OnUpgrade, mut record: Box<Record>) -> Response<Answer> {
    let upstream = hyper::upgrade::on(&mut answered.response);
    let (mut head, _no_body) = answered.response.into_parts();
    let protocol = head.headers.get(UPGRADE).cloned();
    prepare_answer(&mut head.headers, head.status, &Method::GET, None);
    head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
    }
    head.version = Version::HTTP_11;
    record.answered(head.status);
    tunnel::join(upgrade, upstream, record);
    Response::from_parts(head, Answer::none())
}

/// An answer of our own: RFC 9209 says why, and no cache keeps it. gRPC callers get it in gRPC's words.
fn own(fault: Fault, terms: &Terms, mut record: Box<Record>) -> Response<Answer> {
    record.refused(fault);
    let told = fault.told();
    let mut headers = HeaderMap::with_capacity(8);
    let status_line = format!("gilmok; error={}; details=\"{}\"", told.error, told.details);
    let proxy_status = HeaderValue::from_str(&status_line).ok();
    if let Some(value) = &proxy_status {
        headers.insert(PROXY_STATUS, value.clone());
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = told.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Fault::RateLimited(limited) = fault {
        limited.tell(&mut headers);
    }
    if let Fault::Elsewhere(shard) = fault {
        tell_owner(&mut headers, shard, &record);
    }
    close_after(&mut headers, terms, told.status);
    explain(&mut headers, &record);
    record.told(told.status, proxy_status);
    // Who sends a request on looks at the status, whatever it carries.
    let (status, body) = if record.is_grpc() && told.status != StatusCode::MISDIRECTED_REQUEST {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(told.grpc)));
        headers.insert("grpc-message", HeaderValue::from_static(told.details));
        (StatusCode::OK, bytes::Bytes::new())
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        (told.status, format!("gilmok: {}\n", record.said().unwrap_or(told.details)).into())
    };
    let mut response = Response::new(Answer::own(body, None, record));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Says whose the key is, and by which map.
fn tell_owner(headers: &mut HeaderMap, shard: usize, record: &Record) {
    let Some(app) = record.upstream() else { return };
    let name = app.owned.as_ref().map(|owned| owned.rule.shards()[shard].as_str());
    if let Some(name) = name.and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert(GILMOK_SHARD, name);
    }
    if let Some(map) = &app.map_header {
        headers.insert(GILMOK_SHARD_MAP, map.clone());
    }
}

/// An answer that stands in for the service's own. It says so, and no cache keeps it unless it says otherwise.
fn stand_in(mut answer: StandIn, terms: &Terms, mut record: Box<Record>) -> Response<Answer> {
    if terms.method == Method::HEAD {
        answer.tell_length();
        answer.body = bytes::Bytes::new();
    }
    let StandIn { status, mut headers, body, trailers } = answer;
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    close_after(&mut headers, terms, status);
    tell_fallback(&mut headers, status, &mut record);
    explain(&mut headers, &record);
    let mut response = Response::new(Answer::own(body, trailers, record));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What is unread would be taken for the next request.
fn close_after(headers: &mut HeaderMap, terms: &Terms, status: StatusCode) {
    if (terms.has_body || terms.upgrades || terms.draining || status == StatusCode::BAD_REQUEST)
        && can_close(terms.version)
    {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Says of a fallback that it is one.
fn tell_fallback(headers: &mut HeaderMap, status: StatusCode, record: &mut Record) {
    let Some((kind, reason)) = record.fallback() else { return };
    let proxy_status = HeaderValue::from_str(&reason.proxy_status(kind)).ok();
    if let Some(value) = &proxy_status {
        headers.append(PROXY_STATUS, value.clone());
    }
    record.told(status, proxy_status);
}

/// Says how it was decided, to callers that ask.
fn explain(headers: &mut HeaderMap, record: &Record) {
    if let Some(decision) = record.decision()
        && let Ok(value) = HeaderValue::from_str(&decision)
    {
        headers.insert(GILMOK_DECISION, value);
    }
}
