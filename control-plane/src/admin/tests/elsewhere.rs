//! Callers from other machines: what they are shown without a token, and what each token is for.

use axum::body::Body;
use axum::extract::ConnectInfo;
use gilmok_config::identity::Identity;
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::*;
use crate::admin::needed::needed;
use crate::authority;
use crate::store::now_ms;
use crate::tokens::{OnLoopback, Scope};

/// A control plane that is asked without a network, from wherever the test says.
struct Asked {
    router: Router,
    store: Store,
    folder: Folder,
    _end: watch::Sender<bool>,
}

/// An answer.
struct Told {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Value,
}

impl Asked {
    fn new(name: &str, access: impl FnOnce(&Folder) -> Access) -> Self {
        Self::beside(name, None, access)
    }

    /// One that makes certificates of this domain.
    fn beside(name: &str, domain: Option<&str>, access: impl FnOnce(&Folder) -> Access) -> Self {
        let folder = Folder::new(name);
        let authority = domain.map(|domain| {
            let leaf_ttl = std::time::Duration::from_secs(60);
            let settings =
                authority::Settings { trust_domain: domain.into(), leaf_ttl, given: None, new_root: false };
            Arc::new(authority::Authority::open(settings, &folder.0, false, now_ms() / 1_000).unwrap())
        });
        let access = access(&folder);
        let store = Store::open(&folder.0, 100).unwrap();
        let state = State::new(store.clone(), false).unwrap();
        let (end, stop) = watch::channel(false);
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let router = router(Arc::new(Admin {
            mover: crate::conductor::Mover::new(Arc::clone(&state), None),
            guardian: crate::conductor::Guardian::new(Arc::clone(&state)),
            conductor: crate::conductor::Conductor::new(Arc::clone(&state), None),
            state,
            access,
            stop,
            authority,
            contacts: None,
            metrics,
        }));
        Self { router, store, folder, _end: end }
    }

    async fn ask(&self, from: &str, line: &str, credentials: Option<&str>, body: &Value) -> Told {
        self.ask_as(None, from, line, credentials, body).await
    }

    /// As somebody who has shown a certificate of this service.
    async fn ask_as(
        &self,
        service: Option<&str>,
        from: &str,
        line: &str,
        credentials: Option<&str>,
        body: &Value,
    ) -> Told {
        let (method, target) = line.split_once(' ').unwrap();
        let mut request = http::Request::builder().method(method).uri(target);
        request = request
            .header("host", if from.starts_with("127.") { "localhost" } else { "gilmok.example.com:7070" });
        if let Some(credentials) = credentials {
            request = request.header("authorization", credentials);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let mut request = request.body(body).unwrap();
        let peer: SocketAddr = format!("{from}:4711").parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(service) = service {
            let identity: Identity = format!("spiffe://mesh/service/{service}").parse().unwrap();
            request.extensions_mut().insert(identity);
        }
        let answer = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let is_feed = head.headers.get("content-type").is_some_and(|kind| kind == "application/x-ndjson");
        let body = if is_feed { Bytes::new() } else { body.collect().await.unwrap().to_bytes() };
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
        Told { status: head.status, headers: head.headers, body }
    }

    /// From another machine, with a token or without one.
    async fn with(&self, token: Option<&str>, line: &str, body: Value) -> Told {
        let credentials = token.map(|token| format!("Bearer {token}"));
        self.ask("10.0.0.9", line, credentials.as_deref(), &body).await
    }

    /// Makes a token from this machine; its text and its id.
    async fn token(&self, wish: Value) -> (String, String) {
        let made = self.ask("127.0.0.1", "POST /v1/tokens", None, &wish).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        assert_eq!(made.headers["cache-control"], "no-store");
        let text = |key: &str| made.body[key].as_str().unwrap().to_owned();
        (text("token"), text("id"))
    }
}

#[tokio::test]
async fn only_the_token_opens_the_door_and_a_new_one_needs_no_restart() {
    let asked = Asked::new("elsewhere", |folder| {
        std::fs::write(folder.0.join("token"), "first\n").unwrap();
        Access { token_file: Some(folder.0.join("token")), ..Access::default() }
    });
    let token_file = asked.folder.0.join("token");
    let ask = async |target: &str, credentials: Option<&str>| {
        asked.ask("10.0.0.9", &format!("GET {target}"), credentials, &Value::Null).await
    };
    for target in ["/livez", "/readyz"] {
        assert_eq!(ask(target, None).await.status, StatusCode::OK, "{target}");
    }
    // Not even what there is and what there is not is told.
    for target in ["/v1/status", "/metrics", "/openapi.json", "/v1/feed?node=a&wire=1", "/nothing"] {
        for credentials in [None, Some("Bearer second"), Some("Basic first"), Some("Bearer "), Some("first")]
        {
            let refused = ask(target, credentials).await;
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{target} {credentials:?}");
            assert_eq!(refused.headers["www-authenticate"], "Bearer");
            assert_eq!(refused.headers["content-type"], "application/problem+json");
        }
    }
    assert_eq!(ask("/v1/status", Some("Bearer first")).await.status, StatusCode::OK);
    std::fs::write(&token_file, "second").unwrap();
    assert_eq!(ask("/v1/status", Some("Bearer second")).await.status, StatusCode::OK);
    assert_eq!(ask("/v1/status", Some("Bearer first")).await.status, StatusCode::UNAUTHORIZED);
    for nothing in ["", "\n"] {
        std::fs::write(&token_file, nothing).unwrap();
        for credentials in [None, Some("Bearer "), Some("Bearer")] {
            let refused = ask("/v1/status", credentials).await;
            assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "an empty token is none");
        }
    }
}

