//! Commands as operators give them: what becomes of the document, and what is refused with which words.

mod flags;

mod plane;

mod moving;

mod shards;

use serde_json::json;

use super::*;
use plane::name;

fn applied(current: &Value, command: &Command) -> Result<Intent, Refusal> {
    let (records, alive) = (Records::new(), Membership::new());
    let context = Context {
        number: 1,
        records: &records,
        alive: &alive,
        by: "ann",
        why: "",
        now_ms: 1_000,
        accept_warnings: false,
        exposure: &Exposure::default(),
        schedule: &Schedule::new(),
        force: false,
        dice: 7,
    };
    apply(current, command, &context).map(|outcome| outcome.intent)
}

#[test]
fn a_service_is_put_patched_and_deleted() {
    let ads = name("ads");
    let put =
        applied(&json!({}), &Command::PutService(ads.clone(), json!({"request_timeout": "2s"}))).unwrap();
    assert_eq!(put.json, json!({"services": {"ads": {"request_timeout": "2s"}}}));
    let patch = json!({"request_timeout": null, "max_concurrent": 7});
    let patched = applied(&put.json, &Command::PatchService(ads.clone(), patch)).unwrap();
    assert_eq!(patched.json, json!({"services": {"ads": {"max_concurrent": 7}}}));
    let deleted = applied(&patched.json, &Command::DeleteService(ads.clone())).unwrap();
    assert_eq!(deleted.json, json!({"services": {}}));
    assert_eq!(
        applied(&deleted.json, &Command::DeleteService(ads.clone())).unwrap_err(),
        Refusal::NoService(ads)
    );
}

#[test]
fn the_same_document_has_the_same_hash_whatever_the_order_of_its_keys() {
    let one = Intent::parse(&json!({"services": {"a": {}, "b": {"max_concurrent": 1}}})).unwrap();
    let two = Intent::parse(&json!({"services": {"b": {"max_concurrent": 1}, "a": {}}})).unwrap();
    assert_eq!((one.text, one.hash), (two.text, two.hash));
}

#[test]
fn a_service_that_a_route_needs_is_not_deleted() {
    let document = json!({"services": {"a": {}}, "routes": [{"path_prefix": "/a", "service": "a"}]});
    let refused = applied(&document, &Command::DeleteService(name("a"))).unwrap_err();
    let Refusal::Faulty(problems) = refused else { panic!("{refused:?}") };
    assert_eq!(problems.0[0].path, "routes[0].service");
}

#[test]
fn every_fault_is_told() {
    let table = json!({"request_timeout": 5, "max_concurrent": 0, "colour": "red"});
    let refused = applied(&json!({}), &Command::PutService(name("a"), table)).unwrap_err();
    let Refusal::Faulty(problems) = refused else { panic!("{refused:?}") };
    assert_eq!(problems.0.len(), 3, "{problems}");
}
