//! Reading a tree table by table, noting every fault with its path and line instead of stopping at the first.
//!
//! A reader takes what it knows by name and calls [`Table::finish`], which tells every key that nobody asked for.
//! Values answer `None` after noting what is wrong, so that a reader simply goes on.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::node::{Kind, Node};
use crate::problem::{Problem, Problems, shown};
use crate::unit::{Ppm, format_duration, parse_duration, parse_size};

pub use crate::problem::PROBLEMS_MAX;

/// The faults found so far.
///
/// A `RefCell`, because a table and the values taken from it note faults side by side in one thread.
#[derive(Debug, Default)]
pub struct Faults {
    list: RefCell<Vec<Problem>>,
    more: Cell<usize>,
}

impl Faults {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a fault, once however often it is found; beyond [`PROBLEMS_MAX`] only their number is kept.
    pub fn push(&self, problem: Problem) {
        let mut list = self.list.borrow_mut();
        if list.contains(&problem) {
            return;
        }
        if list.len() < PROBLEMS_MAX {
            list.push(problem);
        } else {
            self.more.set(self.more.get() + 1);
        }
    }

    /// `value` if nothing was wrong.
    ///
    /// # Errors
    /// Every fault, in the order of lines.
    pub fn into_result<T>(self, value: T) -> Result<T, Problems> {
        let mut list = self.list.into_inner();
        if list.is_empty() {
            return Ok(value);
        }
        list.sort_by_key(|problem| problem.line);
        if self.more.get() > 0 {
            list.push(Problem {
                path: String::new(),
                line: None,
                what: format!("and {} more", self.more.get()),
                hint: None,
            });
        }
        Err(Problems(list))
    }
}

/// One value of a document, with its path.
#[derive(Clone, Debug)]
pub struct Value<'d> {
    node: &'d Node,
    path: String,
    faults: &'d Faults,
}

