//! The front page of the shop: made of what the other services answer, each called at the same time.

use hyper::HeaderMap;
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use crate::calls::{Called, call};

/// The service that plays this part.
pub(crate) const SERVICE: &str = "shop";
/// Who is meant when nobody says who is asking.
const GUEST: &str = "guest";

/// Adds the parts of the page: what each service answered, or why it is missing.
pub(crate) async fn add_parts(said: &mut Map<String, Value>, mesh: &str, head: &Parts) {
    let headers = &head.headers;
    let profile = format!("/users/{}", segment(user(headers)));
    let (ads, checkout, profile) = tokio::join!(
        call(mesh, "ads", "/", headers),
        call(mesh, "checkout", "/", headers),
        call(mesh, "profile", &profile, headers),
    );
    let parts = [("ads", ads), ("checkout", checkout), ("profile", profile)];
    let missing = parts.iter().filter(|(_, called)| called.result.is_err());
    let missing: Vec<_> = missing.map(|(service, _)| *service).collect();
    said.insert("whole".to_owned(), json!(missing.is_empty()));
    said.insert("missing".to_owned(), json!(missing));
    let parts = parts.into_iter().map(|(service, called)| (service.to_owned(), part(called)));
    said.insert("parts".to_owned(), Value::Object(parts.collect()));
}

fn part(Called { result, took }: Called) -> Value {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(answer) => json!({"ms": ms, "answer": answer}),
        Err(failed) => json!({"ms": ms, "failed": failed.to_string()}),
    }
}

/// Who is asking.
pub(crate) fn user(headers: &HeaderMap) -> &str {
    headers
        .get("x-user-id")
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty())
        .unwrap_or(GUEST)
}

/// One segment of a path, whatever is in it.
fn segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        // A dot, too: a segment of dots alone means something else.
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_segment_of_the_path() {
        assert_eq!(segment("ada-1"), "ada-1");
        assert_eq!(segment("../a b/ü?"), "%2E%2E%2Fa%20b%2F%C3%BC%3F");
    }
}
