//! `gilmok identity`: who makes certificates of services' identities, tokens by which proxies join, and changes of the root.

use clap::{Args, Subcommand};
use gilmok_config::name::ServiceName;
use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value as Json, json};

use crate::client::{Remote, encoded, writing};
use crate::table::{or_dash, table};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gilmok identity show\n  gilmok identity join-token shop --ttl 15m > join.token\n  gilmok identity rotate"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// The authority, its roots, and until when the certificates of proxies last
    Show {
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a token by which proxies of a service get their first certificate; it is printed once
    JoinToken {
        #[arg(value_parser = ServiceName::parse)]
        service: ServiceName,
        /// How long it may be used
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        ttl: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make the next step of a change of the root: announce a new one, let it sign, retire the old one
    Rotate {
        /// Give up a change whose new root does not sign yet
        #[arg(long)]
        give_up: bool,
        /// Do it although proxies are behind, or certificates of the old root have not ended
        #[arg(long)]
        force: bool,
        /// Why; kept in the control plane's log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    match &arguments.task {
        Task::Show { remote } => show(remote),
        Task::JoinToken { service, ttl, remote } => join_token(remote, service, ttl),
        Task::Rotate { give_up, force, reason, remote } => {
            rotate(remote, *give_up, *force, reason.as_deref().unwrap_or_default())
        }
    }
}

fn show(remote: &Remote) -> Result<(), Trouble> {
    let told = remote.get("/v1/identity")?;
    if remote.json {
        say(&format!("{told:#}"));
    } else {
        say(&shown(&told));
    }
    Ok(())
}

fn shown(told: &Json) -> String {
    let text = |value: &Json| or_dash(value.as_str().unwrap_or_default());
    let whose = if told["given"] == true { "given by files" } else { "its own" };
    let mut lines = vec![format!(
        "trust domain {}, certificates for {}, authority: {whose}, until {}",
        text(&told["trust_domain"]),
        text(&told["leaf_ttl"]),
        text(&told["signs_until"]),
    )];
    if told["given"] != true {
        lines.push(format!("a change of the root: {}", phase(told)));
    }
    let roots = told["roots"].as_array().into_iter().flatten().map(|root| {
        let signs = if root["signs"] == true { "signs" } else { "is trusted" };
        [text(&root["name"]), signs.to_owned(), text(&root["ends"])]
    });
    lines.push(table(["root", "what it does", "until"], roots));
    let proxies = told["proxies"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !proxies.is_empty() {
        let rows = proxies.iter().map(|proxy| {
            let roots = match (proxy["live"] == true, proxy["has_roots"] == true) {
                (false, _) => "SILENT",
                (true, false) => "BEHIND",
                (true, true) => "has them",
            };
            [text(&proxy["node"]), text(&proxy["ends"]), roots.to_owned()]
        });
        lines.push(table(["proxy", "certificate until", "roots"], rows));
    }
    lines.join("\n")
}

fn phase(told: &Json) -> String {
    match told["phase"].as_str() {
        Some("announced") => {
            let from = told["may_sign_from"].as_str().unwrap_or("now");
            format!("the new one is trusted; from {from} on `gilmok identity rotate` lets it sign")
        }
        Some("signing") => {
            let end = told["old_certificates_end"].as_str().unwrap_or("now");
            format!("the new one signs; from {end} on `gilmok identity rotate` retires the old one")
        }
        _ => "none".to_owned(),
    }
}

fn join_token(remote: &Remote, service: &ServiceName, ttl: &str) -> Result<(), Trouble> {
    let wish = json!({
        "name": format!("join {service}"),
        "scopes": ["join"],
        "services": [service],
        "ttl": ttl,
    });
    let made = remote.call(writing(Method::POST, "/v1/tokens", &wish))?.json;
    if remote.json {
        say(&format!("{made:#}"));
    } else {
        // Nothing else: it goes into a file.
        say(made["token"].as_str().unwrap_or_default());
    }
    Ok(())
}

fn rotate(remote: &Remote, give_up: bool, force: bool, reason: &str) -> Result<(), Trouble> {
    let before = remote.get("/v1/identity")?;
    let to = match (give_up, before["phase"].as_str()) {
        (false, _) => before["next"].as_str().unwrap_or_default(),
        (true, Some("announced")) => "settled",
        (true, _) => {
            return Err(Trouble::Refused("there is no change of the root that could be given up".to_owned()));
        }
    };
    let target = format!("/v1/identity/roots/rotate?reason={}", encoded(reason));
    let mut request = writing(Method::POST, target, &json!({ "to": to, "force": force }));
    let who = std::env::var("USER").ok().and_then(|user| HeaderValue::from_str(&user).ok());
    if let Some(who) = who {
        request = request.header(HeaderName::from_static("gilmok-who"), who);
    }
    remote.call(request)?;
    let after = remote.get("/v1/identity")?;
    if remote.json {
        say(&format!("{after:#}"));
    } else {
        say(&shown(&after));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_and_what_is_next_stands_out() {
        let told = json!({
            "trust_domain": "mesh.local", "leaf_ttl": "1h", "given": false, "signs_until": "2036", "phase": "signing",
            "old_certificates_end": "12:00",
            "roots": [{ "name": "new", "signs": true, "ends": "2036" }, { "name": "old", "signs": false, "ends": "2030" }],
            "proxies": [{ "node": "web-1", "live": true, "ends": "13:00", "has_roots": false },
                { "node": "web-2", "live": false, "ends": "13:00", "has_roots": false }],
        });
        let shown = shown(&told);
        assert!(shown.contains("from 12:00 on `gilmok identity rotate` retires"), "{shown}");
        assert!(shown.contains("web-1  13:00              BEHIND"), "{shown}");
        assert!(shown.contains("web-2  13:00              SILENT"), "{shown}");
        assert!(shown.contains("old   is trusted"), "{shown}");
    }
}
