//! `gilmok flags`: what is on and for whom; changing flags, the kill switch, changes at a time, what testers see, and which flags could go.

mod view;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gilmok_config::moment::parse_moment;
use gilmok_control_plane::http_client::Request;
use hyper::Method;
use serde_json::{Map, Value as Json, json};

use super::apply::{Terms, told};
use super::check::read_tree;
use super::status::now_ms;
use crate::client::{Remote, encoded, writing};
use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  gilmok flags\n  gilmok flags kill new-ui --reason \"the page is slow\" --wait 5s\n  gilmok flags set flags.json                                the whole set, flagd's JSON\n  gilmok flags patch new-ui '{\"defaultVariant\": \"on\"}' --dry-run\n  gilmok flags schedule new-ui --at 2027-01-31T08:00:00Z --patch '{\"state\": \"ENABLED\"}'\n  gilmok flags explain new-ui --subject user-42 --context tier=gold\n  curl -H \"$(gilmok flags override new-ui=on --for 8h)\" http://shop.example.com/\n  gilmok flags stale --days 14"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Every flag: state, switch, default, when it was evaluated last
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// One flag as it was written, and what was observed of it
    Show {
        key: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Put the whole set, or with --flag one flag; flagd's JSON
    Set {
        /// - is standard input
        file: PathBuf,
        /// Only this flag: the file holds what stands behind its key
        #[arg(long, value_name = "KEY")]
        flag: Option<String>,
        #[command(flatten)]
        write: Write,
    },
    /// Change parts of a flag: a merge patch (RFC 7396)
    Patch {
        key: String,
        /// What is given replaces, null removes, objects are merged
        #[arg(value_parser = json_text)]
        patch: Json,
        #[command(flatten)]
        write: Write,
    },
    /// Delete a flag
    Delete {
        key: String,
        #[command(flatten)]
        write: Write,
    },
    /// Its off variant for everybody, whatever else it says
    Kill {
        key: String,
        #[command(flatten)]
        write: Write,
    },
    /// What it says holds again
    Unkill {
        key: String,
        #[command(flatten)]
        write: Write,
    },
    /// The changes of a flag that wait for their time; with --at one more, with --cancel one less
    Schedule {
        key: String,
        /// A moment to come, e.g. 2027-01-31T08:00:00Z
        #[arg(long, value_name = "MOMENT", value_parser = moment, requires = "patch", conflicts_with = "cancel")]
        at: Option<String>,
        /// What is changed then: a merge patch (RFC 7396)
        #[arg(long, value_name = "JSON", value_parser = json_text, requires = "at")]
        patch: Option<Json>,
        /// Take this change back
        #[arg(long, value_name = "ID")]
        cancel: Option<u64>,
        #[command(flatten)]
        write: Write,
    },
    /// Why a flag is what it is for somebody: rule, bucket, salt, hash version, prerequisites
    Explain {
        key: String,
        /// The targeting key
        #[arg(long)]
        subject: Option<String>,
        /// A further attribute; numbers, true and false are taken as such. May be given again
        #[arg(long, value_name = "NAME=VALUE", value_parser = attribute)]
        context: Vec<(String, Json)>,
        #[command(flatten)]
        remote: Remote,
    },
    /// A header with which a tester sees other variants, until it expires; a kill switch is stronger
    Override {
        /// May be given again
        #[arg(required = true, value_name = "FLAG=VARIANT", value_parser = choice)]
        flags: Vec<(String, String)>,
        /// How long it holds, at most 30 days
        #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
        ttl: String,
        /// Why, for the control plane's log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Flags that could go: past their day, out of use, or the same for everybody
    Stale {
        /// After how many days without use, or with one variant
        #[arg(long, default_value_t = 30)]
        days: u32,
        #[command(flatten)]
        remote: Remote,
    },
}

/// How flags are written.
#[derive(Debug, Args)]
struct Write {
    /// Although applications rely on it: another type, or deleting what is in use
    #[arg(long)]
    force: bool,
    /// Although flagd would warn of it
    #[arg(long)]
    accept_warnings: bool,
    /// Say whether anything would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    remote: Remote,
}

impl Write {
    /// Sends it, and says what became of it.
    fn send(&self, method: Method, path: &str, body: Option<&Json>, what: &str) -> Result<(), Trouble> {
        let words =
            [("force", self.force), ("accept_warnings", self.accept_warnings), ("dry_run", self.dry_run)];
        let words: Vec<String> =
            words.iter().filter(|(_, said)| *said).map(|(word, _)| format!("{word}=true")).collect();
        let more = Some(words.join("&")).filter(|more| !more.is_empty());
        let target = format!("{path}{}", self.terms.query(more.as_deref()));
        let request = match body {
            Some(body) => writing(method, target, body),
            None => Request::new(method, target),
        };
        let answer = self.remote.call(self.terms.of(request))?;
        if self.dry_run && !self.remote.json {
            let changes = answer.json["changed"].as_bool() == Some(true);
            say(if changes { "it can be done; it would be a new revision" } else { "nothing would change" });
            return Ok(());
        }
        told(&self.remote, &answer, what)
    }
}

fn json_text(text: &str) -> Result<Json, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}

