//! Shards by command: what keeps their maps from being changed in passing, and moves of them.

use serde_json::json;

use super::super::*;
use super::plane::{Plane, conflict, fault, name};
use crate::resharding::state::{Edit, Hand, ShardMove, Stage};

/// A shop of two shards with two slots each, and a move of it to four.
struct Moving(Plane);

impl Moving {
    fn new() -> Self {
        let mut plane = Plane::new(&["v1"]);
        let rule = json!({"key": "host", "strategy": "slots", "slots": 4, "map": {"0": "0-1", "1": "2-3"}});
        plane.write(&Command::PatchService(name("shop"), json!({ "sharding": rule }))).unwrap();
        let mut moving = Self(plane);
        moving.begin(&json!({"shards": ["0", "1", "2", "3"], "last_copy": "none"})).unwrap();
        moving
    }

    fn begin(&mut self, body: &Value) -> Result<(), Refusal> {
        self.0.write(&Command::BeginMove(name("shop"), body.clone()))
    }

    fn table(&self) -> &Value {
        &self.0.document["services"]["shop"]["sharding"]
    }

    fn record(&self) -> &Record {
        &self.0.records[&name("shop")]
    }

    fn moving(&self) -> &ShardMove {
        self.record().moving.as_deref().unwrap()
    }

    fn say(&mut self, deed: MoveDeed) -> Result<(), Refusal> {
        let id = self.moving().id;
        self.0.write(&Command::Move(name("shop"), id, deed))
    }

    fn patch(&mut self, sharding: &Value) -> Result<(), Refusal> {
        self.0.write(&Command::PatchService(name("shop"), json!({ "sharding": sharding })))
    }

    /// What the move comes to next when nothing stands against it, as its conductor writes it.
    fn goes_on(&mut self) -> Edit {
        use crate::resharding::fence::Fence;
        use crate::resharding::state::Seen;
        let mut moving = self.record().moving.clone().unwrap();
        let fence = Fence::Complete { by: String::new() };
        let seen = Seen { now_ms: 1, closed_for: Default::default(), lack: None, fence: &fence };
        let revision = self.0.number + 1;
        if moving.stage == Stage::Copying && !moving.copied {
            moving.told_to_resume(false, &Hand { by: "ann", why: "", now_ms: 1, revision }).unwrap();
        }
        let edit = moving.tick(&seen, revision).expect("something to write");
        let seq = self.record().seq;
        self.0
            .write(&Command::ConductMove(ConductMove { service: name("shop"), seq, moving, edit }))
            .unwrap();
        edit
    }

    /// So many steps further.
    fn at(mut self, steps: usize) -> Self {
        for _ in 0..steps {
            self.goes_on();
        }
        self
    }
}

#[test]
fn the_shards_of_a_live_service_stay_where_its_data_is() {
    let mut plane = Plane::new(&["v1"]);
    let rule = |slots: [&str; 2]| json!({"key": "host", "strategy": "slots", "slots": 4, "map": {"0": slots[0], "1": slots[1]}});
    let patch = |sharding: &Value| Command::PatchService(name("shop"), json!({ "sharding": sharding }));
    let first = rule(["0-1", "2-3"]);
    plane.write(&patch(&first)).unwrap();
    let (old, number) = (plane.document.clone(), plane.number);
    let other = rule(["0-2", "3"]);
    let mut by_path = first.clone();
    by_path["key"] = json!("path_segment:1");
    for (what, command) in [
        ("another map", patch(&other)),
        ("another key", patch(&by_path)),
        ("no rule", patch(&Value::Null)),
        ("no service", Command::DeleteService(name("shop"))),
        ("another document", Command::PutMesh(json!({}))),
    ] {
        conflict(&plane.write(&command), "services.shop.sharding: keys would be looked for in other shards");
        assert_eq!(plane.document["services"]["shop"]["sharding"], first, "{what}");
    }
    let mut same = rule(["1,0", "2-3"]);
    same["reads"] = json!("any");
    same["map"]["2"] = json!("");
    plane.write(&patch(&same)).expect("no key is elsewhere");
    plane.forced(&patch(&other)).unwrap();
    plane.write(&Command::Restore { number, document: old.clone() }).unwrap();
    let now = &plane.document["services"]["shop"]["sharding"];
    assert_eq!(now["map"]["0"], other["map"]["0"], "data does not move back with a document");
    plane.forced(&Command::Restore { number, document: old }).unwrap();
    let now = &plane.document["services"]["shop"]["sharding"];
    assert_eq!((&now["map"], &now["epoch"]), (&first["map"], &json!(2)), "each other map has another epoch");
    plane.has("shop", &[]);
    conflict(&plane.write(&patch(&other)), "keys would be looked for in other shards");
    let mut young = Plane::new(&[]);
    young.write(&patch(&first)).unwrap();
    young.write(&patch(&other)).expect("nobody holds anything");
}

