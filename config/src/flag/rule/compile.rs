//! From JsonLogic in a document to a compiled rule, with what flagd's schema would say of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fractional::{Bucket, Fractional, Weight, weight};
use super::value::{Number, Value};
use super::version::{is_operator, version};
use super::{EACH, Each, OPERATORS, Operator, Rule};
use crate::flag::context::FLAGD;
use crate::node::{Kind, Node};
use crate::problem::shown;

/// Most parts of one rule.
const PARTS_MAX: usize = 10_000;
/// Most warnings of one rule.
const WARNINGS_MAX: usize = 20;

/// The document's `$evaluators`: each compiled, or why it cannot be evaluated.
pub(crate) type Evaluators = BTreeMap<String, Evaluator>;

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Evaluator {
    rule: Result<Arc<Rule>, String>,
    reads_time: bool,
    shares: usize,
    questions: usize,
}

/// Compiles one rule.
#[derive(Debug)]
pub(crate) struct Compiler<'e, 'n> {
    evaluators: &'e Evaluators,
    /// Where the part stands, below the rule.
    place: Vec<Step<'n>>,
    parts: usize,
    /// What makes the rule impossible to evaluate: an operator or an evaluator that nobody knows.
    broken: Option<String>,
    reads_time: bool,
    shares: usize,
    /// How often it asks who the user is.
    questions: usize,
    warnings: Vec<(String, String)>,
}

/// From a part of a rule to one below it.
#[derive(Clone, Copy, Debug)]
enum Step<'n> {
    Item(usize),
    Key(&'n str),
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// The rule, or why it cannot be evaluated.
    pub(crate) rule: Result<Rule, String>,
    /// What flagd would only warn of: place below the rule, and what is wrong.
    pub(crate) warnings: Vec<(String, String)>,
    /// Whether it may read the clock.
    pub(crate) reads_time: bool,
    /// How many shares there are; one that is not the same for all counts as two.
    pub(crate) shares: usize,
    questions: usize,
}

impl Compiled {
    pub(crate) fn into_evaluator(self) -> Evaluator {
        Evaluator {
            rule: self.rule.map(Arc::new),
            reads_time: self.reads_time,
            shares: self.shares,
            questions: self.questions,
        }
    }
}

impl<'e, 'n> Compiler<'e, 'n> {
    pub(crate) fn new(evaluators: &'e Evaluators) -> Self {
        Self {
            evaluators,
            place: Vec::new(),
            parts: 0,
            broken: None,
            reads_time: false,
            shares: 0,
            questions: 0,
            warnings: Vec::new(),
        }
    }

    /// Compiles it.
    ///
    /// # Errors
    /// How large it may be.
    pub(crate) fn compile(mut self, node: &'n Node) -> Result<Compiled, String> {
        let rule = self.rule(node);
        if self.parts > PARTS_MAX {
            return Err(format!("at most {PARTS_MAX} parts"));
        }
        let rule = self.broken.map_or(Ok(rule), Err);
        Ok(Compiled {
            rule,
            warnings: self.warnings,
            reads_time: self.reads_time,
            shares: self.shares,
            questions: self.questions,
        })
    }

