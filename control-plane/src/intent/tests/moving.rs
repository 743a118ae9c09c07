//! Moving users by command: shares, switches, rollbacks and rollouts, and what stands against them.

use serde_json::json;

use super::super::*;
use super::plane::{Plane, conflict, fault, name, version};
use crate::record::ReleaseKind;

#[test]
fn three_versions_are_reweighed_with_the_fewest_moves_and_the_same_again_changes_nothing() {
    let mut plane = Plane::new(&["v1", "a", "b"]);
    plane.weights("shop", "v1", &json!({"a": 10, "b": 10, "v1": 80})).unwrap();
    assert!(plane.traffic("shop").get("table").is_none(), "the first table follows from the weights");
    let more =
        Command::PutTraffic(name("shop"), json!({"stable": "v1", "weights": {"a": 20, "b": 20, "v1": 60}}));
    let before = Intent::parse(&plane.document).unwrap().document;
    let foreseen = moves(&before, &plane.decide(&more).unwrap().intent).remove(&name("shop")).unwrap();
    assert_eq!(foreseen.moves_percent, 20.0);
    assert!(foreseen.moves.iter().all(|moved| moved.from.as_str() == "v1"), "{:?}", foreseen.moves);
    plane.write(&more).unwrap();
    assert_eq!(plane.traffic("shop")["table"].as_array().map(Vec::len), Some(5));
    let kept = plane.document.clone();
    plane.write(&more).unwrap();
    assert_eq!(plane.document, kept);
    // Two are left: whoever stays with a version stays where it is.
    plane.weights("shop", "v1", &json!({"a": 20, "v1": 80})).unwrap();
    assert_eq!(plane.traffic("shop")["table"].as_array().map(Vec::len), Some(4), "{}", plane.traffic("shop"));
}

#[test]
fn what_would_deal_everybody_anew_needs_force() {
    let mut plane = Plane::new(&["v1", "v2"]);
    plane.weights("shop", "v1", &json!({"v1": 90, "v2": 10})).unwrap();
    let turned = json!({"stable": "v2", "weights": {"v1": 90, "v2": 10}});
    conflict(
        &plane.write(&Command::PutTraffic(name("shop"), turned.clone())),
        "cannot become the stable version",
    );
    let salted = json!({"stable": "v1", "salt": "other", "weights": {"v1": 90, "v2": 10}});
    conflict(&plane.write(&Command::PutTraffic(name("shop"), salted.clone())), "deal all users anew");
    let by_cookie = json!({"traffic": {"subject": ["cookie:id"]}});
    conflict(&plane.write(&Command::PatchService(name("shop"), by_cookie)), "services.shop.traffic.subject");
    plane.forced(&Command::PutTraffic(name("shop"), salted)).unwrap();
    plane.weights("shop", "v2", &json!({"v2": 100})).unwrap();
    assert_eq!(plane.traffic("shop")["stable"], "v2", "one version has everybody: that is a promotion");
}

#[test]
fn an_unknown_version_is_refused_with_those_that_are_known() {
    let mut plane = Plane::new(&["v1", "v2"]);
    fault(
        &plane.weights("shop", "v1", &json!({"v1": 90, "v9": 10})),
        "weights.v9: no endpoint of `shop` has the version `v9` (one of: v1, v2)",
    );
    fault(&plane.switch("v9"), "to: no endpoint of `shop` has the version `v9`");
    fault(&plane.begin(&json!({"candidate": "v9", "preset": "AllAtOnce"})), "candidate: no endpoint");
    plane.weights("shop", "v1", &json!({"v1": 100, "v9": 0})).unwrap();
    conflict(&plane.switch("v9"), "no endpoint of `shop` with the version `v9` is alive");
    plane.forced(&Command::Switch(name("shop"), version("v9"))).unwrap();
    assert_eq!(plane.traffic("shop")["stable"], "v9");
}

