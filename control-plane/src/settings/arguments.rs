//! The command line of the control plane, and what the environment says instead of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use gilmok_config::node::{Kind, Node};
use gilmok_config::problem::Problems;

/// What the control plane is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Check the settings, print every fault, leave.
    Check,
    /// Make the store of this backup in an empty folder, leave.
    Restore(PathBuf),
    /// Serve until told to stop.
    Serve,
}

/// Looks up a variable of the environment.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// What the command line and the environment say, before any file is read.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) config: Option<PathBuf>,
    pub(super) task: Task,
    pub(super) said: Vec<Said>,
}

/// Something said outside the file: which setting, by what name it was said, and the text.
#[derive(Debug)]
pub(super) struct Said {
    setting: &'static Overridable,
    origin: String,
    text: OsString,
}

/// A setting that a flag or the environment may say.
#[derive(Debug)]
struct Overridable {
    /// Where it stands in control-plane.toml.
    path: &'static [&'static str],
    flag: &'static str,
    variable: &'static str,
    /// Relative to the working directory.
    is_path: bool,
    value_name: &'static str,
    help: &'static str,
}

const OVERRIDABLE: [Overridable; 6] = [
    Overridable {
        path: &["listen"],
        flag: "listen",
        variable: "GILMOK_LISTEN",
        is_path: false,
        value_name: "ADDRESS",
        help: "Where to listen; port 0 takes any free one",
    },
    Overridable {
        path: &["token_file"],
        flag: "token-file",
        variable: "GILMOK_TOKEN_FILE",
        is_path: true,
        value_name: "PATH",
        help: "File with a token of administrators, for callers from other hosts",
    },
    Overridable {
        path: &["store", "dir"],
        flag: "store",
        variable: "GILMOK_STORE",
        is_path: true,
        value_name: "DIR",
        help: "Folder of the embedded store",
    },
    Overridable {
        path: &["membership", "consul", "address"],
        flag: "consul",
        variable: "GILMOK_CONSUL",
        is_path: false,
        value_name: "URL",
        help: "Consul agent that says who is alive, http://, https:// or unix://",
    },
    Overridable {
        path: &["log"],
        flag: "log",
        variable: "GILMOK_LOG",
        is_path: false,
        value_name: "LEVEL",
        help: "error, warn, info, debug or trace",
    },
    Overridable {
        path: &["port_file"],
        flag: "port-file",
        variable: "GILMOK_PORT_FILE",
        is_path: true,
        value_name: "PATH",
        help: "File to write the address to once listening, as JSON",
    },
];

const AFTER_HELP: &str = "\
Without any setting it listens on 127.0.0.1:7070 and keeps its store in ./data.
A first mesh document:
  curl -X PUT -H 'content-type: application/json' -d '{\"services\":{\"ads\":{}}}' http://127.0.0.1:7070/v1/mesh
Exit codes: 64 wrong on the command line, 78 wrong in a file, 70 a missing resource.";

/// The grammar of the command line, from which help and completions are made.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("gilmok-control-plane")
        .about("The control plane of Gilmok: knows what is wanted and who is alive, and tells every proxy")
        .version(env!("CARGO_PKG_VERSION"))
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("PATH")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Settings, control-plane.toml [env: GILMOK_CONFIG]"),
        )
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Check the settings, print every fault, and leave with 0 or 78"),
        )
        .arg(
            Arg::new("restore")
                .long("restore")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Make the store of a backup (GET /v1/backup) in an empty folder, and leave"),
        )
        .after_help(AFTER_HELP);
    OVERRIDABLE.iter().fold(command, |command, setting| {
        command.arg(
            Arg::new(setting.flag)
                .long(setting.flag)
                .value_name(setting.value_name)
                .value_parser(clap::value_parser!(OsString))
                .help(format!("{} [env: {}]", setting.help, setting.variable)),
        )
    })
}

/// What to say of variables that look like settings and are none; the misspelt one is the setting that is missing.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let known: Vec<&str> =
        OVERRIDABLE.iter().map(|setting| setting.variable).chain(["GILMOK_CONFIG"]).collect();
    let names = names.into_iter().map(|name| name.to_string_lossy().into_owned());
    gilmok_config::grammar::unknown_variables(names, &known)
}

impl Arguments {
    /// Reads the command line; a flag wins over a variable, an empty variable says nothing.
    pub(super) fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
    ) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(args)?;
        let given = |name: &str| environment(name).filter(|text| !text.is_empty());
        let config = matches.get_one::<PathBuf>("config").cloned();
        let mut said = Vec::new();
        for setting in &OVERRIDABLE {
            if let Some(text) = matches.get_one::<OsString>(setting.flag) {
                said.push(Said { setting, origin: format!("--{}", setting.flag), text: text.clone() });
            } else if let Some(text) = given(setting.variable) {
                said.push(Said { setting, origin: setting.variable.to_owned(), text });
            }
        }
        let task = match matches.get_one::<PathBuf>("restore") {
            _ if matches.get_flag("check") => Task::Check,
            Some(backup) => Task::Restore(backup.clone()),
            None => Task::Serve,
        };
        Ok(Self { config: config.or_else(|| given("GILMOK_CONFIG").map(PathBuf::from)), task, said })
    }
}

/// Puts what was said into the file's tree.
pub(super) fn lay_over(tree: &mut Node, said: &[Said]) {
    for Said { setting, text, .. } in said {
        put(tree, setting.path, setting.text_of(text));
    }
}

fn put(node: &mut Node, path: &[&str], text: String) {
    let Some((key, rest)) = path.split_first() else {
        *node = Node { kind: Kind::Text(text), line: None };
        return;
    };
    // A file that says something else than a table there is told so when it is read.
    if let Kind::Table(entries) = &mut node.kind {
        let absent = Node { kind: Kind::Table(BTreeMap::new()), line: None };
        put(entries.entry((*key).to_owned()).or_insert(absent), rest, text);
    }
}

/// Says of each fault in something that was said outside the file where it was said.
pub(super) fn name_origins(problems: &mut Problems, said: &[Said]) {
    for problem in &mut problems.0 {
        let of_this = |said: &&Said| said.setting.path.join(".") == problem.path;
        if problem.line.is_none()
            && let Some(said) = said.iter().find(of_this)
        {
            problem.what = format!("{} (said by {})", problem.what, said.origin);
        }
    }
}

impl Overridable {
    fn text_of(&self, text: &OsString) -> String {
        if self.is_path
            && let Ok(path) = std::path::absolute(text)
        {
            return path.to_string_lossy().into_owned();
        }
        text.to_string_lossy().into_owned()
    }
}
