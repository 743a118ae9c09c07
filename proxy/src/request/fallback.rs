//! What is answered when a service brings nothing: its chain, tried in order.

use std::borrow::Cow;
use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use gilmok_config::failure::{Failure, FailureSet};
use gilmok_config::fallback::{Action, Fallback, Prepared};
use gilmok_config::flag::ServiceFlags;
use gilmok_config::name::ServiceName;
use gilmok_config::rate_limit::By;
use gilmok_config::subject::{Asker, Baggage, Inputs, Uid};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use hyper::body::Body;

use super::Call;
use super::attempt::attempt;
use super::fault::Fault;
use super::flags;
use super::record::Record;
use super::respond::Outcome;
use super::split;
use super::tried::Answered;
use super::trying::has_answer;
use crate::clock;
use crate::last_good::{Asked, Kept, Question};
use crate::metrics::Kind;
use crate::upstream::candidates::Aim;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::worker::View;

/// Services that are asked one after the other for one request; a document may chain more of them.
const SERVICES_MAX: u32 = 4;

/// Why there is a fallback: what the service's call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The application's own answer, which the chain lists.
    Answer(StatusCode),
    Fault(Fault),
}

/// An answer that stands in for the service's own.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

impl Reason {
    /// As the metric tells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Answer(_) => "answer",
            Self::Fault(fault) => fault.failure().map_or("", Failure::as_str),
        }
    }

    /// `Proxy-Status` (RFC 9209) of an answer that is a fallback of this kind.
    pub(crate) fn proxy_status(self, kind: Kind) -> String {
        let kind = kind.as_str();
        match self {
            Self::Answer(status) => {
                format!("gilmok; received-status={}; details=\"fallback={kind}\"", status.as_u16())
            }
            Self::Fault(fault) => {
                let told = fault.told();
                format!("gilmok; error={}; details=\"{} fallback={kind}\"", told.error, told.details)
            }
        }
    }

    /// Whether the version that was asked brought nothing: not so where the proxy or the caller is full or bad.
    pub(super) fn is_versions_fault(self) -> bool {
        match self {
            Self::Answer(_) => true,
            Self::Fault(fault) => fault.failure().is_some_and(|failure| failure != Failure::Overflow),
        }
    }

    fn is_in(self, set: &FailureSet, answered: Option<&Answered>) -> bool {
        match (self, answered) {
            (Self::Fault(fault), _) => fault.failure().is_some_and(|failure| set.has(failure)),
            (Self::Answer(_), Some(answered)) => {
                has_answer(set, answered.response.status(), answered.response.headers())
            }
            (Self::Answer(_), None) => false,
        }
    }
}

/// Asks a service; what stands in for it when that brings nothing.
///
/// Boxed by its caller: it calls itself for the services of chains.
pub(super) async fn ask(record: &mut Record, view: &View, call: &mut Call, asked: u32) -> Outcome {
    let upstream = call.place.of(view);
    let answered = match record.admit(upstream) {
        Ok(()) => attempt(record, upstream, &mut call.unsent, &call.deadline, call.aim).await,
        Err(fault) => Err(fault),
    };
    let reason = match &answered {
        Ok(answered) => Reason::Answer(answered.response.status()),
        Err(fault) => Reason::Fault(*fault),
    };
    let has_chain =
        upstream.policy.fallback.iter().any(|link| reason.is_in(&link.on, answered.as_ref().ok()));
    if has_chain
        && let Some(outcome) =
            Box::pin(go_through(record, view, call, asked, reason, answered.as_ref().ok())).await
    {
        return outcome;
    }
    Outcome::of(answered, call, record, upstream.policy.idle_timeout)
}

