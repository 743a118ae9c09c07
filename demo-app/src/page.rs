//! What answers look like: JSON for programs, a page for people.

use std::fmt::Write as _;

use serde_json::{Map, Value};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
section{border:1px solid #ccc;border-radius:.5rem;padding:.5rem 1rem;margin:1rem 0}\
.failed{border-color:#c33;background:#fee}table{border-collapse:collapse}\
td,th{padding:.1rem 1rem .1rem 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}";

/// A page that shows an answer: who gives it, its parts if it has any, and what arrived.
pub(crate) fn page(said: &Map<String, Value>) -> String {
    let title = format!("{} {}", text(&said["service"]), text(&said["version"]));
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style><h1>{0}</h1>",
        escaped(&title)
    );
    who(&mut html, said);
    if let Some(Value::Object(features)) = said.get("features") {
        html.push_str("<h2>Features, asked for</h2><table>");
        for (name, told) in features {
            let on = if told["value"] == true { "on" } else { "off" };
            row(&mut html, name, on);
        }
        html.push_str("</table>");
    }
    if let Some(Value::Object(parts)) = said.get("parts") {
        for (service, part) in parts {
            part_of_page(&mut html, service, part);
        }
    }
    if let Some(Value::Object(headers)) = said.get("headers") {
        html.push_str("<h2>What arrived</h2><table>");
        for (name, value) in headers {
            row(&mut html, name, &text(value));
        }
        html.push_str("</table>");
    }
    html.push_str("</html>\n");
    html
}

fn part_of_page(html: &mut String, service: &str, part: &Value) {
    let failed = part.get("failed");
    let class = if failed.is_some() { " class=\"failed\"" } else { "" };
    push(html, format_args!("<section{class}><h2>{}</h2>", escaped(service)));
    match (failed, part.get("answer")) {
        (Some(reason), _) => {
            push(html, format_args!("<p>This part is missing: {}.</p>", escaped(&text(reason))));
        }
        (None, Some(Value::Object(answer))) => who(html, answer),
        (None, Some(other)) => push(html, format_args!("<p>{}</p>", escaped(&text(other)))),
        (None, None) => {}
    }
    push(html, format_args!("<p><small>{} ms</small></p></section>", text(&part["ms"])));
}

fn who(html: &mut String, said: &Map<String, Value>) {
    html.push_str("<table>");
    for key in ["service", "version", "shard", "pid", "flags"] {
        if let Some(value) = said.get(key).filter(|value| !value.is_null() && *value != "") {
            row(html, key, &text(value));
        }
    }
    html.push_str("</table>");
    if let Some(image) = said.get("image").and_then(Value::as_str) {
        push(html, format_args!("<p><img src=\"{0}\" alt=\"{0}\"></p>", escaped(image)));
    }
}

fn row(html: &mut String, name: &str, value: &str) {
    push(html, format_args!("<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value)));
}

fn push(html: &mut String, piece: std::fmt::Arguments<'_>) {
    html.write_fmt(piece).expect("invariant: a string takes any text");
}

/// A value as people write it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_says_which_part_is_missing_and_why() {
        let said = json!({
            "service": "shop", "version": "v1", "shard": "", "pid": 7, "flags": null,
            "parts": {
                "ads": {"ms": 2000, "failed": "no answer within 2 s"},
                "profile": {"ms": 3, "answer": {"service": "profile", "version": "v1", "shard": "1", "pid": 8}},
            },
            "headers": {"host": "shop"},
        });
        let html = page(said.as_object().unwrap());
        assert!(html.contains(
            "<section class=\"failed\"><h2>ads</h2><p>This part is missing: no answer within 2 s.</p>"
        ));
        assert!(html.contains("<section><h2>profile</h2>"));
        assert!(html.contains("<tr><th>shard</th><td>1</td></tr>"));
    }

    #[test]
    fn a_picture_is_shown() {
        let house = json!({"service": "ads", "image": "/house-ad.svg"});
        let said = json!({"service": "shop", "version": "v1", "parts": {"ads": {"ms": 1, "answer": house}}});
        assert!(page(said.as_object().unwrap()).contains("<img src=\"/house-ad.svg\""));
    }

    #[test]
    fn nothing_that_callers_send_becomes_markup() {
        let said = json!({"service": "ads", "version": "v1", "headers": {"x": "<script>\"'&"}});
        let html = page(said.as_object().unwrap());
        assert!(html.contains("&lt;script&gt;&quot;&#39;&amp;"));
        assert!(!html.contains("<script>"));
    }
}
