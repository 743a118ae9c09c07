//! Evaluating a compiled rule: what is looked at, what is looked for, and how much of it.

use super::fractional::{Hashing, Split};
use super::trace::Trace;
use super::value::{List, Number, Steps, Stopped, Value};
use super::{Each, Rule, What};
use crate::flag::context::{Context, FLAGD};

/// Most steps of one evaluation: one for each part of a rule, each item and each few bytes. About a millisecond.
pub(crate) const STEPS_MAX: u32 = 20_000;

/// One evaluation.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    context: &'a Context<'a>,
    pub(super) flag: &'a str,
    /// Seconds since 1970.
    now: u64,
    pub(super) hashing: Hashing,
    pub(super) steps: Steps,
    /// What the last `fractional` decided by.
    pub(super) split: Option<Split>,
    trace: Option<Trace>,
}

/// What a rule came to.
#[derive(Debug)]
pub(crate) struct Outcome<'a> {
    pub(crate) value: Result<Value<'a>, Stopped>,
    pub(crate) split: Option<Split>,
    pub(crate) trace: Option<Trace>,
}

/// What `var` looks at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scope<'s, 'a> {
    Context,
    Item(&'s Value<'a>),
    Reduction { current: &'s Value<'a>, accumulator: &'s Value<'a> },
}

impl<'a> Machine<'a> {
    pub(crate) fn new(context: &'a Context<'a>, flag: &'a str, now: u64, hashing: Hashing) -> Self {
        Self { context, flag, now, hashing, steps: Steps::new(STEPS_MAX), split: None, trace: None }
    }

    /// With every operator told.
    pub(crate) fn traced(self) -> Self {
        Self { trace: Some(Trace::default()), ..self }
    }

    pub(crate) fn run(mut self, rule: &'a Rule) -> Outcome<'a> {
        let value = self.eval(rule, Scope::Context);
        Outcome { value, split: self.split, trace: self.trace }
    }

    pub(super) fn eval(&mut self, rule: &'a Rule, scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        self.steps.take(1)?;
        if self.trace.is_none() {
            return self.eval_untold(rule, scope);
        }
        let Some(word) = rule.word() else { return self.eval_untold(rule, scope) };
        let line = self.trace.as_mut().and_then(|trace| trace.begin(&word));
        let value = self.eval_untold(rule, scope);
        if let Some(trace) = &mut self.trace {
            trace.end(line, value.as_ref().ok());
        }
        value
    }

    fn eval_untold(&mut self, rule: &'a Rule, scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        match rule {
            Rule::And(rules) => self.until(rules, false, scope),
            Rule::Boolean(value) => Ok(Value::Boolean(*value)),
            Rule::Call(operator, arguments) => self.call(*operator, arguments, scope),
            Rule::Each(each) => self.each(each, scope),
            Rule::Fractional(fractional) => self.fractional(fractional, scope),
            Rule::If(rules) => self.branch(rules, scope),
            Rule::Json(json) => Ok(Value::of(json)),
            Rule::List(rules) => {
                let items = rules.iter().map(|rule| self.eval(rule, scope));
                List::made(items.collect::<Result<_, _>>()?).map(Value::List)
            }
            Rule::Null => Ok(Value::Null),
            Rule::Number(number) => Ok(Value::Number(*number)),
            Rule::Or(rules) => self.until(rules, true, scope),
            Rule::Reduce(rules) => self.reduce(rules, scope),
            Rule::Shared(rule) => self.eval(rule, scope),
            Rule::Text(text) => Ok(Value::text(text)),
            Rule::Var(path, default) => match (self.find(path, scope)?, default) {
                (Value::Null, Some(default)) => self.eval(default, scope),
                (found, _) => Ok(found),
            },
        }
    }

    /// The first value that is `wanted`, else the last one.
    fn until(&mut self, rules: &'a [Rule], wanted: bool, scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let mut last = Value::Null;
        for rule in rules {
            last = self.eval(rule, scope)?;
            if last.is_true() == wanted {
                break;
            }
        }
        Ok(last)
    }