/// What each request needs, by its path and method in the interface; `-` is nothing but to be let in, `*` nothing at all.
const NEEDED: &str = "
/livez get * | /readyz get * | /metrics get read | /openapi.json get -
/v1/audit get read | /v1/backup get admin | /v1/status get read | /v1/proxies get read
/v1/explain get read post read
/v1/feed get proxy | /v1/feed/acks post proxy
/v1/flag-overrides post flags | /v1/flags get read put flags | /v1/flags/flagd.json get read
/v1/flags/{key} get read put flags patch flags delete flags
/v1/flags/{key}/explain get read post read
/v1/flags/{key}/kill post flags | /v1/flags/{key}/unkill post flags
/v1/flags/{key}/schedule get read post flags | /v1/flags/{key}/schedule/{id} delete flags
/v1/identity get read | /v1/identity/certificates post - | /v1/identity/roots get -
/v1/identity/roots/rotate post admin
/v1/membership get read | /v1/membership/{service} get read
/v1/membership/{service}/{id} put proxy delete proxy
/v1/mesh get read put admin
/v1/revisions get read | /v1/revisions/{number} get read | /v1/revisions/{number}/restore post admin
/v1/rollouts get read | /v1/services get read
/v1/services/{service} get read put admin patch admin delete admin
/v1/services/{service}/breaker put traffic
/v1/services/{service}/rollback post traffic | /v1/services/{service}/switch post traffic
/v1/services/{service}/rollout get read put traffic delete traffic
/v1/services/{service}/rollout/abort post traffic | /v1/services/{service}/rollout/pause post traffic
/v1/services/{service}/rollout/promote post traffic | /v1/services/{service}/rollout/resume post traffic
/v1/services/{service}/sharding get read | /v1/services/{service}/sharding/plan post read
/v1/services/{service}/sharding/moves get read post traffic
/v1/services/{service}/sharding/moves/{id} get read
/v1/services/{service}/sharding/moves/{id}/pause post traffic
/v1/services/{service}/sharding/moves/{id}/resume post traffic
/v1/services/{service}/sharding/moves/{id}/reverse post traffic
/v1/services/{service}/traffic get read put traffic
/v1/tokens get admin post admin | /v1/tokens/audit get admin | /v1/tokens/{id} delete admin
";

