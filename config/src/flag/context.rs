//! Who a flag is evaluated for: the targeting key, and what else is known of the request.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use super::rule::value::{Text, Value};

/// The attribute that tells users apart.
pub const TARGETING_KEY: &str = "targetingKey";
/// The attribute that evaluators set themselves.
pub(crate) const FLAGD: &str = "$flagd";

/// The evaluation context, borrowed from wherever it came.
#[derive(Clone, Copy, Debug)]
pub struct Context<'c>(Attributes<'c>);

#[derive(Clone, Copy, Debug)]
enum Attributes<'c> {
    Json(&'c Map<String, Json>),
    Texts { key: Option<&'c str>, others: &'c [(&'c str, Cow<'c, str>)] },
}

impl<'c> Context<'c> {
    /// What a client says, with [`TARGETING_KEY`] in it. It must not nest deeper than `serde_json` reads.
    #[must_use]
    pub fn of_json(attributes: &'c Map<String, Json>) -> Self {
        Self(Attributes::Json(attributes))
    }

    /// What a request shows: the targeting key, and attributes that are texts.
    #[must_use]
    pub fn of_texts(key: Option<&'c str>, others: &'c [(&'c str, Cow<'c, str>)]) -> Self {
        Self(Attributes::Texts { key, others })
    }

    /// What tells the user apart, if it is a text.
    #[must_use]
    pub fn targeting_key(&self) -> Option<&'c str> {
        match self.0 {
            Attributes::Json(attributes) => attributes.get(TARGETING_KEY)?.as_str(),
            Attributes::Texts { key, .. } => key,
        }
    }

    /// One attribute.
    pub(crate) fn get(&self, name: &str) -> Option<Value<'c>> {
        match self.0 {
            Attributes::Json(attributes) => attributes.get(name).map(Value::of),
            Attributes::Texts { key, .. } if name == TARGETING_KEY => key.map(Value::text),
            Attributes::Texts { others, .. } => {
                let found = others.iter().find(|(other, _)| *other == name)?;
                Some(Value::Text(Text::Borrowed(&found.1)))
            }
        }
    }
}

impl Default for Context<'_> {
    /// Nobody.
    fn default() -> Self {
        Self::of_texts(None, &[])
    }
}
