//! Where snapshots come from, and what is told to where they come from.
//!
//! A mesh file ([`file`]), or control planes ([`feed`]) with the last known good state behind them
//! ([`last_known_good`]). Back go [`acks`] and the [`registration`] of the apps beside this proxy.

mod acks;

mod feed;

mod file;

mod http;

mod last_known_good;

mod registration;

mod status;
