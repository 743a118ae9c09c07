//! The data plane: takes requests, decides with `gilmok-config`, acts.

pub mod settings;

mod clock;

mod current;

mod metrics;

mod upstream;

mod access_log;

mod drain;

#[cfg(test)]
mod testing;