#[test]
fn a_switch_moves_everybody_and_a_rollback_brings_the_exact_cohorts_back() {
    let mut plane = Plane::new(&["v1", "a", "b"]);
    plane.weights("shop", "v1", &json!({"a": 10, "b": 10, "v1": 80})).unwrap();
    plane.weights("shop", "v1", &json!({"a": 20, "b": 20, "v1": 60})).unwrap();
    let before = plane.traffic("shop").clone();
    plane.switch("b").unwrap();
    assert_eq!(*plane.traffic("shop"), json!({"stable": "b", "weights": {"b": 100}}));
    plane.switch("b").unwrap();
    let release = plane.records[&name("shop")].release.clone().unwrap();
    assert_eq!((release.kind, release.from.as_str(), release.to.as_str()), (ReleaseKind::Switch, "v1", "b"));
    // What was said meanwhile of other things stays.
    let pins = json!({"traffic": {"pins": [{"header": "x-version", "equals": "a", "version": "a"}]}});
    plane.write(&Command::PatchService(name("shop"), pins)).unwrap();
    plane.write(&Command::RollBack(name("shop"))).unwrap();
    let mut expected = before;
    expected["pins"] = plane.traffic("shop")["pins"].clone();
    assert_eq!(*plane.traffic("shop"), expected);
    conflict(&plane.write(&Command::RollBack(name("shop"))), "was rolled back in revision");
    conflict(&plane.write(&Command::RollBack(name("ads"))), "nobody has switched `ads` yet");
}

#[test]
fn nobody_is_rolled_back_to_where_nobody_answers() {
    let mut plane = Plane::new(&["v1", "v2"]);
    plane.switch("v2").unwrap();
    // The old version was drainable, and was stopped.
    plane.has("shop", &["v2"]);
    let back = Command::RollBack(name("shop"));
    conflict(&plane.write(&back), "no endpoint of `shop` with the version `v1` is alive");
    assert_eq!(plane.traffic("shop")["stable"], "v2");
    plane.forced(&back).unwrap();
    assert_eq!(plane.traffic("shop")["stable"], "v1");
}

#[test]
fn services_of_a_group_move_together() {
    let mut plane = Plane::new(&["v1", "v2"]);
    plane.has("ads", &["w1", "w2"]);
    let of = |stable: &str, other: &str| json!({"traffic": {"stable": stable, "weights": {stable: 99, other: 1}, "group": "g"}});
    let both = json!({"services": {"shop": of("v1", "v2"), "ads": of("w1", "w2")}});
    plane.write(&Command::PutMesh(both)).unwrap();
    plane.switch("v2").unwrap();
    assert_eq!(plane.traffic("ads")["weights"], json!({"w1": 0, "w2": 100}));
    assert_eq!(plane.traffic("ads")["stable"], "w2");
    plane.write(&Command::RollBack(name("shop"))).unwrap();
    assert_eq!(plane.traffic("ads")["weights"], json!({"w1": 99, "w2": 1}));
    plane.begin(&json!({"candidate": "v2", "steps": [{"percent": 10}, {"percent": 100}]})).unwrap();
    plane.step_to(100_000).unwrap();
    assert_eq!(
        (plane.traffic("ads")["weights"].clone(), plane.traffic("shop")["weights"].clone()),
        (json!({"w1": 90, "w2": 10}), json!({"v1": 90, "v2": 10}))
    );
    let alone = json!({"traffic": {"weights": {"w1": 50, "w2": 50}}});
    fault(&plane.write(&Command::PatchService(name("ads"), alone)), "split otherwise");
    plane.say(Deed::Abort).unwrap();
    assert_eq!(
        plane.traffic("ads")["weights"],
        json!({"w1": 100, "w2": 0}),
        "nobody has the candidate any more"
    );
    // Which version of ads goes with v3 is anybody's guess.
    plane.has("shop", &["v1", "v2", "v3"]);
    plane.has("ads", &["w1", "w2", "w3"]);
    let three = |stable: &str, a: &str, b: &str| json!({"traffic": {"stable": stable, "weights": {stable: 100, a: 0, b: 0}, "group": "g"}});
    plane
        .write(&Command::PutMesh(
            json!({"services": {"shop": three("v1", "v2", "v3"), "ads": three("w1", "w2", "w3")}}),
        ))
        .unwrap();
    conflict(&plane.switch("v3"), "which of its versions goes with `v3` is not plain");
}

