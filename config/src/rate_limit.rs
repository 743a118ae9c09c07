//! The policy of rate limits: how many requests of a service, or of each of its callers, a proxy lets through.

use std::time::Duration;

use crate::grammar::Value;
use crate::subject::Inputs;

/// Most requests in `per`.
const REQUESTS_MAX: u32 = 10_000_000;
/// Shorter times would be decided by single requests.
const PER_MIN: Duration = Duration::from_millis(100);
const PER_MAX: Duration = Duration::from_hours(24);

/// `[services.s.rate_limit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// So many requests pass in `per`, evenly.
    pub requests: u32,
    pub per: Duration,
    /// How many may come at once on top of the even rate, at least 1.
    pub burst: u32,
    pub by: By,
}

/// Who has a limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Each address; behind those who are trusted the one they call for.
    Caller,
    /// All together.
    #[default]
    Service,
    /// Each subject; requests without one are limited by caller.
    Subject(Inputs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Caller,
    Service,
    Subject,
}

const WORDS: [(&str, Word); 3] =
    [("service", Word::Service), ("caller", Word::Caller), ("subject", Word::Subject)];

impl RateLimit {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let requests = table.required("requests").and_then(|v| v.integer(1, REQUESTS_MAX));
        let per =
            table.optional("per").map_or(Some(Duration::from_secs(1)), |v| v.duration(PER_MIN, PER_MAX));
        let burst = table.optional("burst").and_then(|v| v.integer(0, REQUESTS_MAX));
        let word = table.optional("by").map_or(Some(Word::Service), |v| v.choice(&WORDS));
        let inputs = table.optional("subject");
        let by = match (word, inputs) {
            (Some(Word::Subject), None) => By::Subject(Inputs::default()),
            (Some(Word::Subject), Some(inputs)) => {
                let read = Inputs::read(&inputs).unwrap_or_default();
                if read.want_baggage() {
                    inputs.fault("a limit knows no `baggage`", "name where the subject itself stands");
                }
                By::Subject(read)
            }
            (Some(Word::Caller), None) => By::Caller,
            (Some(Word::Service) | None, None) => By::Service,
            (_, Some(inputs)) => {
                inputs.fault("`subject` is not looked at", "add by = \"subject\"");
                By::Service
            }
        };
        table.finish();
        let requests = requests?;
        // Without it all of `requests` may come at once.
        Some(Self { requests, per: per?, burst: burst.unwrap_or(requests).max(1), by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(table: &str) -> Result<RateLimit, String> {
        let text = format!("[services.ads.rate_limit]\n{table}\n");
        let document = Document::parse_toml(&text).map_err(|told| told.to_string())?;
        Ok(document.services["ads"].rate_limit.clone().expect("the table is there"))
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let limit = read("requests = 100").unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(limit, RateLimit { requests: 100, per: second, burst: 100, by: By::Service });
        let limit = read("requests = 3\nper = \"1m\"\nburst = 0\nby = \"subject\"").unwrap();
        let by = By::Subject(Inputs::default());
        assert_eq!(limit, RateLimit { requests: 3, per: Duration::from_mins(1), burst: 1, by });
        assert_eq!(read("requests = 1\nby = \"caller\"").unwrap().by, By::Caller);
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (table, what) in [
            ("per = \"1s\"", "line 1: services.ads.rate_limit: `requests` is missing"),
            ("requests = 0", "line 2: services.ads.rate_limit.requests: 0 is out of range"),
            ("requests = 1\nper = \"0s\"", "line 3: services.ads.rate_limit.per: 0s is out of range"),
            ("requests = 1\nburst = -1", "line 3: services.ads.rate_limit.burst: -1 is out of range"),
            ("requests = 1\nby = \"user\"", "line 3: services.ads.rate_limit.by: \"user\" is not known here"),
            (
                "requests = 1\nby = \"subject\"\nsubject = [\"x-user-id\"]",
                "line 4: services.ads.rate_limit.subject[0]: \"x-user-id\" is not understood",
            ),
            (
                "requests = 1\nby = \"subject\"\nsubject = []",
                "line 4: services.ads.rate_limit.subject: 0 inputs (1 to 8)",
            ),
            (
                "requests = 1\nsubject = [\"cookie:uid\"]",
                "line 3: services.ads.rate_limit.subject: `subject` is not looked at (add by = \"subject\")",
            ),
            (
                "requests = 1\nbursts = 2",
                "line 3: services.ads.rate_limit.bursts: unknown key (did you mean `burst`?)",
            ),
        ] {
            let told = read(table).unwrap_err();
            assert!(told.starts_with(what), "{table}: {told}");
        }
    }
}