fn moment(text: &str) -> Result<String, &'static str> {
    parse_moment(text).map(|_| text.to_owned())
}

fn choice(text: &str) -> Result<(String, String), &'static str> {
    let (flag, variant) = text.split_once('=').ok_or("a flag and its variant are FLAG=VARIANT")?;
    Ok((flag.to_owned(), variant.to_owned()))
}

/// Variants by flag, each flag once.
fn chosen(flags: &[(String, String)]) -> Result<Map<String, Json>, Trouble> {
    let mut chosen = Map::new();
    for (flag, variant) in flags {
        if chosen.insert(flag.clone(), Json::from(variant.as_str())).is_some() {
            return Err(Trouble::Faulty(format!("{flag} is given twice: one variant of a flag")));
        }
    }
    Ok(chosen)
}

fn attribute(text: &str) -> Result<(String, Json), &'static str> {
    let (name, value) = text.split_once('=').ok_or("an attribute is NAME=VALUE")?;
    let value = match serde_json::from_str(value) {
        Ok(Json::Bool(value)) => Json::from(value),
        Ok(Json::Number(value)) => Json::from(value),
        _ => Json::from(value),
    };
    Ok((name.to_owned(), value))
}

fn path(key: &str) -> String {
    format!("/v1/flags/{}", encoded(key))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let Some(task) = &arguments.task else { return list(&arguments.remote) };
    match task {
        Task::List { remote } => list(remote),
        Task::Show { key, remote } => show(remote, key),
        Task::Set { file, flag, write } => {
            let body = read_tree(file)?;
            match flag {
                Some(key) => {
                    write.send(Method::PUT, &path(key), Some(&body), &format!("{key} is as in the file"))
                }
                None => write.send(
                    Method::PUT,
                    "/v1/flags",
                    Some(&body),
                    &format!("the flags are those of {}", file.display()),
                ),
            }
        }
        Task::Patch { key, patch, write } => {
            write.send(Method::PATCH, &path(key), Some(patch), &format!("{key} is changed"))
        }
        Task::Delete { key, write } => {
            write.send(Method::DELETE, &path(key), None, &format!("{key} is deleted"))
        }
        Task::Kill { key, write } => {
            write.send(Method::POST, &format!("{}/kill", path(key)), None, &format!("{key} is killed"))
        }
        Task::Unkill { key, write } => {
            let what = format!("{key} is what it says again");
            write.send(Method::POST, &format!("{}/unkill", path(key)), None, &what)
        }
        Task::Schedule { key, at, patch, cancel, write } => {
            let path = format!("{}/schedule", path(key));
            match (at, patch, cancel) {
                (Some(at), Some(patch), _) => {
                    let body = json!({ "at": at, "patch": patch });
                    write.send(Method::POST, &path, Some(&body), &format!("{key} changes at {at}"))
                }
                (_, _, Some(id)) => {
                    let what = format!("the change {id} of {key} is taken back");
                    write.send(Method::DELETE, &format!("{path}/{id}"), None, &what)
                }
                _ => {
                    let waiting = write.remote.get(&path)?;
                    let json = write.remote.json;
                    say(&if json { format!("{waiting:#}") } else { view::scheduled(&waiting) });
                    Ok(())
                }
            }
        }
        Task::Explain { key, subject, context, remote } => {
            let context: Map<String, Json> = context.iter().cloned().collect();
            let question = json!({ "subject": subject, "context": context });
            let answer = remote.call(writing(Method::POST, format!("{}/explain", path(key)), &question))?;
            say(&if remote.json { format!("{:#}", answer.json) } else { view::explained(&answer.json) });
            Ok(())
        }
        Task::Override { flags, ttl, reason, remote } => {
            let wish = json!({ "flags": chosen(flags)?, "ttl": ttl });
            let why = reason.as_deref().map(|reason| format!("?reason={}", encoded(reason)));
            let target = format!("/v1/flag-overrides{}", why.unwrap_or_default());
            let signed = remote.call(writing(Method::POST, target, &wish))?.json;
            let text = |key: &str| signed[key].as_str().unwrap_or_default();
            // As a header, so that it can be given to curl as it is.
            let told = format!("{}: {}", text("name"), text("value"));
            say(&if remote.json { format!("{signed:#}") } else { told });
            Ok(())
        }
        Task::Stale { days, remote } => stale(remote, *days),
    }
}

