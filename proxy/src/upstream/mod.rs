//! The called side: services and endpoints as they live now, how one is chosen, and the connections to it.

pub(crate) mod ejection;

pub(crate) mod latencies;

pub(crate) mod mirrored;

pub(crate) mod version;

pub(crate) mod endpoint;

pub(crate) mod service;

pub(crate) mod by_subject;

pub(crate) mod balance;

pub(crate) mod breakers;

pub(crate) mod candidates;

pub(crate) mod outcomes;

pub(crate) mod trials;

pub(crate) mod passages;

pub(crate) mod held;

pub(crate) mod unanswered;

pub(crate) mod connect;

pub(crate) mod upload;

pub(crate) mod pool;
