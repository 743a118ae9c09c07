//! The tree that TOML and JSON are lowered to, with the line of each value where there is one.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::json;
use crate::problem::{PROBLEMS_MAX, Problem, Problems};

pub use crate::json::{DEPTH_MAX, DOCUMENT_BYTES_MAX};

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
            let faults = errors.iter().take(PROBLEMS_MAX).map(|error| Problem {
                path: String::new(),
                line: error.span().map(|span| lines.line_of(span.start)),
                what: format!("not TOML: {}", error.message()),
                hint: None,
            });
            return Err(Problems(faults.collect()));
        }
        let line = Some(lines.line_of(table.span().start));
        let kind = lower_table(table.get_ref(), &lines, 1).map_err(|line| {
            let what = format!("nested deeper than {DEPTH_MAX}");
            Problems(vec![Problem { path: String::new(), line: Some(line), what, hint: None }])
        })?;
        Ok(Self { kind, line })
    }

    /// Reads JSON text.
    ///
    /// # Errors
    /// The first syntax fault with its line and column.
    pub fn parse_json(text: &[u8]) -> Result<Self, Problems> {
        json::parse(text).map(|json| Self::from(&json))
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

/// The error is the line where it nests too deeply.
fn lower_table(table: &DeTable<'_>, lines: &LineIndex, depth: usize) -> Result<Kind, usize> {
    let entry = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        // The key's line, not the value's: a table's value has the span of its header or is synthetic.
        let line = lines.line_of(key.span().start);
        Ok((key.get_ref().to_string(), lower(value, lines, line, depth)?))
    };
    table.iter().map(entry).collect::<Result<_, _>>().map(Kind::Table)
}

fn lower(value: &Spanned<DeValue<'_>>, lines: &LineIndex, line: usize, depth: usize) -> Result<Node, usize> {
    let kind = match value.get_ref() {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => Kind::Integer(value),
            // Too large for a whole number, and no text either: nothing in the grammar takes it.
            Err(_) => Kind::Float(digits.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(digits) => digits.as_str().parse().map_or(Kind::Float(f64::NAN), Kind::Float),
        DeValue::Boolean(value) => Kind::Boolean(*value),
        DeValue::Datetime(moment) => Kind::Text(moment.to_string()),
        DeValue::Array(_) | DeValue::Table(_) if depth >= DEPTH_MAX => return Err(line),
        DeValue::Array(items) => {
            let item =
                |item: &Spanned<DeValue<'_>>| lower(item, lines, lines.line_of(item.span().start), depth + 1);
            Kind::List(items.iter().map(item).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => lower_table(table, lines, depth + 1)?,
    };
    Ok(Node { kind, line: Some(line) })
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
    fn nesting_is_bounded_however_it_is_written() {
        let told = |text: &str| Node::parse_toml(text).map(|_| ()).map_err(|problems| problems.to_string());
        let dotted = |keys: usize| vec!["a"; keys].join(".");
        let lists = |depth: usize| format!("a = {}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(told(&lists(DEPTH_MAX - 1)), Ok(()));
        assert_eq!(
            told(&format!("b = 1\n{}", lists(DEPTH_MAX))),
            Err("line 2: nested deeper than 64".into())
        );
        assert_eq!(told(&format!("{} = 1", dotted(DEPTH_MAX))), Ok(()));
        for deep in [
            lists(100_000),
            format!("{} = 1", dotted(100_000)),
            format!("[{}]", dotted(100_000)),
            format!("a = {}1{}", format!("{{{} = ", dotted(79)).repeat(79), "}".repeat(79)),
            "a = {b = ".repeat(100_000),
        ] {
            assert!(told(&deep).is_err());
        }
    }

    #[test]
    fn odd_texts_are_read_as_they_are_meant_or_refused() {
        let node = |text: &str| Node::parse_toml(text).unwrap().to_json().to_string();
        assert_eq!(node("\u{feff}a = 1\r\n[b]\r\nc = 1_000\r\n"), r#"{"a":1,"b":{"c":1000}}"#);
        assert_eq!(node("a = 0x1F\nb = 0b11"), node("a = 31\nb = 3"));
        assert_eq!(Node::parse_toml("a = 1\r\nb = = 2\r\n").unwrap_err().0[0].line, Some(2));
        for text in ["a = 99999999999999999999", "a = 0xFFFFFFFFFFFFFFFFF", "a = nan", "a = -inf"] {
            let Kind::Table(root) = Node::parse_toml(text).unwrap().kind else { panic!("no table") };
            assert!(matches!(root["a"].kind, Kind::Float(_)), "{text}");
        }
        assert!(Node::parse_toml("a = 1\na = 2").is_err(), "a key that stands twice");
        let many = "= \n".repeat(5_000);
        assert!(Node::parse_toml(&many).unwrap_err().0.len() <= PROBLEMS_MAX);
    }

    #[test]
    fn toml_and_json_lower_to_the_same_tree() {
        let toml = Node::parse_toml("[s]\nn = 3\nf = 0.5\nl = [\"x\"]\n").unwrap();
        let json = Node::parse_json(br#"{"s":{"n":3,"f":0.5,"l":["x"]}}"#).unwrap();
        assert_eq!(toml.to_json(), json.to_json());
    }
}
