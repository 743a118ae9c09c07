//! `gilmok breakers`: what guards the services in one proxy, and the operators' hand on it.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use gilmok_config::unit::{format_duration, parse_duration};
use gilmok_control_plane::http_client::{Origin, Request};
use hyper::Method;
use serde_json::{Value as Json, json};

use super::apply::{Terms, told};
use crate::client::{Remote, encoded, writing};
use crate::table::{or_dash, table};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok breakers\n  gilmok breakers --service ads --proxy http://127.0.0.1:15000\n  gilmok breakers force ads open --for 10m     the drill: what does the page look like without ads?\n  gilmok breakers force ads auto"
)]
pub(crate) struct Arguments {
    /// Only those of this service
    #[arg(long, short)]
    service: Option<String>,
    /// The proxy's admin listener; each proxy has breakers of its own
    #[arg(long, value_name = "URL", env = "GILMOK_CLI_PROXY", default_value = "http://127.0.0.1:15000")]
    proxy: Origin,
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Say what the breakers of a service do, in every proxy, whatever their calls come to
    Force {
        service: String,
        state: State,
        /// For how long, e.g. 10m; until something else is said when it is left out
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        during: Option<Duration>,
        /// Only this version
        #[arg(long)]
        version: Option<String>,
        /// Only this shard
        #[arg(long)]
        shard: Option<String>,
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Refuse every call: fallbacks are given
    Open,
    /// Let every call through
    Closed,
    /// What the calls come to decides again
    Auto,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|hint| hint.to_string())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(arguments),
        Some(Task::Force { service, state, during, version, shard, terms, remote }) => {
            let word = match state {
                State::Open => "open",
                State::Closed => "closed",
                State::Auto => "auto",
            };
            let mut body = json!({ "force": word });
            if let Some(during) = during {
                body["for"] = json!(format_duration(*during));
            }
            for (key, value) in [("version", version), ("shard", shard)] {
                if let Some(value) = value {
                    body[key] = json!(value);
                }
            }
            let target = format!("/v1/services/{}/breaker{}", encoded(service), terms.query(None));
            let answer = remote.call(terms.of(writing(Method::PUT, target, &body)))?;
            told(remote, &answer, &format!("the breaker of {service} is {word}"))
        }
    }
}

fn list(arguments: &Arguments) -> Result<(), Trouble> {
    let query = arguments.service.as_deref().map(|service| format!("?service={}", encoded(service)));
    let target = format!("/breakers{}", query.unwrap_or_default());
    let remote = &arguments.remote;
    let answer = remote.call_at(&arguments.proxy, "proxy", Request::get(target))?;
    if remote.json {
        say(&format!("{:#}", answer.json));
        return Ok(());
    }
    let breakers = answer.json["breakers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if breakers.is_empty() {
        say(
            "no breakers there: a service has one when its table has `circuit_breaker`, or when it is forced",
        );
        return Ok(());
    }
    let head = ["service", "version", "shard", "state", "calls", "failed", "slow", "opened", "forced by"];
    say(&table(head, breakers.iter().map(row)));
    Ok(())
}

fn row(breaker: &Json) -> [String; 9] {
    let text = |value: &Json| or_dash(value.as_str().unwrap_or_default());
    let count = |value: &Json| value.as_u64().unwrap_or_default().to_string();
    let window = &breaker["window"];
    [
        text(&breaker["service"]),
        text(&breaker["version"]),
        text(&breaker["shard"]),
        text(&breaker["state"]),
        count(&window["calls"]),
        count(&window["failures"]),
        count(&window["slow"]),
        count(&breaker["opened"]),
        forced(&breaker["forced"]),
    ]
}

fn forced(forced: &Json) -> String {
    if forced.is_null() {
        return "-".to_owned();
    }
    let by = forced["by"].as_str().unwrap_or_default();
    // Whole seconds: nobody waits for the rest.
    let left = forced["for_ms"].as_u64().map(|ms| Duration::from_secs(ms.div_ceil(1_000)));
    match left {
        Some(left) => format!("{by}, {} left", format_duration(left)),
        None => format!("{by}, until changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_forced_it_and_for_how_long_is_told() {
        assert_eq!(forced(&json!({ "by": "ann", "for_ms": 599_100 })), "ann, 10m left");
        assert_eq!(forced(&json!({ "by": "ann", "for_ms": null })), "ann, until changed");
        assert_eq!(forced(&Json::Null), "-");
    }
}
