//! REST with a control plane or a proxy's admin listener: one call, its answer as JSON, or what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gilmok_control_plane::http_client::{Client, Error, Origin, Request, Settings, TlsSettings};
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::Value as Json;

use crate::trouble::Trouble;

/// How long an answer may take, beside what a write was told to wait.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which control plane, and how its answers are shown.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// Where the control plane is: http://, https:// or unix://
    #[arg(
        long,
        value_name = "URL",
        env = "GILMOK_CLI_CONTROL_PLANE",
        default_value = "http://127.0.0.1:7070"
    )]
    control_plane: Origin,
    /// File with a token for it; needed from other machines. `gilmok tokens create` makes one
    #[arg(long, value_name = "FILE", env = "GILMOK_CLI_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the authorities to believe with https://; default: the system's own
    #[arg(long, value_name = "FILE", env = "GILMOK_CLI_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// File with the token of a proxy's admin listener, where one is asked
    #[arg(long, value_name = "FILE", env = "GILMOK_CLI_PROXY_TOKEN_FILE")]
    proxy_token_file: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// An answer that says yes.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) json: Json,
}

impl Remote {
    /// Asks for what is at this path.
    pub(crate) fn get(&self, target: &str) -> Result<Json, Trouble> {
        self.call(Request::get(target)).map(|answer| answer.json)
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call(&self, request: Request) -> Result<Answer, Trouble> {
        self.call_at(&self.control_plane, "control plane", request)
    }

    /// The same with another server: what it is called when it does not answer.
    pub(crate) fn call_at(&self, origin: &Origin, what: &str, request: Request) -> Result<Answer, Trouble> {
        let response = self.send(origin, what, request)?;
        let text = String::from_utf8_lossy(&response.body);
        if !response.status.is_success() {
            return Err(refused(response.status, &text));
        }
        let json = serde_json::from_str(&text)
            .map_err(|error| Trouble::Failed(format!("{origin} does not answer in JSON: {error}")))?;
        Ok(Answer { status: response.status, json })
    }

    /// The answer as it is, for what is no JSON.
    pub(crate) fn bytes(&self, request: Request) -> Result<bytes::Bytes, Trouble> {
        let response = self.send(&self.control_plane, "control plane", request)?;
        if !response.status.is_success() {
            return Err(refused(response.status, &String::from_utf8_lossy(&response.body)));
        }
        Ok(response.body)
    }

    fn send(
        &self,
        origin: &Origin,
        what: &str,
        mut request: Request,
    ) -> Result<gilmok_control_plane::http_client::Response, Trouble> {
        // Neither is told the token of the other.
        let is_proxy = *origin != self.control_plane;
        if let Some(file) = if is_proxy { &self.proxy_token_file } else { &self.token_file } {
            let token = std::fs::read_to_string(file)
                .map_err(|error| Trouble::Faulty(format!("{}: {error}", file.display())))?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| {
                Trouble::Faulty(format!("{}: a token is one line without spaces", file.display()))
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.timeout += PATIENCE;
        let mut settings = Settings::new(origin.clone());
        settings.tls = TlsSettings { ca_file: self.ca_file.clone(), ..TlsSettings::default() };
        // A store of 1,000 revisions may be taken as a whole.
        settings.body_bytes_max = usize::MAX;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Trouble::Failed(format!("no runtime: {error}")))?;
        let client = Client::new(settings).map_err(|error| Trouble::Faulty(error.to_string()))?;
        runtime.block_on(client.send(&request)).map_err(|error| unanswered(&error, what))
    }
}

fn unanswered(error: &Error, what: &str) -> Trouble {
    let hint = match what {
        "proxy" => "is the proxy running, and is this its admin listener? --proxy names another",
        _ => "is it running? --control-plane or GILMOK_CLI_CONTROL_PLANE names another",
    };
    match error {
        Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Malformed { .. } => {
            Trouble::Failed(format!("{error}\n{hint}"))
        }
        Error::Request(_) | Error::Settings(_) | Error::TooLarge { .. } => Trouble::Failed(error.to_string()),
    }
}

/// What a refusal says, with each fault in a line of its own.
fn refused(status: StatusCode, text: &str) -> Trouble {
    let problem: Json = serde_json::from_str(text).unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or_else(|| text.trim()).to_owned();
    let faults = problem["problems"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let faults = faults.filter_map(|fault| {
        let fault: gilmok_config::problem::Problem = serde_json::from_value(fault.clone()).ok()?;
        Some(format!("\n  {fault}"))
    });
    let detail = format!("{detail}{}", faults.collect::<String>());
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Refused(format!(
            "{detail}\n--token-file or GILMOK_CLI_TOKEN_FILE names the token's file"
        )),
        _ if detail.is_empty() => Trouble::Refused(format!("refused with {status}")),
        _ => Trouble::Refused(detail),
    }
}

/// A path segment or a query's value, percent-encoded.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A write with JSON.
pub(crate) fn writing(method: Method, target: impl Into<String>, body: &Json) -> Request {
    Request::new(method, target)
        .header(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_every_fault() {
        let text =
            r#"{"detail": "not sound", "problems": [{"path": "a.b", "what": "wrong", "hint": "right"}]}"#;
        let Trouble::Refused(told) = refused(StatusCode::UNPROCESSABLE_ENTITY, text) else { panic!() };
        assert_eq!(told, "not sound\n  a.b: wrong (right)");
        let Trouble::Refused(told) = refused(StatusCode::BAD_GATEWAY, "") else { panic!() };
        assert_eq!(told, "refused with 502 Bad Gateway");
        let Trouble::Refused(told) = refused(StatusCode::UNAUTHORIZED, "no token") else { panic!() };
        assert!(told.starts_with("no token\n--token-file"), "{told}");
    }

    #[test]
    fn what_goes_into_a_target_is_encoded() {
        assert_eq!(encoded("a b/ü?&"), "a%20b%2F%C3%BC%3F%26");
    }
}
