//! Peers written in Python: an interpreter with a package from PyPI, brought once into a folder below `target/`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The interpreter of a virtual environment that has this package; or several, with spaces between.
///
/// # Panics
/// When it cannot be made; the message says what to install.
#[must_use]
pub fn with(package: &str) -> PathBuf {
    match bring(package) {
        Ok(python) => python,
        Err(reason) => panic!(
            "this test needs Python with the package {package}: {reason}\n\
             Install python3 and python3-venv (Debian), and let pip reach a package index"
        ),
    }
}

fn bring(package: &str) -> Result<PathBuf, String> {
    let folder = tools()?.join(format!("python-{}", package.replace(' ', "+")));
    let (python, whole) = (folder.join("bin/python3"), folder.join("whole"));
    let _held = hold(&folder)?;
    if whole.is_file() {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(&python).args(install).args(package.split(' ')))?;
    // Said last, so that an interrupted run leaves nothing that looks whole.
    std::fs::write(&whole, package).map_err(|error| format!("{}: {error}", whole.display()))?;
    Ok(python)
}

/// Where what is brought lies.
pub(crate) fn tools() -> Result<PathBuf, String> {
    // Tests lie in target/PROFILE/deps.
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(test.ancestors().nth(3).ok_or("the test lies in no target folder")?.join("tools"))
}

/// Makes a folder and holds it: tests in other processes wait here until the first one has what belongs into it.
pub(crate) fn hold(folder: &Path) -> Result<File, String> {
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(told)?;
    File::create(folder.join("lock")).and_then(|file| file.lock().map(|()| file)).map_err(told)
}

pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let told = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{told}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    // `venv` complains on standard output.
    let said = [output.stderr, output.stdout].concat();
    Err(format!("{told}: {}", String::from_utf8_lossy(&said).trim()))
}
