//! The programs of the mesh as hidden subcommands, and the promise that they never outlive who started them.

use std::ffi::OsString;
use std::io::{ErrorKind, Read as _, Write as _};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::EXIT_INTERNAL;

/// A program of the mesh in this executable.
#[derive(Debug, Subcommand)]
pub(crate) enum Program {
    /// The data plane
    #[command(hide = true, disable_help_flag = true)]
    Proxy(Handed),
    /// The control plane
    #[command(hide = true, disable_help_flag = true)]
    ControlPlane(Handed),
    /// A small service that shows off
    #[command(hide = true, disable_help_flag = true)]
    DemoApp(Handed),
}

/// What is handed on to the program.
#[derive(Debug, Args)]
pub(crate) struct Handed {
    /// End when standard input does
    #[arg(long)]
    with_parent: bool,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(program: Program) -> ExitCode {
    let (name, handed, main): (_, _, fn(Vec<OsString>) -> ExitCode) = match program {
        Program::Proxy(handed) => ("gilmok proxy", handed, |args| gilmok_proxy::run(args)),
        Program::ControlPlane(handed) => {
            ("gilmok control-plane", handed, |args| gilmok_control_plane::run(args))
        }
        Program::DemoApp(handed) => ("gilmok demo-app", handed, |args| gilmok_demo_app::run(args)),
    };
    if handed.with_parent
        && let Err(error) = end_with_parent()
    {
        drop(writeln!(std::io::stderr().lock(), "{name}: cannot watch standard input: {error}"));
        return ExitCode::from(EXIT_INTERNAL);
    }
    main(std::iter::once(OsString::from(name)).chain(handed.args).collect())
}

/// Ends this process as soon as standard input ends: its other end is closed with the process that holds it,
/// however that one dies.
fn end_with_parent() -> std::io::Result<()> {
    let watch = || {
        let mut ignored = [0; 64];
        let mut stdin = std::io::stdin().lock();
        // Input that cannot be read any more has ended, too; only an interrupted read is tried again.
        while match stdin.read(&mut ignored) {
            Ok(count) => count > 0,
            Err(error) => error.kind() == ErrorKind::Interrupted,
        } {}
        #[expect(clippy::exit, reason = "there is nobody left to drain for")]
        std::process::exit(0);
    };
    std::thread::Builder::new().name("with-parent".to_owned()).spawn(watch).map(drop)
}
