//! Plans that have a name, as AWS CodeDeploy calls them, spelled out as steps.
//!
//! Source: the deployment configurations of CodeDeploy for Lambda, ECS and EC2.

use std::time::Duration;

use gilmok_config::unit::Ppm;

use super::plan::{STEPS_MAX, Share, Step};

/// What there is, for whoever wrote something else.
pub(super) const NAMES: &str = "AllAtOnce, OneAtATime, HalfAtATime, Canary10Percent5Minutes (10, 15, 30), \
    Linear10PercentEvery1Minute (2, 3, 10 Minutes)";

/// The steps of a preset; `hosts` is on how many hosts the service runs.
pub(super) fn steps(name: &str, hosts: usize) -> Option<Vec<Step>> {
    if let Some(minutes) = minutes_of(name, "Canary10Percent", &[5, 10, 15, 30]) {
        return Some(vec![share(100_000, minutes, 1), share(1_000_000, Duration::ZERO, 1)]);
    }
    if let Some(minutes) = minutes_of(name, "Linear10PercentEvery", &[1, 2, 3, 10]) {
        let held = (1..10).map(|tenth| share(tenth * 100_000, minutes, 1));
        return Some(held.chain([share(1_000_000, Duration::ZERO, 1)]).collect());
    }
    match name {
        "AllAtOnce" => Some(vec![share(1_000_000, Duration::ZERO, 1)]),
        // The candidate starts on one host after the other: each host that has it brings its part of the users.
        "OneAtATime" => Some(by_hosts(hosts.clamp(1, STEPS_MAX))),
        "HalfAtATime" => {
            let half = hosts.div_ceil(2).max(1) as u64;
            let all = (hosts as u64).max(1);
            Some(vec![share(500_000, Duration::ZERO, half), share(1_000_000, Duration::ZERO, all)])
        }
        _ => None,
    }
}

fn by_hosts(hosts: usize) -> Vec<Step> {
    let part = |host: usize| u32::try_from(1_000_000 * host / hosts).unwrap_or(1_000_000);
    (1..=hosts).map(|host| share(part(host), Duration::ZERO, host as u64)).collect()
}

/// The minutes of `Canary10Percent5Minutes`, with or without the last letter.
fn minutes_of(name: &str, before: &str, known: &[u64]) -> Option<Duration> {
    let rest = name.strip_prefix(before)?;
    let number = rest.strip_suffix("Minutes").or_else(|| rest.strip_suffix("Minute"))?;
    let minutes: u64 = number.parse().ok().filter(|minutes| known.contains(minutes))?;
    Some(Duration::from_secs(60 * minutes))
}

fn share(parts: u32, hold: Duration, min_endpoints: u64) -> Step {
    let percent = Ppm::new(parts).unwrap_or(Ppm::WHOLE);
    Step::Share(Share { percent, hold, min_requests: 0, min_subjects: 0, min_endpoints })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, hosts: usize) -> Option<Vec<(f64, u64, u64)>> {
        let told = |step: Step| match step {
            Step::Share(share) => (share.percent.percent(), share.hold.as_secs(), share.min_endpoints),
            Step::Gate { .. } => panic!("presets have no gates"),
        };
        Some(steps(name, hosts)?.into_iter().map(told).collect())
    }

    #[test]
    fn presets_are_codedeploys() {
        assert_eq!(told("Canary10Percent5Minutes", 3), Some(vec![(10.0, 300, 1), (100.0, 0, 1)]));
        let linear = told("Linear10PercentEvery1Minute", 3).unwrap();
        assert_eq!((linear.len(), linear[0], linear[9]), (10, (10.0, 60, 1), (100.0, 0, 1)));
        assert_eq!(told("AllAtOnce", 3), Some(vec![(100.0, 0, 1)]));
        assert_eq!(told("Canary10Percent7Minutes", 3), None);
        assert_eq!(told("Linear10PercentEvery5Minutes", 3), None);
    }

    #[test]
    fn host_by_host_each_host_that_has_it_brings_its_part() {
        let thirds = told("OneAtATime", 3).unwrap();
        assert_eq!(thirds, [(33.3333, 0, 1), (66.6666, 0, 2), (100.0, 0, 3)]);
        assert_eq!(told("HalfAtATime", 3), Some(vec![(50.0, 0, 2), (100.0, 0, 3)]));
        assert_eq!(told("OneAtATime", 0), Some(vec![(100.0, 0, 1)]));
        assert_eq!(told("OneAtATime", 5_000).map(|steps| steps.len()), Some(STEPS_MAX));
    }
}