/// Each request of the interface: its path there, its method, and what it needs.
fn requests() -> Vec<(String, Method, &'static str)> {
    let interface = json!(openapi_document());
    let mut all = Vec::new();
    for (path, described) in interface["paths"].as_object().unwrap() {
        let line = NEEDED.split(['|', '\n']).map(str::trim).find(|line| line.split(' ').next() == Some(path));
        let line = line.unwrap_or_else(|| panic!("nothing says what {path} needs"));
        for method in described.as_object().unwrap().keys() {
            let mut words = line.split(' ').skip_while(|word| word != method).skip(1);
            let needed = words.next().unwrap_or_else(|| panic!("nothing says what {method} {path} needs"));
            all.push((path.clone(), method.to_uppercase().parse().unwrap(), needed));
        }
    }
    all
}

#[tokio::test]
async fn every_request_of_the_interface_needs_what_the_table_says() {
    let asked = Asked::new("table", |_| Access::default());
    let mut tokens = Vec::new();
    for scope in Scope::ALL {
        let services = (scope == Scope::Join).then(|| json!(["ads"]));
        let wish = json!({ "name": scope.as_str(), "scopes": [scope.as_str()], "services": services });
        tokens.push((scope, asked.token(wish).await.0));
    }
    let all = requests();
    // Each from another address: nobody fails too often.
    let mut guesser = 0;
    assert!(all.len() > 60, "{}", all.len());
    for (path, method, expected) in all {
        assert_eq!(needed(&method, &path).map_or("-", Scope::as_str), expected.replace('*', "-"), "{path}");
        // Names that are nowhere: a request that is let through changes nothing.
        let target = path.replace("{service}", "ads").replace("{id}", "0").replace("{number}", "9");
        let line = format!("{method} {}", target.replace("{key}", "k"));
        let bare = asked.with(None, &line, Value::Null).await;
        assert_eq!(bare.status == StatusCode::UNAUTHORIZED, expected != "*", "{line} without a token");
        guesser += 1;
        let (from, wrong) = (format!("10.1.0.{guesser}"), Some("Bearer gilmok_0123456789abcdef_00"));
        let wrong = asked.ask(&from, &line, wrong, &Value::Null).await;
        assert_eq!(wrong.status == StatusCode::UNAUTHORIZED, expected != "*", "{line} with a wrong token");
        for (scope, token) in &tokens {
            let told = asked.with(Some(token), &line, Value::Null).await;
            let is_enough =
                expected.parse().is_ok_and(|needed| scope.implies(needed)) || "-*".contains(expected);
            assert_eq!(
                told.status == StatusCode::FORBIDDEN,
                !is_enough,
                "{line} with {scope}: {}",
                told.body
            );
            assert_ne!(told.status, StatusCode::UNAUTHORIZED, "{line} with {scope}");
            if !is_enough {
                let detail = told.body["detail"].as_str().unwrap();
                assert!(detail.contains(&format!("`{expected}`")), "{line} with {scope}: {detail}");
            }
        }
    }
}

