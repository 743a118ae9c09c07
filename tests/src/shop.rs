//! The service `shop` in two versions of real processes, behind a real control plane and a proxy: for tests that move its users.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::control_plane::ControlPlane;
use crate::demo_app::DemoApp;
use crate::eventually::{eventually, eventually_within};
use crate::message::Message;
use crate::process::Signal;
use crate::proxy::{Proxy, ProxySettings};
use crate::scratch::Scratch;
use crate::users::{Crowd, Users, version_of};

/// Longest that a rollout is waited for: its steps last seconds, and machines are shared.
const ROLLOUT_MAX: Duration = Duration::from_secs(60);

/// The mesh of one service. Everybody has v1 at first.
#[derive(Debug)]
pub struct Shop {
    pub plane: ControlPlane,
    pub proxy: Proxy,
    pub v1: DemoApp,
    pub v2: DemoApp,
}

impl Shop {
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// With these tables of control-plane.toml.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_with(tables: &str) -> Self {
        let plane = ControlPlane::start_with(tables, Scratch::new()).await;
        let (v1, v2) = (DemoApp::start("shop", "v1").await, DemoApp::start("shop", "v2").await);
        register(&plane, &v1, &v2).await;
        plane.put("/v1/services/shop", &json!({ "traffic": everybody_on("v1") })).await;
        let settings = ProxySettings::of_control_planes(&[plane.address]);
        let proxy = Proxy::start_with(settings).await;
        eventually("an answer", async || {
            let answer = proxy.get("shop", "/").await;
            if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        Self { plane, proxy, v1, v2 }
    }

    /// So many users who call all the time.
    #[must_use]
    pub fn users(&self, count: u32) -> Users {
        Users::start(self.proxy.outbound(), &Crowd::of("shop", count))
    }

    /// Begins a rollout that must be taken.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn begin(&self, plan: &Json) {
        let answer = self.plane.call("PUT", "/v1/services/shop/rollout", Some(plan)).await;
        assert_eq!(answer.status(), 201, "{answer:?}");
    }

    /// A word about the rollout, such as `pause`.
    pub async fn say(&self, word: &str) -> Message {
        self.plane.call("POST", &format!("/v1/services/shop/rollout/{word}"), None).await
    }

    /// Where the rollout stands.
    pub async fn rollout(&self) -> Json {
        self.plane.json("/v1/services/shop/rollout").await
    }

    /// Waits until the rollout is in this state.
    ///
    /// # Panics
    /// When it does not come there.
    pub async fn is(&self, state: &str) -> Json {
        self.comes_to(state, |rollout| rollout["state"] == state).await
    }

    /// Waits until the candidate has this share.
    ///
    /// # Panics
    /// When it does not get it.
    pub async fn is_at(&self, percent: f64) -> Json {
        self.comes_to(&format!("{percent} %"), |rollout| rollout["percent"] == percent).await
    }

    async fn comes_to(&self, what: &str, is_there: impl Fn(&Json) -> bool) -> Json {
        eventually_within(ROLLOUT_MAX, what, async || {
            let rollout = self.rollout().await;
            if is_there(&rollout) { Ok(rollout) } else { Err(rollout) }
        })
        .await
    }

    /// The traffic table in force.
    pub async fn traffic(&self) -> Json {
        self.plane.json("/v1/services/shop/traffic").await["traffic"].clone()
    }

    /// Waits until the proxy runs the newest revision.
    ///
    /// # Panics
    /// When it does not.
    pub async fn converges(&self) {
        let answer = self.plane.call("PATCH", "/v1/services/shop?wait=15s", Some(&json!({}))).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
    }

    /// Which of the users get v2 from the proxy now.
    pub async fn on_v2(&self, users: std::ops::Range<u32>) -> BTreeSet<u32> {
        let mut caller = self.proxy.caller().await;
        let mut on_v2 = BTreeSet::new();
        for user in users {
            let request = format!("GET / HTTP/1.1\r\nHost: shop\r\nX-User-Id: user-{user}\r\n\r\n");
            if version_of(&caller.ask(request).await) == "v2" {
                on_v2.insert(user);
            }
        }
        on_v2
    }

    /// Ends the control plane as if the machine had lost its power, and starts it again on the same store. What is alive
    /// says so again, as it does all the time.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub async fn lose_control_plane(self, tables: &str) -> Self {
        let Self { plane, proxy, v1, v2 } = self;
        let plane = plane.restart_after(Signal::Kill, tables).await;
        register(&plane, &v1, &v2).await;
        Self { plane, proxy, v1, v2 }
    }
}

async fn register(plane: &ControlPlane, v1: &DemoApp, v2: &DemoApp) {
    for (app, version) in [(v1, "v1"), (v2, "v2")] {
        plane.put(&format!("/v1/membership/shop/{version}"), &app.endpoint(version)).await;
    }
}

/// The traffic table in which one version has everybody.
#[must_use]
pub fn everybody_on(version: &str) -> Json {
    json!({ "stable": version, "weights": { version: 100 } })
}

/// What a rollout did, one word after the other.
#[must_use]
pub fn deeds(rollout: &Json) -> Vec<&str> {
    rollout["history"].as_array().into_iter().flatten().filter_map(|event| event["what"].as_str()).collect()
}

/// Settings of the analysis by which a handful of good trials is enough, and which tolerate a quarter of failures.
#[must_use]
pub fn lenient() -> Json {
    json!({ "alpha": 0.05, "floor_percent": 25, "latency": false, "min_trials": 10 })
}
