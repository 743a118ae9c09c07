//! The plan that moves a service's traffic from one version to another by itself, and what it goes by.

pub mod analysis;
