//! Whether the version that lost its users may go: every proxy knows, and nothing is under way to it any more.

use std::time::Duration;

use gilmok_config::name::{Name, ServiceName};
use gilmok_config::wire::ProxyState;
use serde::Serialize;
use tokio::time::Instant;

use crate::publish::ProxyReport;
use crate::record::Release;

/// What the old version still waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    pub version: Name,
    /// Whether it may be stopped.
    pub drainable: bool,
    pub why: String,
    pub waiting_for: Vec<Waiting>,
    /// From when on nobody is waited for, in milliseconds since 1970; absent when there is no limit.
    pub deadline_ms: Option<u64>,
}

/// A proxy that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub proxy: String,
    pub why: String,
}

/// What the version that lost its users still waits for. A proxy that is not heard of goes on serving what it knows, so it
/// is waited for too; one that has said that it leaves is not.
#[must_use]
pub fn drain(
    service: &ServiceName,
    release: &Release,
    timeout: Option<Duration>,
    reports: &[ProxyReport],
    store: &str,
    now_ms: u64,
) -> Drain {
    let deadline_ms = timeout
        .map(|timeout| release.at_ms.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)));
    let now = Instant::now();
    let waits = |report: &ProxyReport| {
        let ack = &report.ack;
        let in_flight = in_flight(report, service, &release.from);
        let is_leaving = ack.state == ProxyState::Draining;
        if !report.is_live(now) {
            return (!is_leaving).then(|| "not heard of".to_owned());
        }
        if !is_leaving && !report.runs(store, release.revision) {
            return Some(format!("has not acknowledged revision {}", release.revision));
        }
        (in_flight > 0).then(|| format!("{in_flight} in flight"))
    };
    let waiting_for: Vec<Waiting> = reports
        .iter()
        .filter_map(|report| waits(report).map(|why| Waiting { proxy: report.ack.node.clone(), why }))
        .collect();
    let is_over = deadline_ms.is_some_and(|deadline| now_ms >= deadline);
    let why = if waiting_for.is_empty() {
        "every proxy has acknowledged, and nothing is in flight".to_owned()
    } else if is_over {
        format!("its time is up; {} would have been waited for", named(&waiting_for))
    } else {
        format!("waiting for {}", named(&waiting_for))
    };
    let drainable = waiting_for.is_empty() || is_over;
    Drain { version: release.from.clone(), drainable, why, waiting_for, deadline_ms }
}

/// What a proxy said is under way to a version.
fn in_flight(report: &ProxyReport, service: &ServiceName, version: &Name) -> u64 {
    let counts = report.ack.counts.iter().find(|counts| counts.service == *service);
    let versions = counts.into_iter().flat_map(|counts| &counts.versions);
    versions.filter(|counts| counts.version == *version).map(|counts| counts.in_flight).sum()
}

fn named(waiting: &[Waiting]) -> String {
    const NAMED_MAX: usize = 5;
    let mut names: Vec<&str> = waiting.iter().take(NAMED_MAX).map(|waiting| waiting.proxy.as_str()).collect();
    let more = waiting.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!("{more} more") } else { String::new() };
    names.extend((!more.is_empty()).then_some(more.as_str()));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use gilmok_config::wire::{Ack, Applied, ServiceCounts, VersionCounts, WIRE_LEVEL};

    use super::*;
    use crate::publish::LIVE;
    use crate::record::ReleaseKind;

    fn report(node: &str, revision: u64, in_flight: u64) -> ProxyReport {
        let counted = VersionCounts { version: name("v1"), in_flight, ..VersionCounts::default() };
        let ack = Ack {
            node: node.to_owned(),
            instance: "1".to_owned(),
            wire: WIRE_LEVEL,
            version: String::new(),
            applied: Some(Applied {
                store: "s".to_owned(),
                revision,
                hash: String::new(),
                last_known_good: false,
            }),
            refused: None,
            state: ProxyState::Ready,
            counts: vec![ServiceCounts { service: shop(), versions: vec![counted] }],
            apps: Vec::new(),
            fences: Vec::new(),
            flags: Vec::new(),
            guarded: Vec::new(),
            identity: None,
        };
        ProxyReport::new(ack, Instant::now(), true)
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn shop() -> ServiceName {
        ServiceName::parse("shop").unwrap()
    }

    fn told(reports: &[ProxyReport], now_ms: u64) -> (bool, Vec<String>) {
        let release = Release {
            kind: ReleaseKind::Switch,
            revision: 7,
            at_ms: 1_000,
            by: String::new(),
            from: name("v1"),
            to: name("v2"),
            before: Default::default(),
        };
        let drain = drain(&shop(), &release, Some(Duration::from_secs(30)), reports, "s", now_ms);
        assert_eq!(drain.deadline_ms, Some(31_000));
        let waiting = drain.waiting_for.into_iter();
        (drain.drainable, waiting.map(|waiting| format!("{}: {}", waiting.proxy, waiting.why)).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn the_old_version_waits_for_every_proxy_and_what_is_in_flight() {
        assert_eq!(told(&[], 2_000), (true, vec![]));
        let reports = [report("a", 7, 0), report("b", 6, 0), report("c", 8, 3)];
        let (drainable, waiting) = told(&reports, 2_000);
        assert!(!drainable);
        assert_eq!(waiting, ["b: has not acknowledged revision 7", "c: 3 in flight"]);
        assert!(told(&reports, 31_000).0, "its time is up");
        assert_eq!(told(&reports[..1], 2_000), (true, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_is_cut_off_is_waited_for_and_one_that_left_is_not() {
        let (cut_off, mut left) = (report("a", 7, 0), report("b", 6, 0));
        left.ack.state = ProxyState::Draining;
        tokio::time::advance(LIVE + Duration::from_secs(1)).await;
        let reports = [cut_off, left, report("c", 7, 0)];
        assert_eq!(told(&reports, 2_000), (false, vec!["a: not heard of".to_owned()]));
    }
}
