//! What rules reckon with: JSON values that are borrowed where they can be, and JavaScript's rules for mixing their kinds.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use serde_json::{Map, Value as Json};

/// How deep lists may nest that a rule makes itself. They are walked and dropped recursively.
const MADE_DEPTH_MAX: u8 = 32;

/// A value while a rule is evaluated.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Boolean(bool),
    List(List<'a>),
    Null,
    Number(Number),
    Object(&'a Map<String, Json>),
    Text(Text<'a>),
    /// All that a rule may look at, `{"var": ""}`: an object that nobody looks into.
    Whole,
}

/// A number. Whole ones stay exact beyond 2^53 while nothing is reckoned with them, because they may be hashed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    /// Above what [`Number::Whole`] holds.
    Large(u64),
    Real(f64),
    Whole(i64),
}

#[derive(Clone, Debug)]
pub(crate) enum Text<'a> {
    Borrowed(&'a str),
    // `Rc`: an evaluation stays in one thread, and values are copied more often than made.
    Made(Rc<str>),
}

#[derive(Clone, Debug)]
pub(crate) enum List<'a> {
    Borrowed(&'a [Json]),
    Made(Rc<MadeList<'a>>),
}

#[derive(Debug)]
pub(crate) struct MadeList<'a> {
    items: Vec<Value<'a>>,
    /// How deep made lists nest in it, itself included.
    depth: u8,
}

/// Why an evaluation ends without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It made lists inside of lists inside of lists.
    Depth,
    /// It took more steps than a rule may.
    Steps,
}

/// How much an evaluation may still do. Everything that grows with a rule or a context is paid for in steps.
#[derive(Debug)]
pub(crate) struct Steps {
    left: u32,
}

impl Steps {
    pub(crate) fn new(most: u32) -> Self {
        Self { left: most }
    }

    pub(crate) fn take(&mut self, steps: usize) -> Result<(), Stopped> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.left.checked_sub(steps));
        self.left = left.ok_or(Stopped::Steps)?;
        Ok(())
    }

    /// Pays for so many bytes that are read or made.
    pub(crate) fn take_bytes(&mut self, bytes: usize) -> Result<(), Stopped> {
        self.take(bytes / 32)
    }
}

impl Number {
    #[expect(clippy::cast_precision_loss, reason = "what is reckoned with is a double, as in JavaScript")]
    pub(crate) fn real(self) -> f64 {
        match self {
            Self::Large(number) => number as f64,
            Self::Real(number) => number,
            Self::Whole(number) => number as f64,
        }
    }

    /// As JavaScript writes numbers: 1.0 is 1, and what is very large or small has an exponent.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Large(number) => number.to_string(),
            Self::Real(number) => real_text(number),
            Self::Whole(number) => number.to_string(),
        }
    }

    fn of(number: &serde_json::Number) -> Self {
        if let Some(whole) = number.as_i64() {
            Self::Whole(whole)
        } else if let Some(large) = number.as_u64() {
            Self::Large(large)
        } else {
            Self::Real(number.as_f64().unwrap_or(f64::NAN))
        }
    }
}

fn real_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // Both zeros are written the same.
    if number == 0.0 {
        return "0".to_owned();
    }
    if (1e-6..1e21).contains(&number.abs()) {
        return number.to_string();
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, power)) if !power.starts_with('-') => format!("{digits}e+{power}"),
        Some(_) | None => text,
    }
}

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl<'a> List<'a> {
    /// A list of these.
    pub(crate) fn made(items: Vec<Value<'a>>) -> Result<Self, Stopped> {
        let inner =
            items.iter().map(|item| if let Value::List(Self::Made(made)) = item { made.depth } else { 0 });
        let depth = inner.max().unwrap_or_default() + 1;
        if depth > MADE_DEPTH_MAX {
            return Err(Stopped::Depth);
        }
        Ok(Self::Made(Rc::new(MadeList { items, depth })))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Borrowed(items) => items.len(),
            Self::Made(made) => made.items.len(),
        }
    }

    pub(crate) fn get(&self, at: usize) -> Option<Value<'a>> {
        match self {
            Self::Borrowed(items) => items.get(at).map(Value::of),
            Self::Made(made) => made.items.get(at).cloned(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Borrowed(a), Self::Borrowed(b)) => std::ptr::eq(*a, *b),
            (Self::Made(a), Self::Made(b)) => Rc::ptr_eq(a, b),
            (Self::Borrowed(_), Self::Made(_)) | (Self::Made(_), Self::Borrowed(_)) => false,
        }
    }
}

impl<'a> Value<'a> {
    pub(crate) fn text(text: &'a str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    pub(crate) fn made_text(text: String) -> Self {
        Self::Text(Text::Made(text.into()))
    }