#[test]
fn a_move_goes_through_the_document_and_is_kept_beside_it() {
    let mut moving = Moving::new();
    assert_eq!((moving.moving().id, moving.moving().batches.len()), (moving.0.number, 2));
    conflict(&moving.begin(&json!({"shards": ["0", "1", "2"]})), "runs already, with 2 batches to go");
    assert_eq!(moving.goes_on(), Edit::Announce);
    assert_eq!(moving.table()["next"]["map"], json!({"0": "0", "1": "2-3", "2": "1"}));
    assert_eq!(moving.goes_on(), Edit::Close);
    assert_eq!(moving.table()["next"]["closed"], json!(moving.0.number));
    assert_eq!(moving.goes_on(), Edit::Advance);
    assert_eq!((moving.table().get("next"), &moving.table()["epoch"]), (None, &json!(1)));
    let mut moving = moving.at(3);
    assert_eq!(moving.table()["map"], json!({"0": "0", "1": "2", "2": "1", "3": "3"}));
    assert_eq!((moving.moving().state(), &moving.table()["epoch"]), ("done", &json!(2)));
    conflict(&moving.begin(&json!({"shards": ["0", "1", "2", "3"], "last_copy": "none"})), "nothing moves");
    // Back by another move, or by reversing this one.
    let (first, id) = (moving.moving().clone(), moving.moving().id);
    moving.begin(&json!({"shards": ["0", "1"], "last_copy": "none"})).unwrap();
    assert_eq!(moving.record().moved, [first.without_maps()]);
    let refused = moving.0.write(&Command::Move(name("shop"), id, MoveDeed::Reverse));
    conflict(&refused, "has ended, and another one was begun since");
    let refused = moving.0.write(&Command::Move(name("shop"), 99, MoveDeed::Pause));
    assert_eq!(refused, Err(Refusal::NoMove(name("shop"), 99)));
    let moving = moving.at(6);
    assert_eq!(moving.table()["map"], json!({"0": "0-1", "1": "2-3"}));
}

#[test]
fn a_move_that_has_ended_is_reversed_unless_somebody_has_changed_the_map_since() {
    let mut moving = Moving::new().at(6);
    conflict(&moving.say(MoveDeed::Resume), "the move has ended");
    // The same map in other words.
    moving.patch(&json!({"map": {"0": "0-0"}})).unwrap();
    moving.say(MoveDeed::Reverse).unwrap();
    assert_eq!(moving.moving().state(), "prepare");
    let mut moving = moving.at(6);
    assert_eq!(moving.moving().state(), "reversed");
    assert_eq!(moving.table()["map"], json!({"0": "0-1", "1": "2-3"}));
    let other = json!({"map": {"0": "0", "1": "1-3"}});
    moving.0.forced(&Command::PatchService(name("shop"), json!({ "sharding": other }))).unwrap();
    conflict(&moving.say(MoveDeed::Reverse), "the map was changed by force since");
}

#[test]
fn what_cannot_be_moved_is_refused_with_the_place() {
    let mut moving = Moving::new();
    moving.say(MoveDeed::Reverse).unwrap();
    fault(&moving.begin(&json!({"shards": ["0", "0"]})), "shards");
    fault(&moving.begin(&json!({"colour": "red"})), "unknown field `colour`");
    fault(
        &moving.begin(&json!({"shards": ["0"], "webhooks": [{"url": "http://a/", "on": ["step"]}]})),
        "webhooks[0].on[0]",
    );
    let of = |service: &str| Command::BeginMove(name(service), json!({"shards": ["0"], "last_copy": "none"}));
    conflict(&moving.0.write(&of("ads")), "`ads` has no shards");
    assert_eq!(moving.0.write(&of("none")), Err(Refusal::NoService(name("none"))));
}

