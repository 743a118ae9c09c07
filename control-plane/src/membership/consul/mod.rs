//! Membership from Consul: a mirror of who is alive, that nothing leaves because a call failed.
//!
//! In reading order: what is asked (`client`) and answered (`answer`, `error`), what an instance means to us
//! (`mapping`), what of a new list is believed (`settle`), how often may be asked (`pace`), the state machine of one
//! watch (`watch`), the task that runs it (`follow`), and the mirror that keeps one watch for each service (`mirror`).
//! The client is our own: `docs/decisions/0001-own-consul-client.md` says why. The rules that it keeps, each with
//! the test that holds it: `docs/consul-rules.md`.

mod settings;
pub use settings::Settings;

mod token;

mod error;
pub use error::Error;

mod answer;
pub use answer::{
    AgentConfig, AgentDebugConfig, AgentSelf, Answer, Check, Meta, Node, Service, ServiceEntry, Weights,
};

mod client;
pub use client::{Client, Shared};

mod mapping;

mod settle;

mod pace;

mod watch;
pub use watch::{Ask, Consistency};

mod contact;
pub use contact::{Contacts, LAST_CONTACT};

mod follow;

mod mirror;
pub use mirror::{Consul, start};

#[cfg(test)]
mod tests;
