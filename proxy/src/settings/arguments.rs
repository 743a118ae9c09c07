//! The command line of the proxy.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::overlay::{Form, OVERRIDABLE, Said};

/// What the command line and the environment say, before any file is read.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) config: Option<PathBuf>,
    pub(super) task: Task,
    pub(super) said: Vec<Said>,
}

/// What the proxy is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Check the files, print every fault, leave.
    Check,
    /// Serve while this command runs.
    Run(Vec<OsString>),
    /// Serve until told to stop.
    Serve,
}

/// Looks up a variable of the environment.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// The grammar of the command line, from which help and completions are made.
#[must_use]
pub fn command() -> Command {
    let run = Command::new("run")
        .about("Start a command once the proxy is ready, and serve until it has ended")
        .arg(
            Arg::new("command")
                .num_args(1..)
                .required(true)
                .last(true)
                .value_name("CMD")
                .value_parser(clap::value_parser!(OsString))
                .help("The command and its arguments, after --"),
        );
    let command = Command::new("gilmok-proxy")
        .about("The data plane of Gilmok: takes requests, decides, acts")
        .version(env!("CARGO_PKG_VERSION"))
        .arg(path("config", "Settings of this proxy, proxy.toml [env: GILMOK_CONFIG]"))
        .arg(path("mesh", "The mesh document as a file; everything else by default [env: GILMOK_MESH]"))
        .arg(
            Arg::new("check")
                .long("check")
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Check the files, print every fault, and leave with 0 or 78"),
        )
        .subcommand(run);
    OVERRIDABLE.iter().fold(command, |command, setting| {
        let name = if setting.form == Form::Path { "PATH" } else { "VALUE" };
        let mut arg = Arg::new(setting.path)
            .long(setting.flag)
            .value_name(name)
            .global(true)
            .value_parser(clap::value_parser!(OsString))
            .help(format!("{} [env: {}]", setting.help, setting.variable()));
        if setting.form == Form::List {
            arg = arg.action(ArgAction::Append);
        }
        if setting.path == "source.control_plane" {
            arg = arg.visible_alias("control-plane");
        }
        command.arg(arg)
    })
}

fn path(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("PATH")
        .global(true)
        .value_parser(clap::value_parser!(PathBuf))
        .help(help)
}

/// What to say of variables that look like settings and are none; the misspelt one is the setting that is missing.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let known: Vec<String> = OVERRIDABLE.iter().map(super::overlay::Overridable::variable).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).chain(["GILMOK_CONFIG", "GILMOK_MESH"]).collect();
    let names = names.into_iter().map(|name| name.to_string_lossy().into_owned());
    gilmok_config::grammar::unknown_variables(names, &known)
}

impl Arguments {
    /// Reads the command line; a flag wins over a variable.
    pub(super) fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
    ) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(args)?;
        let inner = matches.subcommand().map_or(&matches, |(_, inner)| inner);
        let given = |name: &str| environment(name).filter(|text| !text.is_empty());
        let config = one::<PathBuf>(inner, "config").or_else(|| given("GILMOK_CONFIG").map(PathBuf::from));
        let mut said = Vec::new();
        for setting in &OVERRIDABLE {
            if let Some(text) = joined(inner, setting.path) {
                said.push(Said { setting, origin: format!("--{}", setting.flag), text });
            } else if let Some(text) = given(&setting.variable()) {
                said.push(Said { setting, origin: setting.variable(), text });
            }
        }
        // `--mesh` is the short name of `--source-mesh-file`, and the last word on it.
        let mesh_file = OVERRIDABLE.iter().find(|setting| setting.path == "source.mesh_file");
        let mesh = match one::<PathBuf>(inner, "mesh") {
            Some(path) => Some(("--mesh", path.into_os_string())),
            None => given("GILMOK_MESH").map(|path| ("GILMOK_MESH", path)),
        };
        if let (Some(setting), Some((origin, text))) = (mesh_file, mesh) {
            said.push(Said { setting, origin: origin.to_owned(), text });
        }
        let task = match matches.subcommand() {
            _ if inner.get_flag("check") => Task::Check,
            Some((_, run)) => Task::Run(run.get_many("command").into_iter().flatten().cloned().collect()),
            None => Task::Serve,
        };
        Ok(Self { config, task, said })
    }
}

/// What was said of a setting; lists may be said in several flags.
fn joined(matches: &ArgMatches, name: &str) -> Option<OsString> {
    let values: Vec<OsString> = matches.try_get_many::<OsString>(name).ok().flatten()?.cloned().collect();
    Some(values.join(std::ffi::OsStr::new(",")))
}

fn one<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Option<T> {
    matches.try_get_one::<T>(name).ok().flatten().cloned()
}
