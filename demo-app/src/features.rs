//! Which features are on for a request: by the header that a proxy puts on it, and by asking the proxy beside this app as
//! OpenFeature's SDKs do (OFREP 0.3.0).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Request};
use serde_json::{Map, Value, json};

use crate::calls::{Failed, send};

/// Header in which a proxy tells an app which features are on.
pub(crate) const FEATURE_FLAGS: &str = "feature-flags";
/// The features of the shop, which it asks for.
const OF_SHOP: [&str; 1] = ["new-page"];
/// How long the proxy on the same machine may take. Whoever gets no answer keeps the default in its code.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a boolean flag is on: a member of the header's dictionary that has no value is true (RFC 9651).
pub(crate) fn is_on(headers: &HeaderMap, flag: &str) -> bool {
    let values = headers.get_all(FEATURE_FLAGS).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|member| {
        let rest = member.trim().strip_prefix(flag);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(';'))
    })
}

/// What the proxy at `ofrep` says of the shop's features for a user: value, variant and reason of each; the default in the
/// code, which is off, where it says nothing.
pub(crate) async fn ask(ofrep: &str, user: &str) -> Value {
    let mut features = Map::new();
    for flag in OF_SHOP {
        let asked = tokio::time::timeout(TIMEOUT, evaluate(ofrep, flag, user)).await;
        let told = match asked.unwrap_or(Err(Failed::Timeout)) {
            Ok(told) => json!({
                "value": told["value"].as_bool().unwrap_or_default(),
                "variant": told["variant"],
                "reason": told["reason"],
            }),
            Err(failed) => json!({ "value": false, "failed": failed.to_string() }),
        };
        features.insert(flag.to_owned(), told);
    }
    Value::Object(features)
}

async fn evaluate(ofrep: &str, flag: &str, user: &str) -> Result<Value, Failed> {
    let context = json!({ "context": { "targetingKey": user } }).to_string();
    let request = Request::post(format!("/ofrep/v1/evaluate/flags/{flag}"))
        .header("host", ofrep)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(context)))
        .map_err(|error| Failed::Broken(error.to_string()))?;
    let (head, body) = send(ofrep, request).await?;
    if !head.status.is_success() {
        return Err(Failed::Answered { status: head.status, proxy: None });
    }
    serde_json::from_slice(&body).map_err(|error| Failed::Broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn what_is_on_stands_in_the_header_without_a_value() {
        for (header, expected) in [
            ("new-page;v=on, size=25;v=big", true),
            ("size=25;v=big,new-page", true),
            ("new-page=?0;v=off", false),
            ("new-page-too;v=on", false),
            ("size=\"new-page\"", false),
        ] {
            let headers =
                HeaderMap::from_iter([(FEATURE_FLAGS.parse().unwrap(), HeaderValue::from_static(header))]);
            assert_eq!(is_on(&headers, "new-page"), expected, "{header}");
        }
        assert!(!is_on(&HeaderMap::new(), "new-page"));
    }

    #[tokio::test]
    async fn whoever_is_not_answered_keeps_the_default() {
        let told = ask("127.0.0.1:1", "ann").await;
        assert_eq!(told["new-page"]["value"], false, "{told}");
        assert!(told["new-page"]["failed"].is_string(), "{told}");
    }
}