#[tokio::test]
async fn a_token_is_shown_once_works_at_once_and_ends_when_it_is_revoked() {
    let asked = Asked::new("life-of-a-token", |_| Access::default());
    let (text, id) =
        asked.token(json!({"name": "deploys", "scopes": ["traffic"], "services": ["shop"]})).await;
    let status = async |line: &str| asked.with(Some(&text), line, Value::Null).await.status;
    assert_eq!(status("GET /v1/status").await, StatusCode::OK);
    let listed = asked.ask("127.0.0.1", "GET /v1/tokens", None, &Value::Null).await.body;
    assert_eq!((&listed[0]["id"], &listed[0]["services"]), (&json!(id), &json!(["shop"])));
    let secret = text.rsplit('_').next().unwrap();
    for told in [listed, asked.ask("127.0.0.1", "GET /v1/tokens/audit", None, &Value::Null).await.body] {
        assert!(told.to_string().contains("deploys") && !told.to_string().contains(secret), "{told}");
        assert!(!told.to_string().contains("hash"), "{told}");
    }
    // It is limited, on this machine too.
    for from in ["10.0.0.9", "127.0.0.1"] {
        for (line, expected) in [
            ("POST /v1/services/shop/rollback", StatusCode::NOT_FOUND),
            ("POST /v1/services/sh%6Fp/rollback", StatusCode::NOT_FOUND),
            ("POST /v1/services/ads/rollback", StatusCode::FORBIDDEN),
            ("POST /v1/services/shop%2F..%2Fads/rollback", StatusCode::FORBIDDEN),
            ("POST /v1/services/shop/../ads/rollback", StatusCode::NOT_FOUND),
            ("POST /v1//services/ads/rollback", StatusCode::NOT_FOUND),
            ("PUT /v1/services/shop", StatusCode::FORBIDDEN),
            ("PUT /v1/flags", StatusCode::FORBIDDEN),
            ("POST /v1/tokens", StatusCode::FORBIDDEN),
        ] {
            let told = asked.ask(from, line, Some(&format!("bearer {text}")), &Value::Null).await;
            assert_eq!(told.status, expected, "{from} {line}: {}", told.body);
        }
    }
    let revoked = asked.ask("127.0.0.1", &format!("DELETE /v1/tokens/{id}"), None, &Value::Null).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    assert_eq!(status("GET /v1/status").await, StatusCode::UNAUTHORIZED);
    let again = asked.ask("127.0.0.1", &format!("DELETE /v1/tokens/{id}"), None, &Value::Null).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    let shown = asked.ask("127.0.0.1", &format!("DELETE /v1/tokens/{text}"), None, &Value::Null).await;
    assert!(shown.status == StatusCode::BAD_REQUEST && !shown.body.to_string().contains(secret));
    let audit = asked.ask("127.0.0.1", "GET /v1/tokens/audit", None, &Value::Null).await.body;
    let told: Vec<_> = audit.as_array().unwrap().iter().map(|deed| (&deed["what"], &deed["who"])).collect();
    assert_eq!(told, [(&json!("revoke"), &json!("127.0.0.1")), (&json!("create"), &json!("127.0.0.1"))]);
}

