//! What of an ack is more than any proxy says: acks are kept, one for each of thousands of proxies.

use gilmok_config::flag::{GUARDED_MAX, GUARDED_VARIANTS_MAX, KEY_BYTES_MAX};
use gilmok_config::problem::Problem as Fault;
use gilmok_config::wire::{
    ACK_TEXT_BYTES_MAX, APPS_MAX, Ack, COUNTED_SERVICES_MAX, COUNTED_VERSIONS_MAX, FENCES_MAX,
    FLAG_COUNTS_MAX, LATENCY_BUCKETS, REFUSED_BYTES_MAX,
};

/// Everything that is too much, by its place in the ack.
pub(super) fn faults(ack: &Ack) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut bound = |path: &str, length: usize, most: usize, unit: &str| {
        // Once, where several of a list are too long.
        if length > most && faults.last().is_none_or(|fault: &Fault| fault.path != path) {
            faults.push(Fault::at(path, format!("{length} {unit}"), format!("at most {most}")));
        }
    };
    bound("instance", ack.instance.len(), ACK_TEXT_BYTES_MAX, "bytes");
    bound("version", ack.version.len(), ACK_TEXT_BYTES_MAX, "bytes");
    if let Some(applied) = &ack.applied {
        bound("applied", applied.store.len().max(applied.hash.len()), ACK_TEXT_BYTES_MAX, "bytes");
    }
    if let Some(refused) = &ack.refused {
        bound("refused", refused.bytes(), REFUSED_BYTES_MAX, "bytes");
    }
    bound("apps", ack.apps.len(), APPS_MAX, "apps");
    for address in ack.apps.iter().filter_map(|app| app.address.as_deref()) {
        bound("apps.address", address.len(), ACK_TEXT_BYTES_MAX, "bytes");
    }
    bound("counts", ack.counts.len(), COUNTED_SERVICES_MAX, "services");
    for service in &ack.counts {
        bound("counts.versions", service.versions.len(), COUNTED_VERSIONS_MAX, "versions");
    }
    let versions = ack.counts.iter().flat_map(|service| &service.versions);
    let buckets = versions.flat_map(|version| {
        let mirror = version.mirror.as_ref();
        [
            Some(&version.latency),
            mirror.map(|mirror| &mirror.latency),
            mirror.map(|mirror| &mirror.real_latency),
        ]
    });
    for latency in buckets.flatten() {
        bound("counts.versions.latency", latency.len(), LATENCY_BUCKETS.into(), "buckets");
    }
    bound("fences", ack.fences.len(), FENCES_MAX, "fences");
    bound("flags", ack.flags.len(), FLAG_COUNTS_MAX, "counts");
    bound("guarded", ack.guarded.len(), GUARDED_MAX, "flags");
    for flag in &ack.guarded {
        bound("guarded.flag", flag.flag.len(), KEY_BYTES_MAX, "bytes");
        bound("guarded.variants", flag.variants.len(), GUARDED_VARIANTS_MAX, "variants");
    }
    for variant in ack.guarded.iter().flat_map(|flag| &flag.variants) {
        bound("guarded.variants.variant", variant.variant.len(), KEY_BYTES_MAX, "bytes");
        bound("guarded.variants.latency", variant.latency.len(), LATENCY_BUCKETS.into(), "buckets");
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(path: &str, value: &Value) -> Vec<String> {
        let mut ack = json!({"node": "a", "instance": "1", "wire": 1});
        ack[path] = value.clone();
        faults(&serde_json::from_value(ack).unwrap()).into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn what_is_too_much_is_told_by_its_place_and_what_is_just_enough_is_not() {
        let text = |length: usize| json!("x".repeat(length));
        let latency = |length: usize| json!(vec![(0, 1); length]);
        let app = |address: usize| json!({"service": "shop", "address": text(address)});
        let counted = |versions: usize, buckets: usize| {
            let version = json!({"version": "v1", "in_flight": 0, "requests": 0, "attempts": 0, "unreachable": 0,
                "trials": 0, "failures": 0, "mirror": {"real_latency": latency(buckets)}});
            json!({"service": "shop", "versions": vec![version; versions]})
        };
        let refused = |length: usize| json!({"store": "", "revision": 1, "hash": "", "problems": [{"path": "", "what": text(length)}]});
        let guarded = |variants: usize, buckets: usize| {
            let variant = json!({"variant": "on", "trials": 1, "failures": 0, "latency": latency(buckets)});
            json!({"flag": "a", "variants": vec![variant; variants]})
        };
        for (path, told_as, most, too_much) in [
            ("instance", "instance", text(512), text(513)),
            ("version", "version", text(512), text(513)),
            (
                "applied",
                "applied",
                json!({"store": text(512), "revision": 1, "hash": ""}),
                json!({"store": "s", "revision": 1, "hash": text(513)}),
            ),
            ("refused", "refused", refused(64 << 10), refused((64 << 10) + 1)),
            ("apps", "apps", json!(vec![app(9); 100]), json!(vec![app(9); 101])),
            ("apps", "apps.address", json!([app(512)]), json!([app(513), app(9_999)])),
            ("counts", "counts", json!(vec![counted(1, 0); 256]), json!(vec![counted(1, 0); 257])),
            ("counts", "counts.versions", json!([counted(64, 0)]), json!([counted(65, 0)])),
            ("counts", "counts.versions.latency", json!([counted(1, 96)]), json!([counted(2, 97)])),
            (
                "fences",
                "fences",
                json!(vec![json!({"service": "a", "closed": 1}); 256]),
                json!(vec![json!({"service": "a", "closed": 1}); 257]),
            ),
            (
                "flags",
                "flags",
                json!(vec![json!({"flag": "a", "reason": "STATIC", "count": 1}); 1_000]),
                json!(vec![json!({"flag": "a", "reason": "STATIC", "count": 1}); 1_001]),
            ),
            ("guarded", "guarded", json!(vec![guarded(8, 96); 256]), json!(vec![guarded(1, 0); 257])),
            ("guarded", "guarded.variants", json!([guarded(8, 0)]), json!([guarded(9, 0)])),
            ("guarded", "guarded.variants.latency", json!([guarded(1, 96)]), json!([guarded(1, 97)])),
        ] {
            assert_eq!(told(path, &most), [""; 0], "{told_as}");
            assert_eq!(told(path, &too_much), [told_as]);
        }
    }

    #[test]
    fn a_proxy_tells_as_many_problems_as_are_taken() {
        let refused = json!({"store": "s", "revision": 1, "hash": "h",
            "problems": vec![json!({"path": "p", "what": "x".repeat(1_000)}); 101]});
        let refused: gilmok_config::wire::Refused = serde_json::from_value(refused).unwrap();
        let fitting = refused.clone().fitting();
        assert_eq!(fitting.problems.0.len(), 65, "each has 1,001 bytes");
        assert_eq!(fitting.clone().fitting(), fitting);
    }
}
