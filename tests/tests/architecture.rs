//! The rules of the tree that no compiler keeps: first lines, sizes, arrows, circles, words, and docs that stay true.

use std::collections::{BTreeMap, BTreeSet};

use gilmok_tests::source_tree::{self, CRATES, SourceFile};

/// Longest file, in lines.
const LINES_MAX: usize = 600;

/// Which crates of this workspace each crate may use.
const ARROWS: [(&str, &[&str]); 6] = [
    ("config", &[]),
    ("proxy", &["gilmok-config"]),
    ("control-plane", &["gilmok-config"]),
    // Which slot a user is in, as an app of any language would take it from a library.
    ("demo-app", &["gilmok-config"]),
    ("cli", &["gilmok-config", "gilmok-proxy", "gilmok-control-plane", "gilmok-demo-app"]),
    ("tests", &["gilmok-config", "gilmok-control-plane", "gilmok-cli"]),
];

/// Words that mean something else elsewhere, or nothing at all.
const WORDS_NOT_USED: [&str; 11] = [
    "backend", "backends", "cluster", "clusters", "pod", "pods", "manager", "util", "utils", "common", "misc",
];

fn rust_files() -> Vec<SourceFile> {
    let files: Vec<SourceFile> = CRATES.iter().flat_map(|folder| source_tree::files(folder, ".rs")).collect();
    assert!(files.len() > 20, "only {} files found", files.len());
    files
}

fn expect_none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

#[test]
fn every_file_begins_by_saying_what_it_is_for() {
    let mut faults = Vec::new();
    for file in rust_files() {
        let first = file.text.lines().next().unwrap_or_default();
        let stem = file.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs").replace('_', " ");
        let said: BTreeSet<String> = first
            .trim_start_matches("//!")
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| word.len() > 2)
            .map(str::to_lowercase)
            .collect();
        let beyond_its_name = said.iter().filter(|word| !stem.contains(word.as_str())).count();
        let sentence: String = file
            .text
            .lines()
            .take_while(|line| line.starts_with("//! "))
            .map(|line| line.trim_start_matches("//!"))
            .collect();
        if !first.starts_with("//! ") || beyond_its_name < 3 || !sentence.trim_end().ends_with(['.', ':']) {
            faults.push(format!("{}: {first}", file.path));
        }
    }
    expect_none(&faults, "the first line is a `//!` sentence that says what the file is for");
}

#[test]
fn no_file_is_too_long_to_read() {
    let files = rust_files();
    let long = files.iter().map(|file| (file.path.as_str(), file.text.lines().count()));
    let faults: Vec<String> = long
        .filter(|(_, lines)| *lines >= LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    expect_none(&faults, "one subject a file, fewer than 600 lines");
}

#[test]
fn crates_use_each_other_in_one_direction_only() {
    let mut faults = Vec::new();
    for (folder, allowed) in ARROWS {
        let path = source_tree::root().join(folder).join("Cargo.toml");
        let manifest: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            let own = table.keys().filter(|name| name.starts_with("gilmok"));
            faults.extend(
                own.filter(|name| !allowed.contains(&name.as_str()))
                    .map(|name| format!("{folder} must not use {name}")),
            );
        }
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        if lints.and_then(toml::Value::as_bool) != Some(true) {
            faults.push(format!("{folder}/Cargo.toml does not take the workspace's lints"));
        }
    }
    expect_none(&faults, "config ← proxy, config ← control-plane, and both meet only in config");
}

#[test]
fn no_two_modules_of_a_crate_use_each_other() {
    let mut faults = Vec::new();
    for folder in CRATES {
        let files = source_tree::files(&format!("{folder}/src"), ".rs");
        let modules: Vec<String> =
            files.iter().filter_map(SourceFile::module).collect::<BTreeSet<_>>().into_iter().collect();
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for file in files.iter().filter(|file| folder == "tests" || !file.is_test()) {
            let Some(own) = file.module() else { continue };
            let others = file.modules_used(&modules).into_iter().filter(|other| *other != own);
            uses.entry(own.clone()).or_default().extend(others);
        }
        faults.extend(circle_in(&uses).map(|circle| format!("{folder}: {}", circle.join(" → "))));
    }
    expect_none(&faults, "modules use each other one way, without circles");
}

