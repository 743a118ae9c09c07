//! What operators say that a breaker does, whatever its calls come to: the drill before the night, the brake in it.

use std::time::{Duration, SystemTime};

use crate::breaker::{BreakerPolicy, Scope};
use crate::grammar::Value;
use crate::moment::parse_moment;
use crate::name::Name;

/// Most of them for one service.
const FORCED_MAX: usize = 1_000;
/// Longest name of who it was, in bytes: what the audit keeps, whatever its letters.
const BY_BYTES_MAX: usize = 2_000;

/// One `[[services.s.forced_breakers]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedBreaker {
    pub state: ForcedState,
    /// Seconds since 1970, UTC; `None` is until they say otherwise.
    pub until: Option<u64>,
    /// Who said it.
    pub by: String,
    /// Only this version; empty is all.
    pub version: Name,
    /// Only this shard; empty is all.
    pub shard: Name,
}

/// What it is forced to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForcedState {
    /// Calls flow.
    Closed,
    /// All are refused.
    Open,
}

const STATES: [(&str, ForcedState); 2] = [("open", ForcedState::Open), ("closed", ForcedState::Closed)];

impl ForcedState {
    /// The word that a document uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

impl ForcedBreaker {
    /// For how long from `now` on; `None` when that is over.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Left> {
        let Some(until) = self.until else { return Some(Left::Always) };
        let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(until))?;
        until.duration_since(now).ok().filter(|left| !left.is_zero()).map(Left::For)
    }

    /// Whether it speaks of a target of this version and shard.
    #[must_use]
    pub fn is_for(&self, version: &str, shard: &str) -> bool {
        (self.version.is_empty() || self.version.as_str() == version)
            && (self.shard.is_empty() || self.shard.as_str() == shard)
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let state = table.required("state").and_then(|v| v.choice(&STATES));
        let until = table.optional("until").and_then(|v| v.named(parse_moment));
        let by = table.optional("by").and_then(|v| {
            let by = v.text()?;
            if by.len() > BY_BYTES_MAX {
                v.fault(format!("{} bytes", by.len()), format!("at most {BY_BYTES_MAX}"));
            }
            Some(by.to_owned())
        });
        let mut name = |key| table.optional(key).and_then(|v| v.named(Name::parse)).unwrap_or_default();
        let (version, shard) = (name("version"), name("shard"));
        table.finish();
        Some(Self { state: state?, until, by: by.unwrap_or_default(), version, shard })
    }
}

/// How long something still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Always,
    For(Duration),
}

/// Reads all of a service. What its breakers do not tell apart cannot be forced apart.
pub(crate) fn read_forced(value: &Value<'_>, breaker: Option<&BreakerPolicy>) -> Option<Vec<ForcedBreaker>> {
    let items = value.items()?;
    if items.len() > FORCED_MAX {
        value.fault(format!("{} forced breakers", items.len()), format!("at most {FORCED_MAX}"));
        return None;
    }
    let scope = breaker.map_or(Scope::Target, |breaker| breaker.scope);
    let mut read: Vec<ForcedBreaker> = Vec::with_capacity(items.len());
    for item in &items {
        let Some(forced) = ForcedBreaker::read(item) else { continue };
        let (versions, shards) =
            (matches!(scope, Scope::Version | Scope::Target), matches!(scope, Scope::Shard | Scope::Target));
        if (!forced.version.is_empty() && !versions) || (!forced.shard.is_empty() && !shards) {
            item.fault(
                format!("the breakers of scope \"{}\" do not tell these apart", scope.as_str()),
                "leave out the version or shard, or set circuit_breaker.scope = \"target\"",
            );
        }
        if read.iter().any(|other| other.version == forced.version && other.shard == forced.shard) {
            item.fault("the same breakers are forced twice", "leave one of them out");
        }
        read.push(forced);
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Vec<ForcedBreaker>, String> {
        let document = Document::parse_toml(text).map_err(|told| told.to_string())?;
        Ok(document.services["ads"].forced_breakers.clone())
    }

    #[test]
    fn it_holds_until_its_time() {
        let forced = read(
            "[[services.ads.forced_breakers]]\nstate = \"open\"\nuntil = \"1970-01-01T00:16:40Z\"\nby = \"ann\"\nversion = \"v2\"\n",
        )
        .unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(forced[0].left(at(990)), Some(Left::For(Duration::from_secs(10))));
        assert_eq!(forced[0].left(at(1000)), None);
        assert!(forced[0].is_for("v2", "7") && !forced[0].is_for("v1", "7"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let told = |text: &str| read(text).unwrap_err();
        assert!(told("[[services.ads.forced_breakers]]\nby = \"ann\"\n").contains("state"), "no state");
        assert_eq!(
            told(
                "[services.ads]\ncircuit_breaker = { scope = \"service\" }\n[[services.ads.forced_breakers]]\nstate = \"open\"\nshard = \"1\"\n"
            ),
            "line 3: services.ads.forced_breakers[0]: the breakers of scope \"service\" do not tell these apart \
             (leave out the version or shard, or set circuit_breaker.scope = \"target\")"
        );
        assert_eq!(
            told("[[services.ads.forced_breakers]]\nstate = \"open\"\nuntil = \"soon\"\n"),
            "line 3: services.ads.forced_breakers[0].until: \"soon\" is not understood \
             (a moment after 1970 as RFC 3339 has it: \"2026-11-23T20:00:00Z\")"
        );
        let twice = "[[services.ads.forced_breakers]]\nstate = \"open\"\n".repeat(2);
        assert!(
            told(&twice).starts_with("line 3: services.ads.forced_breakers[1]: the same"),
            "{}",
            told(&twice)
        );
    }
}
