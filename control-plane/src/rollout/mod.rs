//! Rollouts: a plan, what the proxies counted, what that says, and what follows from it. Pure: time and counts are arguments.
//!
//! In reading order: the [`plan`] and its presets, who is told ([`webhook`]), what was counted ([`tally`]), what that
//! says ([`analysis`]), where a rollout stands ([`state`]), how it goes on by itself (`progress`) and by
//! word ([`deed`]), and what is kept of a service ([`record`]).

pub mod plan;

mod preset;

pub mod webhook;

pub mod tally;

pub mod analysis;

mod words;

pub mod state;

mod progress;

pub mod deed;

pub mod record;

#[cfg(test)]
mod tests;
