//! A request as its endpoint gets it: in the endpoint's protocol, and told as what it is asked.

use gilmok_config::service::Protocol;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request};

use super::headers::{GILMOK_SHARD, GILMOK_SHARD_MAP, GILMOK_VERSION};
use crate::upstream::endpoint::EndpointState;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;

/// What HTTP/1 and HTTP/2 want otherwise.
pub(super) fn fit_protocol(request: &mut Request<Upload>, upstream: &Upstream) {
    let headers = request.headers_mut();
    match upstream.policy.protocol {
        Protocol::Http1 => {
            *request.version_mut() = http::Version::HTTP_11;
        }
        Protocol::H2 => {
            headers.remove(CONNECTION);
            headers.remove(UPGRADE);
            *request.version_mut() = http::Version::HTTP_2;
        }
    }
}

/// Tells the application which version and shard it was asked as.
pub(super) fn tell_target(request: &mut Request<Upload>, endpoint: &EndpointState) {
    if let Some(version) = &endpoint.version_header {
        request.headers_mut().insert(GILMOK_VERSION, version.clone());
    }
    if let Some(shard) = &endpoint.shard_header {
        request.headers_mut().insert(GILMOK_SHARD, shard.clone());
    }
}

/// Tells by which map it was found, where the service has one.
pub(super) fn tell_map(request: &mut Request<Upload>, map: Option<&HeaderValue>) {
    if let Some(map) = map {
        request.headers_mut().insert(GILMOK_SHARD_MAP, map.clone());
    }
}
