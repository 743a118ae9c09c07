//! Words about flags: what becomes of the set, and what applications that rely on it are spared.

use gilmok_config::wire::FlagCounts;

use super::*;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn flag() -> Value {
    json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "on" })
}

fn mesh() -> Value {
    json!({ "services": {}, "flags": { "set": { "flags": { "new-ui": flag(), "size":
        { "state": "ENABLED", "variants": { "big": 25, "small": 10 }, "defaultVariant": "big" } } } } })
}

fn word(key: &str, deed: FlagDeed) -> Command {
    Command::Flag(key.to_owned(), deed)
}

/// The flag as it is after a word about it.
fn told(current: &Value, deed: FlagDeed) -> Value {
    let intent = applied(current, &word("new-ui", deed)).unwrap();
    super::super::flag(&intent.json, "new-ui").cloned().unwrap_or_default()
}

type Plane = (Records, Membership, Exposure, Schedule);

fn context<'a>(plane: &'a Plane, now_ms: u64) -> Context<'a> {
    Context {
        number: 1,
        records: &plane.0,
        alive: &plane.1,
        exposure: &plane.2,
        schedule: &plane.3,
        by: "ann",
        why: "",
        now_ms,
        force: false,
        accept_warnings: false,
        dice: 7,
    }
}

#[test]
fn a_flag_is_put_patched_killed_brought_back_and_deleted() {
    let first = applied(&json!({}), &word("new-ui", FlagDeed::Put(flag()))).unwrap();
    assert_eq!(first.json, json!({ "flags": { "set": { "flags": { "new-ui": flag() } } } }));
    let patched = told(&mesh(), FlagDeed::Patch(json!({ "defaultVariant": "off" })));
    assert_eq!((&patched["defaultVariant"], &patched["state"]), (&json!("off"), &json!("ENABLED")));
    let killed = applied(&mesh(), &word("new-ui", FlagDeed::Kill)).unwrap();
    assert!(killed.document.flags.as_ref().unwrap().get("new-ui").unwrap().is_killed());
    let back = told(&killed.json, FlagDeed::Unkill);
    assert_eq!(back["x-gilmok"], json!({ "kill": { "active": false } }));
    assert_eq!(told(&mesh(), FlagDeed::Unkill), flag(), "what was not killed stays as it is");
    assert_eq!(told(&mesh(), FlagDeed::Delete), Value::Null);
    let set = json!({ "flags": {}, "metadata": { "flagSetId": "shop" } });
    let put = applied(&mesh(), &Command::PutFlags(set.clone())).unwrap();
    assert_eq!(put.json, json!({ "services": {}, "flags": { "set": set } }));
}

#[test]
fn a_word_about_what_is_not_there_changes_nothing() {
    for deed in [FlagDeed::Delete, FlagDeed::Kill, FlagDeed::Patch(json!({})), FlagDeed::Unkill] {
        assert_eq!(applied(&mesh(), &word("z", deed)).unwrap_err(), Refusal::NoFlag("z".to_owned()));
    }
}

#[test]
fn what_flagd_refuses_is_refused_with_its_place() {
    let deed = FlagDeed::Patch(json!({ "defaultVariant": "blue", "state": "ON" }));
    let Refusal::Faulty(problems) = applied(&mesh(), &word("new-ui", deed)).unwrap_err() else { panic!() };
    let paths: Vec<_> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        paths,
        ["flags.set.flags.new-ui.state", "flags.set.flags.new-ui.defaultVariant"],
        "{problems}"
    );
}