    fn branch(&mut self, rules: &'a [Rule], scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let mut rest = rules;
        while let [condition, then, after @ ..] = rest {
            if self.eval(condition, scope)?.is_true() {
                return self.eval(then, scope);
            }
            rest = after;
        }
        match rest {
            [otherwise] => self.eval(otherwise, scope),
            _ => Ok(Value::Null),
        }
    }

    fn each(&mut self, each: &'a Each, scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let items = self.eval(&each.items, scope)?;
        let empty = List::Borrowed(&[]);
        let items = if let Value::List(items) = items { items } else { empty };
        if each.what == What::All && items.len() == 0 {
            return Ok(Value::Boolean(false));
        }
        let mut kept = Vec::new();
        for item in items.iter() {
            self.steps.take(1)?;
            let answer = self.eval(&each.body, Scope::Item(&item))?;
            match (each.what, answer.is_true()) {
                (What::All, false) | (What::None, true) => return Ok(Value::Boolean(false)),
                (What::Some, true) => return Ok(Value::Boolean(true)),
                (What::Filter, true) => kept.push(item),
                (What::Map, _) => kept.push(answer),
                (What::All, true) | (What::None | What::Some | What::Filter, false) => {}
            }
        }
        match each.what {
            What::All | What::None => Ok(Value::Boolean(true)),
            What::Some => Ok(Value::Boolean(false)),
            What::Filter | What::Map => List::made(kept).map(Value::List),
        }
    }

    fn reduce(&mut self, rules: &'a [Rule; 3], scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let [items, body, first] = rules;
        let items = self.eval(items, scope)?;
        let mut accumulator = self.eval(first, scope)?;
        let Value::List(items) = items else { return Ok(accumulator) };
        for item in items.iter() {
            self.steps.take(1)?;
            let scope = Scope::Reduction { current: &item, accumulator: &accumulator };
            accumulator = self.eval(body, scope)?;
        }
        Ok(accumulator)
    }

    /// An attribute of the context.
    pub(super) fn attribute(&self, name: &str) -> Option<Value<'a>> {
        self.context.get(name)
    }

    /// What stands at a path whose parts have dots between them; null where nothing does.
    pub(super) fn find(&mut self, path: &str, scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        if path.is_empty() {
            return Ok(if let Scope::Item(item) = scope { item.clone() } else { Value::Whole });
        }
        let mut parts = path.split('.');
        let first = parts.next().unwrap_or_default();
        let mut found = match scope {
            Scope::Context if first == FLAGD => match parts.next() {
                Some("flagKey") => Some(Value::text(self.flag)),
                Some("timestamp") => Some(Value::Number(Number::Large(self.now))),
                Some(_) => None,
                None => Some(Value::Whole),
            },
            Scope::Context => self.attribute(first),
            Scope::Item(item) => self.part(item, first)?,
            Scope::Reduction { current, accumulator } => match first {
                "current" => Some(current.clone()),
                "accumulator" => Some(accumulator.clone()),
                _ => None,
            },
        };
        for part in parts {
            let Some(value) = found else { return Ok(Value::Null) };
            self.steps.take(1)?;
            found = self.part(&value, part)?;
        }
        Ok(found.unwrap_or(Value::Null))
    }

    fn part(&mut self, value: &Value<'a>, part: &str) -> Result<Option<Value<'a>>, Stopped> {
        // What JavaScript takes for a place: digits as it would write them.
        let place = part.parse::<usize>().ok().filter(|_| part == "0" || !part.starts_with(['0', '+']));
        let whole = |length: usize| Some(Value::Number(Number::Large(length as u64)));
        Ok(match value {
            Value::List(list) if part == "length" => whole(list.len()),
            Value::List(list) => place.and_then(|at| list.get(at)),
            Value::Object(entries) => entries.get(part).map(Value::of),
            Value::Text(text) => {
                let text = text.as_str();
                self.steps.take_bytes(text.len())?;
                if part == "length" {
                    whole(text.chars().count())
                } else {
                    let found = place.and_then(|at| text.chars().nth(at));
                    found.map(|found| Value::made_text(found.into()))
                }
            }
            Value::Boolean(_) | Value::Null | Value::Number(_) | Value::Whole => None,
        })
    }
}
