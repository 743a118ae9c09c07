//! Telling others of a rollout: a signed message, tried again for a while.
//!
//! Signed as the Standard Webhooks specification has it, so that libraries of any language can check it.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gilmok_config::name::ServiceName;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Uri};
use ring::hmac;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::http_client::{Client, Origin, Request, Settings};
use crate::rollout::state::{Owed, Rollout};
use crate::rollout::webhook::Webhook;

/// The pause before a message is tried again; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Most of an answer that is read, in bytes: only its status counts.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How the specification marks secrets that are Base64.
const SECRET_PREFIX: &str = "whsec_";

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// A message and whom it is for.
#[derive(Debug)]
pub(super) struct Notice {
    /// The same for every try, whoever sends it: whoever gets it twice can tell.
    id: String,
    /// In seconds since 1970.
    at: u64,
    body: String,
    to: Vec<Webhook>,
}

impl Notice {
    pub(super) fn new(service: &ServiceName, rollout: &Rollout, owed: &Owed, now_ms: u64) -> Self {
        let to = rollout.plan.webhooks.iter().filter(|webhook| webhook.on.contains(&owed.occasion));
        let body = json!({
            "event": owed.occasion.as_str(),
            "service": service,
            "rollout": rollout.id,
            "candidate": rollout.plan.candidate,
            "stable": rollout.stable,
            "state": rollout.state(),
            "step": owed.step,
            "steps": rollout.plan.steps.len(),
            "percent": rollout.percent().percent(),
            "next_percent": rollout.plan.share_at(owed.step).map(|share| share.percent.percent()),
            "why": owed.why,
            "at_ms": now_ms,
            "evidence": rollout.evidence().map_or(Value::Null, |evidence| json!(evidence)),
        });
        let id = format!("{}-{}", rollout.id, owed.number);
        Self { id, at: now_ms / 1_000, body: body.to_string(), to: to.cloned().collect() }
    }

    /// Tells all of them.
    ///
    /// # Errors
    /// Who could not be told, or did not agree, and why.
    pub(super) async fn send(&self, secret_file: Option<&Path>) -> Result<(), String> {
        let file = secret_file.ok_or("webhook_secret_file is not set")?;
        let secret = secret(file).await?;
        for webhook in &self.to {
            let mut pause = PAUSE;
            let mut tries = 0;
            loop {
                match self.try_once(webhook, &secret).await {
                    Ok(()) => break,
                    Err(why) if tries >= webhook.retries => return Err(format!("{}: {why}", webhook.url)),
                    Err(_) => {}
                }
                tries += 1;
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        Ok(())
    }

    async fn try_once(&self, webhook: &Webhook, secret: &[u8]) -> Result<(), String> {
        let (origin, target) = parts(&webhook.url)?;
        let settings = Settings { body_bytes_max: ANSWER_BYTES_MAX, ..Settings::new(origin) };
        let client = Client::new(settings).map_err(|error| error.to_string())?;
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
        let request = Request::new(Method::POST, target)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(ID, value(&self.id)?)
            .header(TIMESTAMP, HeaderValue::from(self.at))
            .header(SIGNATURE, value(&self.signature(secret))?)
            .body(self.body.clone())
            .timeout(webhook.timeout);
        let answer = client.send(&request).await.map_err(|error| error.to_string())?;
        if answer.status.is_success() { Ok(()) } else { Err(format!("answered {}", answer.status)) }
    }

    fn signature(&self, secret: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signed = format!("{}.{}.{}", self.id, self.at, self.body);
        format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
    }
}

/// The key in a file: Base64 behind `whsec_`, or the line itself.
async fn secret(file: &Path) -> Result<Vec<u8>, String> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| format!("webhook_secret_file: {error}"))?;
    let line = text.trim();
    match line.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|error| format!("webhook_secret_file: {error}")),
        None if line.is_empty() => Err("webhook_secret_file is empty".to_owned()),
        None => Ok(line.as_bytes().to_vec()),
    }
}

/// The server of an address, and what is asked of it.
fn parts(url: &str) -> Result<(Origin, String), String> {
    let uri: Uri = url.parse().map_err(|_| "not an address".to_owned())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("not an address".to_owned());
    };
    let origin = format!("{scheme}://{authority}").parse().map_err(str::to_owned)?;
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok((origin, target.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_signed_as_the_specification_has_it() {
        // The example of the Standard Webhooks specification's libraries.
        let notice = Notice {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(),
            at: 1_614_265_330,
            body: r#"{"test": 2432232314}"#.to_owned(),
            to: Vec::new(),
        };
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(notice.signature(&secret), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn an_address_is_a_server_and_what_is_asked_of_it() {
        let (origin, target) = parts("http://hooks.example.com:8080/a?b=c").unwrap();
        assert_eq!(
            (origin.to_string(), target.as_str()),
            ("http://hooks.example.com:8080".to_owned(), "/a?b=c")
        );
        assert_eq!(parts("https://hooks.example.com").unwrap().1, "/");
        assert!(parts("hooks").is_err());
    }
}
