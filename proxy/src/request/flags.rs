//! Telling an application its flags with a request; only services that ask for it pay for it.

use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::decide::{Facts, Split, Why, tell_flags};
use gilmok_config::flag::FEATURE_FLAGS;
use gilmok_config::subject::Uid;
use http::{HeaderMap, Request};
use hyper::body::Incoming;

use super::record::Record;
use super::split::{self, Visitor};
use crate::caller::Caller;
use crate::claims;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::worker::{View, Worker};

/// The headers that tell a service, by its place in the snapshot, its flags; `None` where it asks for none.
pub(super) fn told(
    worker: &Worker,
    view: &View,
    service: usize,
    facts: &Facts<'_>,
    split: Option<Split>,
    upstream: &Upstream,
) -> Option<Box<HeaderMap>> {
    view.snapshot.services()[service].emission.as_ref().filter(|emission| !emission.is_empty())?;
    // Who comes for the first time has the id from now on, and keeps what it is told by it.
    let is_new = split.is_some_and(|split| matches!(split.why, Why::NewVisitor(_)));
    let uid = facts.new_uid.filter(|_| is_new).map_or(facts.uid, Uid::Checked);
    let mut headers = Box::new(HeaderMap::new());
    let told = tell_flags(&view.snapshot, &Facts { uid, ..*facts }, service, &mut headers, &mut |finding| {
        view.flag_counts.note(worker.index, finding);
    });
    if told.dropped > 0 {
        upstream.shared.flags_dropped.fetch_add(told.dropped as u64, Relaxed);
    }
    Some(headers)
}

/// The same for an app beside this proxy. What a caller who is believed says of flags stays as it is.
pub(super) fn told_to_app(
    worker: &Worker,
    caller: &Caller,
    view: &View,
    upstream: &Upstream,
    request: &Request<Incoming>,
) -> Option<Box<HeaderMap>> {
    view.snapshot.flags()?;
    if caller.downstream().speaks_for_mesh() && request.headers().contains_key(FEATURE_FLAGS) {
        return None;
    }
    let service = view.snapshot.service_index(upstream.name.as_str())?;
    let facts = split::facts(worker, caller, view, request, &Visitor::Unasked, "");
    told(worker, view, service, &facts, None, upstream)
}

/// Puts them there. What is there by now was said by who is believed.
pub(super) fn put(headers: &mut HeaderMap, told: HeaderMap) {
    for (name, value) in told {
        if let Some(name) = name {
            headers.entry(name).or_insert(value);
        }
    }
}

/// Tells another service its own flags, by its place in the snapshot, with a request that was made for one before.
pub(super) fn tell_again(record: &Record, service: usize, request: &mut Request<Upload>) {
    let view = record.view();
    let Some(set) = view.snapshot.flags() else { return };
    let facts = split::facts_again(record, request, "");
    let told = told(&record.worker, view, service, &facts, None, &view.upstreams[service]);
    let headers = request.headers_mut();
    headers.remove(FEATURE_FLAGS);
    claims::strip_flags(headers, set, false);
    if let Some(told) = told {
        put(headers, *told);
    }
}
