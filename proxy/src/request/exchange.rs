//! Sending a request on a connection to its endpoint, and waiting for the head of the answer.

use std::io;
use std::pin::pin;
use std::rc::Rc;

use http::Request;
use tokio::time::sleep;

use super::deadline::Deadline;
use super::fault::Fault;
use super::reply::owner_told;
use super::tried::{Answered, Failed};
use super::trying::{Trying, has_answer};
use crate::metrics::Outcome;
use crate::tls::is_refusal;
use crate::upstream::connect::ConnectError;
use crate::upstream::pool::{Lease, Pool};
use crate::upstream::service::Upstream;
use crate::upstream::upload::{Upload, UploadFault};

/// Connections tried at one endpoint for one request: pooled ones may turn out to be closed.
const CONNECTIONS_MAX: usize = 3;

/// Sends the request on a connection of the pool and waits for the head of the answer.
pub(super) async fn exchange(
    pool: &Rc<Pool>,
    upstream: &Upstream,
    unsent: &mut Option<Request<Upload>>,
    deadline: &Deadline,
    trying: &mut Trying<'_>,
    keep: bool,
) -> Result<Answered, Failed> {
    let policy = &upstream.policy;
    for connection in 0..CONNECTIONS_MAX {
        let pooled = if connection == 0 { pool.take(policy.protocol) } else { None };
        let mut lease = match pooled {
            Some(lease) => lease,
            None => {
                let mut opening = Box::pin(pool.open(policy.protocol, policy.connect_timeout));
                let mut timer = Box::pin(sleep(policy.connect_timeout));
                match deadline.run(trying, timer.as_mut(), opening.as_mut()).await {
                    Ok(opened) => opened.map_err(not_connected)?,
                    Err(expired) => return Err(Failed { sent: false, ..Failed::late(expired) }),
                }
            }
        };
        let Some(request) = unsent.take() else { break };
        let sent = match &mut lease {
            Lease::Http1(lease) => {
                let (timer, sent) = lease.send(request, keep);
                deadline.run(trying, timer, pin!(sent)).await
            }
            Lease::H2(lease) => {
                let mut timer = Box::pin(sleep(policy.request_timeout));
                deadline.run(trying, timer.as_mut(), pin!(lease.send(request))).await
            }
        };
        let mut error = match sent {
            Ok(Ok(response)) => {
                let may_be_sidecars = trying.endpoint.endpoint.inbound && response.status().is_server_error();
                let is_listed = || has_answer(&upstream.repeats, response.status(), response.headers());
                if keep && (may_be_sidecars || is_listed() || owner_told(&response).is_some()) {
                    *unsent = lease.written();
                }
                return Ok(Answered { response, lease });
            }
            Ok(Err(error)) => error,
            Err(expired) => {
                *unsent = if keep { lease.written() } else { None };
                return Err(Failed::late(expired));
            }
        };
        if let Some(request) = error.take_message() {
            *unsent = Some(request);
            if !lease.reused() {
                return Err(if was_refused(error.error()) {
                    Failed::unsent(Fault::Tls, Outcome::Tls)
                } else {
                    Failed::unsent(Fault::Reset, Outcome::Reset)
                });
            }
        } else if lease.reused()
            && let Some(request) = lease.unanswered()
        {
            *unsent = Some(request);
        } else {
            *unsent = if keep { lease.written() } else { None };
            return Err(broken(&error.into_error(), lease.reused(), deadline));
        }
        // The connection was closed while it was idle; that says nothing about the endpoint. At most one more request
        // on a new connection, and no connection is found closed twice: so it needs no budget.
        trying.connection_was_stale();
    }
    Err(Failed::unsent(Fault::Reset, Outcome::StaleConnection))
}

fn not_connected(error: ConnectError) -> Failed {
    match error {
        ConnectError::Refused => Failed::unsent(Fault::Refused, Outcome::Refused),
        ConnectError::Timeout => Failed::unsent(Fault::ConnectTimeout, Outcome::Connect),
        ConnectError::Tls => Failed::unsent(Fault::Tls, Outcome::Tls),
        ConnectError::Unreachable => Failed::unsent(Fault::Unreachable, Outcome::Connect),
        ConnectError::Untrusted => Failed::unsent(Fault::Untrusted, Outcome::Tls),
    }
}

/// Whose fault it was that a request broke.
fn broken(error: &hyper::Error, reused: bool, deadline: &Deadline) -> Failed {
    let failed = Failed::sent;
    match deadline.upload_fault() {
        Some(UploadFault::CallerLeft) => {
            failed(Fault::BadRequest("the caller stopped in the middle of its request"), Outcome::Cancelled)
        }
        Some(UploadFault::Stalled) => failed(Fault::UploadStalled, Outcome::Cancelled),
        Some(UploadFault::TooLarge) => failed(Fault::BodyTooLarge, Outcome::Cancelled),
        // HTTP/2 says that the stream was not taken up; the caller's spare copy goes elsewhere.
        None if let Some(outcome) = not_taken_up(error) => Failed::unsent(Fault::Refused, outcome),
        None if !reused && was_refused(error) => Failed::unsent(Fault::Tls, Outcome::Tls),
        // Between two requests the endpoint may close at any time: counted apart.
        None if reused && was_cut(error) => failed(Fault::Reset, Outcome::StaleConnection),
        None => failed(Fault::Reset, Outcome::Reset),
    }
}

/// Whether the connection ended before anything came back, by a FIN or by a reset.
fn was_cut(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || source.is_some_and(|error| {
            // Over TLS an end without a word is one that was not expected.
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        })
}

/// Whether the endpoint did not like our certificate, and told so behind its handshake.
fn was_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let of_h2 = error.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
        if is_refusal(error) || of_h2.is_some_and(|error| is_refusal(error)) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether an HTTP/2 peer has said that it did nothing with a stream, and what that says about the endpoint.
fn not_taken_up(error: &hyper::Error) -> Option<Outcome> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // h2 ends by the peer's GOAWAY only streams above the last one that the peer took up.
            let left_out = error.is_go_away() && error.is_remote();
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return match (left_out, refused) {
                (true, _) => Some(Outcome::StaleConnection),
                (false, true) => Some(Outcome::Refused),
                (false, false) => None,
            };
        }
        source = error.source();
    }
    None
}
