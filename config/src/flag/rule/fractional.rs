//! `fractional`: which bucket a value falls into, by flagd's second and third way of hashing.

use serde_json::{Map, Value as Json};

use super::Rule;
use super::machine::{Machine, Scope};
use super::value::{List, Number, Steps, Stopped, Value};
use crate::cbor::{FALSE, Head, Major, NULL, TRUE};
use crate::flag::context::TARGETING_KEY;
use crate::hash::Murmur3;

/// Largest sum of weights, and largest weight.
const WEIGHT_MAX: u32 = i32::MAX.cast_unsigned();

/// Which bytes stand for a value. Sets that were made for one version give other users under the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashing {
    /// The text's bytes; flagd core 0.15 to 0.16.
    V2,
    /// Deterministic CBOR of any value; flagd's accepted design, and its newer evaluators.
    #[default]
    V3,
}

/// The compiled operator.
#[derive(Debug)]
pub(crate) struct Fractional {
    /// What users are told apart by; without it, flag and targeting key.
    pub(super) by: Option<Rule>,
    pub(super) buckets: Box<[Bucket]>,
    /// The sum of weights where none of them has to be reckoned and all are sound.
    pub(super) total: Option<u32>,
}

#[derive(Debug)]
pub(super) enum Bucket {
    Pair(Rule, Weight),
    /// Something that has to become a list of a variant and a weight.
    Reckoned(Rule),
}

#[derive(Debug)]
pub(super) enum Weight {
    Fixed(u32),
    Reckoned(Rule),
}

/// What a `fractional` decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) hash: u32,
    /// Of the sum of weights, from 0.
    pub(crate) bucket: u32,
    pub(crate) total: u32,
}

impl Hashing {
    /// The number that a set's `metadata.hashVersion` says.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

impl Fractional {
    pub(super) fn new(by: Option<Rule>, buckets: Vec<Bucket>) -> Self {
        let weights = buckets.iter().map(|bucket| match bucket {
            Bucket::Pair(variant, Weight::Fixed(weight)) if variant.is_fixed() => Some(u64::from(*weight)),
            Bucket::Pair(..) | Bucket::Reckoned(_) => None,
        });
        let total = weights.sum::<Option<u64>>().and_then(|sum| u32::try_from(sum).ok());
        let total = total.filter(|total| *total <= WEIGHT_MAX);
        Self { by, buckets: buckets.into(), total }
    }
}

/// A literal weight, if it is one; what is negative counts as 0, for it may come of reckoning.
pub(super) fn weight(number: f64) -> Option<u32> {
    if number.fract() != 0.0 || number > f64::from(WEIGHT_MAX) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against its range")]
    Some(number.max(0.0) as u32)
}

impl<'a> Machine<'a> {
    /// The bucket's variant; null where there is nothing to tell users apart by, or the buckets are none.
    pub(super) fn fractional(
        &mut self,
        rule: &'a Fractional,
        scope: Scope<'_, 'a>,
    ) -> Result<Value<'a>, Stopped> {
        let Some(hash) = self.hash_of(rule, scope)? else { return Ok(Value::Null) };
        let (split, variant) = if let Some(total) = rule.total {
            let Some(split) = placed(hash, total) else { return Ok(Value::Null) };
            let mut end = 0;
            let found = rule.buckets.iter().find(|bucket| {
                if let Bucket::Pair(_, Weight::Fixed(weight)) = bucket {
                    end += weight;
                }
                split.bucket < end
            });
            let Some(Bucket::Pair(variant, _)) = found else { return Ok(Value::Null) };
            (split, self.eval(variant, scope)?)
        } else {
            let Some(buckets) = self.reckoned(rule, scope)? else { return Ok(Value::Null) };
            let total = buckets.iter().try_fold(0_u32, |sum, (_, weight)| sum.checked_add(*weight));
            let Some(split) =
                total.filter(|total| *total <= WEIGHT_MAX).and_then(|total| placed(hash, total))
            else {
                return Ok(Value::Null);
            };
            let mut end = 0;
            let found = buckets.into_iter().find(|(_, weight)| {
                end += weight;
                split.bucket < end
            });
            (split, found.map_or(Value::Null, |(variant, _)| variant))
        };
        self.split = Some(split);
        Ok(variant)
    }

    fn hash_of(&mut self, rule: &'a Fractional, scope: Scope<'_, 'a>) -> Result<Option<u32>, Stopped> {
        if let Some(by) = &rule.by {
            let value = self.eval(by, scope)?;
            // flagd's second way; its JavaScript lets the default decide.
            let falls_back = matches!(value, Value::Null) && self.hashing == Hashing::V2;
            if !falls_back {
                return hash(&value, self.hashing, &mut self.steps);
            }
        }
        let key = self.attribute(TARGETING_KEY);
        let Some(key) = key.as_ref().and_then(Value::as_text).filter(|key| !key.is_empty()) else {
            return Ok(None);
        };
        self.steps.take_bytes(key.len())?;
        let hash = Murmur3::default();
        let hash = match self.hashing {
            Hashing::V2 => hash.with(self.flag.as_bytes()).with(key.as_bytes()),
            Hashing::V3 => text(text(hash.with(Head::new(Major::Array, 2).as_slice()), self.flag), key),
        };
        Ok(Some(hash.finish()))
    }

