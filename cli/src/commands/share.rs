//! Shares of versions: `v1=90` as they are typed, and `v1 90 %` as they are told.

use std::str::FromStr;

use gilmok_config::name::Name;
use gilmok_config::unit::Ppm;
use serde_json::{Map, Value as Json, json};

use crate::table::{or_dash, percent};

/// A version and its share, typed as `v2=10` or `v2=0.5%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    version: Name,
    weight: Ppm,
}

impl FromStr for Share {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HINT: &str = "a version and its share of a hundred, with at most four decimals: v2=10, v2=0.5";
        let (version, weight) = text.split_once('=').ok_or(HINT)?;
        let version = version_named(version).map_err(|_| HINT)?;
        let weight = weight.strip_suffix('%').unwrap_or(weight).parse().map_err(|_| HINT)?;
        Ok(Self { version, weight: Ppm::from_percent(weight).ok_or(HINT)? })
    }
}

/// A version's name as it is typed.
pub(super) fn version_named(text: &str) -> Result<Name, &'static str> {
    let hint = "a version's name: at most 63 of a-z, A-Z, 0-9, '-', '_', '.'";
    Name::parse(text).ok().filter(|name| !name.is_empty()).ok_or(hint)
}

/// Shares as a traffic table's `weights`.
pub(super) fn weights(shares: &[Share]) -> Json {
    let weights = shares.iter().map(|share| (share.version.to_string(), number(share.weight)));
    Json::from(weights.collect::<Map<_, _>>())
}

/// A share as people write it: 10, not 10.0.
pub(super) fn number(share: Ppm) -> Json {
    const PER_PERCENT: u32 = 10_000;
    let ppm = share.get();
    if ppm.is_multiple_of(PER_PERCENT) {
        json!(ppm / PER_PERCENT)
    } else {
        json!(f64::from(ppm) / f64::from(PER_PERCENT))
    }
}

/// A traffic table's `weights` in words; versions without a share are left out.
pub(super) fn shares(weights: &Json) -> String {
    let shares = weights.as_object().into_iter().flatten();
    let shares = shares.filter_map(|(version, weight)| Some((version, weight.as_f64()?)));
    let told = shares.filter(|(_, weight)| *weight > 0.0);
    or_dash(
        told.map(|(version, weight)| format!("{version} {}", percent(weight))).collect::<Vec<_>>().join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_they_are_typed() {
        let of = |text: &str| text.parse::<Share>();
        let all = [of("v1=99.5").unwrap(), of("v2=0.5%").unwrap(), of("v3=0").unwrap()];
        assert_eq!(weights(&all).to_string(), r#"{"v1":99.5,"v2":0.5,"v3":0}"#);
        assert_eq!(weights(&[of("v1=100").unwrap()]).to_string(), r#"{"v1":100}"#);
        for text in ["v1", "=5", "v1=", "v1=x", "v1=101", "v1=-1", "v1=0.00001", "a b=5"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn who_has_no_share_is_not_told() {
        assert_eq!(shares(&json!({ "v1": 99.5, "v2": 0.5, "v3": 0 })), "v1 99.5 %, v2 0.5 %");
        assert_eq!(shares(&Json::Null), "-");
    }
}
