//! The reference of the mesh document lists every key that the grammar knows.

use std::collections::BTreeSet;

use gilmok_config::document::Document;

/// Every key of every table, as the grammar itself tells them to someone who wrote one that it does not know.
fn known_keys() -> BTreeSet<String> {
    let text = "unheard_of_root = 1\n[services.a]\nunheard_of_service = 1\nendpoints = [{ address = \"a:1\", version = \"v\", \
                unheard_of_endpoint = 1 }]\nhealth_check = { path = \"/\", unheard_of_check = 1 }\ntls = { unheard_of = 1 }\nallow = [{ service = \"a\", unheard_of = 1 }]\nretry = { unheard_of = 1 }\n\
                outlier_detection = { unheard_of = 1 }\ncircuit_breaker = { unheard_of = 1 }\n\
                forced_breakers = [{ state = \"open\", unheard_of = 1 }]\n\
                rate_limit = { requests = 1, unheard_of = 1 }\n\
                fallback = [{ respond = {}, unheard_of = 1 }]\n\
                traffic = { stable = \"v\", weights = { v = 100 }, unheard_of = 1, mirror = { version = \"v\", percent = 1, unheard_of = 1 }, \
                pins = [{ subject = \"u\", version = \"v\", unheard_of = 1 }] }\n\
                sharding = { key = \"host\", strategy = \"modulo\", shards = [\"0\"], unheard_of = 1, next = { shards = [\"0\"], unheard_of = 1 } }\nflags = { unheard_of = 1 }\n[flags]\nset = { flags = {} }\nunheard_of = 1\n[[routes]]\n\
                service = \"a\"\nunheard_of_route = 1\n";
    let problems = Document::parse_toml(text).expect_err("twenty keys are not known");
    assert_eq!(problems.0.len(), 20, "{problems}");
    let lists = problems.0.iter().filter_map(|problem| problem.hint.as_deref()?.strip_prefix("known here: "));
    lists.flat_map(|list| list.split(", ")).map(str::to_owned).collect()
}

#[test]
fn every_key_stands_in_the_reference() {
    let page = include_str!("../../docs/reference/mesh-document.md");
    let keys = known_keys();
    assert!(keys.len() > 30, "{keys:?}");
    let missing: Vec<_> = keys
        .iter()
        .filter(|key| {
            !page.contains(&format!("`{key}`"))
                && !page.contains(&format!("[[{key}]]"))
                && !page.contains(&format!("[{key}."))
        })
        .collect();
    assert!(missing.is_empty(), "docs/reference/mesh-document.md lacks {missing:?}");
}

#[test]
fn every_row_is_a_key() {
    let page = include_str!("../../docs/reference/mesh-document.md");
    let keys = known_keys();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let strange: Vec<_> = rows.filter(|row| !keys.contains(*row)).collect();
    assert!(strange.is_empty(), "not in the grammar: {strange:?}");
}
