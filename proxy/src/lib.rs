//! The data plane: takes requests, decides with `gilmok-config`, acts.
