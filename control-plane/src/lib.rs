//! The control plane: knows what is wanted and who is alive, and says what is true.

pub mod settings;

pub mod http_client;

pub mod membership;

pub mod intent;

pub mod store;

pub mod compile;

pub mod publish;

pub mod state;