#[test]
fn only_moves_write_the_marks_of_moves() {
    let mut moving = Moving::new().at(2);
    let whole = moving.0.document.clone();
    for patch in [
        json!({"epoch": 3}),
        json!({"epoch": null, "next": {"closed": null}}),
        json!({"next": null}),
        json!({"next": {"closed": 99}}),
    ] {
        conflict(
            &moving.patch(&patch),
            "only moves of shards write it; leave it out, or as it is, and move shards with gilmok shards move shop",
        );
    }
    conflict(&moving.patch(&json!({"map": {"0": "0", "1": "1-3"}})), "gilmok shards move shop");
    conflict(&moving.0.write(&Command::DeleteService(name("shop"))), "keys would be looked for");
    assert_eq!(moving.0.document, whole);
    // A file that speaks of none of them is applied cleanly, and so is what was read before.
    let mut file = whole.clone();
    file["services"]["shop"]["max_concurrent"] = json!(7);
    moving.0.write(&Command::PutMesh(file.clone())).unwrap();
    let table = file["services"]["shop"]["sharding"].as_object_mut().unwrap();
    table.remove("next");
    table.remove("epoch");
    moving.0.write(&Command::PutMesh(file.clone())).unwrap();
    moving.0.write(&Command::PutService(name("shop"), file["services"]["shop"].clone())).unwrap();
    assert_eq!(*moving.table(), whole["services"]["shop"]["sharding"]);
    assert!(moving.moving().is_running());
    // Nobody may begin with a batch that no move speaks of.
    let table = whole["services"]["shop"].clone();
    conflict(
        &moving.0.write(&Command::PutService(name("other"), table.clone())),
        "services.other.sharding.next",
    );
    moving.0.forced(&Command::PutService(name("other"), table)).unwrap();
    assert_eq!(moving.0.document["services"]["other"]["sharding"].get("next"), None);
}

#[test]
fn a_map_that_is_forced_ends_its_move() {
    let mut moving = Moving::new().at(2);
    let other = json!({"sharding": {"map": {"0": "0", "1": "1-3"}}});
    moving.0.forced(&Command::PatchService(name("shop"), other)).unwrap();
    assert_eq!((moving.table().get("next"), &moving.table()["epoch"]), (None, &json!(1)));
    assert_eq!((moving.moving().state(), moving.moving().why.as_str()), ("overruled", "patch service shop"));
    moving.begin(&json!({"shards": ["0", "1", "2", "3"], "last_copy": "none"})).expect("another one");
    // No rule is another rule, and no service has no record.
    moving.0.forced(&Command::PatchService(name("shop"), json!({"sharding": null}))).unwrap();
    assert_eq!(moving.moving().state(), "overruled");
    moving.0.forced(&Command::DeleteService(name("shop"))).unwrap();
    assert!(!moving.0.records.contains_key(&name("shop")));
}

#[test]
fn a_document_that_is_put_back_brings_back_neither_maps_nor_moves() {
    let moving = Moving::new();
    let begun = (moving.0.number, moving.0.document.clone());
    let mut moving = moving.at(1);
    let announced = (moving.0.number, moving.0.document.clone());
    moving.goes_on();
    let restore =
        |(number, document): &(u64, Value)| Command::Restore { number: *number, document: document.clone() };
    // The same map, and another point of the move: it stays where it is.
    for before in [&begun, &announced] {
        let now = moving.table().clone();
        moving.0.write(&restore(before)).unwrap();
        assert_eq!((moving.table(), moving.moving().state()), (&now, "handover"));
    }
    let mut moving = moving.at(2);
    let now = moving.table().clone();
    moving.0.write(&restore(&begun)).unwrap();
    assert_eq!(*moving.table(), now, "another map");
    // Nobody is alive, but the move has not said its last word.
    moving.0.has("shop", &[]);
    moving.0.write(&restore(&begun)).unwrap();
    assert_eq!(*moving.table(), now);
    moving.0.forced(&restore(&announced)).unwrap();
    assert_eq!(moving.moving().state(), "overruled");
    assert_eq!((moving.table().get("next"), &moving.table()["epoch"]), (None, &json!(2)));
    assert_eq!(moving.table()["map"], json!({"0": "0-1", "1": "2-3"}));
}

#[test]
fn whoever_conducts_a_move_that_was_not_read_is_refused() {
    let mut moving = Moving::new();
    let conduct = ConductMove {
        service: name("shop"),
        seq: 99,
        moving: moving.record().moving.clone().unwrap(),
        edit: Edit::Announce,
    };
    conflict(&moving.0.write(&Command::ConductMove(conduct)), "is not what was read");
    moving.say(MoveDeed::Pause).unwrap();
    assert_eq!(moving.moving().state(), "paused");
    assert_eq!(Command::Move(name("shop"), 1, MoveDeed::Pause).what(), "pause move of shards of shop");
}