/// Goes through a service's chain; `None` when no link has an answer.
async fn go_through(
    record: &mut Record,
    view: &View,
    call: &mut Call,
    asked: u32,
    reason: Reason,
    answered: Option<&Answered>,
) -> Option<Outcome> {
    let upstream = call.place.of(view);
    let is_for = |link: &&Fallback| reason.is_in(&link.on, answered) && link.methods.contains(&call.method);
    // Links are few, and a link that asks another service needs the call to itself.
    let links: Vec<&Fallback> = upstream.policy.fallback.iter().filter(is_for).collect();
    for link in links {
        let outcome = match &link.action {
            Action::LastGood(_) => {
                last_good(record, call).map(|answer| (Kind::LastGood, Outcome::StandIn(answer)))
            }
            Action::Respond(prepared) => {
                prepare(prepared, record.is_grpc()).map(|answer| (Kind::Respond, Outcome::StandIn(answer)))
            }
            Action::Service(name) => {
                other(record, view, call, asked, name).await.map(|outcome| (Kind::Service, outcome))
            }
        };
        if let Some((kind, outcome)) = outcome {
            record.fell_back(kind, reason);
            return Some(outcome);
        }
    }
    None
}

fn last_good(record: &Record, call: &Call) -> Option<StandIn> {
    let kept = record.worker.shared.last_good.give(call.question.as_ref()?, clock::now_ms())?;
    let Kept { status, headers, body } = kept;
    Some(StandIn { status, headers, body, trailers: None })
}

/// A prepared answer in the words that the caller speaks; `None` when there are none.
fn prepare(prepared: &Prepared, is_grpc: bool) -> Option<StandIn> {
    let mut headers = prepared.headers.clone();
    if !is_grpc {
        return Some(StandIn {
            status: prepared.status,
            headers,
            body: prepared.body.clone(),
            trailers: None,
        });
    }
    let grpc = prepared.grpc.as_ref()?;
    let mut told = HeaderMap::with_capacity(2);
    told.insert("grpc-status", HeaderValue::from(u16::from(grpc.status)));
    if let Some(message) = &grpc.message {
        told.insert("grpc-message", message.clone());
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if grpc.status != 0 {
        headers.extend(told);
        return Some(StandIn { status: StatusCode::OK, headers, body: Bytes::new(), trailers: None });
    }
    // One message: not compressed, its length, its bytes (gRPC over HTTP/2, Length-Prefixed-Message).
    let mut frame = BytesMut::with_capacity(5 + prepared.body.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(prepared.body.len()).ok()?);
    frame.put_slice(&prepared.body);
    Some(StandIn { status: StatusCode::OK, headers, body: frame.freeze(), trailers: Some(Box::new(told)) })
}

/// Asks another service, which has a breaker and a chain of its own; `None` when that brings nothing.
fn other<'c>(
    record: &'c mut Record,
    view: &'c View,
    call: &'c mut Call,
    asked: u32,
    name: &'c ServiceName,
) -> Pin<Box<dyn Future<Output = Option<Outcome>> + 'c>> {
    Box::pin(async move {
        let at = view.snapshot.service_index(name.as_str()).filter(|_| asked < SERVICES_MAX)?;
        let mut request = call.unsent.take()?;
        let upstream = &view.upstreams[at];
        let aim = split::again(record, upstream, &request)?;
        flags::tell_again(record, at, &mut request);
        let mut call = Call {
            aim,
            place: super::record::Place::Service(at),
            unsent: Some(request),
            deadline: call.deadline.anew(upstream.policy.request_timeout),
            // The question was another service's.
            question: None,
            method: call.method.clone(),
            upgrade: None,
        };
        match ask(record, view, &mut call, asked + 1).await {
            Outcome::Own(_) => None,
            Outcome::Relay { answered, .. } if answered.response.status().is_server_error() => None,
            outcome => Some(outcome),
        }
    })
}

/// What is remembered of a request whose service may give last good answers.
pub(super) fn question(
    record: &Record,
    upstream: &Upstream,
    request: &Request<Upload>,
    aim: Aim,
) -> Option<Question> {
    let policy = upstream.policy.fallback.iter().find_map(|link| match &link.action {
        Action::LastGood(policy) => Some(policy),
        Action::Respond(_) | Action::Service(_) => None,
    })?;
    let uri = request.uri();
    let host = match uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => request.headers().get(HOST).map(HeaderValue::as_bytes).unwrap_or_default(),
    };
    let found = who_asks(record, upstream, request);
    let personal: Vec<&[u8]> = found.iter().map(AsRef::as_ref).collect();
    let asked = Asked {
        service: &upstream.name,
        // Nobody sees another version, were it the only one that answered lately.
        version: aim.version.and_then(|at| upstream.policy.traffic.as_ref()?.versions().get(at)),
        shard: aim.shard(&upstream.policy),
        host,
        path_and_query: uri.path_and_query().map_or("/", |path| path.as_str()),
        method: request.method(),
        headers: request.headers(),
        has_body: !request.body().is_end_stream(),
        personal: &personal,
    };
    record.worker.shared.last_good.question(policy, &asked)
}

