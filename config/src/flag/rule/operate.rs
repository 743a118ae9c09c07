//! The operators whose arguments are evaluated first: JsonLogic's, and flagd's but for `fractional`.

use std::cmp::Ordering;

use super::machine::{Machine, Scope};
use super::value::{List, Stopped, Value};
use super::{Operator, Rule, version};

impl<'a> Machine<'a> {
    pub(super) fn call(
        &mut self,
        operator: Operator,
        arguments: &'a [Rule],
        scope: Scope<'_, 'a>,
    ) -> Result<Value<'a>, Stopped> {
        let nth = |machine: &mut Self, at: usize| match arguments.get(at) {
            Some(argument) => machine.eval(argument, scope),
            None => Ok(Value::Null),
        };
        match operator {
            Operator::Add => self.fold(arguments, scope, 0.0, |sum, number| sum + number),
            Operator::Multiply => self.fold(arguments, scope, 1.0, |product, number| product * number),
            Operator::Max => self.fold(arguments, scope, f64::NEG_INFINITY, |most, number| {
                if most.is_nan() || number.is_nan() { f64::NAN } else { most.max(number) }
            }),
            Operator::Min => self.fold(arguments, scope, f64::INFINITY, |least, number| {
                if least.is_nan() || number.is_nan() { f64::NAN } else { least.min(number) }
            }),
            Operator::Cat => self.cat(arguments, scope),
            Operator::Merge => self.merge(arguments, scope),
            Operator::Missing => self.missing(arguments, scope),
            Operator::Less => self.in_order(arguments, scope, |order| order == Ordering::Less),
            Operator::LessOrEqual => self.in_order(arguments, scope, |order| order != Ordering::Greater),
            Operator::Greater => self.in_order(arguments, scope, |order| order == Ordering::Greater),
            Operator::GreaterOrEqual => self.in_order(arguments, scope, |order| order != Ordering::Less),
            Operator::Log => nth(self, 0),
            Operator::Not => Ok(Value::Boolean(!nth(self, 0)?.is_true())),
            Operator::Truth => Ok(Value::Boolean(nth(self, 0)?.is_true())),
            Operator::Subtract if arguments.len() < 2 => {
                let value = nth(self, 0)?;
                Ok(Value::real(-value.number(&mut self.steps)?))
            }
            Operator::Subtract | Operator::Divide | Operator::Remainder => {
                let (a, b) = (nth(self, 0)?, nth(self, 1)?);
                let (a, b) = (a.number(&mut self.steps)?, b.number(&mut self.steps)?);
                Ok(Value::real(match operator {
                    Operator::Subtract => a - b,
                    Operator::Divide => a / b,
                    _ => a % b,
                }))
            }
            Operator::Equal | Operator::NotEqual => {
                let (a, b) = (nth(self, 0)?, nth(self, 1)?);
                Ok(Value::Boolean(a.equals(&b, &mut self.steps)? == (operator == Operator::Equal)))
            }
            Operator::Is | Operator::IsNot => {
                let (a, b) = (nth(self, 0)?, nth(self, 1)?);
                Ok(Value::Boolean(a.is(&b, &mut self.steps)? == (operator == Operator::Is)))
            }
            Operator::In => {
                let (needle, haystack) = (nth(self, 0)?, nth(self, 1)?);
                self.contains(&needle, &haystack).map(Value::Boolean)
            }
            Operator::EndsWith | Operator::StartsWith => {
                let (text, part) = (nth(self, 0)?, nth(self, 1)?);
                let (2, Some(text), Some(part)) = (arguments.len(), text.as_text(), part.as_text()) else {
                    return Ok(Value::Null);
                };
                self.steps.take_bytes(part.len())?;
                let is_start = operator == Operator::StartsWith;
                Ok(Value::Boolean(if is_start { text.starts_with(part) } else { text.ends_with(part) }))
            }
            Operator::SemVer => {
                let (ours, compared, theirs) = (nth(self, 0)?, nth(self, 1)?, nth(self, 2)?);
                for value in [&ours, &theirs] {
                    self.steps.take_bytes(value.as_text().map_or(0, str::len))?;
                }
                let answer = (arguments.len() == 3).then(|| version::compare(&ours, &compared, &theirs));
                Ok(answer.flatten().map_or(Value::Null, Value::Boolean))
            }
            Operator::Substr => {
                let (text, start, length) = (nth(self, 0)?, nth(self, 1)?, nth(self, 2)?);
                self.substr(&text, &start, &length)
            }
            Operator::MissingSome => {
                let (wanted, paths) = (nth(self, 0)?, nth(self, 1)?);
                let Value::List(paths) = paths else { return List::made(Vec::new()).map(Value::List) };
                let missing = self.missing_of(paths.iter(), scope)?;
                #[expect(clippy::cast_precision_loss, reason = "a few paths")]
                let found = (paths.len() - missing.len()) as f64;
                let is_enough = found >= wanted.number(&mut self.steps)?;
                List::made(if is_enough { Vec::new() } else { missing }).map(Value::List)
            }
            Operator::Var => {
                let path = nth(self, 0)?;
                let path = if let Value::Null = path { "".into() } else { path.written(&mut self.steps)? };
                match self.find(&path, scope)? {
                    Value::Null => nth(self, 1),
                    found => Ok(found),
                }
            }
        }
    }

    fn fold(
        &mut self,
        arguments: &'a [Rule],
        scope: Scope<'_, 'a>,
        first: f64,
        with: fn(f64, f64) -> f64,
    ) -> Result<Value<'a>, Stopped> {
        let mut number = first;
        for argument in arguments {
            let value = self.eval(argument, scope)?;
            number = with(number, value.number(&mut self.steps)?);
        }
        Ok(Value::real(number))
    }

    /// Whether each stands to the next as it should: `1 < x < 3` too.
    fn in_order(
        &mut self,
        arguments: &'a [Rule],
        scope: Scope<'_, 'a>,
        is_right: fn(Ordering) -> bool,
    ) -> Result<Value<'a>, Stopped> {
        let mut before: Option<Value<'a>> = None;
        for at in 0..arguments.len().clamp(2, 3) {
            let value = match arguments.get(at) {
                Some(argument) => self.eval(argument, scope)?,
                None => Value::Null,
            };
            if let Some(before) = before
                && !before.compare(&value, &mut self.steps)?.is_some_and(is_right)
            {
                return Ok(Value::Boolean(false));
            }
            before = Some(value);
        }
        Ok(Value::Boolean(true))
    }

    fn cat(&mut self, arguments: &'a [Rule], scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let mut text = String::new();
        for argument in arguments {
            let value = self.eval(argument, scope)?;
            // As JavaScript joins: nothing stands for null.
            if !matches!(value, Value::Null) {
                let more = value.written(&mut self.steps)?;
                self.steps.take_bytes(more.len())?;
                text.push_str(&more);
            }
        }
        Ok(Value::made_text(text))
    }

    fn merge(&mut self, arguments: &'a [Rule], scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let mut merged = Vec::new();
        for argument in arguments {
            match self.eval(argument, scope)? {
                Value::List(list) => {
                    self.steps.take(list.len())?;
                    merged.extend(list.iter());
                }
                other => merged.push(other),
            }
        }
        List::made(merged).map(Value::List)
    }

    fn contains(&mut self, needle: &Value<'a>, haystack: &Value<'a>) -> Result<bool, Stopped> {
        match haystack {
            Value::List(list) => {
                for item in list.iter() {
                    self.steps.take(1)?;
                    if item.is(needle, &mut self.steps)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Value::Text(text) => {
                let text = text.as_str();
                self.steps.take_bytes(text.len())?;
                let needle = needle.written(&mut self.steps)?;
                // Nothing is found in nothing, as JsonLogic has it.
                Ok(!text.is_empty() && text.contains(&*needle))
            }
            _ => Ok(false),
        }
    }

    /// Counted in characters from a place, from the end if it is negative; a negative length leaves out so many at the end.
    fn substr(
        &mut self,
        text: &Value<'a>,
        start: &Value<'a>,
        length: &Value<'a>,
    ) -> Result<Value<'a>, Stopped> {
        let text = text.written(&mut self.steps)?;
        self.steps.take_bytes(text.len() * 2)?;
        let characters = text.chars().count();
        let whole = |number: f64| if number.is_nan() { 0.0 } else { number.trunc() };
        let clamped = |number: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "negatives and what is no number become 0"
            )]
            let place = number as usize;
            place.min(characters)
        };
        #[expect(clippy::cast_precision_loss, reason = "texts are shorter than that")]
        let all = characters as f64;
        let start = whole(start.number(&mut self.steps)?);
        let start = clamped(if start < 0.0 { all + start } else { start });
        let end = match length {
            Value::Null => characters,
            length => {
                let length = whole(length.number(&mut self.steps)?);
                #[expect(clippy::cast_precision_loss, reason = "texts are shorter than that")]
                let from = if length < 0.0 { all } else { start as f64 };
                clamped(from + length)
            }
        };
        Ok(Value::made_text(text.chars().skip(start).take(end.saturating_sub(start)).collect()))
    }

    fn missing(&mut self, arguments: &'a [Rule], scope: Scope<'_, 'a>) -> Result<Value<'a>, Stopped> {
        let paths: Vec<Value<'a>> =
            arguments.iter().map(|argument| self.eval(argument, scope)).collect::<Result<_, _>>()?;
        let missing = match paths.first() {
            Some(Value::List(list)) => self.missing_of(list.iter(), scope)?,
            _ => self.missing_of(paths.into_iter(), scope)?,
        };
        List::made(missing).map(Value::List)
    }

    fn missing_of(
        &mut self,
        paths: impl Iterator<Item = Value<'a>>,
        scope: Scope<'_, 'a>,
    ) -> Result<Vec<Value<'a>>, Stopped> {
        let mut missing = Vec::new();
        for path in paths {
            self.steps.take(1)?;
            let written = path.written(&mut self.steps)?;
            let found = self.find(&written, scope)?;
            let is_there = !matches!(found, Value::Null) && found.as_text() != Some("");
            drop(written);
            if !is_there {
                missing.push(path);
            }
        }
        Ok(missing)
    }
}
