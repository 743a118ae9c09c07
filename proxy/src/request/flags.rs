//! Telling an application its flags with a request; only services that ask for it pay for it.

use std::sync::atomic::Ordering::Relaxed;

use gilmok_config::decide::{Facts, Split, Why, tell_flags};
use gilmok_config::flag::{FEATURE_FLAGS, Finding};
use gilmok_config::hash::{mixed, short_hash};
use gilmok_config::subject::Uid;
use http::{HeaderMap, Request};
use hyper::body::Incoming;

use super::record::Record;
use super::split::{self, Visitor};
use crate::caller::Caller;
use crate::claims;
use crate::clock;
use crate::flag_outcomes::Watched;
use crate::upstream::service::Upstream;
use crate::upstream::upload::Upload;
use crate::worker::{View, Worker};

/// What an application is told of its flags with a request.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) headers: HeaderMap,
    /// The guarded ones among them: what becomes of the request counts for their variants.
    pub(super) watched: Option<Box<[Watched]>>,
}

/// What a service, by its place in the snapshot, is told; `None` where it asks for no flags.
pub(super) fn told(
    worker: &Worker,
    view: &View,
    service: usize,
    facts: &Facts<'_>,
    split: Option<Split>,
    upstream: &Upstream,
) -> Option<Box<Told>> {
    let emission = view.snapshot.services()[service].emission.as_ref()?;
    if emission.is_empty() {
        return None;
    }
    // Who comes for the first time has the id from now on, and keeps what it is told by it.
    let is_new = split.is_some_and(|split| matches!(split.why, Why::NewVisitor(_)));
    let uid = facts.new_uid.filter(|_| is_new).map_or(facts.uid, Uid::Checked);
    let set = view.snapshot.flags().filter(|_| emission.is_guarded());
    let is_guarded = |finding: &Finding| set.is_some_and(|set| set.flags()[finding.flag].is_watched());
    let (mut headers, mut guarded) = (HeaderMap::new(), Vec::new());
    let told = tell_flags(&view.snapshot, &Facts { uid, ..*facts }, service, &mut headers, &mut |finding| {
        view.flag_counts.note(worker.index, finding);
        if is_guarded(&finding) {
            guarded.push(finding);
        }
    });
    if told.dropped > 0 {
        upstream.shared.flags_dropped.fetch_add(told.dropped as u64, Relaxed);
    }
    let watched = (!guarded.is_empty()).then(|| watched(view, upstream, &guarded, told.subject));
    Some(Box::new(Told { headers, watched }))
}

/// Whoever comes to one service first and to another one then is looked at in both: a variant may be bad for one of them.
fn watched(view: &View, upstream: &Upstream, guarded: &[Finding], subject: Option<u64>) -> Box<[Watched]> {
    let service = short_hash(upstream.name.as_str().as_bytes());
    // The upper half: where in the table it is looked for is decided by its lowest bits, which are as good.
    let subject = subject.and_then(|subject| u32::try_from(mixed(subject ^ service) >> 32).ok());
    let now_ms = clock::now_ms();
    guarded.iter().filter_map(|finding| view.flag_counts.watch(*finding, subject, now_ms)).collect()
}

/// The same for an app beside this proxy. What a caller who is believed says of flags stays as it is.
pub(super) fn told_to_app(
    worker: &Worker,
    caller: &Caller,
    view: &View,
    upstream: &Upstream,
    request: &Request<Incoming>,
) -> Option<Box<Told>> {
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

/// Tells another service its own flags, by its place in the snapshot, with a request that was made for one before. What
/// comes of that says nothing of them: it would not have been asked if all were well.
pub(super) fn tell_again(record: &Record, service: usize, request: &mut Request<Upload>) {
    let view = record.view();
    let Some(set) = view.snapshot.flags() else { return };
    let facts = split::facts_again(record, request, "");
    let told = told(&record.worker, view, service, &facts, None, &view.upstreams[service]);
    let headers = request.headers_mut();
    headers.remove(FEATURE_FLAGS);
    claims::strip_flags(headers, set, false);
    if let Some(told) = told {
        put(headers, told.headers);
    }
}
