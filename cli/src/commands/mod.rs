//! What operators ask and tell a control plane: one file a command.

mod apply;

mod backup;

mod breakers;

mod check;

mod completions;

mod explain;

mod flags;

mod guards;

mod identity;

mod membership;

mod proxies;

mod revisions;

mod rollout;

mod services;

mod shard_map;

mod shard_moves;

mod shards;

mod share;

mod status;

mod tokens;

mod traffic;

use std::process::ExitCode;

use clap::Subcommand;

/// A command of an operator.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The mesh at a glance: revision, services, proxies, Consul
    Status(Box<status::Arguments>),
    /// The services of the mesh, or everything about one
    Services(Box<services::Arguments>),
    /// Who gets which version: show and change shares, switch, roll back
    Traffic(Box<traffic::Arguments>),
    /// Plans that move traffic step by step: begin, watch, steer
    Rollout(Box<rollout::Arguments>),
    /// Which shard holds what and who serves it, where a key is; move keys to other shards
    Shards(Box<shards::Arguments>),
    /// What guards the services in a proxy; force it open or closed
    Breakers(Box<breakers::Arguments>),
    /// What is on and for whom: change flags, kill one, explain, schedule
    Flags(Box<flags::Arguments>),
    /// Who makes certificates of services' identities; tokens to join; changes of the root
    Identity(identity::Arguments),
    /// Who is alive: every instance of every service
    Membership(Box<membership::Arguments>),
    /// Which proxy runs what, how far behind it is, who refused and why
    Proxies(Box<proxies::Arguments>),
    /// Who may ask the control plane for what: make tokens, list them, revoke one
    Tokens(Box<tokens::Arguments>),
    /// What was changed by whom and why; show or restore an earlier state
    Revisions(Box<revisions::Arguments>),
    /// What would become of a request, and why
    Explain(Box<explain::Arguments>),
    /// Put a mesh document in force
    Apply(Box<apply::Arguments>),
    /// Check a mesh document without a control plane: every fault with its line
    Check(check::Arguments),
    /// Take a backup of the whole store
    Backup(Box<backup::Arguments>),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

pub(crate) fn run(command: &Command) -> ExitCode {
    let done = match command {
        Command::Status(arguments) => status::run(arguments),
        Command::Services(arguments) => services::run(arguments),
        Command::Traffic(arguments) => traffic::run(arguments),
        Command::Rollout(arguments) => rollout::run(arguments),
        Command::Shards(arguments) => shards::run(arguments),
        Command::Breakers(arguments) => breakers::run(arguments),
        Command::Flags(arguments) => flags::run(arguments),
        Command::Identity(arguments) => identity::run(arguments),
        Command::Membership(arguments) => membership::run(arguments),
        Command::Proxies(arguments) => proxies::run(arguments),
        Command::Tokens(arguments) => tokens::run(arguments),
        Command::Revisions(arguments) => revisions::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Apply(arguments) => apply::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Backup(arguments) => backup::run(arguments),
        Command::Completions(arguments) => completions::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => trouble.tell(),
    }
}
