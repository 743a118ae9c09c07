//! The rules of `docs/consul-rules.md`, held: the state machine in its own time, the mirror against a Consul that lies.

mod fake;

mod mirror;

mod watch;