    pub(crate) fn real(number: f64) -> Self {
        Self::Number(Number::Real(number))
    }

    pub(crate) fn of(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Boolean(*value),
            Json::Number(number) => Self::Number(Number::of(number)),
            Json::String(text) => Self::text(text),
            Json::Array(items) => Self::List(List::Borrowed(items)),
            Json::Object(entries) => Self::Object(entries),
        }
    }

    pub(crate) fn to_json(&self) -> Json {
        match self {
            Self::Boolean(value) => Json::Bool(*value),
            Self::List(list) => Json::Array(list.iter().map(|item| item.to_json()).collect()),
            Self::Null => Json::Null,
            Self::Number(Number::Large(number)) => Json::from(*number),
            Self::Number(Number::Real(number)) => Json::from(*number),
            Self::Number(Number::Whole(number)) => Json::from(*number),
            Self::Object(entries) => Json::Object((*entries).clone()),
            Self::Text(text) => Json::from(text.as_str()),
            Self::Whole => Json::Object(Map::new()),
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text.as_str()) } else { None }
    }

    /// Whether it counts as true: of lists those with something in them, unlike in JavaScript.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Boolean(value) => *value,
            Self::List(list) => list.len() > 0,
            Self::Null => false,
            Self::Number(number) => number.real() != 0.0 && !number.real().is_nan(),
            Self::Object(_) | Self::Whole => true,
            Self::Text(text) => !text.as_str().is_empty(),
        }
    }

    /// As text: JavaScript's `String(…)`.
    pub(crate) fn written(&self, steps: &mut Steps) -> Result<Cow<'_, str>, Stopped> {
        Ok(match self {
            Self::Boolean(true) => Cow::Borrowed("true"),
            Self::Boolean(false) => Cow::Borrowed("false"),
            Self::List(list) => {
                let mut joined = String::new();
                for (at, item) in list.iter().enumerate() {
                    steps.take(1)?;
                    if at > 0 {
                        joined.push(',');
                    }
                    // Nothing stands for null here.
                    if !matches!(item, Value::Null) {
                        joined.push_str(&item.written(steps)?);
                    }
                }
                steps.take_bytes(joined.len())?;
                Cow::Owned(joined)
            }
            Self::Null => Cow::Borrowed("null"),
            Self::Number(number) => Cow::Owned(number.text()),
            Self::Object(_) | Self::Whole => Cow::Borrowed("[object Object]"),
            Self::Text(text) => Cow::Borrowed(text.as_str()),
        })
    }

    /// As number: JavaScript's `Number(…)`.
    pub(crate) fn number(&self, steps: &mut Steps) -> Result<f64, Stopped> {
        Ok(match self {
            Self::Boolean(value) => f64::from(u8::from(*value)),
            Self::List(_) => text_number(&self.written(steps)?),
            Self::Null => 0.0,
            Self::Number(number) => number.real(),
            Self::Object(_) | Self::Whole => f64::NAN,
            Self::Text(text) => {
                steps.take_bytes(text.as_str().len())?;
                text_number(text.as_str())
            }
        })
    }

    /// `===`
    pub(crate) fn is(&self, other: &Self, steps: &mut Steps) -> Result<bool, Stopped> {
        Ok(match (self, other) {
            (Self::Boolean(a), Self::Boolean(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.is(b),
            (Self::Null, Self::Null) => true,
            (Self::Number(Number::Whole(a)), Self::Number(Number::Whole(b))) => a == b,
            (Self::Number(a), Self::Number(b)) => a.real() == b.real(),
            (Self::Object(a), Self::Object(b)) => std::ptr::eq(*a, *b),
            (Self::Whole, Self::Whole) => true,
            (Self::Text(a), Self::Text(b)) => {
                steps.take_bytes(a.as_str().len().min(b.as_str().len()))?;
                a.as_str() == b.as_str()
            }
            _ => false,
        })
    }

    /// `==`
    pub(crate) fn equals(&self, other: &Self, steps: &mut Steps) -> Result<bool, Stopped> {
        let is_made_of_others = |value: &Self| matches!(value, Self::List(_) | Self::Object(_) | Self::Whole);
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Null, _) | (_, Self::Null) => false,
            (Self::Text(_), Self::Text(_)) | (Self::Boolean(_), Self::Boolean(_)) => self.is(other, steps)?,
            (a, b) if is_made_of_others(a) && is_made_of_others(b) => a.is(b, steps)?,
            (Self::Text(text), made) | (made, Self::Text(text)) if is_made_of_others(made) => {
                *made.written(steps)? == *text.as_str()
            }
            (Self::Number(Number::Whole(a)), Self::Number(Number::Whole(b))) => a == b,
            (a, b) => a.number(steps)? == b.number(steps)?,
        })
    }

    /// `<` and the like; `None` where one of both is no number.
    pub(crate) fn compare(&self, other: &Self, steps: &mut Steps) -> Result<Option<Ordering>, Stopped> {
        let is_text =
            |value: &Self| matches!(value, Self::Text(_) | Self::List(_) | Self::Object(_) | Self::Whole);
        if is_text(self) && is_text(other) {
            let (a, b) = (self.written(steps)?, other.written(steps)?);
            steps.take_bytes(a.len().min(b.len()))?;
            return Ok(Some((*a).cmp(&*b)));
        }
        Ok(self.number(steps)?.partial_cmp(&other.number(steps)?))
    }
}

