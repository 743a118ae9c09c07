//! `gilmok check`: a document checked here, without a control plane.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use gilmok_config::body_file::read_document;
use gilmok_config::document::Document;
use gilmok_config::node::{DOCUMENT_BYTES_MAX, Node};
use gilmok_config::problem::Problems;
use gilmok_proxy::settings::BodyFiles;
use serde_json::{Value as Json, json};

use crate::trouble::{Trouble, say};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gilmok check mesh.toml\n  gilmok check - < mesh.json")]
pub(crate) struct Arguments {
    /// The document, TOML or JSON; - is standard input
    file: PathBuf,
    /// Print JSON for programs: what it holds, or every fault
    #[arg(long)]
    json: bool,
}

/// A sound document and its text as JSON, with the bodies of prepared answers that stood in files of their own.
#[derive(Debug)]
pub(super) struct Sound {
    pub(super) document: Document,
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let text = text_of(&arguments.file)?;
    match parse(&arguments.file, &text) {
        Ok(Sound { document, .. }) => {
            let (services, routes) = (document.services.len(), document.routes.len());
            let endpoints: usize = document.services.values().map(|policy| policy.endpoints.len()).sum();
            if arguments.json {
                let held = json!({ "sound": true, "services": services, "endpoints": endpoints, "routes": routes, "warnings": document.warnings() });
                say(&format!("{held:#}"));
            } else {
                let file = arguments.file.display();
                say(&format!("{file} is sound: services {services}, endpoints {endpoints}, routes {routes}"));
                for warning in document.warnings() {
                    say(&format!("warning: {warning}"));
                }
            }
            Ok(())
        }
        Err(problems) => {
            if arguments.json {
                say(&format!("{:#}", json!({ "sound": false, "problems": problems })));
            }
            Err(faulty(&arguments.file, &problems))
        }
    }
}

/// Reads a document that must be sound.
pub(super) fn read(file: &Path) -> Result<Sound, Trouble> {
    parse(file, &text_of(file)?).map_err(|problems| faulty(file, &problems))
}

/// Reads what is written in TOML or JSON, whatever it is about.
pub(super) fn read_tree(file: &Path) -> Result<Json, Trouble> {
    let node = tree(file, &text_of(file)?).map_err(|problems| faulty(file, &problems))?;
    Ok(node.to_json())
}

fn text_of(file: &Path) -> Result<String, Trouble> {
    let wrong = |error: std::io::Error| Trouble::Faulty(format!("{}: {error}", file.display()));
    let mut text = String::new();
    // One byte more than may be, so that what is too long is seen to be.
    let most = DOCUMENT_BYTES_MAX as u64 + 1;
    if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_string(&mut text).map_err(wrong)?;
    } else {
        std::fs::File::open(file).map_err(wrong)?.take(most).read_to_string(&mut text).map_err(wrong)?;
    }
    Ok(text)
}

/// JSON by its name or its first character, since no TOML begins with a brace.
fn tree(file: &Path, text: &str) -> Result<Node, Problems> {
    let is_json = file.extension().is_some_and(|kind| kind == "json") || text.trim_start().starts_with('{');
    if is_json { Node::parse_json(text.as_bytes()) } else { Node::parse_toml(text) }
}

fn parse(file: &Path, text: &str) -> Result<Sound, Problems> {
    let node = tree(file, text)?;
    let mut bodies = BodyFiles::beside(file);
    let (document, node) = read_document(node, &mut |name, most| bodies.read(name, most))?;
    Ok(Sound { document, json: node.to_json() })
}

fn faulty(file: &Path, problems: &Problems) -> Trouble {
    let lines = problems.0.iter().map(|problem| format!("{}: {problem}", file.display()));
    Trouble::Faulty(lines.collect::<Vec<_>>().join("\ngilmok: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_json_are_told_apart_and_faults_have_lines() {
        let sound = |file: &str, text: &str| parse(Path::new(file), text).map(|sound| sound.json);
        assert_eq!(sound("a.toml", "[services.ads]\n").unwrap(), json!({ "services": { "ads": {} } }));
        assert_eq!(sound("-", " {\"services\": {}}").unwrap(), json!({ "services": {} }));
        let problems = parse(Path::new("mesh.toml"), "[services.ads]\nprotocl = \"h2\"\n").unwrap_err();
        let Trouble::Faulty(told) = faulty(Path::new("mesh.toml"), &problems) else { panic!() };
        assert_eq!(told, "mesh.toml: line 2: services.ads.protocl: unknown key (did you mean `protocol`?)");
    }
}
