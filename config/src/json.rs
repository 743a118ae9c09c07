//! JSON text as it is written by hand or by programs: refused when a key stands twice or it nests too deeply.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::problem::{Problems, shown};

/// How deep a document may nest. Trees are walked and dropped recursively; nothing in the grammar needs more.
pub const DEPTH_MAX: usize = 64;

/// How large a document may be, in bytes. 1,000 services with ten endpoints each take about 1 MiB.
pub const DOCUMENT_BYTES_MAX: usize = 32 << 20;

/// Reads JSON text. Of two equal keys `serde_json` alone would keep the last without a word.
///
/// # Errors
/// The first fault, with its line and column.
pub fn parse(text: &[u8]) -> Result<Value, Problems> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(Problems::whole(format!("larger than {} MiB", DOCUMENT_BYTES_MAX >> 20)));
    }
    serde_json::from_slice::<Strict>(text)
        .map(|strict| strict.0)
        .map_err(|error| Problems::whole(format!("not JSON: {error}")))
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Nested { depth: 0 }.deserialize(deserializer).map(Self)
    }
}

/// A value below `depth` others.
#[derive(Clone, Copy)]
struct Nested {
    depth: usize,
}

impl Nested {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_MAX}")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Nested {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut table = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if table.contains_key(&key) {
                let key = shown(&key);
                return Err(A::Error::custom(format_args!("the key `{key}` stands twice in one object")));
            }
            let value = entries.next_value_seed(inner)?;
            table.insert(key, value);
        }
        Ok(Value::Object(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn sound_json_is_read_as_serde_json_reads_it() {
        for text in
            ["{}", "[]", "null", "-1.5", "18446744073709551615", r#"{"a":[1,{"b":"\u00e4"}],"c":true}"#]
        {
            assert_eq!(
                parse(text.as_bytes()).unwrap(),
                serde_json::from_str::<Value>(text).unwrap(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        assert_eq!(
            told(r#"{"services":{"ads":{},"ads":{}}}"#),
            "not JSON: the key `ads` stands twice in one object at line 1 column 27"
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(told(&nested(DEPTH_MAX + 1)).contains("nested deeper than 64"));
        // Far beyond: an answer, not a stack overflow.
        assert!(told(&nested(1_000_000)).starts_with("not JSON"));
        assert!(told(&"[{\"a\":".repeat(500_000)).starts_with("not JSON"));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "{]", "\u{feff}{}", "{} {}", "NaN", "1e999", "{\"a\":1,}", "'a'"] {
            assert!(told(text).starts_with("not JSON"), "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err(), "not UTF-8");
    }
}
