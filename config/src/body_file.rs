//! What stands in files of its own, bodies of prepared answers, authorities and the flags: put into the document's tree before it is read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::document::Document;
use crate::fallback::BODY_BYTES_MAX;
use crate::flag::SET_BYTES_MAX;
use crate::node::{Kind, Node};
use crate::problem::{PROBLEMS_MAX, Problem, Problems};
use crate::tls::CA_BYTES_MAX;

/// Reads a document that came from a file and may name others: each `body_file` becomes the `body_base64` of its content,
/// each `ca_file` the `ca`, and `flags.file` the `flags.set` that stands in it.
/// `read` gives the content of what a document names, or says why there is none; it is told how many bytes may be there.
///
/// # Errors
/// Every fault, those of the files among the others, in the order of the document's lines.
pub fn read_document(mut node: Node, read: Read<'_>) -> Result<(Document, Node), Problems> {
    let mut faults = Vec::new();
    let file = flags(&mut node, read, &mut faults);
    for (service, chain) in services(&mut node) {
        for (at, respond) in responds(chain) {
            inline(respond, &format!("services.{service}.fallback[{at}].respond"), read, &mut faults);
        }
    }
    for (service, tls) in entries_of(&mut node, "tls") {
        if let Kind::Table(tls) = &mut tls.kind {
            inline_ca(tls, &format!("services.{service}.tls"), read, &mut faults);
        }
    }
    let document = Document::read(&node).map_err(|problems| match &file {
        Some(file) => told_of(file, problems),
        None => problems,
    });
    if faults.is_empty() {
        return document.map(|document| (document, node));
    }
    let mut problems = document.err().unwrap_or_default();
    problems.0.extend(faults);
    problems.0.sort_by_key(|problem| problem.line);
    problems.0.truncate(PROBLEMS_MAX);
    Err(problems)
}

/// Gives the content of a file, of at most so many bytes, or says why there is none.
pub type Read<'r> = &'r mut dyn FnMut(&str, usize) -> Result<Vec<u8>, String>;

type Entries = BTreeMap<String, Node>;

fn table(node: &mut Node) -> Option<&mut Entries> {
    if let Kind::Table(entries) = &mut node.kind { Some(entries) } else { None }
}

/// What services have under this key, by the service's name. What is no table is a fault that the grammar tells.
fn entries_of<'n>(root: &'n mut Node, key: &str) -> impl Iterator<Item = (&'n str, &'n mut Node)> {
    let services = table(root).and_then(|root| root.get_mut("services")).and_then(table);
    let entry = move |(name, service): (&'n String, &'n mut Node)| {
        Some((name.as_str(), table(service)?.get_mut(key)?))
    };
    services.into_iter().flatten().filter_map(entry)
}

/// The chains of fallbacks.
fn services(root: &mut Node) -> impl Iterator<Item = (&str, &mut Vec<Node>)> {
    entries_of(root, "fallback").filter_map(|(name, chain)| match &mut chain.kind {
        Kind::List(chain) => Some((name, chain)),
        _ => None,
    })
}

/// Puts the set there, and answers which file it came from.
fn flags(root: &mut Node, read: Read<'_>, faults: &mut Vec<Problem>) -> Option<String> {
    let flags = table(root)?.get_mut("flags").and_then(table)?;
    // Two sets are a fault that the grammar tells.
    if flags.contains_key("set") {
        return None;
    }
    let Node { kind: Kind::Text(file), line } = flags.get("file")? else { return None };
    let (file, line) = (file.clone(), *line);
    let set = read(&file, SET_BYTES_MAX)
        .and_then(|content| Node::parse_json(&content).map_err(|problems| format!("{file}: {problems}")));
    flags.remove("file");
    let set = set.unwrap_or_else(|what| {
        faults.push(Problem { path: "flags.file".to_owned(), line, what, hint: None });
        // What asks for its flags is told of as well, but not that there is no set.
        Node { kind: Kind::Table(Entries::from([("flags".to_owned(), Node::empty())])), line }
    });
    flags.insert("set".to_owned(), Node { line, ..set });
    Some(file)
}

/// Faults of the set are faults of its file.
fn told_of(file: &str, mut problems: Problems) -> Problems {
    for problem in &mut problems.0 {
        if let Some(rest) = problem.path.strip_prefix("flags.set") {
            problem.path = format!("{file}: {}", rest.trim_start_matches('.'));
            problem.line = None;
        }
    }
    problems
}

fn responds(chain: &mut [Node]) -> impl Iterator<Item = (usize, &mut Entries)> {
    let link = |(at, link)| Some((at, table(table(link)?.get_mut("respond")?)?));
    chain.iter_mut().enumerate().filter_map(link)
}

fn inline(respond: &mut Entries, path: &str, read: Read<'_>, faults: &mut Vec<Problem>) {
    // Two bodies are a fault that the grammar tells.
    if respond.contains_key("body") || respond.contains_key("body_base64") {
        return;
    }
    let Some(Node { kind: Kind::Text(file), line }) = respond.get("body_file") else { return };
    let line = *line;
    match read(file, BODY_BYTES_MAX) {
        Ok(body) => {
            let kind = Kind::Text(BASE64.encode(body));
            respond.insert("body_base64".to_owned(), Node { kind, line });
        }
        Err(what) => faults.push(Problem { path: format!("{path}.body_file"), line, what, hint: None }),
    }
    respond.remove("body_file");
}

