//! A fault of a document: where it is, what is wrong, what would be right.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most faults that are told of one document: enough to mend a file by, few enough to read.
pub const PROBLEMS_MAX: usize = 100;

/// One fault. Documents are refused as a whole, with every fault at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where in the document, e.g. `services.ads.retry.attempts`; empty for the document as a whole.
    pub path: String,
    /// The line in the file, counted from 1; absent for documents that came as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What is wrong: lower case, no full stop.
    pub what: String,
    /// What would be right, when that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A fault of what has no lines. An empty hint is none.
    #[must_use]
    pub fn at(path: &str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        Self { path: path.to_owned(), line: None, what: what.into(), hint }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Every fault of one document, in the order of the document's lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// One fault that concerns the document as a whole.
    #[must_use]
    pub fn whole(what: impl Into<String>) -> Self {
        Problem::at("", what, "").into()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// What of a text may stand in a message: bounded, and without control characters.
#[must_use]
pub fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    let mut out: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}