#[tokio::test]
async fn an_ended_token_is_nobodys_and_says_so() {
    let asked = Asked::new("ended", |_| Access::default());
    let (text, id) = asked.token(json!({"name": "short", "scopes": ["read"], "ttl": "1s"})).await;
    let ended = async || {
        let told = asked.with(Some(&text), "GET /v1/status", Value::Null).await;
        (told.status != StatusCode::OK).then_some(told)
    };
    assert!(ended().await.is_none());
    let told = loop {
        if let Some(told) = ended().await {
            break told;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(
        (told.status, &told.body["detail"]),
        (StatusCode::UNAUTHORIZED, &json!(format!("the token {id} has ended")))
    );
    let listed = asked.ask("127.0.0.1", "GET /v1/tokens", None, &Value::Null).await.body;
    assert_eq!(listed[0]["expired"], true);
}

#[tokio::test]
async fn a_write_is_known_by_the_token_that_was_shown_whatever_it_says() {
    let asked = Asked::new("known-by", |_| Access::default());
    let (text, id) = asked.token(json!({"name": "ci", "scopes": ["admin"], "services": ["shop"]})).await;
    assert_eq!(asked.with(Some(&text), "PUT /v1/services/shop", json!({})).await.status, StatusCode::CREATED);
    let audit = asked.with(Some(&text), "GET /v1/audit", Value::Null).await.body;
    assert_eq!(audit[0]["who"], format!("token {id} (ci)"));
    for line in ["PUT /v1/services/ads", "PUT /v1/mesh", "GET /v1/backup", "GET /v1/tokens"] {
        let refused = asked.with(Some(&text), line, json!({})).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{line}: {}", refused.body);
    }
}

#[tokio::test]
async fn what_cannot_be_a_token_is_refused_with_every_fault() {
    let asked = Asked::new("no-token", |_| Access::default());
    let wish = json!({"name": "x", "scopes": ["read", "write"], "services": ["A b"], "ttl": "soon"});
    let told = asked.ask("127.0.0.1", "POST /v1/tokens", None, &wish).await;
    let paths: Vec<_> = told.body["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        (told.status, paths),
        (StatusCode::UNPROCESSABLE_ENTITY, vec!["scopes[1]", "services[0]", "ttl"])
    );
    let told = asked.ask("127.0.0.1", "POST /v1/tokens", None, &json!({"name": "", "scopes": []})).await;
    assert_eq!(told.body["problems"].as_array().unwrap().len(), 2, "{}", told.body);
    assert!(asked.store.tokens().is_empty());
}

#[tokio::test]
async fn this_machine_needs_a_token_where_that_is_said() {
    let asked = Asked::new("closed", |folder| {
        std::fs::write(folder.0.join("token"), "first\n").unwrap();
        let token_file = Some(folder.0.join("token"));
        Access { token_file, on_loopback: OnLoopback::Token, ..Access::default() }
    });
    let ask = async |credentials: Option<&str>| {
        asked.ask("127.0.0.1", "GET /v1/status", credentials, &Value::Null).await.status
    };
    assert_eq!(ask(None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(Some("Bearer first")).await, StatusCode::OK);
    assert_eq!(asked.ask("127.0.0.1", "GET /livez", None, &Value::Null).await.status, StatusCode::OK);
}

#[tokio::test]
async fn tokens_outlive_a_restart_and_a_backup() {
    let asked = Asked::new("restart-of-tokens", |_| Access::default());
    let (kept, _) = asked.token(json!({"name": "kept", "scopes": ["read"]})).await;
    let (gone, id) = asked.token(json!({"name": "gone", "scopes": ["read"]})).await;
    asked.ask("127.0.0.1", &format!("DELETE /v1/tokens/{id}"), None, &Value::Null).await;
    let mut backup = Vec::new();
    asked.store.backup(&mut backup).unwrap();
    let text = String::from_utf8(backup).unwrap();
    assert!(!text.contains(&kept) && text.contains("kept"));
    let Asked { router, store, folder, .. } = asked;
    drop((router, store));
    let elsewhere = folder.0.join("restored");
    Store::restore(&elsewhere, text.as_bytes()).unwrap();
    for dir in [&folder.0, &elsewhere] {
        let store = Store::open(dir, 100).unwrap();
        assert_eq!(store.tokens().find(&kept, 0).unwrap().name, "kept");
        assert!(store.tokens().find(&gone, 0).is_err());
        assert_eq!(store.token_audit(u64::MAX, 10).await.unwrap().len(), 3);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.join("gilmok.redb")).unwrap());
        assert_eq!(mode & 0o777, 0o600, "what is kept is for nobody else");
    }
}

#[tokio::test]
async fn whoever_goes_on_guessing_is_told_to_wait() {
    let asked = Asked::new("guesses", |folder| {
        std::fs::write(folder.0.join("token"), "chosen").unwrap();
        Access { token_file: Some(folder.0.join("token")), ..Access::default() }
    });
    let (made, _) = asked.token(json!({"name": "made", "scopes": ["read"]})).await;
    let status = async |token: &str| asked.with(Some(token), "GET /v1/status", Value::Null).await;
    for guess in 0..10 {
        assert_eq!(status(&format!("guess {guess}")).await.status, StatusCode::UNAUTHORIZED);
    }
    for token in ["guess 11", "chosen", "gilmok_0123456789abcdef_00"] {
        let barred = status(token).await;
        assert_eq!(barred.status, StatusCode::TOO_MANY_REQUESTS, "{token}: {}", barred.body);
        let wait: u64 = barred.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=7).contains(&wait), "{wait}");
    }
    assert_eq!(status(&made).await.status, StatusCode::OK, "that one cannot be guessed");
    let elsewhere = asked.ask("10.0.0.8", "GET /v1/status", Some("Bearer chosen"), &Value::Null).await;
    assert_eq!(elsewhere.status, StatusCode::OK);
}

