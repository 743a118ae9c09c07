//! `gilmok completions`: what a shell needs to complete our command line.

use clap::Args;
use clap_complete::Shell;

use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gilmok completions bash > /etc/bash_completion.d/gilmok\n  gilmok completions fish > ~/.config/fish/completions/gilmok.fish"
)]
pub(crate) struct Arguments {
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::command(), "gilmok", &mut script);
    say(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}
