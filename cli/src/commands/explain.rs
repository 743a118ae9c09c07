//! `gilmok explain`: what would become of a request, decided where it would be.

use std::collections::BTreeMap;

use clap::Args;
use gilmok_control_plane::http_client::Origin;
use hyper::Method;
use serde_json::{Value as Json, json};

use crate::client::{Remote, writing};
use crate::table::indented;
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gilmok explain ads\n  gilmok explain shop.example.com --path /api/ads --header 'x-beta: 1' --listener edge\n  gilmok explain ads --proxy http://127.0.0.1:15000    as this proxy would do it now"
)]
pub(crate) struct Arguments {
    /// The host or service that is called
    host: String,
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value = "GET")]
    method: String,
    /// A header of the request, `name: value`; may be given again
    #[arg(long = "header", short = 'H', value_name = "LINE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Where the request comes in: outbound or edge
    #[arg(long, default_value = "outbound", value_parser = ["outbound", "edge"])]
    listener: String,
    /// Ask this proxy's admin listener instead of the control plane
    #[arg(long, value_name = "URL")]
    proxy: Option<Origin>,
    #[command(flatten)]
    remote: Remote,
}

fn header(line: &str) -> Result<(String, String), &'static str> {
    let (name, value) = line.split_once(':').ok_or("a header is `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let headers: BTreeMap<_, _> = arguments.headers.iter().cloned().collect();
    let question = json!({
        "host": arguments.host, "path": arguments.path, "method": arguments.method,
        "listener": arguments.listener, "headers": headers,
    });
    let remote = &arguments.remote;
    let answer = match &arguments.proxy {
        None => remote.call(writing(Method::POST, "/v1/explain", &question))?,
        Some(proxy) => remote.call_at(proxy, "proxy", writing(Method::POST, "/explain", &question))?,
    };
    if remote.json {
        say(&format!("{:#}", answer.json));
    } else {
        say(&shown(&answer.json));
    }
    Ok(())
}

fn shown(answer: &Json) -> String {
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let asked = &answer["request"];
    let request = format!(
        "{} {} at {}, {}",
        text(&asked["method"]),
        text(&asked["path"]),
        text(&asked["host"]),
        text(&asked["listener"])
    );
    let decision = &answer["decision"];
    // A proxy tells a refusal beside the decision, the control plane inside it.
    let refused = [&answer["refusal"]["error"], &decision["refused"]].into_iter().find_map(Json::as_str);
    let why = [&answer["refusal"]["why"], &decision["why"]].into_iter().find_map(Json::as_str);
    let mut rows = vec![("request", request)];
    match refused {
        Some(refused) => rows.push(("refused", refused.to_owned())),
        None => rows.push(("goes to", text(&decision["service"]))),
    }
    rows.extend(why.map(|why| ("because", why.to_owned())));
    let endpoints = [&decision["endpoints"], &answer["service"]["endpoints"]];
    for endpoint in endpoints.into_iter().filter_map(Json::as_array).flatten() {
        let more = ["version", "shard", "zone", "health"].into_iter().filter_map(|field| {
            endpoint[field].as_str().filter(|value| !value.is_empty()).map(|value| format!("{field} {value}"))
        });
        let line: Vec<_> = std::iter::once(text(&endpoint["address"])).chain(more).collect();
        rows.push(("endpoint", line.join(", ")));
    }
    if refused.is_none() && rows.iter().all(|(name, _)| *name != "endpoint") {
        rows.push(("endpoint", "none is alive: it would be refused with 503".to_owned()));
    }
    if let Some(revision) = answer["revision"].as_u64() {
        rows.push(("revision", revision.to_string()));
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    indented(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_planes_answers_are_shown_alike() {
        let request = json!({ "method": "GET", "path": "/", "host": "ads", "listener": "outbound" });
        let endpoints = json!([{ "address": "10.0.0.1:80", "version": "v1", "shard": "" }]);
        let of_plane = json!({ "request": request, "revision": 2,
            "decision": { "service": "ads", "why": "its name", "endpoints": endpoints } });
        let of_proxy = json!({ "request": request, "revision": 2, "decision": { "service": "ads", "why": "its name" },
            "service": { "endpoints": endpoints } });
        assert_eq!(shown(&of_plane), shown(&of_proxy));
        assert!(shown(&of_plane).contains("endpoint  10.0.0.1:80, version v1"), "{}", shown(&of_plane));
        let refused =
            json!({ "request": request, "refusal": { "error": "destination_not_found", "why": "nobody" } });
        assert!(
            shown(&refused).contains("refused  destination_not_found\n  because  nobody"),
            "{}",
            shown(&refused)
        );
        assert!(header("no colon").is_err());
    }
}
