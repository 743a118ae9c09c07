//! The data plane: takes requests, decides with `gilmok-config`, acts.

mod clock;

mod current;

mod metrics;

mod upstream;
