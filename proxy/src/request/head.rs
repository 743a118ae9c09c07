//! Reading a request's head: what is refused before anything else, and what the later steps need to know.
//!
//! One pass over the headers notes what is there, so that the steps after it touch only what is.

use std::borrow::Cow;
use std::time::Duration;

use gilmok_config::decide::Listener;
use gilmok_config::host;
use http::{HeaderValue, Request, Version};
use hyper::body::Body;

use super::fault::Fault;
use crate::claims;
use crate::settings::Limits;

/// What one pass over a request's headers saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// `Connection` names something: it and what it names is taken off.
    pub(crate) connection: bool,
    /// Other fields that concern one hop only.
    pub(crate) hop_fields: bool,
    /// `TE` has `trailers`.
    pub(crate) te_trailers: bool,
    pub(crate) content_length: bool,
    pub(crate) transfer_encoding: bool,
    pub(crate) expect: bool,
    /// `Upgrade` is there and `Connection` names it.
    pub(crate) upgrade: bool,
    /// Fields that the mesh owns: `Gilmok-*`, `Feature-Flags`.
    pub(crate) mesh_fields: bool,
    /// Other fields that speak for the mesh, or look as if they did.
    pub(crate) claims: bool,
    pub(crate) baggage: bool,
    pub(crate) forwarded_for: bool,
    pub(crate) forwarded_proto: bool,
    pub(crate) forwarded_host: bool,
    pub(crate) request_id: bool,
    pub(crate) traceparent: bool,
    /// `Cookie` lines, which HTTP/2 may split and HTTP/1 must not.
    pub(crate) cookies: usize,
    /// The caller speaks gRPC and must be answered in it.
    pub(crate) grpc: bool,
    /// The caller asks how it was decided.
    pub(crate) explain: bool,
    pub(crate) patience: Patience,
}

/// How long the caller itself waits, as its head says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    /// `Gilmok-Timeout`, in milliseconds; to be believed of trusted callers only.
    pub(crate) mesh: Option<Duration>,
    /// `grpc-timeout`.
    pub(crate) grpc: Option<Duration>,
}

impl Patience {
    /// The shorter one.
    pub(crate) fn least(self) -> Option<Duration> {
        self.mesh.into_iter().chain(self.grpc).min()
    }

    /// What is left of it after so long.
    pub(crate) fn after(self, time: Duration) -> Self {
        let left = |patience: Option<Duration>| patience.map(|patience| patience.saturating_sub(time));
        Self { mesh: left(self.mesh), grpc: left(self.grpc) }
    }

    /// What it is when the caller is not trusted.
    pub(crate) fn of_untrusted(self) -> Self {
        Self { mesh: None, ..self }
    }
}

/// Reads milliseconds; `None` is not a number.
fn milliseconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// Reads `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, Timeout).
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3_600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

impl Seen {
    /// Looks at a request's head.
    ///
    /// # Errors
    /// What makes it no request that may go on.
    pub(crate) fn read(request: &Request<impl Body>, limits: &Limits) -> Result<Self, Fault> {
        let mut seen = Self::default();
        let mut hosts = 0;
        let (mut upgrade_field, mut leads_past_us) = (false, false);
        for (name, value) in request.headers() {
            match name.as_str() {
                "host" => hosts += 1,
                "connection" => {
                    seen.connection = true;
                    seen.upgrade |= tokens(value).any(|token| token.eq_ignore_ascii_case("upgrade"));
                }
                "te" => {
                    seen.hop_fields = true;
                    seen.te_trailers |= tokens(value).any(|token| token.eq_ignore_ascii_case("trailers"));
                }
                "upgrade" => {
                    seen.hop_fields = true;
                    upgrade_field = true;
                    leads_past_us |= tokens(value).any(leads_past);
                }
                "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authorization" => {
                    seen.hop_fields = true;
                }
                "content-length" => seen.content_length = true,
                // hyper refuses what does not end in chunked; anything but exactly chunked is refused here.
                "transfer-encoding"
                    if seen.transfer_encoding || !value.as_bytes().eq_ignore_ascii_case(b"chunked") =>
                {
                    return Err(Fault::BadRequest("only one Transfer-Encoding, chunked, is understood"));
                }
                "transfer-encoding" => seen.transfer_encoding = true,
                "expect" if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => seen.expect = true,
                "expect" => return Err(Fault::Expectation),
                "cookie" => seen.cookies += 1,
                "content-type" => seen.grpc = is_grpc(value),
                "baggage" => seen.baggage = true,
                "x-forwarded-for" => seen.forwarded_for = true,
                "x-forwarded-proto" => seen.forwarded_proto = true,
                "x-forwarded-host" => seen.forwarded_host = true,
                "x-request-id" => seen.request_id = true,
                "traceparent" => seen.traceparent = true,
                "grpc-timeout" => seen.patience.grpc = grpc_timeout(value),
                "gilmok-timeout" => {
                    seen.mesh_fields = true;
                    seen.patience.mesh = milliseconds(value);
                }
                "gilmok-explain" => {
                    seen.mesh_fields = true;
                    seen.explain = value.as_bytes() == b"1";
                }
                other if claims::is_mesh(other) => seen.mesh_fields = true,
                other => seen.claims |= claims::is_forwarding(other) || claims::is_look_alike(other),
            }
        }
        let may_switch = request.version() == Version::HTTP_11 && request.body().is_end_stream();
        seen.upgrade &= upgrade_field && !leads_past_us && may_switch;
        seen.check(request, hosts, limits)?;
        Ok(seen)
    }

