//! The flags as a source for a stock flagd: what only Gilmok knows is taken out, what flagd can do of it is put in its words.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gilmok_config::hash::content_hash;
use serde_json::{Value, json};

use super::Admin;
use super::mesh::current;
use crate::intent;

#[utoipa::path(get, path = "/v1/flags/flagd.json", tag = "flags",
    summary = "The flags for a stock flagd: `--uri http://…/v1/flags/flagd.json`; ETag is of the content",
    responses((status = 200, body = Value), (status = 304, description = "They are those of If-None-Match")))]
pub(super) async fn read(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let (document, _) = current(&admin);
    let text = for_flagd(intent::flag_set(&document)).to_string();
    let tag = HeaderValue::try_from(format!("\"{}\"", content_hash(text.as_bytes())));
    let Ok(tag) = tag else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let is_known = headers.get_all(header::IF_NONE_MATCH).iter().any(|known| names(known, &tag));
    if is_known {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind, (header::ETAG, tag)], text).into_response()
}

/// Whether a list of validators has this one, weak or not: what is asked is only whether the content is another one.
fn names(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else { return false };
    known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)
}

/// The set without `x-gilmok`. A flag that is killed is served by its off variant alone, as here.
fn for_flagd(set: Option<&Value>) -> Value {
    let mut set = set.cloned().unwrap_or_else(|| json!({ "flags": {} }));
    let flags = set.get_mut("flags").and_then(Value::as_object_mut);
    for flag in flags.into_iter().flat_map(|flags| flags.values_mut()).filter_map(Value::as_object_mut) {
        let Some(extension) = flag.remove("x-gilmok") else { continue };
        let kill = &extension["kill"];
        if kill["active"] != true {
            continue;
        }
        flag.remove("targeting");
        let off = match &kill["variant"] {
            Value::String(named) => Some(json!(named)),
            _ if flag["variants"].get("off").is_some() => Some(json!("off")),
            _ => flag.get("defaultVariant").filter(|default| default.is_string()).cloned(),
        };
        match off {
            Some(off) => {
                flag.insert("state".to_owned(), json!("ENABLED"));
                flag.insert("defaultVariant".to_owned(), off);
            }
            None => {
                flag.insert("state".to_owned(), json!("DISABLED"));
            }
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_flag_is_off_for_flagd_too() {
        let flag = |variants: Value, kill: Value| {
            json!({ "state": "DISABLED", "variants": variants, "defaultVariant": "on", "targeting": { "if": [true, "on"] },
                "x-gilmok": { "kill": kill } })
        };
        let set = json!({ "flags": {
            "alive": flag(json!({ "on": true, "off": false }), json!({ "active": false })),
            "default": flag(json!({ "on": true, "none": false }), json!({ "active": true })),
            "named": flag(json!({ "on": true, "none": false }), json!({ "active": true, "variant": "none" })),
            "off": flag(json!({ "on": true, "off": false }), json!({ "active": true })),
            "plain": { "state": "ENABLED" },
        }, "metadata": { "a": 1 } });
        let told = for_flagd(Some(&set));
        assert!(!told.to_string().contains("x-gilmok"), "{told}");
        assert_eq!(told["flags"]["alive"]["targeting"], json!({ "if": [true, "on"] }));
        for (flag, variant) in [("default", "on"), ("named", "none"), ("off", "off")] {
            let flag = &told["flags"][flag];
            assert_eq!(
                (&flag["state"], &flag["defaultVariant"]),
                (&json!("ENABLED"), &json!(variant)),
                "{flag}"
            );
            assert!(flag.get("targeting").is_none(), "{flag}");
        }
        assert_eq!((&told["metadata"]["a"], for_flagd(None)), (&json!(1), json!({ "flags": {} })));
    }

    #[test]
    fn validators_are_compared_as_flagd_sends_them() {
        let tag = HeaderValue::from_static("\"a\"");
        for (known, expected) in
            [("\"a\"", true), ("W/\"a\"", true), ("\"b\", \"a\"", true), ("\"b\"", false)]
        {
            assert_eq!(names(&HeaderValue::from_static(known), &tag), expected, "{known}");
        }
    }
}
