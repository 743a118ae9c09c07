//! Moves of shards as they go on: acks, answers and words in, edits and states out.

use std::time::Duration;

use gilmok_config::name::Name;
use gilmok_config::sharding::moving::HOLD_MAX;
use serde_json::{Value, json};

use super::deed::Unfit;
use super::fence::{Fence, Waiting};
use super::state::{Batch, Direction, Edit, Hand, Seen, ShardMove, Stage};
use super::table::{self, edited};
use crate::merge_patch;
use crate::webhook::{Agreement, Occasion, Owed, Webhook};

/// A move and the world around it: one table, and a revision a write.
struct World {
    moving: ShardMove,
    table: Value,
    revision: u64,
    now_ms: u64,
    closed_ms: u64,
    lack: Option<String>,
    fence: Fence,
    edits: Vec<Edit>,
}

fn complete() -> Fence {
    Fence::Complete { by: "all".to_owned() }
}

fn waits() -> Fence {
    Fence::Waits(vec![Waiting { who: "a".to_owned(), why: "sleeps".to_owned() }])
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// Two shards of two slots each become four.
fn rules() -> [Value; 3] {
    [
        json!({"map": {"0": "0-1", "1": "2-3"}}),
        json!({"map": {"0": "0", "1": "2-3", "2": "1"}}),
        json!({"map": {"0": "0", "1": "2", "2": "1", "3": "3"}}),
    ]
}

impl World {
    fn new(on: &[Occasion]) -> Self {
        let rules = rules();
        let batch = |at: usize| Batch {
            from: name(&at.to_string()),
            to: name(&(at + 2).to_string()),
            what: format!("slot {at}"),
            detail: json!({"slots": [[at, at]]}),
            ppm: Some(250_000),
            change: merge_patch::between(&rules[at], &rules[at + 1]),
        };
        let webhook = Webhook {
            url: "http://127.0.0.1:1/".to_owned(),
            on: on.to_vec(),
            timeout: Duration::from_secs(1),
            retries: 0,
        };
        let webhooks = if on.is_empty() { Vec::new() } else { vec![webhook] };
        let hand = Hand { by: "ann", why: "", now_ms: 1, revision: 10 };
        let moving = ShardMove::new(rules[0].clone(), vec![batch(0), batch(1)], webhooks, &hand);
        let table = json!({"key": "host", "strategy": "slots", "slots": 4, "map": rules[0]["map"]});
        Self {
            moving,
            table,
            revision: 10,
            now_ms: 1,
            closed_ms: 0,
            lack: None,
            fence: waits(),
            edits: Vec::new(),
        }
    }

    fn carry_out(&mut self, edit: Option<Edit>, next: &Value) {
        let Some(edit) = edit else { return };
        self.revision += 1;
        self.table = edited(&self.table, edit, next, self.revision);
        if edit == Edit::Close {
            self.closed_ms = self.now_ms;
        }
        self.edits.push(edit);
        let kept: ShardMove = serde_json::from_value(serde_json::to_value(&self.moving).unwrap())
            .expect("it is read as it was kept");
        assert_eq!(kept, self.moving);
        let closed = self.table["next"]["closed"].as_u64();
        assert_eq!(closed, self.moving.closed(), "document and record say the same");
        assert_eq!(self.table.get("next").is_some(), self.moving.stage != Stage::Prepare);
        assert_eq!(table::rule(&self.table), rules()[self.moving.moved]);
    }

    fn tick(&mut self) -> &mut Self {
        let seen = Seen {
            now_ms: self.now_ms,
            closed_for: Duration::from_millis(self.now_ms - self.closed_ms),
            lack: self.lack.clone(),
            fence: &self.fence,
        };
        let next = self.moving.next_rule();
        let edit = self.moving.tick(&seen, self.revision + 1);
        self.carry_out(edit, &next);
        self
    }

    /// Ticks once after so long.
    fn after(&mut self, time: Duration) -> &mut Self {
        self.now_ms += u64::try_from(time.as_millis()).unwrap();
        self.tick()
    }

    fn hand(&self) -> Hand<'static> {
        Hand { by: "ann", why: "", now_ms: self.now_ms, revision: self.revision + 1 }
    }

    fn say(
        &mut self,
        word: impl FnOnce(&mut ShardMove, &Hand<'_>) -> Result<Option<Edit>, Unfit>,
    ) -> Result<(), Unfit> {
        let (hand, next) = (self.hand(), self.moving.next_rule());
        let edit = word(&mut self.moving, &hand)?;
        self.carry_out(edit, &next);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Unfit> {
        self.say(|moving, hand| moving.told_to_resume(false, hand))
    }

    fn owed(&self, occasion: Occasion) -> Option<Owed> {
        self.moving.owed.iter().find(|owed| owed.occasion == occasion).cloned()
    }

    fn answer(&mut self, occasion: Occasion, answer: &Result<Agreement, String>) {
        let owed = self.owed(occasion).unwrap_or_else(|| panic!("nobody is asked: {:?}", self.moving));
        let (hand, next) = (self.hand(), self.moving.next_rule());
        let edit = self.moving.answered(&owed, answer, &hand);
        self.carry_out(edit, &next);
    }

    /// The current batch, by the operator's word.
    fn move_batch(&mut self) {
        self.tick();
        self.resume().unwrap();
        self.fence = complete();
        self.tick().tick();
        self.fence = waits();
    }

    fn history(&self) -> Vec<&'static str> {
        self.moving.history.iter().map(|event| event.what.as_str()).collect()
    }
}

#[test]
fn a_batch_is_announced_closed_and_moved_when_its_fence_is_complete() {
    let mut world = World::new(&[]);
    world.lack = Some("shard 2 has no primary".to_owned());
    world.tick();
    assert_eq!(
        (world.moving.state(), world.moving.why.as_str()),
        ("prepare", "shard 2 has no primary; it is waited for")
    );
    world.lack = None;
    world.tick().tick();
    assert_eq!(world.edits, [Edit::Announce]);
    assert_eq!(world.moving.state(), "copying");
    assert!(world.moving.why.contains("copy the batch from shard 0 to shard 2"), "{}", world.moving.why);
    world.resume().unwrap();
    world.tick().tick();
    assert_eq!((world.moving.state(), world.table["next"]["closed"].as_u64()), ("handover", Some(12)));
    assert_eq!(world.moving.why, "waiting for a (sleeps)");
    world.fence = complete();
    world.tick();
    assert_eq!(world.edits, [Edit::Announce, Edit::Close, Edit::Advance]);
    assert_eq!((world.moving.moved, world.moving.state(), &world.table["epoch"]), (1, "prepare", &json!(1)));
    world.move_batch();
    assert_eq!(
        (world.moving.state(), world.moving.batches_left(), &world.table["epoch"]),
        ("done", 0, &json!(2))
    );
    assert_eq!(table::rule(&world.table), rules()[2]);
    assert_eq!(
        world.history(),
        [
            "started",
            "announced",
            "copied",
            "closed",
            "moved",
            "announced",
            "copied",
            "closed",
            "moved",
            "done"
        ]
    );
    assert_eq!(world.moving.clone().without_maps().rule_after(0), json!(null));
}

#[test]
fn without_a_complete_fence_the_source_opens_again_and_the_move_pauses() {
    let mut world = World::new(&[]);
    world.tick();
    world.resume().unwrap();
    world.tick();
    world.after(HOLD_MAX - Duration::from_millis(1));
    assert_eq!(world.moving.state(), "handover");
    world.after(Duration::from_millis(1));
    assert_eq!(world.edits, [Edit::Announce, Edit::Close, Edit::Reopen]);
    assert_eq!(
        (world.moving.state(), world.moving.why.as_str()),
        ("paused", "it was not fenced within 2 s: a (sleeps)")
    );
    world.after(HOLD_MAX);
    assert_eq!(world.edits.len(), 3, "nothing goes on by itself");
    world.resume().unwrap();
    world.fence = complete();
    world.tick();
    assert_eq!(world.table["next"]["closed"].as_u64(), Some(14), "another revision closes it");
    // Late, but fenced: nobody could have written meanwhile.
    world.after(HOLD_MAX);
    assert_eq!(world.moving.moved, 1);
}

#[test]
fn a_target_that_is_lost_while_the_batch_is_closed_gets_nothing() {
    let mut world = World::new(&[]);
    world.tick();
    world.resume().unwrap();
    world.fence = complete();
    world.tick();
    world.lack = Some("shard 2 has no primary".to_owned());
    world.tick().after(HOLD_MAX);
    assert_eq!(world.edits, [Edit::Announce, Edit::Close, Edit::Reopen]);
    assert!(world.moving.why.ends_with("shard 2 (shard 2 has no primary)"), "{}", world.moving.why);
    world.resume().unwrap();
    world.tick();
    assert_eq!(world.moving.state(), "copying", "it is not even closed");
}

#[test]
fn webhooks_copy_and_say_so() {
    let mut world = World::new(&[Occasion::Copy, Occasion::Fenced, Occasion::Moved]);
    world.tick();
    assert_eq!(world.resume(), Err(Unfit::Asked));
    world.answer(Occasion::Copy, &Ok(Agreement::Done));
    world.fence = complete();
    world.tick().tick();
    assert_eq!(world.edits, [Edit::Announce, Edit::Close]);
    world.answer(Occasion::Fenced, &Ok(Agreement::Done));
    world.tick();
    assert_eq!(world.moving.moved, 1);
    assert_eq!(world.owed(Occasion::Moved).map(|owed| owed.step), Some(0));
}

#[test]
fn a_copy_that_takes_long_is_begun_first_and_done_later() {
    let mut world = World::new(&[Occasion::Copy]);
    world.tick();
    world.answer(Occasion::Copy, &Ok(Agreement::Later));
    world.tick();
    assert!(world.moving.why.starts_with("the webhook `copy` has begun"), "{}", world.moving.why);
    world.resume().unwrap();
    world.tick();
    assert_eq!(world.moving.state(), "handover");
}

#[test]
fn whoever_does_not_agree_pauses_it_and_is_asked_again() {
    let mut world = World::new(&[Occasion::Copy, Occasion::Fenced]);
    world.tick();
    world.answer(Occasion::Copy, &Err("answered 500".to_owned()));
    assert_eq!(
        (world.moving.state(), world.moving.why.as_str()),
        ("paused", "the webhook `copy` did not agree: answered 500")
    );
    world.resume().unwrap();
    world.answer(Occasion::Copy, &Ok(Agreement::Done));
    world.fence = complete();
    world.tick().tick();
    world.answer(Occasion::Fenced, &Ok(Agreement::Later));
    assert_eq!(
        (world.moving.state(), world.edits.last()),
        ("paused", Some(&Edit::Reopen)),
        "there is no later here"
    );
    world.resume().unwrap();
    assert!(!world.moving.copied && world.owed(Occasion::Copy).is_some(), "it was written to since");
    world.answer(Occasion::Copy, &Ok(Agreement::Done));
    world.tick().tick();
    let late = world.owed(Occasion::Fenced).unwrap();
    world.after(HOLD_MAX);
    assert_eq!(world.moving.why, "the webhook `fenced` did not agree within 2 s");
    // What it says now is about a batch that is open.
    let hand = world.hand();
    assert_eq!(world.moving.answered(&late, &Ok(Agreement::Done), &hand), None);
    assert_eq!(world.moving.fenced, None);
}

#[test]
fn what_was_written_last_is_copied_once_more_if_others_had_to_close_the_batch() {
    let mut world = World::new(&[Occasion::Fenced]);
    world.tick();
    world.resume().unwrap();
    world.fence = complete();
    world.tick().tick();
    let first = world.owed(Occasion::Fenced).unwrap();
    world.answer(Occasion::Fenced, &Ok(Agreement::Done));
    world.fence = Fence::Complete { by: "all and one more".to_owned() };
    world.tick();
    assert_eq!(world.moving.moved, 0);
    let second = world.owed(Occasion::Fenced).unwrap();
    assert_ne!(first.number, second.number);
    world.fence = waits();
    world.tick();
    assert_eq!(world.owed(Occasion::Fenced), None, "he has yet to close it");
    world.fence = Fence::Complete { by: "all and one more".to_owned() };
    world.tick();
    world.answer(Occasion::Fenced, &Ok(Agreement::Done));
    world.tick();
    assert_eq!(world.moving.moved, 1);
}

#[test]
fn a_move_is_reversed_at_any_point_and_what_has_moved_moves_back() {
    let reverse = |world: &mut World| world.say(ShardMove::told_to_reverse);
    // Before anything is written, while it is open, and while it is closed.
    for edits in [0, 1, 2] {
        let mut world = World::new(&[]);
        while world.edits.len() < edits {
            world.tick();
            drop(world.resume());
        }
        reverse(&mut world).unwrap();
        assert_eq!((world.moving.state(), world.table.get("next")), ("reversed", None), "{edits}");
        assert_eq!(world.edits.last() == Some(&Edit::GiveUp), edits > 0);
    }
    let mut world = World::new(&[]);
    world.move_batch();
    world.tick();
    reverse(&mut world).unwrap();
    assert_eq!(
        (world.moving.state(), world.moving.direction, world.moving.batches_left()),
        ("prepare", Direction::Back, 1)
    );
    let leg = world.moving.leg().unwrap();
    assert_eq!((leg.at, leg.source.as_str(), leg.target.as_str()), (0, "2", "0"));
    world.tick();
    assert_eq!(world.table["next"]["map"], rules()[0]["map"]);
    // Forward again, and back again, before it is copied.
    reverse(&mut world).unwrap();
    assert_eq!((world.moving.direction, world.moving.leg().unwrap().at), (Direction::Forward, 1));
    reverse(&mut world).unwrap();
    world.move_batch();
    assert_eq!((world.moving.state(), &world.table["epoch"]), ("reversed", &json!(2)));
    // What has ended can be had again.
    reverse(&mut world).unwrap();
    world.move_batch();
    world.move_batch();
    assert_eq!(world.moving.state(), "done");
    reverse(&mut world).unwrap();
    world.move_batch();
    world.move_batch();
    assert_eq!((world.moving.state(), table::rule(&world.table)), ("reversed", rules()[0].clone()));
}

#[test]
fn an_operators_pause_opens_a_closed_batch_and_the_word_that_it_is_copied_stays() {
    let mut world = World::new(&[]);
    world.tick();
    world.say(ShardMove::told_to_pause).unwrap();
    assert_eq!(world.say(ShardMove::told_to_pause), Err(Unfit::Paused));
    world.resume().unwrap();
    world.tick();
    assert_eq!(world.moving.state(), "copying", "to go on is not to say that it is copied");
    world.resume().unwrap();
    world.tick();
    assert!(matches!(world.resume(), Err(Unfit::NotPaused(_))));
    world.say(ShardMove::told_to_pause).unwrap();
    assert_eq!(world.edits, [Edit::Announce, Edit::Close, Edit::Reopen]);
    world.resume().unwrap();
    world.tick();
    assert_eq!(world.moving.state(), "handover");
}

#[test]
fn a_word_that_the_silent_are_gone_holds_for_one_batch() {
    let mut world = World::new(&[]);
    world.tick();
    world.say(|moving, hand| moving.told_to_resume(true, hand)).unwrap();
    assert!(world.moving.forced);
    world.fence = complete();
    world.tick().tick();
    assert!(world.moving.moved == 1 && !world.moving.forced);
    world.fence = waits();
    world.tick();
    world.say(|moving, hand| moving.told_to_resume(true, hand)).unwrap();
    world.tick().after(HOLD_MAX);
    assert!(world.moving.paused && !world.moving.forced);
}

#[test]
fn what_was_overruled_can_only_be_begun_anew() {
    let mut world = World::new(&[Occasion::Copy, Occasion::Reversed]);
    world.tick();
    let hand = world.hand();
    world.moving.overruled(&hand);
    assert_eq!((world.moving.state(), world.moving.batches_left()), ("overruled", 0));
    assert_eq!(world.moving.owed.len(), 1, "nobody has to copy any more: {:?}", world.moving.owed);
    assert_eq!(world.resume(), Err(Unfit::Ended));
    assert_eq!(world.moving.told_to_reverse(&hand), Err(Unfit::Overruled));
}

#[test]
fn history_is_bounded_and_what_happened_is_counted() {
    let mut world = World::new(&[]);
    world.tick();
    for _ in 0..400 {
        world.say(ShardMove::told_to_pause).unwrap();
        world.resume().unwrap();
    }
    assert_eq!((world.moving.history.len(), world.moving.happened), (300, 802));
    assert_eq!(world.history()[..2], ["started", "announced"]);
}