    fn warn(&mut self, what: impl Into<String>) {
        if self.warnings.len() < WARNINGS_MAX {
            let step = |step: &Step<'_>| match step {
                Step::Item(at) => format!("[{at}]"),
                Step::Key(key) => format!(".\"{}\"", shown(key)),
            };
            self.warnings.push((self.place.iter().map(step).collect(), what.into()));
        }
    }

    fn is_broken(&mut self, what: String) -> Rule {
        self.warn(what.clone());
        self.broken.get_or_insert(what);
        Rule::Null
    }

    /// Compiles something below this place.
    fn below<T>(&mut self, step: Step<'n>, compile: impl FnOnce(&mut Self) -> T) -> T {
        self.place.push(step);
        let compiled = compile(self);
        self.place.pop();
        compiled
    }

    fn rule(&mut self, node: &'n Node) -> Rule {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Rule::Null;
        }
        match &node.kind {
            Kind::Boolean(value) => Rule::Boolean(*value),
            Kind::Float(number) => Rule::Number(Number::Real(*number)),
            Kind::Integer(number) => Rule::Number(Number::Whole(*number)),
            Kind::Null => Rule::Null,
            Kind::Text(text) => Rule::Text(text.as_str().into()),
            Kind::List(items) => {
                let rules = self.rules(items);
                if rules.iter().all(Rule::is_fixed) {
                    Rule::Json(Box::new(node.to_json()))
                } else {
                    Rule::List(rules.into())
                }
            }
            Kind::Table(entries) => match entries.iter().next().filter(|_| entries.len() == 1) {
                Some((word, arguments)) => self.below(Step::Key(word), |this| this.operator(word, arguments)),
                None => {
                    if !entries.is_empty() {
                        self.warn(format!(
                            "{} keys: this is a value, for an operator stands alone",
                            entries.len()
                        ));
                    }
                    Rule::Json(Box::new(node.to_json()))
                }
            },
        }
    }

    fn rules(&mut self, nodes: &'n [Node]) -> Vec<Rule> {
        let nodes = nodes.iter().enumerate();
        nodes.map(|(at, node)| self.below(Step::Item(at), |this| this.rule(node))).collect()
    }

    fn operator(&mut self, word: &'n str, node: &'n Node) -> Rule {
        let arguments = match &node.kind {
            Kind::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        if let Some((_, what)) = EACH.iter().find(|(known, _)| *known == word) {
            self.expect(arguments, 2, 2);
            let mut rules = self.rules(arguments).into_iter();
            let (items, body) = (rules.next().unwrap_or(Rule::Null), rules.next().unwrap_or(Rule::Null));
            return Rule::Each(Box::new(Each { what: *what, items, body }));
        }
        match word {
            "$ref" => return self.shared(node),
            "and" => return Rule::And(self.some(arguments)),
            "fractional" => return self.fractional(arguments),
            "if" | "?:" => return Rule::If(self.some(arguments)),
            "or" => return Rule::Or(self.some(arguments)),
            "reduce" => {
                self.expect(arguments, 3, 3);
                let mut rules = self.rules(arguments).into_iter();
                let mut next = || rules.next().unwrap_or(Rule::Null);
                return Rule::Reduce(Box::new([next(), next(), next()]));
            }
            _ => {}
        }
        let Some((_, operator, least, most)) = OPERATORS.iter().find(|(known, ..)| *known == word) else {
            return self.is_broken(format!("there is no operator `{}`", shown(word)));
        };
        self.expect(arguments, *least, *most);
        let mut rules = self.rules(arguments);
        if matches!(operator, Operator::Missing | Operator::MissingSome) {
            self.questions += 1;
        }
        if *operator == Operator::Var {
            return self.variable(rules);
        }
        self.look_at(*operator, &rules);
        rules.shrink_to_fit();
        Rule::Call(*operator, rules.into())
    }

    fn some(&mut self, arguments: &'n [Node]) -> Box<[Rule]> {
        self.expect(arguments, 1, usize::MAX);
        self.rules(arguments).into()
    }

    fn expect(&mut self, arguments: &[Node], least: usize, most: usize) {
        let many = arguments.len();
        if many < least || many > most {
            let range = if least == most {
                least.to_string()
            } else if most == usize::MAX {
                format!("at least {least}")
            } else {
                format!("{least} to {most}")
            };
            self.warn(format!("{many} arguments where the operator takes {range}"));
        }
    }

    fn shared(&mut self, node: &Node) -> Rule {
        let Kind::Text(name) = &node.kind else {
            return self.is_broken("`$ref` names an evaluator".to_owned());
        };
        match self.evaluators.get(name) {
            None => self.is_broken(format!("there is no evaluator `{}`", shown(name))),
            Some(Evaluator { rule: Err(what), .. }) => {
                self.is_broken(format!("the evaluator `{}` cannot be evaluated: {what}", shown(name)))
            }
            Some(Evaluator { rule: Ok(rule), reads_time, shares, questions }) => {
                self.reads_time |= reads_time;
                self.shares += shares;
                self.questions += questions;
                Rule::Shared(Arc::clone(rule))
            }
        }
    }

    fn variable(&mut self, rules: Vec<Rule>) -> Rule {
        let mut rules = rules.into_iter();
        let path: Box<str> = match rules.next() {
            None | Some(Rule::Null) => "".into(),
            Some(Rule::Text(path)) => path,
            Some(Rule::Number(number)) => number.text().into(),
            Some(reckoned) => {
                // Nobody knows where it will look.
                self.reads_time = true;
                self.questions += 1;
                return Rule::Call(Operator::Var, std::iter::once(reckoned).chain(rules).collect());
            }
        };
        if path.split('.').next() == Some(FLAGD) {
            match &*path {
                "$flagd.flagKey" => {}
                "$flagd.timestamp" => self.reads_time = true,
                _ => self.warn("only `$flagd.flagKey` and `$flagd.timestamp` are there"),
            }
        } else {
            self.questions += 1;
        }
        Rule::Var(path, rules.next().map(Box::new))
    }

    fn fractional(&mut self, arguments: &'n [Node]) -> Rule {
        self.expect(arguments, 1, usize::MAX);
        let is_bucket = |node: &Node| matches!(node.kind, Kind::List(_));
        let (by, buckets, from) = match arguments {
            [first, buckets @ ..] if !is_bucket(first) => {
                (Some(self.below(Step::Item(0), |this| this.rule(first))), buckets, 1)
            }
            all => (None, all, 0),
        };
        let asked = self.questions;
        let buckets = buckets.iter().enumerate();
        let buckets =
            buckets.map(|(at, bucket)| self.below(Step::Item(at + from), |this| this.bucket(bucket)));
        let buckets = buckets.collect();
        self.shares += if self.questions == asked { 1 } else { 2 };
        Rule::Fractional(Box::new(Fractional::new(by, buckets)))
    }

    fn bucket(&mut self, node: &'n Node) -> Bucket {
        let (variant, reckoned) = match &node.kind {
            Kind::List(pair) => match pair.as_slice() {
                [variant] => (variant, None),
                [variant, weight] => (variant, Some(weight)),
                _ => {
                    self.warn(format!(
                        "a bucket of {} values, where there are a variant and its weight",
                        pair.len()
                    ));
                    return Bucket::Reckoned(self.rule(node));
                }
            },
            _ => {
                self.warn("a bucket is a list of a variant and its weight");
                return Bucket::Reckoned(self.rule(node));
            }
        };
        let variant = self.below(Step::Item(0), |this| this.rule(variant));
        let Some(reckoned) = reckoned else { return Bucket::Pair(variant, Weight::Fixed(1)) };
        let rule = self.below(Step::Item(1), |this| this.rule(reckoned));
        let Rule::Number(number) = rule else {
            if rule.is_fixed() {
                self.warn("a weight is a whole number");
            }
            return Bucket::Pair(variant, Weight::Reckoned(rule));
        };
        if number.real() < 0.0 || weight(number.real()).is_none() {
            self.warn(format!("a weight of {}, where it is whole and from 0 to 2147483647", number.text()));
        }
        match weight(number.real()) {
            Some(weight) if !matches!(variant, Rule::Json(_)) => Bucket::Pair(variant, Weight::Fixed(weight)),
            Some(_) | None => Bucket::Pair(variant, Weight::Reckoned(rule)),
        }
    }

    /// What can be seen to be wrong with literals.
    fn look_at(&mut self, operator: Operator, rules: &[Rule]) {
        match (operator, rules) {
            (Operator::SemVer, [ours, compared, theirs]) => {
                for value in [ours, theirs] {
                    let is_version = match value {
                        Rule::Text(text) => version(&Value::text(text)).is_some(),
                        Rule::Number(number) => version(&Value::Number(*number)).is_some(),
                        other => !other.is_fixed(),
                    };
                    if !is_version {
                        self.warn("not a version");
                    }
                }
                let is_known = match compared {
                    Rule::Text(text) => is_operator(text),
                    other => !other.is_fixed(),
                };
                if !is_known {
                    self.warn("versions are compared by =, !=, <, <=, >, >=, ^ or ~");
                }
            }
            (Operator::StartsWith | Operator::EndsWith, rules)
                if rules.iter().any(|rule| rule.is_fixed() && !matches!(rule, Rule::Text(_))) =>
            {
                self.warn("two texts are compared");
            }
            _ => {}
        }
    }
}

impl Rule {
    /// Every literal that may be its result.
    pub(crate) fn each_result(&self, tell: &mut dyn FnMut(&str)) {
        match self {
            Self::Boolean(value) => tell(if *value { "true" } else { "false" }),
            Self::Fractional(fractional) => {
                for bucket in &fractional.buckets {
                    if let Bucket::Pair(variant, _) = bucket {
                        variant.each_result(tell);
                    }
                }
            }
            Self::If(rules) => {
                let mut rest: &[Self] = rules;
                while let [_, then, after @ ..] = rest {
                    then.each_result(tell);
                    rest = after;
                }
                if let [otherwise] = rest {
                    otherwise.each_result(tell);
                }
            }
            Self::Shared(rule) => rule.each_result(tell),
            Self::Text(text) => tell(text),
            Self::And(_)
            | Self::Call(..)
            | Self::Each(_)
            | Self::Json(_)
            | Self::List(_)
            | Self::Null
            | Self::Number(_)
            | Self::Or(_)
            | Self::Reduce(_)
            | Self::Var(..) => {}
        }
    }
}
