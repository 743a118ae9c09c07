//! Who answers and what it was asked: the part of every answer that shows how the request came.

use hyper::HeaderMap;
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use crate::arguments::Arguments;
use crate::features::FEATURE_FLAGS;

/// Says who this process is and what a request looked like when it arrived.
pub(crate) fn introduce(arguments: &Arguments, head: &Parts) -> Map<String, Value> {
    let mut said = Map::new();
    said.insert("service".to_owned(), json!(arguments.service));
    said.insert("version".to_owned(), json!(arguments.version));
    said.insert("shard".to_owned(), json!(arguments.shard));
    said.insert("pid".to_owned(), json!(std::process::id()));
    said.insert("method".to_owned(), json!(head.method.as_str()));
    said.insert("path".to_owned(), json!(head.uri.to_string()));
    let headers = headers(&head.headers);
    said.insert("flags".to_owned(), headers.get(FEATURE_FLAGS).cloned().unwrap_or(Value::Null));
    said.insert("headers".to_owned(), Value::Object(headers));
    said
}

/// Headers as one object; the values of a repeated one are joined as RFC 9110 allows.
fn headers(map: &HeaderMap) -> Map<String, Value> {
    let values = |name| {
        let values = map.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(", ")
    };
    map.keys().map(|name| (name.as_str().to_owned(), Value::String(values(name)))).collect()
}

/// Whether an answer should be a page: what the query says, else what `Accept` likes better.
pub(crate) fn wants_html(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    for pair in query.split('&') {
        match pair {
            "format=json" => return false,
            "format=html" => return true,
            _ => {}
        }
    }
    let accept = head.headers.get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| quality(accept, "text/html") > quality(accept, "application/json"))
}

/// How much `Accept` likes exactly this type, in thousandths; 0 when it does not name it.
fn quality(accept: &str, kind: &str) -> u16 {
    let liked = accept.split(',').filter_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let named = parts.next()?;
        let quality = parts.find_map(|part| part.strip_prefix("q="));
        named.eq_ignore_ascii_case(kind).then(|| quality.map_or(1000, thousandths))
    });
    liked.max().unwrap_or(0)
}

fn thousandths(text: &str) -> u16 {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if whole == "1" {
        return 1000;
    }
    let digits = rest.get(..rest.len().min(3)).unwrap_or_default();
    format!("{digits:0<3}").parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_page_goes_to_whoever_likes_pages_better() {
        for (accept, uri, expected) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", "/", true),
            ("*/*", "/", false),
            ("application/json", "/", false),
            ("text/html;q=0.5, application/json;q=0.9", "/", false),
            ("text/html;q=0.95, application/json;q=0.9", "/", true),
            ("text/html", "/?format=json", false),
            ("*/*", "/?a=b&format=html", true),
        ] {
            assert_eq!(wants_html(&head(uri, &[("accept", accept)])), expected, "{accept} {uri}");
        }
        assert!(!wants_html(&head("/", &[])));
    }

    #[test]
    fn an_answer_shows_who_gives_it_and_what_arrived() {
        use clap::Parser as _;
        let arguments = Arguments::parse_from(["app", "--service", "ads", "--version", "v2", "--shard", "3"]);
        let head = head("/x?y=1", &[("feature-flags", "new-ui;v=on"), ("x-a", "1"), ("x-a", "2")]);
        let said = introduce(&arguments, &head);
        assert_eq!(said["service"], "ads");
        assert_eq!(said["version"], "v2");
        assert_eq!(said["shard"], "3");
        assert_eq!(said["path"], "/x?y=1");
        assert_eq!(said["flags"], "new-ui;v=on");
        assert_eq!(said["headers"]["x-a"], "1, 2");
    }
}
