//! What stands in files of its own, bodies of prepared answers and authorities: put into the document's tree before it is read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::document::Document;
use crate::node::{Kind, Node};
use crate::problem::{PROBLEMS_MAX, Problem, Problems};

/// Reads a document that came from a file and may name others: each `body_file` becomes the `body_base64` of its content,
/// each `ca_file` the `ca`.
/// `read` gives the content of what a document names, or says why there is none.
///
/// # Errors
/// Every fault, those of the files among the others, in the order of the document's lines.
pub fn read_document(
    mut node: Node,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
) -> Result<(Document, Node), Problems> {
    let mut faults = Vec::new();
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
    let document = Document::read(&node);
    if faults.is_empty() {
        return document.map(|document| (document, node));
    }
    let mut problems = document.err().unwrap_or_default();
    problems.0.extend(faults);
    problems.0.sort_by_key(|problem| problem.line);
    problems.0.truncate(PROBLEMS_MAX);
    Err(problems)
}

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

fn responds(chain: &mut [Node]) -> impl Iterator<Item = (usize, &mut Entries)> {
    let link = |(at, link)| Some((at, table(table(link)?.get_mut("respond")?)?));
    chain.iter_mut().enumerate().filter_map(link)
}

fn inline(
    respond: &mut Entries,
    path: &str,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    faults: &mut Vec<Problem>,
) {
    // Two bodies are a fault that the grammar tells.
    if respond.contains_key("body") || respond.contains_key("body_base64") {
        return;
    }
    let Some(Node { kind: Kind::Text(file), line }) = respond.get("body_file") else { return };
    let line = *line;
    match read(file) {
        Ok(body) => {
            let kind = Kind::Text(BASE64.encode(body));
            respond.insert("body_base64".to_owned(), Node { kind, line });
        }
        Err(what) => faults.push(Problem { path: format!("{path}.body_file"), line, what, hint: None }),
    }
    respond.remove("body_file");
}

fn inline_ca(
    tls: &mut Entries,
    path: &str,
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    faults: &mut Vec<Problem>,
) {
    let Some(Node { kind: Kind::Text(file), line }) = tls.get("ca_file") else { return };
    let line = *line;
    let fault = |what| Problem { path: format!("{path}.ca_file"), line, what, hint: None };
    let text = read(file).and_then(|bytes| String::from_utf8(bytes).map_err(|_| "not PEM".to_owned()));
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
        let mut read = |name: &str| match name {
            "house.svg" => Ok(b"<svg/>".to_vec()),
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
            let mut read = |name: &str| match name {
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
}
