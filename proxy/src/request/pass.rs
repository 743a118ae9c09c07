//! Passing on what the mesh does not know, for callers on this machine, when the settings say so.

use std::sync::Arc;

use gilmok_config::address::Address;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::service::ServicePolicy;
use http::{Method, Request};
use hyper::body::Incoming;

use super::attempt;
use super::deadline::Deadline;
use super::fault::Fault;
use super::head::Seen;
use super::record::Record;
use super::respond::Outcome;
use super::{headers, may_pass, named_host, tunnel};
use crate::caller::Caller;
use crate::upstream::candidates::Aim;
use crate::upstream::endpoint::{EndpointState, Peer};
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::worker::Worker;

/// The port of a host that names none.
const HTTP_PORT: u16 = 80;

/// Opens the tunnel that a CONNECT asks for, or sends a request to the host it names, on a connection of its own.
pub(super) async fn pass(
    worker: &Worker,
    caller: &Caller,
    record: &mut Record,
    request: Request<Incoming>,
    seen: &Seen,
) -> Result<Outcome, Fault> {
    if request.method() == Method::CONNECT {
        return tunnel::connect(worker, caller, request).await.map(Outcome::Tunnel);
    }
    if !may_pass(worker, caller) {
        return Err(Fault::NoDestination);
    }
    let host = named_host(&request).ok_or(Fault::NoDestination)?;
    let authority: http::uri::Authority =
        host.to_str().ok().and_then(|host| host.parse().ok()).ok_or(Fault::BadRequest("Host is no host"))?;
    let port = authority.port_u16().unwrap_or(HTTP_PORT);
    let address = tunnel::resolve(worker, authority.host(), port).await?;
    let nowhere = Arc::clone(&worker.shared.nowhere);
    let endpoint = Endpoint::at(Address::Socket(address));
    let (id, peer) = (EndpointState::OUTSIDE, Peer::Tcp(address));
    let state = EndpointState::new(id, endpoint, peer, Arc::default(), nowhere, 0);
    let upstream = Arc::new(Upstream::outside(ServicePolicy::default(), &Arc::new(state)));
    let (mut head, body) = request.into_parts();
    let set = record.view().snapshot.flags().cloned();
    headers::prepare_request(
        &mut head.headers,
        seen,
        caller.downstream(),
        Some(host.clone()),
        set.as_deref(),
    );
    head.uri = super::next_target(&head.uri, None, Some(host), &mut head.headers, &upstream)?;
    let policy = &upstream.policy;
    let (upload, progress) = Upload::new(body, policy.idle_timeout, worker.shared.limits.body_bytes);
    let upload = upload.claims_no_flags(set);
    let deadline =
        Deadline::new(record.decided(), policy.request_timeout, seen.patience.of_untrusted(), progress);
    let mut unsent = Some(Request::from_parts(head, upload));
    let answered = attempt::attempt(record, &upstream, &mut unsent, &deadline, Aim::default()).await?;
    let (upload_ended, idle) = (deadline.upload_ended(), policy.idle_timeout);
    Ok(Outcome::Relay { answered, upload_ended, idle, upgrade: None, recorder: None })
}