impl<'d> Value<'d> {
    /// The whole document.
    #[must_use]
    pub fn root(node: &'d Node, faults: &'d Faults) -> Self {
        Self { node, path: String::new(), faults }
    }

    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tree below it, for what has a grammar of its own.
    pub(crate) fn node(&self) -> &'d Node {
        self.node
    }

    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.node.line
    }

    /// Notes a fault of this value.
    pub fn fault(&self, what: impl Into<String>, hint: impl Into<String>) {
        let hint = hint.into();
        let hint = if hint.is_empty() { None } else { Some(hint) };
        self.faults.push(Problem { path: self.path.clone(), line: self.node.line, what: what.into(), hint });
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.fault(format!("expected {what}, found {}", found(self.node)), "");
        None
    }

    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self.node.kind, Kind::Text(_))
    }

    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self.node.kind, Kind::List(_))
    }

    #[must_use]
    pub fn is_table(&self) -> bool {
        matches!(self.node.kind, Kind::Table(_))
    }

    #[must_use]
    pub fn text(&self) -> Option<&'d str> {
        match &self.node.kind {
            Kind::Text(text) => Some(text),
            _ => self.expected("a text"),
        }
    }

    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        match self.node.kind {
            Kind::Boolean(value) => Some(value),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number from `least` to `most`.
    #[must_use]
    pub fn integer<N: TryFrom<i64> + Into<i64> + Copy + Display>(&self, least: N, most: N) -> Option<N> {
        let Kind::Integer(value) = self.node.kind else { return self.expected("a whole number") };
        if value < least.into() || value > most.into() {
            self.fault(format!("{value} is out of range"), format!("{least} to {most}"));
            return None;
        }
        N::try_from(value).ok()
    }

    /// A number from `least` to `most`, with or without decimals.
    #[must_use]
    pub fn number(&self, least: f64, most: f64) -> Option<f64> {
        let value = match self.node.kind {
            #[expect(clippy::cast_precision_loss, reason = "whatever is so large is out of any range here")]
            Kind::Integer(value) => value as f64,
            Kind::Float(value) => value,
            _ => return self.expected("a number"),
        };
        // What is no number is in no range.
        if !(least..=most).contains(&value) {
            self.fault(format!("{value} is out of range"), format!("{least} to {most}"));
            return None;
        }
        Some(value)
    }

    /// A duration from `least` to `most`.
    #[must_use]
    pub fn duration(&self, least: Duration, most: Duration) -> Option<Duration> {
        let value = self.parsed_with(parse_duration)?;
        if value < least || value > most {
            let hint = format!("{} to {}", format_duration(least), format_duration(most));
            self.fault(format!("{} is out of range", format_duration(value)), hint);
            return None;
        }
        Some(value)
    }

    /// A duration from `least` to `most`, or "none".
    #[must_use]
    pub fn duration_or_none(&self, least: Duration, most: Duration) -> Option<Option<Duration>> {
        match &self.node.kind {
            Kind::Text(text) if text == "none" => Some(None),
            _ => self.duration(least, most).map(Some),
        }
    }

    /// A percentage: a number from 0 to 100 with at most four decimals.
    #[must_use]
    pub fn percent(&self) -> Option<Ppm> {
        let percent = match self.node.kind {
            #[expect(clippy::cast_precision_loss, reason = "whatever is so large is refused all the same")]
            Kind::Integer(value) => value as f64,
            Kind::Float(value) => value,
            _ => return self.expected("a percentage"),
        };
        let share = Ppm::from_percent(percent);
        if share.is_none() {
            self.fault(format!("{percent} is no percentage"), "0 to 100, with at most four decimals");
        }
        share
    }

    /// A size in bytes from `least` to `most`.
    #[must_use]
    pub fn size(&self, least: u64, most: u64) -> Option<u64> {
        let value = match self.node.kind {
            Kind::Integer(bytes) => u64::try_from(bytes).ok().or_else(|| self.expected("a size")),
            _ => self.parsed_with(parse_size),
        }?;
        if value < least || value > most {
            self.fault(format!("{value} bytes is out of range"), format!("{least} to {most} bytes"));
            return None;
        }
        Some(value)
    }

    /// One of a few words.
    #[must_use]
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            self.fault(
                format!("\"{}\" is not known here", shown(text)),
                format!("one of: {}", words.join(", ")),
            );
        }
        chosen
    }

    /// A text that `T` reads.
    #[must_use]
    pub fn parsed<T: FromStr<Err = &'static str>>(&self) -> Option<T> {
        self.parsed_with(T::from_str)
    }

    /// A text that `parse` reads; its error is the hint.
    #[must_use]
    pub fn named<T>(&self, parse: fn(&str) -> Result<T, &'static str>) -> Option<T> {
        self.parsed_with(parse)
    }

    fn parsed_with<T>(&self, parse: fn(&str) -> Result<T, &'static str>) -> Option<T> {
        let text = self.text()?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(hint) => {
                self.fault(format!("\"{}\" is not understood", shown(text)), hint);
                None
            }
        }
    }

    /// Every item of a list; items that are faulty are left out (and noted).
    #[must_use]
    pub fn list<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        Some(self.items()?.iter().filter_map(read).collect())
    }

    /// The items of a list.
    #[must_use]
    pub fn items(&self) -> Option<Vec<Self>> {
        let Kind::List(items) = &self.node.kind else { return self.expected("a list") };
        let item =
            |(index, node)| Self { node, path: format!("{}[{index}]", self.path), faults: self.faults };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The entries of a table whose keys are free, e.g. the services.
    #[must_use]
    pub fn entries(&self) -> Option<Vec<(&'d str, Self)>> {
        let Kind::Table(entries) = &self.node.kind else { return self.expected("a table") };
        Some(entries.iter().map(|(key, node)| (key.as_str(), self.child(key, node))).collect())
    }

    /// A table whose keys are fixed.
    #[must_use]
    pub fn table(&self) -> Option<Table<'d>> {
        let Kind::Table(entries) = &self.node.kind else { return self.expected("a table") };
        Some(Table { value: self.clone(), entries, known: Vec::new() })
    }

    fn child(&self, key: &str, node: &'d Node) -> Self {
        // Keys are free text: bounded, without control characters, and quoted where TOML would quote them.
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_plain = !key.is_empty() && key.len() <= 63 && key.bytes().all(is_bare);
        let key = if is_plain { Cow::Borrowed(key) } else { Cow::Owned(format!("\"{}\"", shown(key))) };
        let path = if self.path.is_empty() { key.into_owned() } else { format!("{}.{key}", self.path) };
        Self { node, path, faults: self.faults }
    }
}

/// A table whose keys are fixed: take each by name, then [`Table::finish`].
#[derive(Debug)]
pub struct Table<'d> {
    value: Value<'d>,
    entries: &'d BTreeMap<String, Node>,
    known: Vec<&'static str>,
}

