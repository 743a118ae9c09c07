//! The tree that TOML and JSON are lowered to, with the line of each value where there is one.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::{Problem, Problems};

/// How deep a document may nest. TOML and JSON both parse recursively; nothing in the grammar needs more.
pub const DEPTH_MAX: usize = 64;

/// How large a document may be, in bytes. 1,000 services with ten endpoints each take about 1 MiB.
pub const DOCUMENT_BYTES_MAX: usize = 32 << 20;

/// One value of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub kind: Kind,
    /// Counted from 1; `None` in JSON.
    pub line: Option<usize>,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Boolean(bool),
    Float(f64),
    Integer(i64),
    List(Vec<Node>),
    Null,
    Table(BTreeMap<String, Node>),
    Text(String),
}

impl Node {
    /// An empty table: what a document says that says nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self { kind: Kind::Table(BTreeMap::new()), line: None }
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// Every syntax fault with its line.
    pub fn parse_toml(text: &str) -> Result<Self, Problems> {
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(too_large());
        }
        let lines = LineIndex::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let faults = errors.iter().map(|error| Problem {
                path: String::new(),
                line: error.span().map(|span| lines.line_of(span.start)),
                what: format!("not TOML: {}", error.message()),
                hint: None,
            });
            return Err(Problems(faults.collect()));
        }
        let line = Some(lines.line_of(table.span().start));
        Ok(Self { kind: lower_table(table.get_ref(), &lines), line })
    }

    /// Reads JSON text.
    ///
    /// # Errors
    /// The first syntax fault with its line and column.
    pub fn parse_json(text: &[u8]) -> Result<Self, Problems> {
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(too_large());
        }
        // serde_json stops at a nesting of 128 by itself.
        serde_json::from_slice::<Json>(text)
            .map(|json| Self::from(&json))
            .map_err(|error| Problems::whole(format!("not JSON: {error}")))
    }

    /// The same tree as JSON, as it is kept and answered by the control plane.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match &self.kind {
            Kind::Boolean(value) => Json::Bool(*value),
            Kind::Float(value) => serde_json::Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Kind::Integer(value) => Json::from(*value),
            Kind::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Kind::Null => Json::Null,
            Kind::Table(entries) => {
                Json::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect())
            }
            Kind::Text(value) => Json::String(value.clone()),
        }
    }
}

impl From<&Json> for Node {
    fn from(json: &Json) -> Self {
        let kind = match json {
            Json::Null => Kind::Null,
            Json::Bool(value) => Kind::Boolean(*value),
            Json::Number(number) => match number.as_i64() {
                Some(value) => Kind::Integer(value),
                None => Kind::Float(number.as_f64().unwrap_or(f64::INFINITY)),
            },
            Json::String(value) => Kind::Text(value.clone()),
            Json::Array(items) => Kind::List(items.iter().map(Self::from).collect()),
            Json::Object(entries) => {
                Kind::Table(entries.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect())
            }
        };
        Self { kind, line: None }
    }
}

fn too_large() -> Problems {
    Problems::whole(format!("larger than {} MiB", DOCUMENT_BYTES_MAX >> 20))
}

fn lower_table(table: &DeTable<'_>, lines: &LineIndex) -> Kind {
    let entries = table.iter().map(|(key, value)| {
        // The key's line, not the value's: a table's value has the span of its header or is synthetic.
        (key.get_ref().to_string(), lower(value, lines, lines.line_of(key.span().start)))
    });
    Kind::Table(entries.collect())
}

fn lower(value: &Spanned<DeValue<'_>>, lines: &LineIndex, line: usize) -> Node {
    let kind = match value.get_ref() {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => Kind::Integer(value),
            Err(_) => Kind::Text(digits.as_str().to_owned()),
        },
        DeValue::Float(digits) => digits.as_str().parse().map_or(Kind::Float(f64::NAN), Kind::Float),
        DeValue::Boolean(value) => Kind::Boolean(*value),
        DeValue::Datetime(moment) => Kind::Text(moment.to_string()),
        DeValue::Array(items) => Kind::List(
            items.iter().map(|item| lower(item, lines, lines.line_of(item.span().start))).collect(),
        ),
        DeValue::Table(table) => lower_table(table, lines),
    };
    Node { kind, line: Some(line) }
}

/// Where each line of a text begins, so that an offset becomes a line by binary search.
struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    fn new(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { starts: std::iter::once(0).chain(breaks).collect() }
    }

    fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let node = Node::parse_toml("a = 1\n\n[b]\nc = [\n  true,\n]\n").unwrap();
        let Kind::Table(root) = &node.kind else { panic!("no table") };
        assert_eq!(root["a"].line, Some(1));
        assert_eq!(root["b"].line, Some(3));
        let Kind::Table(b) = &root["b"].kind else { panic!("no table") };
        assert_eq!(b["c"].line, Some(4));
        let Kind::List(items) = &b["c"].kind else { panic!("no list") };
        assert_eq!(items[0].line, Some(5));
    }

    #[test]
    fn every_syntax_fault_is_told_with_its_line() {
        let problems = Node::parse_toml("a = \nb = 1\nc = = 2\n").unwrap_err();
        let lines: Vec<_> = problems.0.iter().map(|problem| problem.line).collect();
        assert!(lines.contains(&Some(1)) && lines.contains(&Some(3)), "{problems}");
    }

    #[test]
    fn toml_and_json_lower_to_the_same_tree() {
        let toml = Node::parse_toml("[s]\nn = 3\nf = 0.5\nl = [\"x\"]\n").unwrap();
        let json = Node::parse_json(br#"{"s":{"n":3,"f":0.5,"l":["x"]}}"#).unwrap();
        assert_eq!(toml.to_json(), json.to_json());
    }
}
