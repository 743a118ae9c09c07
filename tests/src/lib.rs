//! The harness: real processes on free ports, a real Consul, clients that send bytes by hand.