#[test]
fn while_a_rollout_moves_users_nobody_else_does() {
    let mut plane = Plane::new(&["v1", "v2"]);
    plane.begin(&json!({"candidate": "v2", "steps": [{"percent": 10}, {"percent": 100}]})).unwrap();
    assert_eq!(plane.traffic("shop")["weights"], json!({"v1": 100}), "the conductor takes the first step");
    conflict(&plane.begin(&json!({"candidate": "v2", "preset": "AllAtOnce"})), "runs already");
    plane.step_to(100_000).unwrap();
    assert_eq!(plane.traffic("shop")["weights"], json!({"v1": 90, "v2": 10}));
    conflict(
        &plane.weights("shop", "v1", &json!({"v1": 50, "v2": 50})),
        "a rollout of v2 at 10 % moves the users of `shop`",
    );
    conflict(&plane.write(&Command::PutService(name("shop"), json!({}))), "gilmok rollout abort shop");
    conflict(&plane.write(&Command::DeleteService(name("shop"))), "moves the users");
    conflict(&plane.switch("v2"), "a rollout of v2 at 10 % runs");
    let harmless = json!({"request_timeout": "3s"});
    plane.write(&Command::PatchService(name("shop"), harmless)).unwrap();
    plane
        .forced(&Command::PutTraffic(name("shop"), json!({"stable": "v1", "weights": {"v1": 50, "v2": 50}})))
        .unwrap();
    assert_eq!((plane.rollout().state(), plane.rollout().why.as_str()), ("aborted", "put traffic of shop"));
    assert_eq!(plane.traffic("shop")["weights"], json!({"v1": 50, "v2": 50}));
    plane.say(Deed::Forget).unwrap();
    assert_eq!(plane.records[&name("shop")].rollout, None);
    assert_eq!(plane.say(Deed::Pause), Err(Refusal::NoRollout(name("shop"))));
}

#[test]
fn a_restored_document_leaves_users_where_they_have_moved_since() {
    let mut plane = Plane::new(&["v1", "v2"]);
    let (old, number) = (plane.document.clone(), plane.number);
    plane.write(&Command::PatchService(name("ads"), json!({"max_concurrent": 7}))).unwrap();
    plane.switch("v2").unwrap();
    let now = plane.traffic("shop").clone();
    plane.write(&Command::Restore { number, document: old }).unwrap();
    assert_eq!(plane.document["services"]["ads"], json!({}));
    assert_eq!(*plane.traffic("shop"), now);
}

#[test]
fn a_rollout_begins_where_its_service_stands() {
    let mut plane = Plane::new(&["v1", "v2"]);
    fault(&plane.begin(&json!({"candidate": "v1", "preset": "AllAtOnce"})), "is the stable version already");
    fault(
        &plane.begin(&json!({"candidate": "v2", "stable": "v0", "preset": "AllAtOnce"})),
        "the stable version is `v1`",
    );
    fault(&plane.begin(&json!({"candidate": "v2", "steps": [{"percent": 50}]})), "the plan has no end");
    plane.has("ads", &["w1", "w2"]);
    let of_ads = |plan: Value| Command::PutRollout(name("ads"), plan);
    fault(&plane.write(&of_ads(json!({"candidate": "w2", "preset": "AllAtOnce"}))), "`stable` is missing");
    plane
        .write(&of_ads(json!({"candidate": "w2", "stable": "w1", "preset": "OneAtATime", "salt": "x"})))
        .unwrap();
    assert_eq!(*plane.traffic("ads"), json!({"stable": "w1", "weights": {"w1": 100}, "salt": "x"}));
    assert_eq!(
        plane.records[&name("ads")].rollout.as_ref().unwrap().plan.steps.len(),
        2,
        "a step for each host"
    );
    plane.write(&Command::Rollout(name("ads"), Deed::Abort)).unwrap();
    assert_eq!(*plane.traffic("ads"), json!({"stable": "w1", "weights": {"w1": 100}}));
}

#[test]
fn whoever_conducts_what_it_has_not_read_is_refused() {
    let mut plane = Plane::new(&["v1", "v2"]);
    plane.begin(&json!({"candidate": "v2", "steps": [{"percent": 10}, {"percent": 100}]})).unwrap();
    let rollout = plane.records[&name("shop")].rollout.clone().unwrap();
    let conduct = Conduct { service: name("shop"), seq: 7, rollout, shift: None };
    conflict(&plane.write(&Command::Conduct(conduct)), "is not what was read");
}
