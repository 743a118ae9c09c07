//! The words for what can go wrong with a call: what counts against an endpoint, is tried again, or gets a fallback.

use crate::grammar::Value;

/// Why a call brought no answer of the application's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The caller left, or the call was given up for it.
    Cancelled,
    /// No connection: no way there, or none in time.
    Connect,
    /// There is no endpoint that may be called.
    NoEndpoint,
    /// The breaker is open.
    Open,
    /// Over `max_concurrent`.
    Overflow,
    /// The endpoint refused the connection.
    Refused,
    /// The connection ended before the answer came, or what came is no HTTP.
    Reset,
    /// No answer in time.
    Timeout,
}

/// A set of failures, of the application's own 5xx statuses, and of gRPC's codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FailureSet {
    /// One bit for each [`Failure`].
    failures: u8,
    /// One bit for each status from 500.
    statuses: u128,
    /// One bit for each code of gRPC.
    grpc: u32,
}

/// Every failure of the wire.
pub(crate) const WIRE: [Failure; 4] = [Failure::Connect, Failure::Refused, Failure::Reset, Failure::Timeout];

const WORDS: [(&str, Failure); 8] = [
    ("cancelled", Failure::Cancelled),
    ("connect", Failure::Connect),
    ("no_endpoint", Failure::NoEndpoint),
    ("open", Failure::Open),
    ("overflow", Failure::Overflow),
    ("refused", Failure::Refused),
    ("reset", Failure::Reset),
    ("timeout", Failure::Timeout),
];

/// gRPC's codes by number (gRPC core, doc/statuscodes.md).
const GRPC: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

const FIRST_STATUS: u16 = 500;
const STATUSES: u16 = 100;

impl Failure {
    /// The word that a document uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        WORDS.iter().find(|(_, failure)| *failure == self).map_or("", |(word, _)| word)
    }
}

/// gRPC's code of this name, e.g. `unavailable`.
#[must_use]
pub fn grpc_code(name: &str) -> Option<u8> {
    GRPC.iter().position(|known| *known == name).and_then(|at| u8::try_from(at).ok())
}

impl FailureSet {
    /// These failures, and no status.
    #[must_use]
    pub fn of(failures: &[Failure]) -> Self {
        failures.iter().fold(Self::default(), |set, failure| set.with(*failure))
    }

    #[must_use]
    pub fn with(mut self, failure: Failure) -> Self {
        self.failures |= 1 << failure as u8;
        self
    }

    /// What is in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            failures: self.failures | other.failures,
            statuses: self.statuses | other.statuses,
            grpc: self.grpc | other.grpc,
        }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// With every 5xx.
    #[must_use]
    pub fn with_5xx(mut self) -> Self {
        self.statuses = (1 << STATUSES) - 1;
        self
    }

    #[must_use]
    pub fn has(&self, failure: Failure) -> bool {
        self.failures & (1 << failure as u8) != 0
    }

    /// Whether an answer of the application with this status is one of them. Never below 500.
    #[must_use]
    pub fn has_status(&self, status: u16) -> bool {
        status.checked_sub(FIRST_STATUS).is_some_and(|at| at < STATUSES && self.statuses & (1 << at) != 0)
    }

    /// Whether an answer with this code of gRPC is one of them.
    #[must_use]
    pub fn has_grpc(&self, code: u8) -> bool {
        code < 32 && self.grpc & (1 << code) != 0
    }

    /// Whether gRPC's codes matter at all.
    #[must_use]
    pub fn asks_grpc(&self) -> bool {
        self.grpc != 0
    }

    /// Reads a list of words. `known` are the failures that mean something here.
    pub(crate) fn read(value: &Value<'_>, known: &[Failure]) -> Option<Self> {
        let mut set = Self::default();
        for item in value.items()? {
            if let Some(word) = item.text()
                && !set.add(word, known)
            {
                let words: Vec<_> = known.iter().map(|failure| failure.as_str()).collect();
                item.fault(
                    format!("\"{}\" is no failure that is known here", crate::problem::shown(word)),
                    format!(
                        "one of: {}, 5xx, gateway (502, 503, 504), a status from 500 to 599, grpc:unavailable or \
                         another of gRPC's codes",
                        words.join(", ")
                    ),
                );
            }
        }
        Some(set)
    }

    fn add(&mut self, word: &str, known: &[Failure]) -> bool {
        if let Some(code) = word.strip_prefix("grpc:") {
            // An answer that is OK is no failure.
            let Some(code) = grpc_code(code).filter(|code| *code != 0) else { return false };
            self.grpc |= 1 << code;
            return true;
        }
        let of_status = |status: u16| 1_u128 << (status - FIRST_STATUS);
        match word {
            "5xx" => *self = self.with_5xx(),
            "gateway" => self.statuses |= of_status(502) | of_status(503) | of_status(504),
            _ => match (WORDS.iter().find(|(name, _)| *name == word), word.parse::<u16>()) {
                (Some((_, failure)), _) if known.contains(failure) => *self = self.with(*failure),
                (None, Ok(status)) if word.len() == 3 && (500..600).contains(&status) => {
                    self.statuses |= of_status(status);
                }
                _ => return false,
            },
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::Faults;
    use crate::node::Node;

    fn read(list: &str) -> Result<FailureSet, String> {
        let node = Node::parse_toml(&format!("on = {list}\n")).map_err(|told| told.to_string())?;
        let faults = Faults::new();
        let mut table = Value::root(&node, &faults).table().unwrap();
        let set = table.optional("on").and_then(|value| FailureSet::read(&value, &WIRE));
        faults.into_result(set.unwrap_or_default()).map_err(|told| told.to_string())
    }

    #[test]
    fn words_statuses_and_codes_are_read() {
        let set = read(r#"["connect", "gateway", "507", "grpc:unavailable"]"#).unwrap();
        assert!(set.has(Failure::Connect) && !set.has(Failure::Reset) && !set.has(Failure::Open));
        for (status, is_in) in
            [(499, false), (500, false), (502, true), (504, true), (507, true), (600, false)]
        {
            assert_eq!(set.has_status(status), is_in, "{status}");
        }
        assert!(set.has_grpc(14) && !set.has_grpc(13) && !set.has_grpc(200));
        assert!(read(r#"["5xx"]"#).unwrap().has_status(599));
    }

    #[test]
    fn what_means_nothing_here_is_refused_with_what_would() {
        for list in [r#"["open"]"#, r#"["404"]"#, r#"["grpc:ok"]"#, r#"["+500"]"#, r#"["grpc:lost"]"#, "[5]"]
        {
            assert!(read(list).unwrap_err().starts_with("line 1: on[0]:"), "{list}");
        }
    }
}
