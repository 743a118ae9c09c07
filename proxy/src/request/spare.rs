//! How a request is kept while it is sent, in case it has to be sent once more.

use gilmok_config::service::Protocol;
use http::Request;
use hyper::body::Body;

use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;

/// How a request is kept in case it has to be sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Only for a pooled connection that turns out to be closed.
    Stale,
    /// A copy of its head, and of a short body as it goes.
    Copy,
    /// The same, only for an owner that sends it on to another shard.
    Owner,
    /// The connection keeps what it has written.
    Written,
}

pub(super) fn keeps(
    request: Option<&Request<Upload>>,
    upstream: &Upstream,
    endpoint: &EndpointState,
    others: bool,
) -> Keep {
    let Some(request) = request else { return Keep::Stale };
    // A sidecar can say that its app saw nothing; where there is another one, the request is kept. An HTTP/2 peer can
    // say that a stream was not taken up, and take it up on its next connection.
    let may_return = (others && endpoint.endpoint.inbound) || upstream.policy.protocol == Protocol::H2;
    let is_idempotent = request.method().is_idempotent();
    let may_repeat = !upstream.repeats.is_empty() && is_idempotent;
    // An owner may have lost the key, and send it on.
    let may_move = upstream.policy.sharding.is_some();
    if !may_return && !may_repeat && !may_move {
        Keep::Stale
    } else if is_idempotent && request.body().is_end_stream() && upstream.policy.protocol == Protocol::Http1 {
        Keep::Written
    } else if may_return || may_repeat {
        Keep::Copy
    } else {
        Keep::Owner
    }
}

/// The same request once more, without its body.
pub(super) fn copy_of(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