    /// Every bucket's variant and weight, unless one is unsound.
    fn reckoned(
        &mut self,
        rule: &'a Fractional,
        scope: Scope<'_, 'a>,
    ) -> Result<Option<Vec<(Value<'a>, u32)>>, Stopped> {
        let mut buckets = Vec::with_capacity(rule.buckets.len());
        for bucket in &rule.buckets {
            let (variant, weight) = match bucket {
                Bucket::Pair(variant, Weight::Fixed(weight)) => (self.eval(variant, scope)?, Some(*weight)),
                Bucket::Pair(variant, Weight::Reckoned(rule)) => {
                    (self.eval(variant, scope)?, weight_of(&self.eval(rule, scope)?))
                }
                Bucket::Reckoned(rule) => {
                    let Value::List(pair) = self.eval(rule, scope)? else { return Ok(None) };
                    match (pair.len(), pair.get(0), pair.get(1)) {
                        (1, Some(variant), _) => (variant, Some(1)),
                        (2, Some(variant), Some(weight)) => (variant, weight_of(&weight)),
                        _ => return Ok(None),
                    }
                }
            };
            let is_name = !matches!(variant, Value::List(_) | Value::Object(_) | Value::Whole);
            let Some(weight) = weight.filter(|_| is_name) else { return Ok(None) };
            buckets.push((variant, weight));
        }
        Ok(Some(buckets))
    }
}

fn weight_of(value: &Value<'_>) -> Option<u32> {
    if let Value::Number(number) = value { weight(number.real()) } else { None }
}

/// `(hash × total) >> 32`, unless nobody has a share.
fn placed(hash: u32, total: u32) -> Option<Split> {
    let bucket = u32::try_from((u64::from(hash) * u64::from(total)) >> 32).ok()?;
    (total > 0).then_some(Split { hash, bucket, total })
}

/// The hash of what users are told apart by, if it is something that can tell them apart.
fn hash(value: &Value<'_>, hashing: Hashing, steps: &mut Steps) -> Result<Option<u32>, Stopped> {
    let hash = Murmur3::default();
    let hash = match (value, hashing) {
        (Value::Text(bytes), Hashing::V2) => {
            steps.take_bytes(bytes.as_str().len())?;
            Some(hash.with(bytes.as_str().as_bytes()))
        }
        (_, Hashing::V2) | (Value::List(_) | Value::Null | Value::Whole, Hashing::V3) => None,
        (Value::Boolean(value), Hashing::V3) => Some(hash.with(&[if *value { TRUE } else { FALSE }])),
        (Value::Number(value), Hashing::V3) => number(hash, *value),
        (Value::Object(entries), Hashing::V3) => Some(object(hash, entries, steps)?),
        (Value::Text(value), Hashing::V3) => {
            steps.take_bytes(value.as_str().len())?;
            Some(text(hash, value.as_str()))
        }
    };
    Ok(hash.map(Murmur3::finish))
}

fn text(hash: Murmur3, text: &str) -> Murmur3 {
    hash.with(Head::new(Major::Text, text.len() as u64).as_slice()).with(text.as_bytes())
}

/// A number that is whole is hashed as such, however it was written; one that is none has no bytes.
fn number(hash: Murmur3, number: Number) -> Option<Murmur3> {
    const WHOLE_MIN: f64 = -9_223_372_036_854_775_808.0;
    const WHOLE_END: f64 = 9_223_372_036_854_775_808.0;
    const LARGE_END: f64 = 18_446_744_073_709_551_616.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against the ranges")]
    let head = match number {
        Number::Large(number) => Head::new(Major::Unsigned, number),
        Number::Whole(number) => Head::whole(number),
        Number::Real(real) if !real.is_finite() => return None,
        Number::Real(real) if real.fract() == 0.0 && (WHOLE_MIN..WHOLE_END).contains(&real) => {
            Head::whole(real as i64)
        }
        Number::Real(real) if real.fract() == 0.0 && (WHOLE_END..LARGE_END).contains(&real) => {
            Head::new(Major::Unsigned, real as u64)
        }
        Number::Real(real) => Head::real(real),
    };
    Some(hash.with(head.as_slice()))
}

fn object(hash: Murmur3, entries: &Map<String, Json>, steps: &mut Steps) -> Result<Murmur3, Stopped> {
    steps.take(entries.len())?;
    let mut sorted: Vec<(&String, &Json)> = entries.iter().collect();
    // By the bytes of their encoding, in which the length comes first.
    sorted.sort_unstable_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
    let mut hash = hash.with(Head::new(Major::Map, entries.len() as u64).as_slice());
    for (key, value) in sorted {
        steps.take_bytes(key.len())?;
        hash = json(text(hash, key), value, steps)?;
    }
    Ok(hash)
}