    fn check(&self, request: &Request<impl Body>, hosts: usize, limits: &Limits) -> Result<(), Fault> {
        let uri = request.uri();
        match request.version() {
            Version::HTTP_11 if hosts != 1 => {
                return Err(Fault::BadRequest("exactly one Host is needed"));
            }
            Version::HTTP_2 if hosts > 1 => return Err(Fault::BadRequest("more than one Host")),
            _ if hosts > 1 => return Err(Fault::BadRequest("more than one Host")),
            _ => {}
        }
        if uri.path_and_query().is_some_and(|path| path.as_str().len() > limits.uri_bytes) {
            return Err(Fault::UriTooLong);
        }
        let announced = request.body().size_hint().exact();
        if let (Some(most), Some(length)) = (limits.body_bytes, announced)
            && length > most
        {
            return Err(Fault::BodyTooLarge);
        }
        Ok(())
    }
}

/// The authority a request names: HTTP/2's `:authority` or the absolute form win over `Host`, and must agree in HTTP/2.
///
/// # Errors
/// When it names two, or something that is no host.
pub(crate) fn authority<'r>(
    request: &'r Request<impl Body>,
    listener: Listener,
) -> Result<Option<Cow<'r, str>>, Fault> {
    let field = match request.headers().get(http::header::HOST) {
        Some(value) => Some(value.to_str().map_err(|_| Fault::BadRequest("Host is no host"))?),
        None => None,
    };
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    if target.is_some_and(|target| target.contains('@')) {
        return Err(Fault::BadRequest("user information in the request's target"));
    }
    if request.version() == Version::HTTP_2
        && let (Some(target), Some(field)) = (target, field)
        && !target.eq_ignore_ascii_case(field)
    {
        return Err(Fault::BadRequest(":authority and Host differ"));
    }
    let named = match target.or(field) {
        Some(named) => named,
        None if listener == Listener::Inbound => return Ok(None),
        // HTTP/1.0 without a Host names nothing.
        None => return Err(Fault::NoDestination),
    };
    // A Host that is there must be one, even where the request's target wins over it.
    let is_shadowed = target.is_some() && request.version() != Version::HTTP_2;
    if is_shadowed && field.is_some_and(|field| host::canonical(field).is_none()) {
        return Err(Fault::BadRequest("Host is no host"));
    }
    host::canonical(named).map(Some).ok_or(Fault::BadRequest("Host is no host"))
}

/// Whether an upgrade to this protocol would carry requests through a tunnel, where nobody routes them, takes off what
/// a caller must not say, or refuses anything: HTTP in another version, or inside TLS. It is left out (RFC 9110, 7.8).
fn leads_past(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or_default();
    ["h2c", "http", "tls"].iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
}

/// The comma-separated tokens of a field's line.
pub(crate) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|token| !token.is_empty())
}

fn is_grpc(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
