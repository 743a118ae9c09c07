//! The chapters of the story, one file each: what is done, what must come of it, and what is told.

pub(crate) mod endpoint_dies;

pub(crate) mod ads_hang;

pub(crate) mod config_change;

pub(crate) mod bad_document;

pub(crate) mod control_plane_dies;

pub(crate) mod canary;

pub(crate) mod bad_version;

pub(crate) mod switch;

pub(crate) mod flags;

pub(crate) mod shards_grow;

pub(crate) mod who_may;