fn json(hash: Murmur3, value: &Json, steps: &mut Steps) -> Result<Murmur3, Stopped> {
    steps.take(1)?;
    Ok(match Value::of(value) {
        Value::Boolean(value) => hash.with(&[if value { TRUE } else { FALSE }]),
        Value::List(List::Borrowed(items)) => {
            let mut hash = hash.with(Head::new(Major::Array, items.len() as u64).as_slice());
            for item in items {
                hash = json(hash, item, steps)?;
            }
            hash
        }
        Value::Number(value) => number(hash, value).unwrap_or(hash),
        Value::Object(entries) => object(hash, entries, steps)?,
        Value::Text(value) => {
            steps.take_bytes(value.as_str().len())?;
            text(hash, value.as_str())
        }
        // JSON is neither made nor whole.
        Value::Null | Value::List(List::Made(_)) | Value::Whole => hash.with(&[NULL]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_has_the_hash_that_others_give_it() {
        // Values of mmh3 5.3.1 and cbor2 5.9.0.
        for (text, expected) in [
            ("true", 0x31d7_a60b_u32),
            ("false", 0x06f1_5207),
            ("\"user1\"", 0xdbc2_257a),
            ("\"user2\"", 0xa0be_9ee9),
            ("123", 0xc6b9_4221),
            ("\"123\"", 0xde48_9642),
            ("456", 0x71a4_9d32),
            ("0", 0x514e_28b7),
            ("0.0", 0x514e_28b7),
            ("-0.0", 0x514e_28b7),
            ("1", 0xe45a_d1ab),
            ("1.0", 0xe45a_d1ab),
            ("-2", 0x7266_1cf4),
            ("-2.0", 0x7266_1cf4),
            ("23", 0xd5d8_1e52),
            ("24", 0x6e4e_3460),
            ("-24", 0x23ea_8628),
            ("-25", 0xa303_d021),
            ("2147483648", 0xf9f7_e716),
            ("-2147483649", 0xb78a_07a1),
            ("4294967296", 0xbaa9_a467),
            ("9007199254740992", 0x5e45_8f1d),
            ("9007199254740992.0", 0x5e45_8f1d),
            ("1.23", 0x8ea9_6e86),
            ("4.56", 0xb7b0_d93c),
            ("0.00006103515625", 0xd81c_5a69),
            ("1.1754943508222875e-38", 0xf1ad_4919),
            ("1e20", 0xbbea_2457),
            ("-1e20", 0xf6a0_3b0c),
            ("4.9406564584124654e-324", 0x0b20_574d),
            ("\"\"", 0x276e_becf),
            ("\"あいうえおかき\"", 0xa779_2aa7),
            ("{}", 0x1860_2035),
            ("{\"b\":2,\"a\":1}", 0xe5b1_4a9e),
            ("{\"z\":1,\"aa\":2}", 0xcd7f_9871),
            ("{\"aaa\":1,\"ÿ\":2}", 0x7234_c5f7),
            ("{\"b\":2,\"a\":{\"b\":1}}", 0x5bd1_8be7),
            ("{\"key\":-0.0}", 0x5e78_3c9e),
            ("{\"a\":[1,[],3],\"b\":null}", 0x1630_846e),
        ] {
            let json: Json = serde_json::from_str(text).unwrap();
            let found = hash(&Value::of(&json), Hashing::V3, &mut Steps::new(100)).unwrap();
            assert_eq!(found, Some(expected), "{text}");
        }
    }

    #[test]
    fn what_tells_nobody_apart_is_refused() {
        let list = serde_json::json!([1]);
        for value in
            [Value::Null, Value::of(&list), Value::Whole, Value::real(f64::NAN), Value::real(f64::INFINITY)]
        {
            assert_eq!(hash(&value, Hashing::V3, &mut Steps::new(100)), Ok(None), "{value:?}");
            assert_eq!(hash(&value, Hashing::V2, &mut Steps::new(100)), Ok(None), "{value:?}");
        }
        assert_eq!(hash(&Value::real(1.0), Hashing::V2, &mut Steps::new(100)), Ok(None), "texts only");
    }

    #[test]
    fn the_borders_of_hashes_are_those_of_buckets() {
        // Exact preimages of flagd's suite.
        for (key, expected, bucket) in [
            ("ejOoVL", 0, 0),
            ("bY9fO-", 1, 0),
            ("SI7p-", 2_147_483_647, 49),
            ("6LvT0", 2_147_483_648, 50),
            ("ceQdGm", u32::MAX, 99),
        ] {
            let found = hash(&Value::text(key), Hashing::V2, &mut Steps::new(100)).unwrap().unwrap();
            assert_eq!(placed(found, 100), Some(Split { hash: expected, bucket, total: 100 }), "{key}");
        }
        assert_eq!(placed(7, 0), None);
    }

    #[test]
    fn weights_are_whole_and_not_too_large() {
        for (number, expected) in [
            (5.0, Some(5)),
            (0.0, Some(0)),
            (-50.0, Some(0)),
            (2_147_483_647.0, Some(2_147_483_647)),
            (2_147_483_648.0, None),
            (0.5, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
            (f64::NEG_INFINITY, None),
        ] {
            assert_eq!(weight(number), expected, "{number}");
        }
    }
}