fn inline_ca(tls: &mut Entries, path: &str, read: Read<'_>, faults: &mut Vec<Problem>) {
    let Some(Node { kind: Kind::Text(file), line }) = tls.get("ca_file") else { return };
    let line = *line;
    let fault = |what| Problem { path: format!("{path}.ca_file"), line, what, hint: None };
    let text =
        read(file, CA_BYTES_MAX).and_then(|bytes| String::from_utf8(bytes).map_err(|_| "not PEM".to_owned()));
    match text {
        _ if tls.contains_key("ca") => faults.push(fault("only one of `ca` and `ca_file`".to_owned())),
        Ok(text) => drop(tls.insert("ca".to_owned(), Node { kind: Kind::Text(text), line })),
        Err(what) => faults.push(fault(what)),
    }
    tls.remove("ca_file");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fallback::Action;

    fn read(text: &str) -> Result<(Document, Node), Problems> {
        let mut read = |name: &str, most: usize| match name {
            "house.svg" => Ok(b"<svg/>".to_vec()),
            "flags.json" if most > 1 << 20 => {
                Ok(br#"{"flags":{"a":{"state":"ENABLED","variants":{"x":1}}}}"#.to_vec())
            }
            "faulty.json" => Ok(br#"{"flags":{"a":{"state":"ON","variants":{"x":1}}}}"#.to_vec()),
            "garbage.json" => Ok(b"{".to_vec()),
            other => Err(format!("{other}: not there")),
        };
        read_document(Node::parse_toml(text).unwrap(), &mut read)
    }

    #[test]
    fn the_content_stands_where_the_name_stood() {
        let text = "[[services.ads.fallback]]\nrespond = { body_file = \"house.svg\" }\n";
        let (document, node) = read(text).unwrap();
        let Action::Respond(prepared) = &document.services["ads"].fallback[0].action else { panic!() };
        assert_eq!(&prepared.body[..], b"<svg/>");
        let respond = &node.to_json()["services"]["ads"]["fallback"][0]["respond"];
        assert_eq!(*respond, serde_json::json!({ "body_base64": "PHN2Zy8+" }));
    }

    #[test]
    fn authorities_stand_where_their_file_stood() {
        const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let read = |text: &str| {
            let mut read = |name: &str, _: usize| match name {
                "ca.pem" => Ok(PEM.as_bytes().to_vec()),
                other => Err(format!("{other}: not there")),
            };
            read_document(Node::parse_toml(text).unwrap(), &mut read)
        };
        let (document, node) = read("[services.ads.tls]\nca_file = \"ca.pem\"\n").unwrap();
        assert_eq!(document.services["ads"].tls.as_ref().unwrap().ca.as_deref(), Some(PEM));
        assert_eq!(node.to_json()["services"]["ads"]["tls"], serde_json::json!({ "ca": PEM }));
        let told = read("[services.ads.tls]\n\nca_file = \"x\"\n").unwrap_err().to_string();
        assert_eq!(told, "line 3: services.ads.tls.ca_file: x: not there");
        let told = read("[services.ads.tls]\nca = \"x\"\nca_file = \"ca.pem\"\n").unwrap_err().to_string();
        assert!(told.contains("only one of `ca` and `ca_file`"), "{told}");
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line_among_the_other_faults() {
        let text = "[services.ads]\nprotocl = 1\n[[services.ads.fallback]]\n\
                    respond = { body_file = \"none\" }\n[services.b]\nx = 1\n";
        let told = read(text).unwrap_err().to_string();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), 3, "{told}");
        assert_eq!(lines[1], "line 4: services.ads.fallback[0].respond.body_file: none: not there");
        let both = read("[[services.ads.fallback]]\nrespond = { body = \"a\", body_file = \"house.svg\" }\n");
        assert!(both.unwrap_err().to_string().contains("only one of"));
    }

    #[test]
    fn the_set_stands_where_its_file_was_named() {
        let text = "[flags]\nfile = \"flags.json\"\n[services.a.flags]\nemit = [\"a\"]\n";
        let (document, node) = read(text).unwrap();
        assert_eq!(document.flags.unwrap().flags().len(), 1);
        assert_eq!(node.to_json()["flags"]["set"]["flags"]["a"]["state"], "ENABLED");
        assert_eq!(node.to_json()["flags"]["file"], serde_json::Value::Null);
    }

    #[test]
    fn faults_of_the_set_are_told_with_its_files_name() {
        let told = |file: &str| {
            let text = format!("[services.x]\ny = 1\n[flags]\nfile = \"{file}\"\n");
            read(&text).unwrap_err().to_string()
        };
        let other = "line 2: services.x.y: unknown key";
        let faulty = told("faulty.json");
        assert!(faulty.contains("faulty.json: flags.a.state: \"ON\" is not known here"), "{faulty}");
        assert!(faulty.contains(other), "{faulty}");
        let garbage = told("garbage.json");
        assert!(garbage.contains("line 4: flags.file: garbage.json: not JSON"), "{garbage}");
        assert!(garbage.contains(other) && garbage.lines().count() == 2, "{garbage}");
        assert!(told("none.json").contains("line 4: flags.file: none.json: not there"));
    }
}
