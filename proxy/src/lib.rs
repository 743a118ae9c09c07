//! The data plane: takes requests, decides with `gilmok-config`, acts.

pub mod settings;

mod access_log;

mod clock;

mod current;

mod drain;

mod gather;

mod listen;

mod metrics;

mod request;

mod upstream;

mod worker;

mod source;

#[cfg(test)]
mod testing;
