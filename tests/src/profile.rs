//! The service `profile` in shards of real processes, each with a sidecar, behind a real control plane: for tests that move its
//! data. What copies it does so when a test lets it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::sync::watch;

use crate::caller::ask;
use crate::control_plane::ControlPlane;
use crate::demo_app::DemoApp;
use crate::eventually::{eventually, eventually_within};
use crate::message::Message;
use crate::process::Signal;
use crate::proxy::{Proxy, ProxySettings};
use crate::scratch::Scratch;
use crate::upstream::Upstream;

/// Longest that a move is waited for.
const MOVE_MAX: Duration = Duration::from_secs(60);
/// Most pauses of a move that is to end.
const PAUSES_MAX: usize = 30;
const SHARDING: &str = "/v1/services/profile/sharding";

/// The mesh of one sharded service.
#[derive(Debug)]
pub struct Profile {
    pub plane: ControlPlane,
    /// By the shard's number.
    pub shards: Vec<Shard>,
    /// Those that are called themselves, without a sidecar.
    pub apps: Vec<DemoApp>,
    pub copier: Copier,
}

/// One shard: an app, and the proxy through which callers reach it.
#[derive(Debug)]
pub struct Shard {
    pub app: DemoApp,
    pub sidecar: Proxy,
}

/// Hears of what is to be copied, and lets one of the apps do it when it may.
#[derive(Debug)]
pub struct Copier {
    upstream: Upstream,
    /// What was copied so far: events.
    copied: Arc<Mutex<Vec<String>>>,
    /// The event that is held back for now, if there is one, and whether only its answer is.
    held: watch::Sender<Option<(&'static str, Part)>>,
}

/// What of an event is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is copied, and that is not said.
    Answer,
    /// Nothing is copied.
    Whole,
}

impl Copier {
    /// Has the copying done by this app.
    async fn start(app: SocketAddr) -> Self {
        let held = watch::Sender::new(None::<(&'static str, Part)>);
        let gate = Arc::new(held.subscribe());
        let copied = Arc::<Mutex<Vec<String>>>::default();
        let done = Arc::clone(&copied);
        let upstream = Upstream::start(move |mut conversation| {
            let (mut gate, done) = (watch::Receiver::clone(&gate), Arc::clone(&done));
            async move {
                while let Some(message) = conversation.request().await {
                    let event =
                        serde_json::from_slice::<Json>(&message.body).unwrap_or_default()["event"].clone();
                    let mut passes = async |part: Part| {
                        let may_go = |held: &Option<(&'static str, Part)>| {
                            held.is_none_or(|(held, what)| event != held || part != what)
                        };
                        gate.wait_for(may_go).await.is_ok()
                    };
                    if !passes(Part::Whole).await {
                        return;
                    }
                    let body = String::from_utf8_lossy(&message.body).into_owned();
                    let request = format!(
                        "POST /moves HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let answer = ask(app, request).await;
                    if answer.status() == 200 {
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.push(event.as_str().unwrap_or_default().to_owned());
                    }
                    if !passes(Part::Answer).await {
                        return;
                    }
                    conversation.send(&answer.raw).await;
                }
            }
        })
        .await;
        Self { upstream, copied, held }
    }

    /// Does nothing about this event from now on.
    pub fn hold(&self, event: &'static str) {
        self.held.send_replace(Some((event, Part::Whole)));
    }

    /// Copies when it hears of this event, and does not say so.
    pub fn hold_answer(&self, event: &'static str) {
        self.held.send_replace(Some((event, Part::Answer)));
    }

    /// Holds nothing back any more.
    pub fn release(&self) {
        self.held.send_replace(None);
    }

    /// The webhooks of a move that uses it.
    #[must_use]
    pub fn webhooks(&self) -> Json {
        json!([{ "url": format!("http://{}/moves", self.upstream.address), "on": ["copy", "fenced"], "timeout": "20s" }])
    }

    /// Waits until it has copied on this event so often.
    ///
    /// # Panics
    /// When it has not.
    pub async fn copied(&self, event: &str, times: usize) {
        eventually(&format!("{event} to be done"), async || {
            let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
            if copied.iter().filter(|done| *done == event).count() >= times {
                Ok(())
            } else {
                Err(copied.join(" "))
            }
        })
        .await;
    }

    /// Waits until it was told of this event so often.
    ///
    /// # Panics
    /// When it was not.
    pub async fn heard(&self, event: &str, times: usize) {
        eventually(&format!("{event} to be told"), async || {
            let told = self.has_heard(event);
            if told >= times { Ok(()) } else { Err(format!("{told} times")) }
        })
        .await;
    }

    /// How often it was told of this event.
    #[must_use]
    pub fn has_heard(&self, event: &str) -> usize {
        let told = self.upstream.requests();
        let events = told.iter().filter_map(|message| serde_json::from_slice::<Json>(&message.body).ok());
        events.filter(|message| message["event"] == event).count()
    }
}

impl Profile {
    /// So many shards of which the first `owning` hold everything.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start(shards: usize, owning: usize) -> Self {
        Self::start_by(&slots(owning), shards).await
    }

    /// So many shards, and who holds what by this rule: all of `[sharding]` but the key.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start_by(rule: &Json, shards: usize) -> Self {
        let plane = Self::plane(rule).await;
        let mut up = Vec::new();
        for shard in 0..shards {
            up.push(Shard::start(&plane, shard).await);
        }
        let copier = Copier::start(up[0].app.address).await;
        Self { plane, shards: up, apps: Vec::new(), copier }
    }

    /// The same, with apps that callers reach themselves.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start_without_sidecars(shards: usize, owning: usize) -> Self {
        let plane = Self::plane(&slots(owning)).await;
        let mut apps = Vec::new();
        for shard in 0..shards {
            let app = DemoApp::start_shard("profile", &shard.to_string()).await;
            let endpoint =
                json!({ "address": app.address.to_string(), "shard": shard.to_string(), "ttl": "1h" });
            plane.put(&format!("/v1/membership/profile/{shard}"), &endpoint).await;
            apps.push(app);
        }
        let copier = Copier::start(apps[0].address).await;
        Self { plane, shards: Vec::new(), apps, copier }
    }

