//! The pages of docs/reference say what the programs themselves say: their flags, their variables, their paths.

use std::collections::BTreeSet;
use std::process::Command;

use gilmok_tests::process::program;
use gilmok_tests::source_tree;

fn page(name: &str) -> String {
    let path = source_tree::root().join("docs/reference").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The flags that a program tells in its help, without the dashes.
fn flags(kind: &str) -> BTreeSet<String> {
    let output = Command::new(program()).args([kind, "--help"]).output().expect("it can be started");
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = lines.filter_map(|line| Some(line.split_once("--")?.1));
    let names = flags.map(|flag| flag.split([' ', '=']).next().unwrap_or_default().to_owned());
    // What ends with a bracket is another name of the flag before it.
    let flags: BTreeSet<String> =
        names.filter(|name| !matches!(name.as_str(), "help" | "version") && !name.ends_with(']')).collect();
    assert!(flags.len() > 1, "{help}");
    flags
}

/// The first column of a page's tables.
fn rows(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

#[test]
fn every_flag_of_the_proxy_is_a_setting_of_the_reference_and_the_other_way_round() {
    let page = page("proxy-settings.md");
    let (settings, apps) = page.split_once("## `[[apps]]`").unwrap();
    assert!(rows(apps).contains("advertise"));
    let told: BTreeSet<String> = rows(settings).iter().map(|path| path.replace(['.', '_'], "-")).collect();
    let mut known = flags("proxy");
    for beside in ["config", "mesh", "check"] {
        assert!(known.remove(beside) && page.contains(&format!("--{beside}")), "--{beside}");
    }
    assert_eq!(told, known);
}

#[test]
fn every_flag_of_the_control_plane_stands_in_the_reference() {
    let page = page("control-plane-settings.md");
    let is_there =
        |flag: &str| page.contains(&format!("`--{flag}`")) || page.contains(&format!("`--{flag} "));
    let missing: Vec<_> =
        flags("control-plane").into_iter().filter(|flag| flag != "config" && !is_there(flag)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_flag_of_the_demo_stands_in_the_reference() {
    let page = page("cli.md");
    for kind in ["demo", "demo-app"] {
        for flag in flags(kind) {
            assert!(page.contains(&format!("`--{flag}")), "{kind} --{flag}");
        }
    }
}

#[test]
fn every_command_and_flag_of_operators_stands_in_the_reference() {
    let page = page("cli.md");
    let names = commands(&help(&[]));
    assert!(names.len() > 9, "{names:?}");
    for name in names.iter().filter(|name| *name != "demo") {
        assert!(page.contains(&format!("`gilmok {name}")), "docs/reference/cli.md lacks {name}");
        let of_name = help(&[name]);
        let inside =
            commands(&of_name).into_iter().map(|word| (format!("{name} {word}"), help(&[name, &word])));
        for (command, help) in std::iter::once((name.clone(), of_name.clone())).chain(inside) {
            for flag in help.split_whitespace().filter(|word| word.starts_with("--") && *word != "--help") {
                let flag = flag.trim_end_matches([',', ']']);
                assert!(page.contains(flag), "docs/reference/cli.md lacks {command} {flag}");
            }
        }
    }
}

fn help(command: &[&str]) -> String {
    let output = Command::new(program()).args(command).arg("--help").output().expect("it can be started");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let listed =
        help.split("Commands:").nth(1).unwrap_or_default().split("Options:").next().unwrap_or_default();
    // A summary that goes on in the next line is indented further.
    let lines = listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

#[test]
fn every_path_stands_in_the_reference() {
    let page = page("rest.md");
    let text = std::fs::read_to_string(source_tree::root().join("docs/openapi.json")).unwrap();
    let openapi: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut paths = Vec::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        let methods = methods.as_object().unwrap().keys();
        let verbs =
            methods.filter(|name| matches!(name.as_str(), "get" | "put" | "post" | "patch" | "delete"));
        paths.extend(verbs.map(|verb| format!("`{} {path}`", verb.to_uppercase())));
    }
    assert!(paths.len() > 20, "{paths:?}");
    let admin = std::fs::read_to_string(source_tree::root().join("proxy/src/admin/mod.rs")).unwrap();
    let table = admin.split("const PATHS").nth(1).unwrap().split("];").next().unwrap();
    let entries = table.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.strip_suffix("\"),"));
    let of_proxy: Vec<_> = entries.map(|entry| format!("`{}`", entry.replace("\", \"", " "))).collect();
    assert!(of_proxy.len() > 8, "{table}");
    paths.extend(of_proxy);
    let missing: Vec<_> = paths.iter().filter(|path| !page.contains(*path)).collect();
    assert!(missing.is_empty(), "docs/reference/rest.md lacks {missing:?}");
}