/// The first circle found, by taking away whatever uses nothing that is left.
fn circle_in(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left = uses.clone();
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let free: Vec<String> =
            left.iter().filter(|(_, used)| used.is_disjoint(&names)).map(|(name, _)| name.clone()).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name, _| !free.contains(name));
    }
    // Everything left uses something left: following it must come back.
    let mut path = vec![left.keys().next()?.clone()];
    loop {
        let last = path.last()?.clone();
        let next = left.get(&last)?.iter().find(|used| left.contains_key(*used))?.clone();
        if let Some(at) = path.iter().position(|name| *name == next) {
            let mut circle = path.split_off(at);
            circle.push(next);
            return Some(circle);
        }
        path.push(next);
    }
}

#[test]
fn a_circle_is_found() {
    let uses = |pairs: &[(&str, &[&str])]| -> BTreeMap<String, BTreeSet<String>> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        pairs.iter().map(|(name, used)| ((*name).to_owned(), own(used))).collect()
    };
    assert_eq!(circle_in(&uses(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])), None);
    let circle = circle_in(&uses(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]));
    assert_eq!(circle.unwrap(), ["b", "c", "b"]);
}

#[test]
fn unsafe_code_is_forbidden_everywhere() {
    let manifest = std::fs::read_to_string(source_tree::root().join("Cargo.toml")).unwrap();
    // No attribute takes back a `forbid`, and every crate takes the workspace's lints (see the arrows).
    assert!(manifest.contains("unsafe_code = \"forbid\""));
}

#[test]
fn names_that_others_see_use_the_projects_words() {
    let kinds = ["fn ", "struct ", "enum ", "mod ", "const ", "static ", "trait ", "type "];
    let mut faults = Vec::new();
    for file in rust_files().iter().filter(|file| !file.is_test()) {
        for line in file.code().lines() {
            let line = line.trim_start();
            let Some(rest) = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")) else {
                continue;
            };
            let rest = rest.trim_start_matches("async ").trim_start_matches("const fn ");
            let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind)).unwrap_or(rest);
            let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let words = words_of(&name);
            if words.iter().any(|word| WORDS_NOT_USED.contains(&word.as_str())) {
                faults.push(format!("{}: {name}", file.path));
            }
        }
    }
    expect_none(&faults, "one word for each thing, and these are not among them");
}

fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
    }
    words
}

fn documents() -> Vec<SourceFile> {
    let mut documents = source_tree::files("docs", ".md");
    let root = source_tree::root();
    for name in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/bench/README.md", "tests/README.md"] {
        if let Ok(text) = std::fs::read_to_string(root.join(name)) {
            documents.push(SourceFile { path: name.to_owned(), text });
        }
    }
    documents
}

#[test]
fn files_that_the_docs_name_exist() {
    let root = source_tree::root();
    let mut faults = Vec::new();
    for document in documents() {
        let folder = root.join(&document.path);
        let folder = folder.parent().unwrap_or(&root).to_owned();
        let mut in_fence = false;
        for line in document.text.lines() {
            if line.trim_start().starts_with("```") {
                in_fence = !in_fence;
            }
            if in_fence {
                continue;
            }
            for quoted in line.split('`').skip(1).step_by(2) {
                let first = quoted.split('/').next().unwrap_or_default();
                let is_ours = CRATES.contains(&first) || matches!(first, "docs" | ".ci");
                let is_path = quoted.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
                let exists = root.join(quoted).exists() || folder.join(quoted).exists();
                if quoted.contains('/') && is_ours && is_path && !exists {
                    faults.push(format!("{}: `{quoted}`", document.path));
                }
            }
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = target.split('#').next().unwrap_or_default();
                if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                    faults.push(format!("{}: ({target})", document.path));
                }
            }
        }
    }
    expect_none(&faults, "docs name files that exist");
}

#[test]
fn commands_of_the_docs_run_something() {
    let root = source_tree::root();
    let mut faults = Vec::new();
    let mut named = 0;
    for document in documents() {
        for command in
            document.text.split('`').filter(|text| text.contains("--test ") || text.contains("--bench "))
        {
            let words: Vec<&str> = command.split_whitespace().collect();
            let Some(at) = words.iter().position(|word| ["--test", "--bench"].contains(word)) else {
                continue;
            };
            let Some(name) = words.get(at + 1) else { continue };
            named += 1;
            let folders = CRATES.iter().map(|folder| root.join(folder));
            let kinds = folders.flat_map(|folder| [folder.join("tests"), folder.join("benches")]);
            let text =
                kinds.filter_map(|kind| std::fs::read_to_string(kind.join(format!("{name}.rs"))).ok()).next();
            let filter = words.get(at + 2).filter(|word| !word.starts_with('-')).unwrap_or(&"");
            if !text.is_some_and(|text| text.contains(&format!("fn {filter}"))) {
                faults.push(format!("{}: `{command}`", document.path));
            }
        }
    }
    assert!(named > 5, "{named}");
    expect_none(&faults, "a command that the docs tell runs a test or a benchmark");
}

