//! HTTP for the demo: what is asked of the control plane, of the apps, and of the mesh through a proxy.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use gilmok_control_plane::http_client::{Client, Origin, Request, Response, Settings, TlsSettings};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::Value;

/// How long one request may take, from our side.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one address. Requests one after the other share a connection.
///
/// # Errors
/// Never for an address of an IP and a port.
pub(crate) fn client(address: SocketAddr) -> anyhow::Result<Client> {
    let origin: Origin = format!("http://{address}").parse().map_err(|hint| anyhow!("{address}: {hint}"))?;
    Ok(Client::new(Settings::new(origin))?)
}

/// Asks over a connection of its own; any status is an answer.
///
/// # Errors
/// When there is no answer.
pub(crate) async fn ask(address: SocketAddr, method: Method, target: &str) -> anyhow::Result<Response> {
    Ok(client(address)?.send(&Request::new(method, target).timeout(TIMEOUT)).await?)
}

/// A client of the control plane: over TLS where there is a file with the roots that its certificate is of.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn control_plane(address: SocketAddr, roots: Option<PathBuf>) -> anyhow::Result<Client> {
    let Some(roots) = roots else { return client(address) };
    let origin: Origin = format!("https://{address}").parse().map_err(|hint| anyhow!("{address}: {hint}"))?;
    let mut settings = Settings::new(origin);
    settings.tls = TlsSettings { ca_file: Some(roots), ..TlsSettings::default() };
    Ok(Client::new(settings)?)
}

/// `GET target`; any status is an answer.
///
/// # Errors
/// When there is no answer.
pub(crate) async fn ask_by(client: &Client, target: &str) -> anyhow::Result<Response> {
    Ok(client.send(&Request::get(target).timeout(TIMEOUT)).await?)
}

/// `GET target` of a service, through the outbound listener of a proxy.
pub(crate) fn of_service(service: &str, target: &str) -> anyhow::Result<Request> {
    Ok(Request::get(target).timeout(TIMEOUT).header(HOST, HeaderValue::from_str(service)?))
}

/// The same request, for a user: what splits go by, and what apps pass on.
///
/// # Errors
/// A name that no header can hold.
pub(crate) fn as_user(request: Request, user: &str) -> anyhow::Result<Request> {
    Ok(request.header(HeaderName::from_static("x-user-id"), HeaderValue::from_str(user)?))
}

/// A request with a JSON body.
pub(crate) fn with_json(method: Method, target: &str, body: &Value) -> Request {
    // A merge patch says so (RFC 7396).
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    Request::new(method, target)
        .timeout(TIMEOUT + TIMEOUT)
        .header(CONTENT_TYPE, HeaderValue::from_static(kind))
        .body(body.to_string())
}

/// Tells an app how to behave, at its own address: `slow?ms=300`, `fail`, `hang`, `die`, `ok`.
///
/// # Errors
/// When it does not follow.
pub(crate) async fn order(app: SocketAddr, order: &str) -> anyhow::Result<()> {
    let answer = ask(app, Method::POST, &format!("/control/{order}")).await?;
    if !answer.status.is_success() {
        bail!("the app at {app} was told to {order} and answered {}", brief(&answer));
    }
    Ok(())
}

/// The answer as JSON, if it has the status that is expected.
///
/// # Errors
/// Another status, or no JSON.
pub(crate) fn json(answer: &Response, expected: StatusCode) -> anyhow::Result<Value> {
    if answer.status != expected {
        bail!("expected {expected}, got {}", brief(answer));
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("no JSON: {}", brief(answer)))
}

/// An answer in one line.
pub(crate) fn brief(answer: &Response) -> String {
    const SHOWN_MAX: usize = 400;
    let body = String::from_utf8_lossy(&answer.body);
    let shown: String =
        body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN_MAX).collect();
    format!("{}: {shown}", answer.status)
}
