//! flagd's own suites over OFREP, asked by OpenFeature's Python client: every scenario that a remote evaluation can have.
//!
//! The scenarios and flags are in a package of the crate registry, which is brought and neither built nor kept here.

use std::path::{Path, PathBuf};
use std::process::Command;

use gilmok_tests::flag_client::{ask, question};
use gilmok_tests::gherkin::{Scenario, scenarios};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use serde_json::{Map, Value, json};

/// A version in the registry never changes.
const PACKAGE: &str = "open-feature-flagd = { version = \"=0.3.0\", default-features = false }";
/// Steps that say how another program is to be started.
const SETUPS: [&str; 4] = [
    "an evaluator",
    "a stable flagd provider",
    "an option \"cache\"",
    // All files joined, which is what is served here.
    "an option \"selector\" of type \"String\" with value \"flags/allFlags.json\"",
];

/// The folder `flagd-testbed` of the package.
fn testbed() -> PathBuf {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("src")).expect("a folder can be made");
    scratch.write("src/lib.rs", "");
    let manifest = scratch.write(
        "Cargo.toml",
        format!("[package]\nname = \"bring\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{PACKAGE}\n"),
    );
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(&manifest)
        .current_dir(scratch.path())
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the suites come with a crate; let cargo reach the registry: {said}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package =
        packages.iter().find(|package| package["name"] == "open-feature-flagd").expect("the package");
    Path::new(package["manifest_path"].as_str().expect("a path")).with_file_name("flagd-testbed")
}

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn features(folder: &Path, only: Option<&[&str]>) -> Vec<Scenario> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let is_wanted = |path: &PathBuf| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        only.is_none_or(|only| only.contains(&stem))
    };
    let texts = files
        .iter()
        .filter(|path| is_wanted(path))
        .map(|path| std::fs::read_to_string(path).expect("a text"));
    texts.flat_map(|text| scenarios(&text)).collect()
}

/// The flags of a folder as the other programs join them.
fn joined(folder: &Path) -> Value {
    let mut set = json!({ "flags": {}, "$evaluators": {} });
    // These two are of another set; a selector would tell them apart.
    let others = ["selector-flags.json", "selector-flag-combined-metadata.json"];
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if others.contains(&name) {
            continue;
        }
        let one = json_of(&file);
        for part in ["flags", "$evaluators"] {
            for (key, value) in one[part].as_object().into_iter().flatten() {
                set[part][key] = value.clone();
            }
        }
    }
    set
}

/// The texts in quotes of a step. The last one may have quotes in it.
fn quoted(text: &str) -> Vec<String> {
    let Some((before, last)) = ["value \"", "be \""].iter().find_map(|begin| text.rsplit_once(begin)) else {
        return text.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    };
    let mut all: Vec<String> = before.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    all.push(last.strip_suffix('"').unwrap_or(last).replace("\\\"", "\""));
    all
}

fn value_of(kind: &str, text: &str) -> Value {
    match kind {
        "Boolean" => json!(text.eq_ignore_ascii_case("true")),
        "Float" => json!(text.parse::<f64>().unwrap_or_default()),
        "Integer" => text
            .parse::<i64>()
            .map_or_else(|_| text.parse::<f64>().map_or(Value::Null, Value::from), Value::from),
        "Object" => serde_json::from_str(text).unwrap_or(Value::Null),
        _ => json!(text),
    }
}

/// A scenario as one question, with what is expected of its answer.
struct Case<'s> {
    scenario: &'s Scenario,
    kind: String,
    key: String,
    default: Value,
    context: Map<String, Value>,
}

/// What a scenario asks; `None` where it has a step that no remote evaluation has.
fn case(scenario: &Scenario) -> Option<Case<'_>> {
    let mut case =
        Case { scenario, kind: String::new(), key: String::new(), default: Value::Null, context: Map::new() };
    for step in &scenario.steps {
        let (text, words) = (step.text.as_str(), quoted(&step.text));
        if let Some((kind, _)) = text.strip_prefix("a ").and_then(|text| text.split_once("-flag with key ")) {
            case.kind = kind.to_owned();
            case.key.clone_from(&words[0]);
            case.default = value_of(kind, &words[1]);
        } else if text.starts_with("a context containing a targeting key") {
            case.context.insert("targetingKey".to_owned(), json!(words[0]));
        } else if text.starts_with("a context containing a nested property") {
            case.context.insert(words[0].clone(), json!({ &words[1]: words[2] }));
        } else if text.starts_with("a context containing a key") {
            case.context.insert(words[0].clone(), value_of(&words[1], &words[2]));
        } else if !SETUPS.iter().any(|setup| text.starts_with(setup))
            && text != "the flag was evaluated with details"
            && !["the resolved ", "the reason ", "the error-code "]
                .iter()
                .any(|begin| text.starts_with(begin))
        {
            return None;
        }
    }
    (!case.key.is_empty()).then_some(case)
}

