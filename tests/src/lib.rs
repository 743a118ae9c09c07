//! The harness: real processes on free ports, clients and upstreams that send bytes by hand, and load.
//!
//! In reading order: how a test waits ([`eventually`]), where it writes ([`scratch`]), how it starts and ends
//! programs ([`process`]), the programs themselves ([`proxy`], [`control_plane`], [`demo_app`]) and who types commands ([`operator`]), the two ends of
//! a connection by hand ([`caller`], [`upstream`], [`sick`], [`h2_caller`]; over TLS: [`certificates`]; other people's: [`peer`], [`envoy`]), many callers at once ([`load`]) and
//! users who remember who answered ([`users`]), a service of two versions ([`shop`]), one whose
//! keys move ([`moving`]), one of real processes in shards ([`profile`]) and who comes to it ([`visitors`]), and what is
//! read off a running process ([`observe`]) or off the source tree ([`source_tree`]).
//! Flags are asked for by clients of OpenFeature's ([`flag_client`]), also what scenarios of others say ([`gherkin`]).

pub mod eventually;

pub mod scratch;

pub mod process;

pub mod proxy;

pub mod control_plane;

pub mod demo_app;

pub mod operator;

pub mod consul;

pub mod python;

pub mod node;

pub mod relay;

pub mod message;

pub mod caller;

pub mod upstream;

pub mod sick;

pub mod h2_caller;

pub mod certificates;

pub mod peer;

pub mod envoy;

pub mod load;

pub mod users;

pub mod shop;

pub mod moving;

pub mod visitors;

pub mod profile;

pub mod observe;

pub mod source_tree;

pub mod flag_client;

pub mod gherkin;