fn list(remote: &Remote) -> Result<(), Trouble> {
    let overview = remote.get("/v1/flags?overview=true")?;
    say(&if remote.json { format!("{overview:#}") } else { view::listed(&overview, now_ms()) });
    Ok(())
}

fn show(remote: &Remote, key: &str) -> Result<(), Trouble> {
    let flag = remote.get(&path(key))?;
    if remote.json {
        say(&format!("{flag:#}"));
        return Ok(());
    }
    let overview = remote.get("/v1/flags?overview=true")?;
    let mut rows = overview["flags"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["flag"] == key).cloned().unwrap_or_default();
    say(&view::shown(&row, &flag, now_ms()));
    Ok(())
}

fn stale(remote: &Remote, days: u32) -> Result<(), Trouble> {
    let mut overview = remote.get(&format!("/v1/flags?overview=true&days={days}"))?;
    if let Some(rows) = overview["flags"].as_array_mut() {
        rows.retain(|row| row["stale"].as_array().is_some_and(|why| !why.is_empty()));
    }
    say(&if remote.json { format!("{:#}", overview["flags"]) } else { view::stale(&overview, now_ms()) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_texts_unless_they_are_numbers_or_truths() {
        for (text, value) in [
            ("tier=gold", json!("gold")),
            ("age=42", json!(42)),
            ("staff=true", json!(true)),
            ("x={}", json!("{}")),
            ("mail=a=b", json!("a=b")),
        ] {
            assert_eq!(attribute(text).unwrap().1, value, "{text}");
        }
        assert!(attribute("tier").is_err());
    }

    #[test]
    fn one_variant_of_a_flag_is_chosen() {
        let choices = |texts: &[&str]| texts.iter().map(|text| choice(text).unwrap()).collect::<Vec<_>>();
        assert_eq!(
            Json::from(chosen(&choices(&["a=on", "b=off"])).unwrap()),
            json!({ "a": "on", "b": "off" })
        );
        let twice = chosen(&choices(&["a=on", "b=off", "a=off"]));
        assert!(matches!(twice, Err(Trouble::Faulty(why)) if why.starts_with("a is given twice")));
        assert!(choice("a").is_err());
    }
}