/// What says who is asking in the eyes of the service: whoever is told apart for its version or its limit is told apart
/// for its answers. Empty when nothing does.
fn who_asks<'r>(record: &Record, upstream: &Upstream, request: &'r Request<Upload>) -> Vec<Cow<'r, [u8]>> {
    let traffic = upstream.policy.traffic.as_deref().map(|traffic| &traffic.subject);
    let limited = upstream.policy.rate_limit.as_ref().and_then(|limit| match &limit.by {
        By::Subject(inputs) => Some(inputs),
        By::Caller | By::Service => None,
    });
    // Users who are told other flags may get other answers.
    let place = record.view().snapshot.service_index(upstream.name.as_str());
    let service = place.map(|at| &record.view().snapshot.services()[at]);
    let is_told = service.and_then(|service| service.emission.as_ref()).is_some_and(|e| e.is_dynamic());
    let flags = upstream.policy.flags.as_deref().filter(|_| is_told);
    let told = || flags.into_iter().flat_map(ServiceFlags::inputs);
    let inputs = || traffic.into_iter().chain(limited).chain(told());
    let wants_client = inputs().any(Inputs::want_client);
    let asker = Asker {
        headers: request.headers(),
        query: request.uri().query(),
        client: wants_client.then(|| split::client(record, request.headers())).flatten(),
        uid: Uid::AsSent,
        // What may not be believed was taken off.
        baggage: Baggage { trusted: true, key: None },
    };
    let found: Vec<_> = inputs().flat_map(|inputs| inputs.each(&asker)).collect();
    if found.iter().all(|value| value.is_empty()) { Vec::new() } else { found }
}

impl StandIn {
    /// The length that `HEAD` is told too.
    pub(crate) fn tell_length(&mut self) {
        // A kept answer knows its own.
        if self.trailers.is_none() && !self.headers.contains_key(CONTENT_LENGTH) {
            self.headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gilmok_config::document::Document;

    fn prepared(text: &str) -> Prepared {
        let document = format!("[[services.ads.fallback]]\nrespond = {{ {text} }}");
        let document = Document::parse_toml(&document).unwrap();
        let Action::Respond(prepared) = &document.services["ads"].fallback[0].action else {
            panic!("{document:?}")
        };
        Prepared::clone(prepared)
    }

    #[test]
    fn callers_of_grpc_get_a_status_or_a_message_in_its_frame() {
        let refused = prepared("grpc_status = \"unavailable\", grpc_message = \"no ads\"");
        let answer = prepare(&refused, true).unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["grpc-status"], "14");
        assert!(answer.body.is_empty() && answer.trailers.is_none());
        let message = prepare(&prepared("grpc_status = \"ok\", body_base64 = \"CgNhZA==\""), true).unwrap();
        assert_eq!(&message.body[..], b"\0\0\0\0\x04\x0a\x03ad");
        assert_eq!(message.trailers.unwrap()["grpc-status"], "0");
        assert!(prepare(&prepared("body = \"for browsers\""), true).is_none(), "no words for it");
    }

    #[test]
    fn the_answer_says_what_it_is() {
        let open = Reason::Fault(Fault::open(300));
        assert_eq!(
            open.proxy_status(Kind::Respond),
            "gilmok; error=destination_unavailable; details=\"breaker=open fallback=respond\""
        );
        assert_eq!(open.as_str(), "open");
        let answer = Reason::Answer(StatusCode::BAD_GATEWAY);
        assert_eq!(
            answer.proxy_status(Kind::LastGood),
            "gilmok; received-status=502; details=\"fallback=last_good\""
        );
    }
}
