//! The language of the mesh: what it can be told, whether that is sound, what it means for one request.
//!
//! Pure by rule: no IO, no clock, no task, no dice. Time, liveness and randomness are arguments.
//! In reading order: what is wrong with a document ([`problem`]), how text becomes a tree ([`json`], [`node`]) and
//! the tree is read ([`grammar`]), the words ([`name`], [`address`], [`mod@unit`], [`identity`], and the [`certificate`] that shows one), the policies of a service
//! ([`service`], [`health`], [`tls`]; who may call it: [`access`], by [`path`]; who is asking and how often: [`subject`], [`baggage`], [`rate_limit`]; when calls fail: [`failure`],
//! [`retry`], [`outlier`], [`breaker`], [`fallback`]; who gets which version: [`assignment`], [`traffic`]; which shard: [`sharding`]; which endpoint: [`balancing`]; and which features: [`flag`]), the [`route`]s, the whole [`document`], what it
//! with who is alive ([`snapshot`]), the brain ([`decide`]) and what it would do ([`explain`]), and what the two planes tell each
//! other ([`wire`]).

pub mod problem;

pub mod json;

pub mod node;

pub mod grammar;

pub mod unit;

pub mod moment;

pub mod name;

pub mod address;

pub mod identity;

pub mod certificate;

pub mod endpoint;

pub mod hash;

mod cbor;

pub mod health;

pub mod tls;

pub mod failure;

pub mod baggage;

pub mod subject;

pub mod rate_limit;

pub mod retry;

pub mod outlier;

pub mod breaker;

pub mod forced;

pub mod fallback;

pub mod assignment;

pub mod traffic;

pub mod sharding;

pub mod path;

pub mod access;

pub mod balancing;

pub mod flag;

pub mod service;

pub mod host;

pub mod route;

pub mod document;

pub mod body_file;

pub mod snapshot;

pub mod decide;

pub mod explain;

pub mod wire;
