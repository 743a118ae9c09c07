//! Targeting rules: JsonLogic with flagd's operators, compiled once and evaluated within a bound.

mod compile;
mod fractional;
mod machine;
mod operate;
pub(super) mod trace;
pub(super) mod value;
mod version;

pub(crate) use compile::{Compiler, Evaluators};
pub use fractional::Hashing;
pub(crate) use machine::{Machine, Outcome};
pub(crate) use trace::Trace;

use serde_json::Value as Json;

use fractional::Fractional;
use std::sync::Arc;
use value::Number;

/// A compiled rule, or a part of one.
#[derive(Debug)]
pub(crate) enum Rule {
    And(Box<[Self]>),
    Boolean(bool),
    Call(Operator, Box<[Self]>),
    Each(Box<Each>),
    Fractional(Box<Fractional>),
    If(Box<[Self]>),
    /// A list or an object in which nothing is reckoned.
    Json(Box<Json>),
    List(Box<[Self]>),
    Null,
    Number(Number),
    Or(Box<[Self]>),
    Reduce(Box<[Self; 3]>),
    /// One of the document's `$evaluators`, kept once however many use it.
    Shared(Arc<Self>),
    Text(Box<str>),
    /// `var` of a fixed path; empty for all there is.
    Var(Box<str>, Option<Box<Self>>),
}

/// What is asked of each item of a list.
#[derive(Debug)]
pub(crate) struct Each {
    pub(super) what: What,
    pub(super) items: Rule,
    pub(super) body: Rule,
}

/// What becomes of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    All,
    Filter,
    Map,
    None,
    Some,
}

/// An operator whose arguments are all evaluated first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Cat,
    Divide,
    EndsWith,
    Equal,
    Greater,
    GreaterOrEqual,
    In,
    Is,
    IsNot,
    Less,
    LessOrEqual,
    Log,
    Max,
    Merge,
    Min,
    Missing,
    MissingSome,
    Multiply,
    Not,
    NotEqual,
    Remainder,
    SemVer,
    StartsWith,
    Substr,
    Subtract,
    Truth,
    /// `var` of a path that is reckoned.
    Var,
}

/// The operators' words, with the fewest and most arguments that flagd's schema allows.
pub(super) const OPERATORS: [(&str, Operator, usize, usize); 28] = [
    ("==", Operator::Equal, 2, 2),
    ("===", Operator::Is, 2, 2),
    ("!=", Operator::NotEqual, 2, 2),
    ("!==", Operator::IsNot, 2, 2),
    (">", Operator::Greater, 2, 2),
    (">=", Operator::GreaterOrEqual, 2, 2),
    ("<", Operator::Less, 2, 3),
    ("<=", Operator::LessOrEqual, 2, 3),
    ("!", Operator::Not, 1, 1),
    ("!!", Operator::Truth, 1, 1),
    ("%", Operator::Remainder, 2, 2),
    ("/", Operator::Divide, 2, 2),
    ("*", Operator::Multiply, 2, usize::MAX),
    ("+", Operator::Add, 1, usize::MAX),
    ("-", Operator::Subtract, 1, usize::MAX),
    ("max", Operator::Max, 1, usize::MAX),
    ("min", Operator::Min, 1, usize::MAX),
    ("cat", Operator::Cat, 1, usize::MAX),
    ("merge", Operator::Merge, 1, usize::MAX),
    ("in", Operator::In, 2, 2),
    ("substr", Operator::Substr, 2, 3),
    ("missing", Operator::Missing, 0, usize::MAX),
    ("missing_some", Operator::MissingSome, 2, 2),
    ("sem_ver", Operator::SemVer, 3, 3),
    ("starts_with", Operator::StartsWith, 2, 2),
    ("ends_with", Operator::EndsWith, 2, 2),
    ("log", Operator::Log, 1, 1),
    ("var", Operator::Var, 0, 2),
];

/// The words of what is asked of each item.
pub(super) const EACH: [(&str, What); 5] = [
    ("all", What::All),
    ("filter", What::Filter),
    ("map", What::Map),
    ("none", What::None),
    ("some", What::Some),
];

impl Operator {
    fn as_str(self) -> &'static str {
        OPERATORS.iter().find(|(_, operator, ..)| *operator == self).map_or("", |(word, ..)| *word)
    }
}

impl What {
    fn as_str(self) -> &'static str {
        EACH.iter().find(|(_, what)| *what == self).map_or("", |(word, _)| *word)
    }
}

impl Rule {
    /// The operator's word, where it is one; for those who follow an evaluation.
    fn word(&self) -> Option<String> {
        Some(match self {
            Self::And(_) => "and".to_owned(),
            Self::Call(operator, _) => operator.as_str().to_owned(),
            Self::Each(each) => each.what.as_str().to_owned(),
            Self::Fractional(_) => "fractional".to_owned(),
            Self::If(_) => "if".to_owned(),
            Self::Or(_) => "or".to_owned(),
            Self::Reduce(_) => "reduce".to_owned(),
            Self::Var(path, _) => format!("var {path}"),
            Self::Boolean(_)
            | Self::Json(_)
            | Self::List(_)
            | Self::Null
            | Self::Number(_)
            | Self::Shared(_)
            | Self::Text(_) => return None,
        })
    }

    /// Whether its value depends on the request: what has no operator does not.
    pub(crate) fn is_fixed(&self) -> bool {
        matches!(self, Self::Boolean(_) | Self::Json(_) | Self::Null | Self::Number(_) | Self::Text(_))
    }
}
