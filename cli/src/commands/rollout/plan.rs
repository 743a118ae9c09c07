//! The plan of a rollout, as it is typed or written in a file.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use gilmok_config::name::Name;
use gilmok_config::unit::{Ppm, format_duration, parse_duration};
use serde_json::{Value as Json, json};

use super::super::check::read_tree;
use super::super::share::{number, version_named};
use crate::trouble::Trouble;

/// Most steps that are typed.
const STEPS_MAX: usize = 100;

/// What is to happen.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// The version that everybody is to come to
    #[arg(long, value_name = "VERSION", value_parser = version_named, required_unless_present = "file")]
    to: Option<Name>,
    /// The version that everybody has now; needed where the service has no traffic table yet
    #[arg(long, value_name = "VERSION", value_parser = version_named)]
    stable: Option<Name>,
    #[command(flatten)]
    way: Way,
    /// When the version is bad: back to where everybody was, or stop and ask a human
    #[arg(long, value_enum)]
    on_fail: Option<OnFail>,
    /// How many times as often as the stable version's its requests may fail, e.g. 2
    #[arg(long, value_name = "NUMBER")]
    max_ratio: Option<f64>,
}

/// By which steps.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Way {
    /// Canary10Percent5Minutes (10, 15, 30), Linear10PercentEvery1Minute (2Minutes, 3, 10), AllAtOnce, OneAtATime, HalfAtATime
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Shares with the time that each holds, and gates that wait for a human, e.g. 1%:5m,10%:10m,gate,100%
    #[arg(long, value_name = "STEPS", value_parser = steps)]
    steps: Option<Steps>,
    /// A plan, TOML or JSON; - is standard input
    #[arg(long)]
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnFail {
    Rollback,
    Freeze,
}

/// Steps as a plan has them.
#[derive(Clone, Debug)]
struct Steps(Vec<Json>);

impl Wanted {
    /// The plan to put; what is typed wins over what is in the file.
    pub(super) fn plan(&self) -> Result<Json, Trouble> {
        let mut plan = match &self.way.file {
            Some(file) => from_file(file)?,
            None => json!({}),
        };
        if let Some(to) = &self.to {
            plan["candidate"] = json!(to);
        }
        if let Some(stable) = &self.stable {
            plan["stable"] = json!(stable);
        }
        if let Some(preset) = &self.way.preset {
            plan["preset"] = json!(preset);
        }
        if let Some(steps) = &self.way.steps {
            plan["steps"] = json!(steps.0);
        }
        if let Some(on_fail) = self.on_fail {
            plan["on_fail"] = json!(match on_fail {
                OnFail::Rollback => "rollback",
                OnFail::Freeze => "freeze",
            });
        }
        if let Some(max_ratio) = self.max_ratio {
            if !plan["analysis"].is_object() {
                plan["analysis"] = json!({});
            }
            plan["analysis"]["max_ratio"] = json!(max_ratio);
        }
        Ok(plan)
    }
}

fn from_file(file: &Path) -> Result<Json, Trouble> {
    let plan = read_tree(file)?;
    if plan.is_object() {
        Ok(plan)
    } else {
        Err(Trouble::Faulty(format!("{}: a plan is a table", file.display())))
    }
}

/// Reads `1%:5m,10%:10m,gate,50%:10m,100%`.
fn steps(text: &str) -> Result<Steps, String> {
    let steps = text.split(',').map(str::trim).map(step).collect::<Result<Vec<_>, _>>()?;
    if steps.len() > STEPS_MAX { Err(format!("at most {STEPS_MAX} steps")) } else { Ok(Steps(steps)) }
}

fn step(text: &str) -> Result<Json, String> {
    let hint = || {
        format!(
            "`{text}` is no step: a share and the time that it holds, or a gate: 1%:5m, 100%, gate, gate:24h"
        )
    };
    let (what, time) = text.split_once(':').map_or((text, None), |(what, time)| (what, Some(time)));
    let time = time.map(parse_duration).transpose().map_err(|_| hint())?.map(format_duration);
    if what == "gate" {
        return Ok(json!({ "gate": time.map_or_else(|| json!({}), |time| json!({ "timeout": time })) }));
    }
    let percent = what.strip_suffix('%').unwrap_or(what).parse().ok().and_then(Ppm::from_percent);
    let mut step = json!({ "percent": number(percent.ok_or_else(hint)?) });
    if let Some(time) = time {
        step["hold"] = json!(time);
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        wanted: Wanted,
    }

    fn plan(args: &[&str]) -> Json {
        Line::try_parse_from([&["start"], args].concat()).unwrap().wanted.plan().unwrap()
    }

    #[test]
    fn what_is_typed_becomes_a_plan() {
        let told =
            plan(&["--to", "v2", "--steps", "0.1%:90s, 10:10m,gate,gate:24h,100%", "--on-fail", "freeze"]);
        let expected = json!({
            "candidate": "v2",
            "steps": [
                { "percent": 0.1, "hold": "90s" }, { "percent": 10, "hold": "10m" },
                { "gate": {} }, { "gate": { "timeout": "24h" } }, { "percent": 100 },
            ],
            "on_fail": "freeze",
        });
        assert_eq!(told, expected);
        let told = plan(&["--to", "v2", "--preset", "AllAtOnce", "--stable", "v1", "--max-ratio", "1.5"]);
        assert_eq!(
            told,
            json!({ "candidate": "v2", "stable": "v1", "preset": "AllAtOnce", "analysis": { "max_ratio": 1.5 } })
        );
    }

    #[test]
    fn what_is_typed_wins_over_the_file() {
        let file = std::env::temp_dir().join(format!("gilmok-plan-{}.toml", std::process::id()));
        std::fs::write(&file, "candidate = \"v2\"\n[analysis]\nalpha = 0.05\n[[steps]]\npercent = 100\n")
            .unwrap();
        let told = plan(&["--file", file.to_str().unwrap(), "--to", "v3", "--max-ratio", "3"]);
        drop(std::fs::remove_file(&file));
        let analysis = json!({ "alpha": 0.05, "max_ratio": 3.0 });
        assert_eq!(told, json!({ "candidate": "v3", "analysis": analysis, "steps": [{ "percent": 100 }] }));
    }

    #[test]
    fn what_is_no_plan_is_refused_on_the_command_line() {
        for args in [
            &["--to", "v2"][..],
            &["--preset", "AllAtOnce"],
            &["--to", "v2", "--preset", "AllAtOnce", "--steps", "100%"],
            &["--to", "v2", "--steps", ""],
            &["--to", "v2", "--steps", "101%"],
            &["--to", "v2", "--steps", "10%:soon"],
            &["--to", "v2", "--steps", "10%,door,100%"],
        ] {
            assert!(Line::try_parse_from([&["start"], args].concat()).is_err(), "{args:?}");
        }
        assert_eq!(step("door").unwrap_err().split(':').next(), Some("`door` is no step"));
    }
}
