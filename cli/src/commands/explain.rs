//! `gilmok explain`: what would become of a request, decided where it would be.

use std::collections::BTreeMap;

use clap::Args;
use gilmok_config::assignment::PLACES;
use gilmok_control_plane::http_client::Origin;
use hyper::Method;
use serde_json::{Value as Json, json};

use crate::client::{Remote, writing};
use crate::table::indented;
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gilmok explain ads\n  gilmok explain checkout --subject user-42           which version this user gets, and why\n  gilmok explain shop.example.com --path /api/ads --header 'x-beta: 1' --listener edge\n  gilmok explain ads --proxy http://127.0.0.1:15000    as this proxy would do it now"
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
    /// Who is asking; is put where the service looks for it
    #[arg(long)]
    subject: Option<String>,
    /// What it is sharded by, as if it stood where the service looks for it
    #[arg(long)]
    key: Option<String>,
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
        "listener": arguments.listener, "headers": headers, "subject": arguments.subject, "key": arguments.key,
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
    match &decision["split"] {
        Json::Null if refused.is_none() && asked["subject"].is_string() => {
            rows.push(("version", "any: it has no traffic table, all versions are one pool".to_owned()));
        }
        split => rows.extend(version_rows(split)),
    }
    rows.extend(shard_row(&decision["shard"]));
    rows.extend(flag_rows(decision));
    if let Some(why) = decision["balancing"]["why"].as_str() {
        rows.push(("balanced", format!("{}: {why}", text(&decision["balancing"]["load_balancer"]))));
    }
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

/// Which version it is, and everything that this followed from.
fn version_rows(split: &Json) -> Vec<(&'static str, String)> {
    let Some(version) = split["version"].as_str() else { return Vec::new() };
    let because = split["why"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    let mut rows = vec![("version", format!("{version}{because}"))];
    if let Some(place) = split["place"].as_u64() {
        let salt = split["salt"].as_str().unwrap_or_default();
        rows.push(("bucket", format!("{place} of {PLACES}, by the salt `{salt}`")));
        let ranges = split["table"].as_array().into_iter().flatten();
        let mut ranges =
            ranges.filter_map(|range| Some((range[0].as_str()?, range[1].as_u64()?, range[2].as_u64()?)));
        if let Some((owner, start, end)) = ranges.find(|(_, start, end)| (*start..*end).contains(&place)) {
            rows.push(("range", format!("{start} up to {end} is {owner}'s")));
        }
    }
    let moved = match split["moved_from"].as_str() {
        None => "no".to_owned(),
        Some(from) => format!("yes: it would be {from}, which has no healthy endpoint"),
    };
    rows.push(("moved", moved));
    rows
}

/// Which flags the service would be told, and why an override that came along is not believed.
fn flag_rows(decision: &Json) -> impl Iterator<Item = (&'static str, String)> {
    let told = decision["flags"]["header"].as_str().filter(|header| !header.is_empty());
    let refused = decision["override_refused"].as_str().map(|why| format!("not believed: {why}"));
    told.map(|told| ("flags", told.to_owned())).into_iter().chain(refused.map(|why| ("override", why)))
}

/// Which shard it is, and why.
fn shard_row(shard: &Json) -> Option<(&'static str, String)> {
    let why = shard["why"].as_str()?;
    let name = shard["shard"].as_str().unwrap_or("any");
    let slot = shard["slot"].as_u64().map(|slot| format!(", slot {slot}")).unwrap_or_default();
    Some(("shard", format!("{name}{slot}: {why}")))
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
        let sharded = json!({ "request": request, "decision": { "service": "ads", "why": "its name",
            "shard": { "shard": "0", "slot": 7, "why": "slots by host" } } });
        assert!(shown(&sharded).contains("shard     0, slot 7: slots by host"), "{}", shown(&sharded));
        let flagged = json!({ "request": request, "decision": { "service": "ads", "why": "its name",
            "flags": { "header": "a;v=on" }, "override_refused": "over" } });
        let told = shown(&flagged);
        assert!(told.contains("flags     a;v=on\n  override  not believed: over\n"), "{told}");
        assert!(!shown(&sharded).contains("override"), "{}", shown(&sharded));
        let balanced = json!({ "request": request, "decision": { "service": "ads", "why": "its name",
            "balancing": { "load_balancer": "maglev", "why": "by the subject" } } });
        assert!(shown(&balanced).contains("balanced  maglev: by the subject"), "{}", shown(&balanced));
    }

    #[test]
    fn a_subjects_version_is_told_with_all_that_decided() {
        let answer = |split: Json| {
            json!({
                "request": { "method": "GET", "path": "/", "host": "checkout", "listener": "outbound", "subject": "user-42" },
                "revision": 3,
                "decision": { "service": "checkout", "why": "its name", "split": split, "endpoints": [{ "address": "10.0.0.1:80" }] },
            })
        };
        let split = json!({
            "version": "v2", "why": "the subject's place in the table", "place": 4_711, "salt": "checkout", "stable": "v1",
            "table": [["v2", 0, 10_000], ["v1", 10_000, 1_000_000]], "moved_from": null,
        });
        let told = shown(&answer(split.clone()));
        let expected = "  request   GET / at checkout, outbound
  goes to   checkout
  because   its name
  version   v2: the subject's place in the table
  bucket    4711 of 1000000, by the salt `checkout`
  range     0 up to 10000 is v2's
  moved     no
  endpoint  10.0.0.1:80
  revision  3";
        assert_eq!(told, expected);
        let moved = json!({ "version": "v1", "why": "pins[0]", "place": null, "moved_from": "v2" });
        let told = shown(&answer(moved));
        assert!(
            told.contains("version   v1: pins[0]\n  moved     yes: it would be v2, which has no healthy"),
            "{told}"
        );
        assert!(shown(&answer(Json::Null)).contains("version   any: it has no traffic table"));
    }
}
