//! What would become of a subject, told by the control plane as proxies decide it.

use super::*;

const USER: &str = "/v1/explain?service=shop&subject=user-4";

async fn shop(name: &str, traffic: Value) -> Served {
    let served = Served::start(name).await;
    let endpoints =
        json!([{"address": "10.0.0.1:80", "version": "v1"}, {"address": "10.0.0.2:80", "version": "v2"}]);
    let table = json!({"traffic": traffic, "endpoints": endpoints});
    assert_eq!(served.put("/v1/services/shop", &table).await.0, StatusCode::CREATED);
    served
}

#[tokio::test]
async fn a_subject_is_explained_with_all_that_decided() {
    let served = shop("subject", json!({"stable": "v1", "weights": {"v1": 50, "v2": 50}})).await;
    let split = json!({
        "version": "v2",
        "why": "the subject's place in the table",
        // The place of the salt `shop`, as mmh3 and cbor2 have it.
        "place": 427_659,
        "salt": "shop",
        "stable": "v1",
        "table": [["v2", 0, 500_000], ["v1", 500_000, 1_000_000]],
        "moved_from": null,
    });
    let (status, told) = served.get(USER).await;
    assert_eq!((status, &told["decision"]["split"]), (StatusCode::OK, &split), "{told}");
    let body = r#"{"host": "shop", "subject": "user-4"}"#;
    let (_, by_body) = served.ask(Method::POST, "/v1/explain", &[], body).await;
    assert_eq!(by_body, told);
}

#[tokio::test]
async fn whoever_is_alive_by_membership_counts() {
    let served = shop("alive", json!({"stable": "v1", "weights": {"v1": 50, "v2": 50}})).await;
    let one = json!({"address": "10.0.0.3:80", "version": "v1", "ttl": "60s"});
    assert_eq!(served.put("/v1/membership/shop/shop-1", &one).await.0, StatusCode::CREATED);
    // Nothing follows the registry in this test but a write does: it publishes the newest of both.
    served.put("/v1/services/other", &json!({})).await;
    let (_, told) = served.get(USER).await;
    let split = &told["decision"]["split"];
    assert_eq!((&split["version"], &split["moved_from"]), (&json!("v1"), &json!("v2")), "{told}");
}

#[tokio::test]
async fn the_key_of_baggage_decides_and_stays_secret() {
    let traffic =
        json!({"stable": "v1", "weights": {"v1": 50, "v2": 50}, "subject": ["baggage", "header:x-user-id"]});
    let served = shop("baggage", traffic).await;
    let (_, told) = served.get(USER).await;
    let place = told["decision"]["split"]["place"].as_u64();
    assert!(place.is_some() && place != Some(427_659), "hashed bare: {told}");
    let (_, backup) = served.get("/v1/backup").await;
    let first = backup.as_str().unwrap().lines().next().unwrap().to_owned();
    let secret =
        serde_json::from_str::<Value>(&first).unwrap()["begin"]["visitor_keys"].as_str().unwrap().to_owned();
    assert!(secret.len() >= 32 && !told.to_string().contains(&secret), "{told}");
    let traffic = json!({"stable": "v1", "weights": {"v1": 50, "v2": 50}, "subject": ["client_ip"]});
    served
        .ask(Method::PATCH, "/v1/services/shop?force=true", &[], &json!({ "traffic": traffic }).to_string())
        .await;
    let (status, problem) = served.get(USER).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
}
