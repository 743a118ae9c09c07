//! REST over a real socket: the ways it is used, and the ways it is abused.

mod connection;
mod elsewhere;
mod explain;
mod flags;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::http_client::{Client, Request, Settings};
use crate::store::Store;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gilmok-rest-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A control plane on a free port, gone with the test.
struct Served {
    client: Client,
    address: SocketAddr,
    folder: Folder,
    stop: watch::Sender<bool>,
}

impl Served {
    async fn start(name: &str) -> Self {
        Self::start_with(name, Patience::default()).await
    }

    async fn start_with(name: &str, patience: Patience) -> Self {
        Self::start_as(name, patience, Access::default()).await
    }

    async fn start_as(name: &str, patience: Patience, access: Access) -> Self {
        let folder = Folder::new(name);
        let state = State::new(Store::open(&folder.0, 100).unwrap(), false).unwrap();
        let (stop, stopped) = watch::channel(false);
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let admin = Admin {
            mover: crate::conductor::Mover::new(Arc::clone(&state), None),
            guardian: crate::conductor::Guardian::new(Arc::clone(&state)),
            conductor: crate::conductor::Conductor::new(Arc::clone(&state), None),
            state,
            access,
            stop: stopped,
            authority: None,
            contacts: None,
            metrics,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = admin.stop.clone();
        // Ends with the test's runtime.
        tokio::spawn(serve(listener, router(Arc::new(admin)), None, patience, stopped));
        let client = Client::new(Settings::new(format!("http://{address}").parse().unwrap())).unwrap();
        Self { client, address, folder, stop }
    }

    async fn ask(
        &self,
        method: Method,
        target: &str,
        headers: &[(&'static str, &str)],
        body: &str,
    ) -> (StatusCode, Value) {
        let mut request = Request::new(method, target)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Bytes::copy_from_slice(body.as_bytes()));
        for (name, value) in headers {
            request = request.header(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let response = self.client.send(&request).await.unwrap();
        let body = serde_json::from_slice(&response.body);
        (response.status, body.unwrap_or_else(|_| json!(String::from_utf8_lossy(&response.body))))
    }

    async fn put(&self, target: &str, body: &Value) -> (StatusCode, Value) {
        self.ask(Method::PUT, target, &[], &body.to_string()).await
    }

    async fn get(&self, target: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, target, &[], "").await
    }
}

#[tokio::test]
async fn a_service_lives_through_rest() {
    let served = Served::start("life").await;
    assert_eq!(served.get("/v1/mesh").await, (StatusCode::OK, json!({})));
    assert_eq!(
        served.put("/v1/services/ads", &json!({})).await,
        (StatusCode::CREATED, json!({"revision": 1}))
    );
    let table = json!({"request_timeout": "2s"});
    assert_eq!(served.put("/v1/services/ads", &table).await, (StatusCode::OK, json!({"revision": 2})));
    assert_eq!(served.put("/v1/services/ads", &table).await, (StatusCode::OK, json!({"revision": 2})));
    // What `curl -d` says of its body is no reason to refuse it.
    let form = [("content-type", "application/x-www-form-urlencoded"), ("if-match", "*")];
    let again = served.ask(Method::PUT, "/v1/services/ads", &form, &table.to_string()).await;
    assert_eq!(again, (StatusCode::OK, json!({"revision": 2})));
    let patch = r#"{"request_timeout":null,"max_concurrent":5}"#;
    let patched = served.ask(Method::PATCH, "/v1/services/ads", &[], patch).await;
    assert_eq!(patched, (StatusCode::OK, json!({"revision": 3})));
    assert_eq!(served.get("/v1/services/ads").await.1, json!({"max_concurrent": 5}));
    let deleted = served.ask(Method::DELETE, "/v1/services/ads?reason=gone", &[], "").await;
    assert_eq!(deleted, (StatusCode::OK, json!({"revision": 4})));
    assert_eq!(served.get("/v1/services/ads").await.0, StatusCode::NOT_FOUND);
    let restored = served.ask(Method::POST, "/v1/revisions/2/restore", &[("gilmok-who", "ann")], "").await;
    assert_eq!(restored, (StatusCode::OK, json!({"revision": 5})));
    assert_eq!(served.get("/v1/services/ads").await.1, table);
    let (_, audit) = served.get("/v1/audit").await;
    assert_eq!((&audit[0]["who"], &audit[0]["what"]), (&json!("ann"), &json!("restore revision 2")));
    assert_eq!((&audit[1]["reason"], &audit[1]["who"]), (&json!("gone"), &json!("127.0.0.1")));
    let (_, revisions) = served.get("/v1/revisions?limit=2").await;
    assert_eq!((revisions.as_array().unwrap().len(), &revisions[0]["revision"]), (2, &json!(5)));
}

#[tokio::test]
async fn every_fault_of_a_document_is_told_and_nothing_changes() {
    let served = Served::start("faults").await;
    let table = json!({"request_timeout": 5, "colour": "red"});
    let (status, problem) = served.put("/v1/services/ads", &table).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let paths: Vec<_> =
        problem["problems"].as_array().unwrap().iter().map(|p| p["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["services.ads.request_timeout", "services.ads.colour"]);
    assert_eq!(served.get("/v1/status").await.1["revision"], 0);
}

#[tokio::test]
async fn one_of_two_writers_is_told_that_it_is_behind() {
    let served = Served::start("behind").await;
    served.put("/v1/services/ads", &json!({})).await;
    let write = |limit: u32| {
        let body = json!({"max_concurrent": limit}).to_string();
        let served = &served;
        async move { served.ask(Method::PUT, "/v1/services/ads", &[("if-match", "\"1\"")], &body).await.0 }
    };
    let (one, two) = tokio::join!(write(1), write(2));
    let mut statuses = [one, two];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::PRECONDITION_FAILED]);
}

#[tokio::test]
async fn nonsense_is_answered_with_a_problem() {
    let served = Served::start("nonsense").await;
    let put = Method::PUT;
    for (method, target, headers, body, expected) in [
        (put.clone(), "/v1/mesh", vec![], "{", 400),
        (put.clone(), "/v1/mesh", vec![], "[]", 422),
        (put.clone(), "/v1/mesh", vec![], "5", 422),
        (put.clone(), "/v1/mesh", vec![], "null", 422),
        (put.clone(), "/v1/mesh", vec![("if-match", "*")], "{}", 412),
        (put.clone(), "/v1/mesh?wiat=30s", vec![], "{}", 400),
        (put.clone(), "/v1/mesh", vec![], "", 400),
        (put.clone(), "/v1/mesh", vec![], "{} {}", 400),
        (put.clone(), "/v1/services/NO", vec![], "{}", 400),
        (put.clone(), "/v1/services/ads", vec![("if-match", "x")], "{}", 400),
        (put.clone(), "/v1/services/ads?wait=soon", vec![], "{}", 400),
        (put.clone(), "/v1/membership/ads/a", vec![], "{}", 422),
        (put.clone(), "/v1/membership/ads/a", vec![], r#"{"address":"nowhere"}"#, 422),
        (put.clone(), "/v1/membership/ads/a", vec![], r#"{"address":"10.0.0.1:1","ttl":"1y"}"#, 422),
        (put.clone(), "/v1/membership/ads/a", vec![], r#"{"address":"10.0.0.1:1","weight":65536}"#, 422),
        (put.clone(), "/v1/membership/ads/a", vec![], r#"{"address":"10.0.0.1:1","priority":128}"#, 422),
        (put.clone(), "/v1/membership/ads/%ff", vec![], r#"{"address":"10.0.0.1:1"}"#, 400),
        (put.clone(), "/v1/membership/ads/%20", vec![], r#"{"address":"10.0.0.1:1"}"#, 422),
        (put.clone(), "/v1/services/%ff", vec![], "{}", 400),
        (Method::GET, "/v1/services/%ff", vec![], "", 400),
        (Method::PATCH, "/v1/services/ads", vec![], "{", 400),
        (Method::PATCH, "/v1/services/none", vec![], "{}", 404),
        (Method::DELETE, "/v1/services/none", vec![], "", 404),
        (Method::DELETE, "/v1/membership/none/a", vec![], "", 404),
        (Method::GET, "/v1/revisions/x", vec![], "", 400),
        (Method::GET, "/v1/revisions/7", vec![], "", 404),
        (Method::GET, "/v1/revisions?limit=x", vec![], "", 400),
        (Method::POST, "/v1/revisions/7/restore", vec![], "", 404),
        (Method::GET, "/v1/explain", vec![], "", 400),
        (Method::GET, "/v1/explain?service=a&listener=inbound", vec![], "", 400),
        (Method::GET, "/v1/explain?service=a%20b", vec![], "", 400),
        (Method::POST, "/v1/explain", vec![], r#"{"host":5}"#, 422),
        (Method::POST, "/v1/explain", vec![], r#"{"host":"a","colour":"red"}"#, 422),
        (Method::POST, "/v1/explain", vec![], r#"{"host":"a","headers":{"a b":"c"}}"#, 400),
        (Method::GET, "/v1/revisions?limit=-1", vec![], "", 400),
        (Method::GET, "/v1/audit?befor=3", vec![], "", 400),
        (Method::GET, "/v1/explain?service=ads", vec![], "", 503),
        (Method::GET, "/v1/feed?node=a&wire=1", vec![], "", 503),
        (Method::GET, "/v1/feed?node=a&wire=99", vec![], "", 409),
        (Method::GET, "/v1/feed", vec![], "", 400),
        (Method::POST, "/v1/feed/acks", vec![], "{}", 422),
        (Method::POST, "/v1/feed/acks", vec![], r#"{"node":"a\"} 1","instance":"1","wire":1}"#, 422),
        (Method::POST, "/v1/mesh", vec![], "{}", 405),
        (Method::GET, "/v2/mesh", vec![], "", 404),
    ] {
        let (status, problem) = served.ask(method.clone(), target, &headers, body).await;
        assert_eq!(status.as_u16(), expected, "{method} {target} {body}: {problem}");
        assert_eq!(problem["status"], expected, "{method} {target}: {problem}");
        assert!(
            problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
            "{method} {target}: {problem}"
        );
    }
}

#[tokio::test]
async fn a_document_that_nests_without_end_is_refused() {
    let served = Served::start("nested").await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [100, 10_000] {
            let body = open.repeat(depth) + "1" + &close.repeat(depth);
            let (status, _) = served.ask(Method::PUT, "/v1/mesh", &[], &body).await;
            assert!(status.is_client_error(), "{depth} {status}");
        }
    }
    assert_eq!(served.get("/v1/status").await.1["revision"], 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let served = Served::start("large").await;
    let body = format!("{{\"x\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    let (status, problem) = served.ask(Method::PUT, "/v1/services/ads/breaker", &[], &body).await;
    assert_eq!((status, &problem["status"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!(413)));
    // A document may be larger, and so may a service's table: it holds prepared answers.
    for (target, path) in [("/v1/mesh", "x"), ("/v1/services/ads", "services.ads.x")] {
        let (status, problem) = served.ask(Method::PUT, target, &[], &body).await;
        assert_eq!(
            (status, &problem["problems"][0]["path"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(path))
        );
    }
}

#[tokio::test]
async fn a_forced_breaker_is_a_revision_that_says_who_and_until_when() {
    let served = Served::start("forced").await;
    let target = "/v1/services/ads/breaker";
    let open = r#"{"force":"open","for":"10m","version":"v2"}"#;
    assert_eq!(served.ask(Method::PUT, target, &[], open).await.0, StatusCode::NOT_FOUND, "no such service");
    served.ask(Method::PUT, "/v1/services/ads", &[], "{}").await;
    let (status, done) = served.ask(Method::PUT, target, &[("gilmok-who", "ann")], open).await;
    assert_eq!((status, &done["revision"]), (StatusCode::OK, &json!(2)));
    let forced = served.get("/v1/services/ads").await.1["forced_breakers"][0].clone();
    assert_eq!(
        (&forced["state"], &forced["by"], &forced["version"]),
        (&json!("open"), &json!("ann"), &json!("v2"))
    );
    let until = gilmok_config::moment::parse_moment(forced["until"].as_str().unwrap()).unwrap();
    assert!(until > 1_700_000_000, "{forced}");
    for bad in
        [r#"{"force":"ajar"}"#, r#"{"force":"open","for":"soon"}"#, r#"{"force":"open","form":"1m"}"#, "{}"]
    {
        let (status, _) = served.ask(Method::PUT, target, &[], bad).await;
        assert!(status.is_client_error(), "{bad}: {status}");
    }
    let (status, _) = served.ask(Method::PUT, target, &[], r#"{"force":"auto","version":"v2"}"#).await;
    assert_eq!((status, served.get("/v1/services/ads").await.1), (StatusCode::OK, json!({})));
}

#[tokio::test]
async fn what_something_else_needs_is_a_conflict() {
    let served = Served::start("needed").await;
    let document = json!({"services": {"ads": {}}, "routes": [{"path_prefix": "/ads", "service": "ads"}]});
    assert_eq!(served.put("/v1/mesh", &document).await.0, StatusCode::CREATED);
    let (status, problem) = served.ask(Method::DELETE, "/v1/services/ads", &[], "").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(problem["problems"][0]["path"], "routes[0].service");
}

#[tokio::test]
async fn revisions_are_read_page_by_page() {
    let served = Served::start("pages").await;
    for limit in 1..=5 {
        served.put("/v1/services/ads", &json!({"max_concurrent": limit})).await;
    }
    let numbers = |page: &Value| {
        page.as_array().unwrap().iter().map(|one| one["revision"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let (_, page) = served.get("/v1/revisions?limit=2").await;
    assert_eq!(numbers(&page), [5, 4]);
    assert!(page[0].get("document").is_none());
    let (_, page) = served.get("/v1/revisions?limit=9&before=4").await;
    assert_eq!(numbers(&page), [3, 2, 1]);
    assert_eq!(numbers(&served.get("/v1/audit?limit=2&before=5").await.1), [4, 3]);
    for before in ["0", "1"] {
        assert_eq!(served.get(&format!("/v1/revisions?before={before}")).await.1, json!([]));
    }
}

#[tokio::test]
async fn a_registered_endpoint_is_explained_and_followed() {
    let served = Served::start("follow").await;
    served.put("/v1/services/ads", &json!({})).await;
    let endpoint = json!({"address": "10.0.0.1:80", "version": "v2", "ttl": "10s"});
    assert_eq!(served.put("/v1/membership/ads/ads-1", &endpoint).await.0, StatusCode::CREATED);
    assert_eq!(served.put("/v1/membership/ads/ads-1", &endpoint).await.0, StatusCode::OK);
    let (_, members) = served.get("/v1/membership/ads").await;
    assert_eq!((&members[0]["id"], &members[0]["status"]), (&json!("ads-1"), &json!("passing")));
    let followed = async {
        loop {
            let (_, told) = served.get("/v1/explain?service=ads").await;
            if told["decision"]["endpoints"][0]["version"] == "v2" {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    // Nothing follows the registry in this test but a write does: it publishes the newest of both.
    served.put("/v1/services/other", &json!({})).await;
    tokio::time::timeout(Duration::from_secs(5), followed).await.unwrap();
    let deleted = served.ask(Method::DELETE, "/v1/membership/ads/ads-1", &[], "").await;
    assert_eq!(deleted.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_write_waits_for_live_proxies_and_names_who_lags() {
    let served = Served::start("wait").await;
    served.put("/v1/services/ads", &json!({})).await;
    let store = served.get("/v1/status").await.1["store"].clone();
    let ack = json!({"node": "web-1", "instance": "1", "wire": 1,
        "applied": {"store": store, "revision": 1, "hash": ""}, "state": "ready"});
    assert_eq!(
        served.ask(Method::POST, "/v1/feed/acks", &[], &ack.to_string()).await.0,
        StatusCode::NO_CONTENT
    );
    let (status, done) = served.put("/v1/services/shop?wait=50ms", &json!({})).await;
    assert_eq!(
        (status, done),
        (StatusCode::ACCEPTED, json!({"revision": 2, "converged": false, "lagging": ["web-1"]}))
    );
    let (_, metrics) = served.get("/metrics").await;
    assert!(
        metrics.as_str().unwrap().contains("gilmok_feed_lag_revisions{proxy=\"web-1\"} 1\n"),
        "{metrics}"
    );
    let (_, proxies) = served.get("/v1/proxies").await;
    assert_eq!((&proxies[0]["node"], &proxies[0]["behind"]), (&json!("web-1"), &json!(1)));
    // It catches up while somebody waits; a service that is new is answered the same way.
    let ack = json!({"node": "web-1", "instance": "1", "wire": 1,
        "applied": {"store": store, "revision": 3, "hash": ""}, "state": "ready"});
    let catching_up = async {
        while served.get("/v1/status").await.1["revision"] != 3 {}
        served.ask(Method::POST, "/v1/feed/acks", &[], &ack.to_string()).await
    };
    let elsewhere =
        Client::new(Settings::new(format!("http://{}", served.address).parse().unwrap())).unwrap();
    let request = Request::new(Method::PUT, "/v1/services/new?wait=20s").body(Bytes::from_static(b"{}"));
    let (done, _) = tokio::join!(elsewhere.send(&request), catching_up);
    let done = done.unwrap();
    assert_eq!((done.status, &done.body[..]), (StatusCode::OK, &br#"{"revision":3,"converged":true}"#[..]));
}
