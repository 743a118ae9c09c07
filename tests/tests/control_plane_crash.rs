//! A control plane killed in a storm of writes: whatever was acknowledged is there, and the numbers go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gilmok_tests::control_plane::{self, ControlPlane};
use gilmok_tests::eventually::SOON;
use gilmok_tests::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const WRITERS: u64 = 8;
const CRASHES: u64 = 6;

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9_at_any_moment() {
    let mut plane = ControlPlane::start().await;
    // The last acknowledged value of each writer's own service, and the highest number it was told.
    let mut acknowledged: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for crash in 0..CRASHES {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (value, number) = acknowledged.get(&writer).copied().unwrap_or_default();
            writers.spawn(write(plane.address, writer, value, number, Arc::clone(&stop)));
        }
        tokio::time::sleep(Duration::from_millis(150 + 70 * crash)).await;
        plane.process.signal(Signal::Kill).await;
        stop.store(true, Ordering::Relaxed);
        while let Some(result) = writers.join_next().await {
            let (writer, value, number) = result.unwrap();
            acknowledged.insert(writer, (value, number));
        }
        plane = plane.restart_after(Signal::Kill, "").await;
        let head = plane.json("/v1/status").await["revision"].as_u64().unwrap_or_default();
        for (writer, (value, number)) in &acknowledged {
            if *value == 0 {
                continue;
            }
            let service = plane.json(&format!("/v1/services/writer-{writer}")).await;
            let kept = find(&service, "max_concurrent").unwrap_or_default();
            // The write under way may have been kept as well, though nobody was told.
            assert!(
                kept == *value || kept == value + 1,
                "writer {writer}: {kept}, but {value} was acknowledged"
            );
            assert!(head >= *number, "revision {number} was acknowledged, the newest is {head}");
        }
    }
    let total: u64 = acknowledged.values().map(|(value, _)| value).sum();
    assert!(total > 50, "only {total} writes in {CRASHES} rounds");
    // Every revision of the history is there, without a gap.
    let revisions = plane.json("/v1/revisions").await;
    let list = revisions["revisions"].as_array().or(revisions.as_array()).cloned().unwrap_or_default();
    let mut numbers: Vec<u64> =
        list.iter().filter_map(|one| one["revision"].as_u64().or(one["number"].as_u64())).collect();
    numbers.sort_unstable();
    assert!(numbers.len() > 10, "{revisions}");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

async fn write(
    address: std::net::SocketAddr,
    writer: u64,
    mut value: u64,
    mut number: u64,
    stop: Arc<AtomicBool>,
) -> (u64, u64, u64) {
    while !stop.load(Ordering::Relaxed) {
        let body = json!({"max_concurrent": value + 1});
        let path = format!("/v1/services/writer-{writer}");
        let Ok(answer) = control_plane::call(address, "PUT", &path, Some(&body), SOON).await else { break };
        if !matches!(answer.status(), 200 | 201) || !answer.is_complete {
            break;
        }
        let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let now = told["revision"].as_u64().unwrap_or_default();
        assert!(now > number, "writer {writer}: {now} after {number}");
        (value, number) = (value + 1, now);
    }
    (writer, value, number)
}

/// The number of this name, wherever the answer has it.
fn find(json: &Value, key: &str) -> Option<u64> {
    match json {
        Value::Object(entries) => entries
            .get(key)
            .and_then(Value::as_u64)
            .or_else(|| entries.values().find_map(|value| find(value, key))),
        Value::Array(items) => items.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}