impl<'d> Table<'d> {
    /// The table itself, for faults that concern it as a whole.
    #[must_use]
    pub fn value(&self) -> &Value<'d> {
        &self.value
    }

    /// The value of a key that may be absent.
    pub fn optional(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        self.entries.get(key).map(|node| self.value.child(key, node))
    }

    /// The value of a key that must be there.
    pub fn required(&mut self, key: &'static str) -> Option<Value<'d>> {
        let value = self.optional(key);
        if value.is_none() {
            self.value.fault(format!("`{key}` is missing"), "");
        }
        value
    }

    /// Notes every key that nobody asked for.
    pub fn finish(self) {
        for (key, node) in self.entries {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let hint = match nearest(key, &self.known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.value.child(key, node).fault("unknown key", hint);
        }
    }
}

fn found(node: &Node) -> String {
    match &node.kind {
        Kind::Boolean(value) => value.to_string(),
        Kind::Float(value) => value.to_string(),
        Kind::Integer(value) => value.to_string(),
        Kind::List(_) => "a list".to_owned(),
        Kind::Null => "null".to_owned(),
        Kind::Table(_) => "a table".to_owned(),
        Kind::Text(text) => format!("\"{}\"", shown(text)),
    }
}

/// What to say of each variable of the environment that begins like ours and is none of these.
pub fn unknown_variables(names: impl IntoIterator<Item = String>, known: &[&str]) -> Vec<String> {
    // The demo's apps and operators' commands read the same environment, and have a command line of their own.
    let others = |name: &String| name.starts_with("GILMOK_DEMO_") || name.starts_with("GILMOK_CLI_");
    let is_ours = |name: &String| name.starts_with("GILMOK_") && !others(name);
    let mut unknown: Vec<String> =
        names.into_iter().filter(|name| is_ours(name) && !known.contains(&name.as_str())).collect();
    unknown.sort_unstable();
    let told = |name: &String| match nearest(name, known) {
        Some(near) => format!("{} is no setting; did you mean {near}?", shown(name)),
        None => format!("{} is no setting; --help names those that there are", shown(name)),
    };
    unknown.iter().map(told).collect()
}

/// The known word that is at most two edits away, if any.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    const WORD_BYTES_MAX: usize = 40;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    known.iter().map(|k| (edits(word, k), *k)).filter(|(n, k)| *n <= 2 && *n < k.len()).min().map(|(_, k)| k)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_told_at_once_with_path_and_line() {
        let node = Node::parse_toml("attempts = \"two\"\nbudget = 5\ntimeout = \"9\"\n").unwrap();
        let faults = Faults::new();
        let mut table = Value::root(&node, &faults).table().unwrap();
        assert_eq!(table.optional("attempts").and_then(|v| v.integer(0_u32, 5)), None);
        assert_eq!(table.optional("timeout").and_then(|v| v.duration(Duration::ZERO, Duration::MAX)), None);
        assert!(table.optional("budgets").is_none());
        table.finish();
        let told = faults.into_result(()).unwrap_err().to_string();
        assert_eq!(
            told,
            "line 1: attempts: expected a whole number, found \"two\"\n\
             line 2: budget: unknown key (did you mean `budgets`?)\n\
             line 3: timeout: \"9\" is not understood (a duration has a unit: \"250ms\", \"5s\", \"1h30m\")"
        );
    }

    #[test]
    fn variables_that_nobody_reads_are_told_with_the_nearest_one() {
        let known = ["GILMOK_NODE", "GILMOK_LISTEN_ADMIN"];
        let names = [
            "PATH",
            "GILMOK_NODE",
            "GILMOK_LISTEN_ADMN",
            "GILMOK_DEMO_VERSION",
            "GILMOK_CLI_X",
            "GILMOK_FROBNICATE",
        ];
        assert_eq!(
            unknown_variables(names.map(str::to_owned), &known),
            [
                "GILMOK_FROBNICATE is no setting; --help names those that there are",
                "GILMOK_LISTEN_ADMN is no setting; did you mean GILMOK_LISTEN_ADMIN?",
            ]
        );
    }

    #[test]
    fn faults_are_bounded() {
        let faults = Faults::new();
        let node = Node::empty();
        for at in 0..PROBLEMS_MAX + 5 {
            Value::root(&node, &faults).fault(format!("x{at}"), "");
            // The same once more is no other one.
            Value::root(&node, &faults).fault("x0", "");
        }
        let problems = faults.into_result(()).unwrap_err();
        assert_eq!(problems.0.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems.0[PROBLEMS_MAX].what, "and 5 more");
    }
}