#[tokio::test]
async fn a_sidecar_speaks_for_its_own_service_and_for_nobody_else() {
    let asked = Asked::new("sidecars", |_| Access::default());
    assert_eq!(
        asked.ask("127.0.0.1", "PUT /v1/services/shop", None, &json!({})).await.status,
        StatusCode::CREATED
    );
    let ask = async |service: &str, line: &str, body: Value| {
        let told = asked.ask_as(Some(service), "10.0.0.9", line, None, &body).await;
        (told.status, told.body["detail"].as_str().unwrap_or_default().to_owned())
    };
    let endpoint = json!({"address": "10.0.0.9:1", "ttl": "10s"});
    assert_eq!(ask("shop", "PUT /v1/membership/shop/a", endpoint.clone()).await.0, StatusCode::CREATED);
    for line in ["PUT /v1/membership/shop/a", "PUT /v1/membership/shop/b", "DELETE /v1/membership/shop/a"] {
        let (status, detail) = ask("ads", line, endpoint.clone()).await;
        assert_eq!(
            (status, detail.as_str()),
            (StatusCode::FORBIDDEN, "this needs a token for the service `shop`")
        );
    }
    let ack = |node: &str, service: &str| json!({"node": node, "instance": "1", "wire": 1, "state": "ready", "apps": [{"service": service}]});
    let acks = "POST /v1/feed/acks";
    assert_eq!(ask("shop", acks, ack("web-1", "shop")).await.0, StatusCode::NO_CONTENT);
    for stolen in [ack("web-1", "ads"), ack("web-1", "shop"), ack("web-9", "shop")] {
        assert_eq!(ask("ads", acks, stolen.clone()).await.0, StatusCode::FORBIDDEN, "{stolen}");
    }
    assert_eq!(ask("ads", acks, ack("web-9", "ads")).await.0, StatusCode::NO_CONTENT);
    let feed = |node: &str| format!("GET /v1/feed?node={node}&wire=1");
    assert_eq!(ask("shop", &feed("web-1"), Value::Null).await.0, StatusCode::OK);
    assert_eq!(ask("ads", &feed("web-1"), Value::Null).await.0, StatusCode::FORBIDDEN);
    for line in
        ["GET /v1/status", "GET /v1/mesh", "PUT /v1/services/shop", "GET /v1/tokens", "GET /v1/backup"]
    {
        assert_eq!(ask("shop", line, json!({})).await.0, StatusCode::FORBIDDEN, "{line}");
        // Nor on this machine.
        let here = asked.ask_as(Some("shop"), "127.0.0.1", line, None, &json!({})).await;
        assert_eq!(here.status, StatusCode::FORBIDDEN, "{line}");
    }
    // An old token beside it takes nothing away, one that is good gives what it is for.
    let with = async |token: &str, line: &str| {
        let credentials = format!("Bearer {token}");
        asked.ask_as(Some("shop"), "10.0.0.9", line, Some(&credentials), &Value::Null).await.status
    };
    assert_eq!(with("gilmok_0123456789abcdef_00", &feed("web-1")).await, StatusCode::OK);
    let (read, _) = asked.token(json!({"name": "r", "scopes": ["read"]})).await;
    assert_eq!(with(&read, "GET /v1/status").await, StatusCode::OK);
}

