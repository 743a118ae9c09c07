//! What operators type to move users from version to version, against a real control plane and a real proxy.

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::operator::gilmok;
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::Upstream;
use serde_json::{Value as Json, json};

/// A control plane with the service `shop` in two versions, and a proxy that follows it.
struct Mesh {
    plane: ControlPlane,
    proxy: Proxy,
    _upstreams: [Upstream; 2],
}

impl Mesh {
    /// With this share of v2, in percent.
    async fn start(percent: u32) -> Self {
        let upstreams = [Upstream::saying("v1").await, Upstream::saying("v2").await];
        let endpoints = upstreams.iter().zip(["v1", "v2"]);
        let endpoints: Vec<Json> = endpoints
            .map(|(upstream, version)| json!({ "address": upstream.address.to_string(), "version": version }))
            .collect();
        let traffic = json!({ "stable": "v1", "weights": { "v1": 100 - percent, "v2": percent } });
        let plane = ControlPlane::start().await;
        plane.put("/v1/services/shop", &json!({ "endpoints": endpoints, "traffic": traffic })).await;
        let settings = ProxySettings::of_control_planes(&[plane.address]).top("node = \"web-1\"");
        let proxy = Proxy::start_with(settings).await;
        Self { plane, proxy, _upstreams: upstreams }
    }

    /// Which version a user is served by.
    async fn version_of(&self, user: &str) -> String {
        let lines = format!("GET / HTTP/1.1\r\nHost: shop\r\nX-User-Id: {user}\r\n\r\n");
        gilmok_tests::caller::ask(self.proxy.outbound(), lines).await.text()
    }
}

#[tokio::test]
async fn both_planes_explain_the_version_that_a_user_then_gets() {
    let mesh = Mesh::start(50).await;
    let admin = format!("http://{}", mesh.proxy.admin_address());
    for user in ["user-1", "user-4", "user-42"] {
        let version = mesh.version_of(user).await;
        for more in [&[][..], &["--proxy", &admin]] {
            let args = [&["explain", "shop", "--subject", user], more].concat();
            let said = gilmok(&mesh.plane, &args).await;
            let line = format!("  version   {version}: the subject's place in the table\n  bucket    ");
            assert!(said.code == 0 && said.out.contains(&line), "{args:?}: {said:?}");
            assert!(
                said.out.contains(" of 1000000, by the salt `shop`\n") && said.out.contains("moved     no"),
                "{said:?}"
            );
        }
    }
}