/// What stands between backquotes on a page of docs/reference.
fn quoted(page: &str) -> BTreeSet<String> {
    let path = source_tree::root().join("docs/reference").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

fn product_files() -> Vec<SourceFile> {
    let rooms = ["config", "proxy", "control-plane"];
    let files = rooms.iter().flat_map(|folder| source_tree::files(&format!("{folder}/src"), ".rs"));
    files.filter(|file| !file.is_test()).collect()
}

#[test]
fn every_metric_stands_in_the_reference_and_the_other_way_round() {
    let is_metric =
        |name: &str| name.starts_with("gilmok_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let told: BTreeSet<String> = quoted("metrics.md").into_iter().filter(|name| is_metric(name)).collect();
    let mut counted = BTreeSet::new();
    for file in product_files() {
        let code = file.code();
        let words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        // The crates, a cookie, and what looks like a header of ours.
        let others =
            ["gilmok_config", "gilmok_proxy", "gilmok_control_plane", "gilmok_uid", "gilmok_version"];
        let names = words.filter(|word| is_metric(word) && !others.contains(word) && !word.ends_with('_'));
        counted.extend(names.map(str::to_owned));
    }
    assert!(
        counted.contains("gilmok_requests_total") && counted.contains("gilmok_writes_total"),
        "{counted:?}"
    );
    assert_eq!(told, counted, "docs/reference/metrics.md (left) lists every metric (right) and no other");
}

#[test]
fn every_header_of_our_own_stands_in_the_reference_and_the_other_way_round() {
    let is_ours = |name: &str| name.starts_with("gilmok-") || name.starts_with("x-forwarded-");
    let others = ["proxy-status", "feature-flags", "traceparent", "x-request-id"];
    let is_name =
        |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !name.ends_with('-');
    let is_header = |name: &String| is_name(name) && (is_ours(name) || others.contains(&name.as_str()));
    // What stands with a value is told by its name: `If-Match: "7"`.
    let told = quoted("headers.md");
    let told = told.iter().map(|text| text.split(':').next().unwrap_or_default().to_lowercase());
    let told: BTreeSet<String> = told.filter(is_header).collect();
    // The programs, and the marks of a sidecar in Consul.
    let beside = ["gilmok-proxy", "gilmok-control-plane", "gilmok-demo-app", "gilmok-inbound", "gilmok-mtls"];
    let literals = product_files().into_iter().flat_map(|file| file.literals());
    let said: BTreeSet<String> =
        literals.filter(|name| is_header(name) && !beside.contains(&name.as_str())).collect();
    assert!(said.contains("gilmok-timeout") && said.contains("gilmok-who"), "{said:?}");
    assert_eq!(
        told, said,
        "docs/reference/headers.md (left) lists every header of ours (right) and no other"
    );
}

#[test]
fn every_rule_of_consul_names_tests_that_exist() {
    let page = std::fs::read_to_string(source_tree::root().join("docs/consul-rules.md")).unwrap();
    let mut sources = source_tree::files("control-plane/src/membership/consul", ".rs");
    sources.extend(source_tree::files("proxy/src/source", ".rs"));
    let real = source_tree::files("tests/tests", ".rs");
    let mut faults = Vec::new();
    let mut named = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else { continue };
        named += 1;
        let declared = format!("fn {test}()");
        let is_there = |source: &SourceFile| source.text.contains(&declared);
        let among = if file.starts_with("consul") { &real } else { &sources };
        let found =
            among.iter().any(|source| source.path.ends_with(&format!("/{file}.rs")) && is_there(source));
        if !found && test != "…" {
            faults.push(format!("docs/consul-rules.md: no test {name}"));
        }
    }
    assert!(named > 50, "{named}");
    expect_none(&faults, "a rule is held by a test");
}
