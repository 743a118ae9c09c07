//! Golden files: what is told of faulty documents word for word, and lines of the wire that load for ever.
//!
//! `UPDATE_GOLDEN=1 cargo test -p gilmok-config --test golden` writes the expected texts of the documents anew.
//! Lines of the wire are never changed, only added to.

use std::path::{Path, PathBuf};

use gilmok_config::document::Document;
use gilmok_config::wire::{Ack, FeedLine, Registration};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn files(name: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder(name)).expect("the folder is there");
    let entries = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {name}");
    files
}

#[test]
fn faulty_documents_are_told_word_for_word() {
    for file in files("documents", "toml") {
        let text = std::fs::read_to_string(&file).unwrap();
        let told = match Document::parse_toml(&text) {
            Ok(_) => "sound\n".to_owned(),
            Err(problems) => format!("{problems}\n"),
        };
        let golden = file.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(told, expected, "{}", file.display());
    }
}

#[test]
fn documents_are_told_the_same_over_json_but_for_the_lines() {
    for file in files("documents", "toml") {
        let text = std::fs::read_to_string(&file).unwrap();
        let Ok(node) = gilmok_config::node::Node::parse_toml(&text) else { continue };
        let mut told = |problems: gilmok_config::problem::Problems| {
            let mut told: Vec<_> =
                problems.0.into_iter().map(|problem| (problem.path, problem.what, problem.hint)).collect();
            told.sort();
            told
        };
        let toml = Document::parse_toml(&text).err().map(&mut told);
        let json = Document::parse_json(&node.to_json()).err().map(&mut told);
        assert_eq!(toml, json, "{}", file.display());
    }
}

#[test]
fn feed_lines_of_every_release_load() {
    for file in files("wire", "ndjson") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for (index, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            let place = format!("{name}, line {}", index + 1);
            let again: serde_json::Value = serde_json::from_str(line).unwrap();
            let written = if name.starts_with("feed") {
                serde_json::to_value(FeedLine::parse(line.as_bytes()).expect(&place)).unwrap()
            } else if name.starts_with("acks") {
                serde_json::to_value(serde_json::from_str::<Ack>(line).expect(&place)).unwrap()
            } else {
                serde_json::to_value(serde_json::from_str::<Registration>(line).expect(&place)).unwrap()
            };
            assert_eq!(written, again, "{place}: it is written as it was");
        }
    }
}

#[test]
fn subjects_have_their_places_for_ever() {
    let text = std::fs::read_to_string(folder("places.txt")).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() > 500, "{}", lines.len());
    for line in lines {
        let mut parts = line.splitn(3, ' ');
        let (place, salt, subject) =
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or_default());
        let found = gilmok_config::assignment::Salt::new(salt).place(subject.as_bytes());
        assert_eq!(found.to_string(), place, "{salt} {subject}");
    }
}
