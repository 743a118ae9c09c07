//! Telling others what a rollout or a move comes to: a signed message, tried again for a while.
//!
//! Signed as the Standard Webhooks specification has it, so that libraries of any language can check it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gilmok_config::name::ServiceName;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use ring::hmac;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::http_client::{Client, Origin, Request, Settings};
use crate::webhook::{Agreement, Occasion, Owed, Webhook};

/// Answers that wait to be heard.
const ANSWERS_MAX: usize = 256;

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
    /// For all of them; each try has a limit of its own.
    within: Option<Duration>,
}

/// Somebody who was told, or could not be.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) service: ServiceName,
    /// Of the rollout or move.
    pub(super) id: String,
    pub(super) owed: Owed,
    pub(super) answer: Result<Agreement, String>,
}

/// Who tells others what is owed to them, each of it once at a time.
#[derive(Debug)]
pub(super) struct Teller {
    /// Holds what messages are signed with; without it nobody can be told.
    secret_file: Option<PathBuf>,
    underway: BTreeSet<(ServiceName, String, u64)>,
    /// A channel: each message has a task of its own, and one loop hears what comes of them.
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
}

impl Teller {
    pub(super) fn new(secret_file: Option<PathBuf>) -> Self {
        Self { secret_file, underway: BTreeSet::new(), answers: mpsc::channel(ANSWERS_MAX) }
    }

    /// Sends what is owed, unless that is under way.
    pub(super) fn tell(
        &mut self,
        service: &ServiceName,
        id: &str,
        owed: &Owed,
        notice: impl FnOnce() -> Notice,
    ) {
        if !self.underway.insert((service.clone(), id.to_owned(), owed.number)) {
            return;
        }
        let (notice, heard, secret_file) = (notice(), self.answers.0.clone(), self.secret_file.clone());
        let (service, id, owed) = (service.clone(), id.to_owned(), owed.clone());
        // Ends by itself: every try and every pause has a limit.
        tokio::spawn(async move {
            let answer = notice.send(secret_file.as_deref()).await;
            // Nobody hears it when the process ends; then it is sent once more by the next one.
            drop(heard.send(Answer { service, id, owed, answer }).await);
        });
    }

    /// The next answer. Dropped half-way, none is lost.
    pub(super) async fn heard(&mut self) -> Answer {
        match self.answers.1.recv().await {
            Some(answer) => {
                self.underway.remove(&(answer.service.clone(), answer.id.clone(), answer.owed.number));
                answer
            }
            // The sender lives as long as this does.
            None => std::future::pending().await,
        }
    }
}

impl Notice {
    /// For those of the webhooks that are told on this occasion.
    pub(super) fn new(id: String, now_ms: u64, body: &Value, webhooks: &[Webhook], on: Occasion) -> Self {
        let to = webhooks.iter().filter(|webhook| webhook.on.contains(&on)).cloned().collect();
        Self { id, at: now_ms / 1_000, body: body.to_string(), to, within: None }
    }

    /// Given up when it has not been answered within this time, tries and pauses included.
    pub(super) fn within(self, within: Duration) -> Self {
        Self { within: Some(within), ..self }
    }

    /// Tells all of them. They agree to the least that one of them agrees to.
    ///
    /// # Errors
    /// Who could not be told, or did not agree, and why.
    async fn send(&self, secret_file: Option<&Path>) -> Result<Agreement, String> {
        match self.within {
            None => self.send_to_all(secret_file).await,
            Some(within) => timeout(within, self.send_to_all(secret_file))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} ms", within.as_millis()))),
        }
    }

    async fn send_to_all(&self, secret_file: Option<&Path>) -> Result<Agreement, String> {
        let file = secret_file.ok_or("webhook_secret_file is not set")?;
        let secret = secret(file).await?;
        let mut agreement = Agreement::Done;
        for webhook in &self.to {
            let mut pause = PAUSE;
            let mut tries = 0;
            loop {
                match self.try_once(webhook, &secret).await {
                    Ok(Agreement::Done) => break,
                    Ok(Agreement::Later) => {
                        agreement = Agreement::Later;
                        break;
                    }
                    Err(why) if tries >= webhook.retries => return Err(format!("{}: {why}", webhook.url)),
                    Err(_) => {}
                }
                tries += 1;
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        Ok(agreement)
    }

    async fn try_once(&self, webhook: &Webhook, secret: &[u8]) -> Result<Agreement, String> {
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
        match answer.status {
            StatusCode::ACCEPTED => Ok(Agreement::Later),
            status if status.is_success() => Ok(Agreement::Done),
            status => Err(format!("answered {status}")),
        }
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
            within: None,
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