/// JavaScript's reading of a text as a number.
fn text_number(text: &str) -> f64 {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if text.is_empty() {
        return 0.0;
    }
    let based = |digits: &str, base: u32| {
        let digit =
            |number: f64, digit: char| Some(number * f64::from(base) + f64::from(digit.to_digit(base)?));
        let number = digits.chars().try_fold(0.0, digit);
        number.filter(|_| !digits.is_empty()).unwrap_or(f64::NAN)
    };
    match text.get(..2) {
        Some("0x" | "0X") => return based(&text[2..], 16),
        Some("0b" | "0B") => return based(&text[2..], 2),
        Some("0o" | "0O") => return based(&text[2..], 8),
        Some(_) | None => {}
    }
    match text {
        "Infinity" | "+Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        // Rust would read "inf" and "nan" too.
        _ if text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) => {
            text.parse().unwrap_or(f64::NAN)
        }
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> Steps {
        Steps::new(10_000)
    }

    #[test]
    fn numbers_are_written_as_javascript_writes_them() {
        for (number, expected) in [
            (1.0, "1"),
            (-0.0, "0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1.5e-7, "1.5e-7"),
            (0.000_001, "0.000001"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(Number::Real(number).text(), expected);
        }
        assert_eq!(Number::Whole(9_007_199_254_740_993).text(), "9007199254740993");
    }

    #[test]
    fn texts_are_read_as_javascript_reads_them() {
        for (text, expected) in [
            ("", 0.0),
            (" 12 ", 12.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("0x1F", 31.0),
            ("0b11", 3.0),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(text_number(text).to_bits(), f64::to_bits(expected), "{text}");
        }
        for text in ["inf", "nan", "1_000", "0x", "12px", "--1", "e", "."] {
            assert!(text_number(text).is_nan(), "{text}");
        }
    }

    #[test]
    fn kinds_are_mixed_as_javascript_mixes_them() {
        let list = serde_json::json!([1]);
        let values =
            [Value::Null, Value::real(0.0), Value::text(""), Value::Boolean(false), Value::text("0")];
        let equal = |a: &Value<'_>, b: &Value<'_>| a.equals(b, &mut steps()).unwrap();
        let told: Vec<Vec<bool>> =
            values.iter().map(|a| values.iter().map(|b| equal(a, b)).collect()).collect();
        assert_eq!(
            told,
            [
                [true, false, false, false, false],
                [false, true, true, true, true],
                [false, true, true, true, false],
                [false, true, true, true, true],
                [false, true, false, true, true],
            ]
        );
        assert!(equal(&Value::of(&list), &Value::real(1.0)) && equal(&Value::of(&list), &Value::of(&list)));
        assert!(!equal(&Value::of(&list), &Value::of(&serde_json::json!([1]))));
        let order = |a: Value<'_>, b: Value<'_>| a.compare(&b, &mut steps()).unwrap();
        assert_eq!(order(Value::text("10"), Value::text("9")), Some(Ordering::Less));
        assert_eq!(order(Value::text("10"), Value::real(9.0)), Some(Ordering::Greater));
        assert_eq!(order(Value::text("a"), Value::real(9.0)), None);
        assert_eq!(order(Value::Null, Value::real(1.0)), Some(Ordering::Less));
    }

    #[test]
    fn what_a_rule_makes_is_bounded() {
        let mut nested = Value::Null;
        let depth = (0..100).find(|_| match List::made(vec![nested.clone()]) {
            Ok(list) => {
                nested = Value::List(list);
                false
            }
            Err(stopped) => stopped == Stopped::Depth,
        });
        assert_eq!(depth, Some(MADE_DEPTH_MAX.into()));
        let mut few = Steps::new(3);
        assert_eq!((few.take(2), few.take_bytes(70), few.take(0)), (Ok(()), Err(Stopped::Steps), Ok(())));
    }
}
