//! The way an evaluation took through its rule, for those who ask why.

use serde_json::{Value as Json, json};

use super::value::Value;

/// Most operators that are told of one evaluation.
const LINES_MAX: usize = 200;
/// Longest text that is told, in characters.
const TEXT_CHARS_MAX: usize = 100;

/// Every operator that was evaluated, in the order in which they were begun.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: Vec<Json>,
    depth: usize,
    untold: usize,
}

impl Trace {
    /// An operator begins; what is told of it is the answer's to know.
    pub(super) fn begin(&mut self, word: &str) -> Option<usize> {
        self.depth += 1;
        if self.lines.len() >= LINES_MAX {
            self.untold += 1;
            return None;
        }
        self.lines.push(json!({ "depth": self.depth, "rule": word }));
        Some(self.lines.len() - 1)
    }

    /// It has ended.
    pub(super) fn end(&mut self, line: Option<usize>, result: Option<&Value<'_>>) {
        self.depth -= 1;
        if let (Some(line), Some(result)) = (line.and_then(|at| self.lines.get_mut(at)), result) {
            line["result"] = told(result);
        }
    }

    pub(crate) fn into_json(self) -> Json {
        let mut lines = self.lines;
        if self.untold > 0 {
            lines.push(json!({ "rule": format!("and {} more", self.untold) }));
        }
        Json::Array(lines)
    }
}

/// A value, cut to what a person reads.
pub(crate) fn told(value: &Value<'_>) -> Json {
    match value {
        Value::List(list) => Json::from(format!("a list of {}", list.len())),
        Value::Object(entries) => Json::from(format!("an object of {}", entries.len())),
        Value::Text(text) => Json::from(text.as_str().chars().take(TEXT_CHARS_MAX).collect::<String>()),
        Value::Whole => Json::from("everything"),
        Value::Boolean(_) | Value::Null | Value::Number(_) => value.to_json(),
    }
}