    async fn plane(rule: &Json) -> ControlPlane {
        let scratch = Scratch::new();
        scratch.write("webhook.secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let plane = ControlPlane::start_with(TABLES, scratch).await;
        let mut sharding = rule.clone();
        sharding["key"] = json!("path_segment:2");
        let table = json!({ "sharding": sharding, "request_timeout": "10s" });
        plane.put("/v1/services/profile", &table).await;
        plane
    }

    /// A proxy of a caller, which knows every shard.
    ///
    /// # Panics
    /// When it does not.
    pub async fn caller(&self, node: &str) -> Proxy {
        self.caller_of(node, self.plane.address).await
    }

    /// The same, fed at another address.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn caller_of(&self, node: &str, plane: SocketAddr) -> Proxy {
        let proxy = Proxy::start_with(caller_settings(node, plane)).await;
        self.knows_all(&proxy).await;
        proxy
    }

    /// Waits until a caller's proxy knows every shard.
    ///
    /// # Panics
    /// When it does not.
    pub async fn knows_all(&self, proxy: &Proxy) {
        eventually("every shard to be known", async || {
            let told = proxy.admin_json("/endpoints").await;
            let services = told["services"].as_array().cloned().unwrap_or_default();
            let known = services.iter().find(|service| service["service"] == "profile");
            let known = known.and_then(|service| service["endpoints"].as_array()).map_or(0, Vec::len);
            if known >= self.shards.len() + self.apps.len() { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// Waits until the control plane hears of so many proxies, as it may not right after its start.
    ///
    /// # Panics
    /// When it does not.
    pub async fn hears_of(&self, proxies: usize) {
        eventually("every proxy to be heard of", async || {
            let told = self.plane.json("/v1/status").await["proxies"].clone();
            if told["live"] == proxies && told["lagging"] == json!([]) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// Begins a move to so many shards that must be taken; its id.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn begin(&self, shards: usize) -> String {
        self.begin_to(json!({ "shards": names(shards) })).await
    }

    /// Begins a move to what is wanted, which must be taken; its id.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn begin_to(&self, wanted: Json) -> String {
        let mut body = wanted;
        body["webhooks"] = self.copier.webhooks();
        let answer = self.plane.call("POST", &format!("{SHARDING}/moves"), Some(&body)).await;
        assert_eq!(answer.status(), 201, "{answer:?}");
        let told: Json = serde_json::from_slice(&answer.body).expect("an answer in JSON");
        told["revision"].as_u64().expect("a move's id").to_string()
    }

    /// A word about a move: `pause`, `resume`, `reverse`.
    pub async fn say(&self, id: &str, word: &str) -> Message {
        self.plane.call("POST", &format!("{SHARDING}/moves/{id}/{word}"), None).await
    }

    /// Where a move stands.
    pub async fn told(&self, id: &str) -> Json {
        self.plane.json(&format!("{SHARDING}/moves/{id}")).await
    }

    /// The rule as it stands in the document.
    pub async fn rule(&self) -> Json {
        self.plane.json("/v1/services/profile").await["sharding"].clone()
    }

    /// Ends the sidecar of a shard the hard way.
    pub async fn sidecar_dies(&self, shard: usize) {
        self.shards[shard].sidecar.process.signal(Signal::Kill).await;
    }

    /// Starts the sidecar of a shard again, with what it had on its disk and where it was before. Ends it where it still runs.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn sidecar_is_back(&mut self, shard: usize) {
        let Shard { app, sidecar } = self.shards.remove(shard);
        let inbound = sidecar.inbound(0).to_string();
        let settings = Shard::settings(self.plane.address, app.address, shard, &inbound);
        let sidecar = sidecar.restart_after(Signal::Kill, settings).await;
        sidecar.is_ready().await;
        self.shards.insert(shard, Shard { app, sidecar });
    }

    /// Resumes a move whenever it is paused, until something is true of it. `proxies` have to be heard of before it goes on.
    ///
    /// # Panics
    /// When it pauses again and again, without a reason, or neither goes on nor pauses.
    pub async fn goes_on_until(&self, id: &str, proxies: usize, is_there: impl AsyncFn() -> bool) {
        for _ in 0..PAUSES_MAX {
            let told = eventually_within(MOVE_MAX, "the move to go on or to pause", async || {
                let told = self.told(id).await;
                if told["state"] == "paused" || is_there().await { Ok(told) } else { Err(told) }
            })
            .await;
            if told["state"] != "paused" {
                return;
            }
            assert!(told["why"].as_str().is_some_and(|why| why.contains(' ')), "no reason: {told}");
            self.hears_of(proxies).await;
            assert_eq!(self.say(id, "resume").await.status(), 200);
        }
        panic!("paused again and again: {}", self.told(id).await);
    }

    /// Waits until this has happened in a move so often: a word of its history.
    ///
    /// # Panics
    /// When it has not.
    pub async fn happened(&self, id: &str, what: &str, times: usize) {
        eventually_within(MOVE_MAX, &format!("{what} to happen"), async || {
            let told = self.told(id).await;
            let history = told["history"].as_array().cloned().unwrap_or_default();
            let count = history.iter().filter(|event| event["what"] == what).count();
            if count >= times { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// Waits until a move is in this state.
    ///
    /// # Panics
    /// When it is not.
    pub async fn is(&self, id: &str, state: &str) -> Json {
        eventually_within(MOVE_MAX, &format!("the move to be {state}"), async || {
            let told = self.told(id).await;
            if told["state"] == state { Ok(told) } else { Err(told) }
        })
        .await
    }
}

/// What a control plane needs to sign what it tells.
pub const TABLES: &str = "webhook_secret_file = \"webhook.secret\"";

/// The settings of a caller's proxy.
#[must_use]
pub fn caller_settings(node: &str, plane: SocketAddr) -> ProxySettings {
    let settings = ProxySettings::of_control_planes(&[plane]).top(&format!("node = \"{node}\""));
    settings.table("[workers]\ncount = 2")
}

impl Shard {
    /// Starts it, and waits until the control plane knows it.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(plane: &ControlPlane, shard: usize) -> Self {
        let app = DemoApp::start_shard("profile", &shard.to_string()).await;
        let sidecar =
            Proxy::start_with(Self::settings(plane.address, app.address, shard, "127.0.0.1:0")).await;
        let shard = Self { app, sidecar };
        shard.is_known(plane).await;
        shard
    }

    /// The settings of its sidecar.
    #[must_use]
    pub fn settings(plane: SocketAddr, app: SocketAddr, shard: usize, inbound: &str) -> ProxySettings {
        ProxySettings::of_control_planes(&[plane]).top(&format!("node = \"shard-{shard}\"")).table(&format!(
            "[[apps]]\nservice = \"profile\"\naddress = \"{app}\"\ninbound = \"{inbound}\"\nshard = \"{shard}\"\n[workers]\ncount = 2"
        ))
    }

    /// Waits until membership has it.
    ///
    /// # Panics
    /// When it does not.
    pub async fn is_known(&self, plane: &ControlPlane) {
        let address = self.sidecar.inbound(0).to_string();
        eventually("the shard to be alive", async || {
            let told = plane.get("/v1/membership/profile").await.text();
            if told.contains(&address) { Ok(()) } else { Err(told) }
        })
        .await;
    }
}

/// The first so many shards.
#[must_use]
pub fn names(shards: usize) -> Vec<String> {
    (0..shards).map(|shard| shard.to_string()).collect()
}

/// A rule of slots, in equal parts.
fn slots(shards: usize) -> Json {
    let each = 16_384 / shards;
    let map = (0..shards)
        .map(|shard| (shard.to_string(), Json::from(format!("{}-{}", shard * each, (shard + 1) * each - 1))));
    json!({ "strategy": "slots", "map": map.collect::<serde_json::Map<_, _>>() })
}