#[test]
fn what_flagd_warns_of_is_refused_once_and_then_known() {
    let deed = word("new-ui", FlagDeed::Patch(json!({ "targeting": { "$ref": "nobody" } })));
    let Refusal::Warned(warnings) = applied(&mesh(), &deed).unwrap_err() else { panic!() };
    assert!(warnings.0[0].path.starts_with("flags.set.flags.new-ui"), "{warnings}");
    let plane = Plane::default();
    let accepting = Context { accept_warnings: true, ..context(&plane, 0) };
    let accepted = apply(&mesh(), &deed, &accepting).unwrap().intent.json;
    // What is there already does not stand against other words, least of all against the brake.
    for deed in [FlagDeed::Kill, FlagDeed::Patch(json!({ "metadata": { "owner": "ann" } }))] {
        applied(&accepted, &word("new-ui", deed)).unwrap();
    }
    let back = Command::Restore { number: 1, document: accepted };
    applied(&mesh(), &back).unwrap();
}

#[test]
fn another_type_needs_force() {
    let number = json!({ "state": "ENABLED", "variants": { "on": 1, "off": 0 }, "defaultVariant": "on" });
    let deed = word("new-ui", FlagDeed::Put(number));
    let Refusal::Conflict(why) = applied(&mesh(), &deed).unwrap_err() else { panic!() };
    assert!(why.contains("of type boolean"), "{why}");
    let plane = Plane::default();
    apply(&mesh(), &deed, &Context { force: true, ..context(&plane, 0) }).unwrap();
    let document = json!({ "flags": { "set": { "flags": { "new-ui":
        { "state": "ENABLED", "variants": { "a": "x" }, "defaultVariant": "a" } } } } });
    let refused = applied(&mesh(), &Command::PutMesh(document)).unwrap_err();
    assert!(matches!(refused, Refusal::Conflict(_)), "nor in passing: {refused:?}");
}

#[test]
fn a_flag_that_is_in_use_is_not_deleted() {
    let set = applied(&mesh(), &Command::PutMesh(mesh())).unwrap().document.flags.unwrap();
    let mut plane = Plane::default();
    let counted = FlagCounts {
        flag: "new-ui".to_owned(),
        reason: "STATIC".to_owned(),
        count: 1,
        ..FlagCounts::default()
    };
    plane.2.hear(&[counted], &set, DAY_MS);
    let delete = word("new-ui", FlagDeed::Delete);
    let lately = context(&plane, 2 * DAY_MS - 1);
    let Refusal::Conflict(why) = apply(&mesh(), &delete, &lately).unwrap_err() else { panic!() };
    assert!(why.contains("1439 min ago"), "{why}");
    apply(&mesh(), &word("size", FlagDeed::Delete), &lately).unwrap();
    apply(&mesh(), &delete, &Context { force: true, ..lately }).unwrap();
    apply(&mesh(), &delete, &context(&plane, 2 * DAY_MS)).unwrap();
}

#[test]
fn a_list_of_flags_is_kept_by_key() {
    let mut listed = flag();
    listed["key"] = json!("new-ui");
    let list = |items: Value| Command::PutFlags(json!({ "flags": items }));
    let put = applied(&json!({}), &list(json!([listed]))).unwrap();
    assert_eq!(super::super::flag(&put.json, "new-ui"), Some(&flag()));
    for unsound in [json!([listed, listed]), json!([flag()]), json!([1])] {
        let refused = applied(&json!({}), &list(unsound)).unwrap_err();
        assert!(matches!(refused, Refusal::Faulty(_)), "{refused:?}");
    }
}