/// What an answer is not that the scenario says it is.
fn faults(case: &Case<'_>, answer: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |what: &str, expected: &Value, found: &Value| {
        // 1 and 1.0 are one number in a scenario.
        let is_same = expected == found || expected.as_f64().is_some_and(|n| Some(n) == found.as_f64());
        if !is_same {
            faults.push(format!("{}: {what} is {found}, not {expected} ({answer})", case.scenario.name));
        }
    };
    for step in &case.scenario.steps {
        let (text, words) = (step.text.as_str(), quoted(&step.text));
        let word = words.first().map(String::as_str).unwrap_or_default();
        if text.starts_with("the resolved details value should be") {
            expect("the value", &value_of(&case.kind, word), &answer["value"]);
        } else if text.starts_with("the reason should be") {
            expect("the reason", &json!(word), &answer["reason"]);
        } else if text.starts_with("the error-code should be") {
            expect("the error", &if word.is_empty() { Value::Null } else { json!(word) }, &answer["error"]);
        } else if text.starts_with("the resolved metadata is empty") {
            expect("the metadata", &json!({}), &answer["metadata"]);
        } else if text.starts_with("the resolved metadata should contain") {
            for row in step.table.iter().skip(1) {
                expect(&row[0], &value_of(&row[1], &row[2]), &answer["metadata"][&row[0]]);
            }
        }
    }
    faults
}

/// Asks every scenario with these flags; how many there are, or every one that fails.
#[expect(clippy::print_stdout, reason = "a suite tells how much of it was run")]
async fn run(what: &str, mut set: Value, hash_version: u32, all: &[Scenario]) -> usize {
    if hash_version != 3 {
        set["metadata"]["hashVersion"] = json!(hash_version);
    }
    let scratch = Scratch::new();
    scratch.write("flags.json", set.to_string());
    let settings =
        ProxySettings::of_mesh("[flags]\nfile = \"flags.json\"\n").listen("ofrep = \"127.0.0.1:0\"");
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    let cases: Vec<Case<'_>> = all.iter().filter_map(case).collect();
    let questions: Vec<Value> = cases
        .iter()
        .map(|case| question(&case.kind, &case.key, &case.default, &Value::Object(case.context.clone())))
        .collect();
    let answers = ask(proxy.port("ofrep"), None, &questions).await;
    assert_eq!(answers.len(), cases.len());
    let faults: Vec<String> =
        cases.iter().zip(&answers).flat_map(|(case, answer)| faults(case, answer)).collect();
    println!("{what}: {} of {} scenarios, {} fail", cases.len(), all.len(), faults.len());
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
    cases.len()
}

/// Those that have one of these tags, or none of them.
fn tagged(all: Vec<Scenario>, tags: &[&str], have: bool) -> Vec<Scenario> {
    let has = |scenario: &Scenario| scenario.tags.iter().any(|tag| tags.contains(&tag.as_str()));
    all.into_iter().filter(|scenario| has(scenario) == have).collect()
}

#[tokio::test]
async fn the_evaluators_suite_passes() {
    let testbed = testbed().join("evaluator");
    let all = features(&testbed.join("gherkin"), None);
    assert_eq!(all.len(), 140);
    let set = json_of(&testbed.join("flags/testkit-flags.json"));
    let newest = tagged(all.clone(), &["fractional-v1", "fractional-v2"], false);
    assert_eq!(run("evaluator, version 3", set.clone(), 3, &newest).await, 104);
    let second = tagged(all, &["fractional-v2"], true);
    assert_eq!(run("evaluator, version 2", set, 2, &second).await, 21);
}

#[tokio::test]
async fn what_the_providers_suite_asks_of_evaluations_passes() {
    let testbed = testbed();
    let set = joined(&testbed.join("flags"));
    let of = |feature: &str| features(&testbed.join("gherkin"), Some(&[feature]));
    let targeting = of("targeting");
    let newest = tagged(targeting.clone(), &["fractional-v1", "fractional-v2"], false);
    assert_eq!(run("targeting, version 3", set.clone(), 3, &newest).await, 209);
    let second = tagged(targeting, &["fractional-v2"], true);
    assert_eq!(run("targeting, version 2", set.clone(), 2, &second).await, 21);
    let evaluation = tagged(of("evaluation"), &["deprecated"], false);
    assert_eq!(run("evaluation", set.clone(), 3, &evaluation).await, 23);
    // The seventh chooses one of several files, of which a proxy has only one.
    assert_eq!(run("disabled", set, 3, &of("disabled")).await, 6);
}
