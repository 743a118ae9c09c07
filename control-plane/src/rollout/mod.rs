//! Rollouts: a plan, what the proxies counted, what that says, and what follows from it. Pure: time and counts are arguments.
//!
//! In reading order: the [`plan`] and its presets, what was counted ([`tally`]), what that
//! says ([`analysis`]), where a rollout stands ([`state`]), how it goes on by itself (`progress`) and by
//! word ([`deed`]).

pub mod plan;

mod preset;

pub mod tally;

pub mod analysis;

pub(crate) mod words;

pub mod state;

mod progress;

pub mod deed;

#[cfg(test)]
mod tests;