#[test]
fn a_change_waits_for_its_time_and_is_made_once() {
    let mut plane = Plane::default();
    let later = |at_ms| FlagDeed::Schedule { at_ms, patch: json!({ "state": "DISABLED" }) };
    let said = apply(&mesh(), &word("new-ui", later(5_000)), &context(&plane, 1_000)).unwrap();
    assert_eq!(said.intent.json, mesh(), "nothing changes before");
    plane.3 = said.schedule.unwrap();
    let (id, by) = (plane.3[0].id, plane.3[0].by.as_str());
    assert_eq!((id, by, plane.3.len()), (2, "ann", 1));
    let due = word("new-ui", FlagDeed::CarryOut(id));
    let done = apply(&mesh(), &due, &context(&plane, 5_000)).unwrap();
    let flag_after = super::super::flag(&done.intent.json, "new-ui").unwrap();
    assert_eq!((&flag_after["state"], done.schedule.as_deref()), (&json!("DISABLED"), Some(&[][..])));
    let back = apply(&mesh(), &word("new-ui", FlagDeed::Unschedule(id)), &context(&plane, 1_000)).unwrap();
    assert_eq!(back.schedule.as_deref(), Some(&[][..]));
    let gone = apply(&mesh(), &word("new-ui", FlagDeed::Delete), &context(&plane, 1_000)).unwrap();
    assert_eq!(gone.schedule.as_deref(), Some(&[][..]), "what waits for a flag goes with it");
    plane.3.clear();
    let again = apply(&mesh(), &due, &context(&plane, 5_000)).unwrap_err();
    assert_eq!(again, Refusal::NotScheduled("new-ui".to_owned(), id));
}

#[test]
fn a_change_that_cannot_be_made_is_refused_when_it_is_said_and_kept_when_its_time_comes() {
    let mut plane = Plane::default();
    let say = |at_ms, patch: Value| word("new-ui", FlagDeed::Schedule { at_ms, patch });
    for (at_ms, patch) in [(1_000, json!({})), (2_000, json!({ "state": "ON" }))] {
        let refused = apply(&mesh(), &say(at_ms, patch), &context(&plane, 1_000)).unwrap_err();
        assert!(matches!(refused, Refusal::Faulty(_)), "{refused:?}");
    }
    let big = say(2_000, json!({ "metadata": { "text": "x".repeat(20_000) } }));
    assert!(matches!(apply(&mesh(), &big, &context(&plane, 1_000)), Err(Refusal::Faulty(_))));
    let said = say(2_000, json!({ "defaultVariant": "off" }));
    plane.3 = apply(&mesh(), &said, &context(&plane, 1_000)).unwrap().schedule.unwrap();
    // Somebody renames the variant in between.
    let renamed = json!({ "variants": { "no": false, "off": null } });
    let changed = applied(&mesh(), &word("new-ui", FlagDeed::Patch(renamed))).unwrap().json;
    let due = word("new-ui", FlagDeed::CarryOut(plane.3[0].id));
    let tried = apply(&changed, &due, &context(&plane, 2_000)).unwrap();
    assert_eq!(tried.intent.json, changed);
    plane.3 = tried.schedule.unwrap();
    let failed = plane.3[0].failed.as_deref().unwrap();
    assert!(failed.contains("there is no variant `off`"), "{failed}");
    assert_eq!(crate::schedule::due(&plane.3, 9_000), None, "it is not tried again");
}

#[test]
fn the_audit_is_told_what_became_of_each_flag_within_bounds() {
    let mut after = mesh();
    let flags = &mut after["flags"]["set"]["flags"];
    flags["new-ui"]["state"] = json!("DISABLED");
    flags["size"] = Value::Null;
    flags["long"] = json!({ "text": "x".repeat(20_000) });
    flags.as_object_mut().unwrap().remove("size");
    let changes = flag_changes(&mesh(), &after);
    let told: Vec<_> = changes.iter().map(|change| change.flag.as_str()).collect();
    assert_eq!(told, ["long", "new-ui", "size"]);
    assert!(changes[0].before.is_null() && changes[0].after["bytes"].as_u64().unwrap() > 20_000);
    assert_eq!((&changes[1].before, &changes[1].after["state"]), (&flag(), &json!("DISABLED")));
    assert!(changes[2].after.is_null());
    let many: Map<_, _> = (0..50).map(|at| (format!("f{at}"), flag())).collect();
    let many = json!({ "flags": { "set": { "flags": many } } });
    assert_eq!(flag_changes(&json!({}), &many).len(), CHANGES_MAX);
}
