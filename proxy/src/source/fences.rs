//! How this proxy stands to batches of keys that are closed, as acks tell it: what is still under way, and whether a restart
//! would find them closed.

use gilmok_config::document::Document;
use gilmok_config::name::ServiceName;
use gilmok_config::sharding::Sharding;
use gilmok_config::sharding::moving::Next;
use gilmok_config::wire::{FENCES_MAX, FenceReport};

use crate::current::Current;
use crate::upstream::passages::Passages;

/// The batches that a document closes, each by the revision that closed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Closed {
    /// Revisions mean nothing elsewhere.
    store: String,
    batches: Vec<(ServiceName, u64)>,
}

impl Closed {
    pub(super) fn of(store: &str, document: &Document) -> Self {
        let batches = document.services.iter().filter_map(|(name, policy)| {
            closed_by(policy.sharding.as_deref()).map(|revision| (name.clone(), revision))
        });
        Self { store: store.to_owned(), batches: batches.collect() }
    }

    /// Whether all of them are closed in the other document as well.
    pub(super) fn are_in(&self, other: &Self) -> bool {
        self.batches.is_empty()
            || (self.store == other.store && self.batches.iter().all(|batch| other.batches.contains(batch)))
    }
}

/// What is to be told of a snapshot that every worker has taken. `on_disk` is what a restart would find.
pub(super) fn reports(taken: &Current, on_disk: &Closed) -> Vec<FenceReport> {
    let is_ours = taken.applied.as_ref().is_some_and(|applied| applied.store == on_disk.store);
    let closed = taken.upstreams.iter().filter_map(|upstream| {
        let closed = closed_by(upstream.policy.sharding.as_deref())?;
        let apps = taken.apps.iter().filter(|app| app.name == upstream.name);
        let batch = (upstream.name.clone(), closed);
        let persisted = is_ours && on_disk.batches.contains(&batch);
        Some(FenceReport {
            service: batch.0,
            closed,
            calling: upstream.passages.as_ref().map_or(0, Passages::unquiet),
            serving: apps.filter_map(|app| app.passages.as_ref()).map(Passages::unquiet).sum(),
            persisted,
        })
    });
    closed.take(FENCES_MAX).collect()
}

fn closed_by(rule: Option<&Sharding>) -> Option<u64> {
    rule.and_then(Sharding::next).and_then(Next::closed)
}

#[cfg(test)]
mod tests {
    use gilmok_config::endpoint::Endpoint;
    use gilmok_config::name::Name;
    use gilmok_config::snapshot::{Membership, Snapshot};
    use gilmok_config::wire::Applied;

    use super::*;
    use crate::current::{InForce, LocalApp};

    const RULE: &str =
        "key = \"host\"\nstrategy = \"modulo\"\nhash = \"identity\"\nshards = [\"0\", \"1\"]\n";

    fn document(next: &str) -> Document {
        let next = if next.is_empty() { "" } else { &format!("[services.s.sharding.next]\n{next}") };
        Document::parse_toml(&format!("[services.other]\n[services.s.sharding]\n{RULE}{next}")).unwrap()
    }

    fn in_force() -> InForce {
        let app = |shard: &str| {
            let mut endpoint = Endpoint::at("127.0.0.1:1".parse().unwrap());
            endpoint.shard = Name::parse(shard).unwrap();
            LocalApp { service: ServiceName::parse("s").unwrap(), endpoint }
        };
        InForce::new(1, Name::default(), vec![app("0"), app("1"), app("")])
    }

    fn put(in_force: &InForce, next: &str) -> std::sync::Arc<Current> {
        let applied =
            Applied { store: "s".to_owned(), revision: 3, hash: "h".to_owned(), last_known_good: false };
        in_force.put(Snapshot::join(&document(next), &Membership::new()), Some(applied));
        in_force.load()
    }

    #[test]
    fn only_what_is_closed_is_told_with_all_that_it_waits_for() {
        let (in_force, nothing) = (in_force(), Closed::default());
        let first = put(&in_force, "");
        let early = first.apps[0].passages.as_ref().unwrap().begin(false);
        let open = put(&in_force, "shards = [\"0\", \"2\"]");
        assert!(reports(&open, &nothing).is_empty());
        let closed = put(&in_force, "shards = [\"0\", \"2\"]\nclosed = 41");
        let call = closed.upstreams[1].passages.as_ref().unwrap().begin(true);
        let _other = closed.upstreams[1].passages.as_ref().unwrap().begin(false);
        let told = |closed: &Current| {
            let all = reports(closed, &nothing);
            let [report] = all.as_slice() else { panic!("{all:?}") };
            assert_eq!((report.service.as_str(), report.closed, report.persisted), ("s", 41, false));
            (report.calling, report.serving)
        };
        assert_eq!(told(&closed), (1, 1));
        drop((early, call));
        assert_eq!(told(&closed), (0, 0));
        assert!(closed.apps[2].passages.is_none(), "an app without a shard owns nothing");
    }

    #[test]
    fn what_is_on_disk_counts_for_its_own_store_and_revision() {
        let in_force = in_force();
        let closed = put(&in_force, "shards = [\"0\", \"2\"]\nclosed = 41");
        let of = |store, next: &str| Closed::of(store, &document(next));
        let ours = of("s", "shards = [\"0\", \"2\"]\nclosed = 41");
        for (on_disk, persisted) in [
            (ours.clone(), true),
            (of("t", "shards = [\"0\", \"2\"]\nclosed = 41"), false),
            (of("s", "shards = [\"0\", \"2\"]\nclosed = 40"), false),
            (of("s", "shards = [\"0\", \"2\"]"), false),
            (Closed::default(), false),
        ] {
            assert_eq!(reports(&closed, &on_disk)[0].persisted, persisted, "{on_disk:?}");
            assert_eq!(ours.are_in(&on_disk), persisted, "{on_disk:?}");
        }
        assert!(of("t", "").are_in(&ours), "nothing is closed");
    }
}
