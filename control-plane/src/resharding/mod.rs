//! Moving shards: batches of keys from one shard to another, closed at their owner before they change hands. Pure: time, acks and
//! who is alive are arguments.
//!
//! In reading order: what an operator asks for ([`wanted`]), where a move stands ([`state`]), whether the target of a batch can be written
//! to ([`target`]), whether a closed batch is fenced ([`fence`]), how a move goes on by itself (`progress`) and by word ([`deed`]), what becomes of a service's table
//! ([`table`]), and what is said of all this (`words`). Why it is safe stands in docs/decisions/0013-moving-shards.md.

pub mod wanted;

pub mod state;

pub mod target;

pub mod fence;

mod words;

mod progress;

pub mod deed;

pub mod table;

#[cfg(test)]
mod tests;
