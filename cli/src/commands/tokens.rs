//! `gilmok tokens`: who may ask the control plane for what: make tokens, list them, revoke one.

use clap::{Args, Subcommand};
use gilmok_control_plane::http_client::Request;
use hyper::Method;
use serde_json::{Value as Json, json};

use super::apply::by_user;
use crate::client::{Remote, encoded, writing};
use crate::table::{or_dash, table};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok tokens create deploys --scope traffic --service shop --ttl 720h > deploys.token\n  gilmok tokens\n  gilmok tokens revoke 0123456789abcdef"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make a token; its text is printed now and never again
    Create {
        /// What it is for, in your words
        name: String,
        /// What it may do: read, flags, traffic, admin, proxy, join; may be given several times
        #[arg(long, value_name = "SCOPE", required = true)]
        scope: Vec<String>,
        /// Only for this service; may be given several times
        #[arg(long, value_name = "SERVICE")]
        service: Vec<String>,
        /// How long it lasts, e.g. 720h; default: until it is revoked
        #[arg(long, value_name = "DURATION")]
        ttl: Option<String>,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Every token, without its text
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Revoke a token, at once
    Revoke {
        /// Its id, as `gilmok tokens` lists it
        id: String,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Who made and revoked which token, newest first
    Audit {
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        None => list(&arguments.remote),
        Some(Task::List { remote }) => list(remote),
        Some(Task::Create { name, scope, service, ttl, reason, remote }) => {
            let mut wish = json!({ "name": name, "scopes": scope });
            if !service.is_empty() {
                wish["services"] = json!(service);
            }
            if let Some(ttl) = ttl {
                wish["ttl"] = json!(ttl);
            }
            create(remote, &target("/v1/tokens", reason.as_deref()), &wish)
        }
        Some(Task::Revoke { id, reason, remote }) => revoke(remote, id, reason.as_deref()),
        Some(Task::Audit { remote }) => audit(remote),
    }
}

fn target(path: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| path.to_owned(), |reason| format!("{path}?reason={}", encoded(reason)))
}

/// Only the text goes to stdout, so that it can be sent to a file.
fn create(remote: &Remote, target: &str, wish: &Json) -> Result<(), Trouble> {
    let made = remote.call(by_user(writing(Method::POST, target, wish)))?.json;
    if remote.json {
        say(&format!("{made:#}"));
    } else {
        say(made["token"].as_str().unwrap_or_default());
    }
    Ok(())
}

fn list(remote: &Remote) -> Result<(), Trouble> {
    let tokens = remote.get("/v1/tokens")?;
    if remote.json {
        say(&format!("{tokens:#}"));
        return Ok(());
    }
    let tokens = tokens.as_array().map(Vec::as_slice).unwrap_or_default();
    if tokens.is_empty() {
        say("there is no token; `gilmok tokens create` makes one");
        return Ok(());
    }
    say(&table(["id", "name", "scopes", "services", "ends", "made by"], tokens.iter().map(row)));
    Ok(())
}

fn row(token: &Json) -> [String; 6] {
    let text = |key: &str| token[key].as_str().unwrap_or_default().to_owned();
    let words = |key: &str| {
        let words = token[key].as_array().into_iter().flatten().filter_map(Json::as_str);
        words.collect::<Vec<_>>().join(" ")
    };
    let services = if token["services"].is_null() { "all".to_owned() } else { words("services") };
    let ends = match (token["expired"].as_bool(), token["expires"].as_str()) {
        (Some(true), Some(end)) => format!("ENDED {end}"),
        (_, end) => end.unwrap_or("never").to_owned(),
    };
    [text("id"), text("name"), words("scopes"), services, ends, or_dash(text("created_by"))]
}

fn revoke(remote: &Remote, id: &str, reason: Option<&str>) -> Result<(), Trouble> {
    let path = format!("/v1/tokens/{}", encoded(id));
    remote.bytes(by_user(Request::new(Method::DELETE, target(&path, reason))))?;
    if remote.json {
        say(&format!("{:#}", json!({ "revoked": id })));
    } else {
        say(&format!("the token {id} is nobody's any more"));
    }
    Ok(())
}

fn audit(remote: &Remote) -> Result<(), Trouble> {
    let deeds = remote.get("/v1/tokens/audit")?;
    if remote.json {
        say(&format!("{deeds:#}"));
        return Ok(());
    }
    let row = |deed: &Json| {
        let text = |key: &str| or_dash(deed[key].as_str().unwrap_or_default());
        let at = deed["at_ms"].as_u64().unwrap_or_default() / 1_000;
        [
            gilmok_config::moment::format_moment(at),
            text("who"),
            text("what"),
            text("token"),
            text("name"),
            text("reason"),
        ]
    };
    let deeds = deeds.as_array().map(Vec::as_slice).unwrap_or_default();
    say(&table(["when", "who", "what", "token", "name", "why"], deeds.iter().map(row)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_and_what_is_for_all_services_stands_out() {
        let mut token = json!({ "id": "ab", "name": "ci", "scopes": ["read", "traffic"], "created_by": "ann",
            "expires": "2027-01-01T00:00:00Z", "expired": true });
        let [.., services, ends, _] = row(&token);
        assert_eq!((services.as_str(), ends.as_str()), ("all", "ENDED 2027-01-01T00:00:00Z"));
        token["services"] = json!(["ads", "shop"]);
        (token["expires"], token["expired"]) = (Json::Null, json!(false));
        assert_eq!(row(&token), ["ab", "ci", "read traffic", "ads shop", "never", "ann"]);
    }
}
