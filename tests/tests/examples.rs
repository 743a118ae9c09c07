//! Every example can be used as it is: documents are sound, settings pass the programs' own check.

use std::path::{Path, PathBuf};
use std::process::Command;

use gilmok_config::document::Document;
use gilmok_tests::process::program;
use gilmok_tests::source_tree;

fn examples() -> PathBuf {
    source_tree::root().join("config/examples")
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn check(kind: &str, file: &Path) {
    let output = Command::new(program()).args([kind, "--check", "--config"]).arg(file).output();
    let output = output.expect("it can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", file.display());
}

#[test]
fn every_example_is_sound() {
    let mut files = Vec::new();
    files_below(&examples(), &mut files);
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.as_str() {
            "control-plane.toml" => check("control-plane", &file),
            "compose.yaml" => {}
            _ if name.ends_with("proxy.toml") => check("proxy", &file),
            _ => {
                let text = std::fs::read_to_string(&file).unwrap();
                let read = if name.ends_with(".json") {
                    Document::parse_json(&serde_json::from_str(&text).unwrap())
                } else {
                    Document::parse_toml(&text)
                };
                if let Err(problems) = read {
                    panic!("{}: {problems}", file.display());
                }
            }
        }
    }
}

#[test]
fn the_composition_names_what_is_there() {
    let text = std::fs::read_to_string(examples().join("compose.yaml")).unwrap();
    let dockerfile = std::fs::read_to_string(source_tree::root().join("Dockerfile")).unwrap();
    for (_, rest) in text.match_indices("target: ").map(|(at, found)| text[at..].split_at(found.len())) {
        let stage = rest.split([' ', '}']).next().unwrap_or_default();
        assert!(dockerfile.contains(&format!(" AS {stage}\n")), "no stage {stage}");
    }
    for (_, rest) in text.match_indices("\"./").map(|(at, found)| text[at..].split_at(found.len())) {
        let path = rest.split(':').next().unwrap_or_default();
        assert!(examples().join(path).is_file(), "no file {path}");
    }
}

#[test]
fn the_readmes_mesh_file_is_the_example() {
    let root = source_tree::root();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let example = std::fs::read_to_string(examples().join("mesh.toml")).unwrap();
    let body: String =
        example.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        });
    assert!(readme.contains(&body), "README.md shows config/examples/mesh.toml");
}
