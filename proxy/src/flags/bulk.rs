//! All flags at once, for web pages and mobile apps, with a tag by which what has not changed is not evaluated again.

use std::collections::BTreeMap;

use gilmok_config::hash::content_hash;
use http::header::{ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};
use serde_json::{Map, Value as Json, json};

use super::STREAM;
use super::answer::{self, Answer};
use super::question::Evaluator;

/// After how long without anything to do clients may let go of the stream of changes.
const INACTIVITY_SECONDS: u32 = 120;

/// Every flag that is asked for, or 304.
pub(super) fn answer(evaluator: &Evaluator<'_>, headers: &HeaderMap) -> Response<Answer> {
    let known = |tag: &str| headers.get_all(IF_NONE_MATCH).iter().any(|listed| lists(listed, tag));
    // What only the time changes has to be evaluated before anybody knows whether it has changed.
    let reads_time = evaluator.current.snapshot.wants_now();
    let tag = tag(evaluator);
    if !reads_time && known(&format!("\"{tag}\"")) {
        return tagged(answer::empty(StatusCode::NOT_MODIFIED), &tag);
    }
    let set = evaluator.current.snapshot.flags();
    let body = json!({
        "flags": evaluator.all(),
        "metadata": set.map(|set| set.metadata().clone()).unwrap_or_default(),
        "eventStreams": [{
            "type": "sse",
            // Without an origin clients keep the one by which they came here.
            "endpoint": { "requestUri": STREAM },
            "inactivityDelaySec": INACTIVITY_SECONDS,
        }],
    });
    let body = body.to_string();
    let tag = if reads_time { format!("{tag}.{}", content_hash(body.as_bytes())) } else { tag };
    if reads_time && known(&format!("\"{tag}\"")) {
        return tagged(answer::empty(StatusCode::NOT_MODIFIED), &tag);
    }
    tagged(answer::text(StatusCode::OK, body), &tag)
}

/// By what the answer is known: the flags and for whom they are. A client that changes anything of its context, and keeps
/// its tag, gets another answer.
fn tag(evaluator: &Evaluator<'_>) -> String {
    let asked = json!([evaluator.selector.as_str(), sorted_map(evaluator.attributes), evaluator.is_stale])
        .to_string();
    format!("{}.{}", evaluator.current.flag_revision, content_hash(asked.as_bytes()))
}

/// The same, whatever order a client writes its keys in. No deeper than what was read.
fn sorted(value: &Json) -> Json {
    match value {
        Json::Array(items) => items.iter().map(sorted).collect(),
        Json::Object(map) => sorted_map(map),
        Json::Bool(_) | Json::Null | Json::Number(_) | Json::String(_) => value.clone(),
    }
}

fn sorted_map(map: &Map<String, Json>) -> Json {
    let entries: BTreeMap<&String, &Json> = map.iter().collect();
    Json::Object(entries.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
}

fn tagged(mut response: Response<Answer>, tag: &str) -> Response<Answer> {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{tag}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// Whether a tag is one of those listed (RFC 9110, 13.1.2; compared weakly).
fn lists(listed: &HeaderValue, tag: &str) -> bool {
    let Ok(listed) = listed.to_str() else { return false };
    listed.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_means_nothing() {
        let of = |text: &str| sorted(&serde_json::from_str(text).unwrap()).to_string();
        let first = of(r#"{"b": [1, {"y": 1, "x": 2}], "a": {"d": null, "c": "t"}}"#);
        assert_eq!(first, of(r#"{"a": {"c": "t", "d": null}, "b": [1, {"x": 2, "y": 1}]}"#));
        assert_ne!(first, of(r#"{"a": {"c": "t", "d": null}, "b": [{"x": 2, "y": 1}, 1]}"#));
    }

    #[test]
    fn tags_are_found_in_lists() {
        for (listed, expected) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("a", false),
            ("\"b\"", false),
            ("", false),
        ] {
            assert_eq!(lists(&HeaderValue::from_str(listed).unwrap(), "\"a\""), expected, "{listed}");
        }
    }
}
