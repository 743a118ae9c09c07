//! A small service that shows off: says its version, shard and flags; can be told to be slow, failing or dead.
