//! What keeps a command from doing what it was asked, and the exit code that tells it.

use std::io::Write as _;
use std::process::ExitCode;

use crate::EXIT_INTERNAL;

/// The answer is no: not found, refused, not converged.
const EXIT_NO: u8 = 1;
/// A file is wrong.
const EXIT_CONFIGURATION: u8 = 78;

/// Why a command did not do what it was asked, in words for people.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Something was not there or did not work: nobody listens, a file cannot be written.
    Failed(String),
    /// A file that was named is wrong.
    Faulty(String),
    /// Whoever was asked says no.
    Refused(String),
}

impl Trouble {
    /// Says it on standard error and gives the exit code.
    pub(crate) fn tell(&self) -> ExitCode {
        let (Self::Failed(what) | Self::Faulty(what) | Self::Refused(what)) = self;
        // Nobody is left to be told that standard error is closed.
        drop(writeln!(std::io::stderr().lock(), "gilmok: {what}"));
        ExitCode::from(match self {
            Self::Failed(_) => EXIT_INTERNAL,
            Self::Faulty(_) => EXIT_CONFIGURATION,
            Self::Refused(_) => EXIT_NO,
        })
    }
}

/// Says something on standard output; a reader who has left is no trouble.
pub(crate) fn say(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}
