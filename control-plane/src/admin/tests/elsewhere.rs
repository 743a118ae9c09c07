//! Callers from other machines, and what they are shown without the token.

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Response;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::*;

async fn ask(router: &Router, target: &str, credentials: Option<&str>) -> Response<Body> {
    let mut request = http::Request::get(target).header("host", "gilmok.example.com:7070");
    if let Some(credentials) = credentials {
        request = request.header("authorization", credentials);
    }
    let mut request = request.body(Body::empty()).unwrap();
    let peer: SocketAddr = "10.0.0.9:4711".parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    TowerToHyperService::new(router.clone()).call(request).await.unwrap()
}

#[tokio::test]
async fn only_the_token_opens_the_door_and_a_new_one_needs_no_restart() {
    let folder = Folder::new("elsewhere");
    let token_file = folder.0.join("token");
    std::fs::write(&token_file, "first\n").unwrap();
    let state = State::new(Store::open(&folder.0, 100).unwrap(), false).unwrap();
    let (_end, stop) = watch::channel(false);
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let access = Access { token_file: Some(token_file.clone()), ..Access::default() };
    let router = router(Arc::new(Admin {
        mover: crate::conductor::Mover::new(Arc::clone(&state), None),
        guardian: crate::conductor::Guardian::new(Arc::clone(&state)),
        conductor: crate::conductor::Conductor::new(Arc::clone(&state), None),
        state,
        access,
        stop,
        contacts: None,
        metrics,
    }));
    for target in ["/livez", "/readyz"] {
        assert_eq!(ask(&router, target, None).await.status(), StatusCode::OK, "{target}");
    }
    // Not even what there is and what there is not is told.
    for target in ["/v1/status", "/metrics", "/openapi.json", "/v1/feed?node=a&wire=1", "/nothing"] {
        for credentials in [None, Some("Bearer second"), Some("Basic first"), Some("Bearer "), Some("first")]
        {
            let refused = ask(&router, target, credentials).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{target} {credentials:?}");
            assert_eq!(refused.headers()["www-authenticate"], "Bearer");
            assert_eq!(refused.headers()["content-type"], "application/problem+json");
        }
    }
    assert_eq!(ask(&router, "/v1/status", Some("Bearer first")).await.status(), StatusCode::OK);
    std::fs::write(&token_file, "second").unwrap();
    assert_eq!(ask(&router, "/v1/status", Some("Bearer second")).await.status(), StatusCode::OK);
    assert_eq!(ask(&router, "/v1/status", Some("Bearer first")).await.status(), StatusCode::UNAUTHORIZED);
    for nothing in ["", "\n"] {
        std::fs::write(&token_file, nothing).unwrap();
        for credentials in [None, Some("Bearer "), Some("Bearer")] {
            let refused = ask(&router, "/v1/status", credentials).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "an empty token is none");
        }
    }
}