#[tokio::test]
async fn a_token_of_services_moves_no_others_with_their_group() {
    let asked = Asked::new("group", |_| Access::default());
    let table = json!({"traffic": {"stable": "v1", "weights": {"v1": 100}, "group": "front"}});
    for service in ["shop", "cart"] {
        let put = asked.ask("127.0.0.1", &format!("PUT /v1/services/{service}"), None, &table).await;
        assert_eq!(put.status, StatusCode::CREATED, "{}", put.body);
    }
    let wish = |services: Value| json!({"name": "t", "scopes": ["traffic"], "services": services});
    let (one, _) = asked.token(wish(json!(["shop"]))).await;
    let (both, _) = asked.token(wish(json!(["shop", "cart"]))).await;
    let switch = async |token: &str| {
        asked.with(Some(token), "POST /v1/services/shop/switch?dry_run=true", json!({"to": "v2"})).await
    };
    let refused = switch(&one).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.body["detail"].as_str().unwrap().contains("`cart`"), "{}", refused.body);
    assert_ne!(switch(&both).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_certificate_renews_that_of_its_own_service_in_its_own_domain_and_no_other() {
    // What is let through fails for its request, which is none.
    let (let_in, kept_out) = (StatusCode::UNPROCESSABLE_ENTITY, StatusCode::FORBIDDEN);
    for (domain, service, expected) in
        [("mesh", "shop", let_in), ("mesh", "ads", kept_out), ("other", "shop", kept_out)]
    {
        let asked = Asked::beside("renewal", Some(domain), |_| Access::default());
        let wish = json!({ "csr": "garbage", "service": service });
        let line = "POST /v1/identity/certificates";
        let told = asked.ask_as(Some("shop"), "10.0.0.9", line, None, &wish).await;
        assert_eq!(told.status, expected, "{domain} {service}: {}", told.body);
    }
}

#[tokio::test]
async fn a_feed_ends_with_the_token_that_it_was_opened_with() {
    let asked = Asked::new("feed-of-a-token", |_| Access::default());
    asked.ask("127.0.0.1", "PUT /v1/services/shop", None, &json!({})).await;
    let open = async |token: &str| {
        let mut request = http::Request::get("/v1/feed?node=web-1&wire=1").body(Body::empty()).unwrap();
        let credentials = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", credentials);
        let peer: SocketAddr = "10.0.0.9:4711".parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = TowerToHyperService::new(asked.router.clone()).call(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body()
    };
    let (kept, _) = asked.token(json!({"name": "kept", "scopes": ["proxy"]})).await;
    let (revoked, id) = asked.token(json!({"name": "stolen", "scopes": ["proxy"]})).await;
    let (short, _) = asked.token(json!({"name": "short", "scopes": ["proxy"], "ttl": "1s"})).await;
    let (mut going_on, mut stolen, ending) = (open(&kept).await, open(&revoked).await, open(&short).await);
    assert!(stolen.frame().await.is_some() && going_on.frame().await.is_some());
    asked.ask("127.0.0.1", &format!("DELETE /v1/tokens/{id}"), None, &Value::Null).await;
    // Neither lines that wait nor heartbeats.
    assert!(stolen.frame().await.is_none());
    let soon = std::time::Duration::from_secs(30);
    tokio::time::timeout(soon, ending.collect()).await.expect("it ends by itself").unwrap();
    assert!(going_on.frame().await.is_some(), "that of another token goes on");
}

#[tokio::test]
async fn whoever_comes_through_a_proxy_on_this_machine_is_not_on_this_machine() {
    let asked = Asked::new("through-a-proxy", |_| Access::default());
    let (token, _) = asked.token(json!({"name": "r", "scopes": ["read"]})).await;
    for (name, value) in [
        ("forwarded", "for=10.0.0.9"),
        ("x-forwarded-for", "10.0.0.9"),
        ("x-real-ip", "10.0.0.9"),
        ("via", "1.1 nginx"),
        ("via", ""),
    ] {
        for (credentials, expected) in [(None, StatusCode::UNAUTHORIZED), (Some(&token), StatusCode::OK)] {
            let mut request = http::Request::get("/v1/status").header(name, value);
            request = request.header("host", "localhost");
            if let Some(token) = credentials {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let mut request = request.body(Body::empty()).unwrap();
            let peer: SocketAddr = "127.0.0.1:4711".parse().unwrap();
            request.extensions_mut().insert(ConnectInfo(peer));
            let answer = TowerToHyperService::new(asked.router.clone()).call(request).await.unwrap();
            assert_eq!(answer.status(), expected, "{name}: {value}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let is_told = String::from_utf8_lossy(&body).contains(&format!("with `{name}` this came"));
            assert_eq!(is_told, credentials.is_none());
        }
    }
}
