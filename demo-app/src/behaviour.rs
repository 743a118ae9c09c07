//! How the app behaves: well, slow, failing or hanging, as `POST /control/…` last told it.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

/// Longest that a slow answer may be told to take.
const SLOW_MAX: Duration = Duration::from_mins(10);
/// How long a slow answer takes when nobody said.
const SLOW_DEFAULT: Duration = Duration::from_secs(1);

/// How answers are given from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) mode: Mode,
    /// Whether `/healthz` goes the same way; otherwise it stays well.
    pub(crate) health_follows: bool,
    /// Only requests that this flag is on for: a feature with a bug.
    pub(crate) flag: Option<Arc<str>>,
}

/// What is the matter with the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// So many percent of the answers are errors with this status.
    Fail {
        percent: u8,
        status: StatusCode,
    },
    /// Requests are taken and never answered, until it is told otherwise.
    Hang,
    #[default]
    Ok,
    Slow(Duration),
}

/// What `POST /control/…` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Behave(Behaviour),
    /// The process ends as soon as it is between two requests.
    Die,
}

/// Why an order is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misunderstood(pub(crate) String);

impl Order {
    /// Reads the word behind `/control/` and its query.
    ///
    /// # Errors
    /// An unknown word or parameter, or a value out of its range.
    pub(crate) fn read(word: &str, query: &str) -> Result<Self, Misunderstood> {
        let mut said = Said::read(query)?;
        let mode = match word {
            "ok" => Mode::Ok,
            "slow" => {
                let ms = said.number("ms", SLOW_MAX.as_millis())?;
                Mode::Slow(ms.map_or(SLOW_DEFAULT, Duration::from_millis))
            }
            "fail" => {
                let percent = said.number("percent", 100)?.unwrap_or(100);
                let status = said.number("status", 599)?.unwrap_or(500);
                let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
                let status = status.filter(|status| status.as_u16() >= 200);
                Mode::Fail {
                    percent: u8::try_from(percent).unwrap_or(100),
                    status: status.ok_or_else(|| Misunderstood("status: 200 to 599".to_owned()))?,
                }
            }
            "hang" => Mode::Hang,
            "die" => {
                said.finish()?;
                return Ok(Self::Die);
            }
            _ => {
                let words =
                    "ok, slow?ms=…, fail?percent=…&status=…, hang (each with &health=false, &flag=…), die";
                return Err(Misunderstood(format!("cannot be told to `{word}`; try {words}")));
            }
        };
        let health_follows = match said.take("health").as_deref() {
            None | Some("true") => false,
            Some("false") => true,
            Some(_) => return Err(Misunderstood("health: true or false".to_owned())),
        };
        let flag = said.take("flag").map(Arc::from);
        said.finish()?;
        Ok(Self::Behave(Behaviour { mode, health_follows, flag }))
    }
}

/// The parameters of a query that nobody has taken yet.
#[derive(Debug)]
struct Said(Vec<(String, String)>);

impl Said {
    fn read(query: &str) -> Result<Self, Misunderstood> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Misunderstood(format!("`{pair}` has no value"))),
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1)
    }

    fn number(&mut self, key: &str, most: u128) -> Result<Option<u64>, Misunderstood> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let number = text.parse::<u64>().ok().filter(|number| u128::from(*number) <= most);
        number.map(Some).ok_or_else(|| Misunderstood(format!("{key}: a whole number, at most {most}")))
    }

    fn finish(self) -> Result<(), Misunderstood> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(Misunderstood(format!("`{key}` does not belong here"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        let behave = |mode, health_follows| Ok(Order::Behave(Behaviour { mode, health_follows, flag: None }));
        let of_flag = Behaviour { mode: Mode::Hang, flag: Some("new-ui".into()), ..Behaviour::default() };
        let fail = |percent, status| Mode::Fail { percent, status };
        for (word, query, expected) in [
            ("ok", "", behave(Mode::Ok, false)),
            ("slow", "ms=250", behave(Mode::Slow(Duration::from_millis(250)), false)),
            ("slow", "", behave(Mode::Slow(SLOW_DEFAULT), false)),
            ("fail", "", behave(fail(100, StatusCode::INTERNAL_SERVER_ERROR), false)),
            (
                "fail",
                "percent=30&status=503&health=false",
                behave(fail(30, StatusCode::SERVICE_UNAVAILABLE), true),
            ),
            ("hang", "health=true", behave(Mode::Hang, false)),
            ("hang", "flag=new-ui", Ok(Order::Behave(of_flag))),
            ("die", "", Ok(Order::Die)),
        ] {
            assert_eq!(Order::read(word, query), expected, "{word}?{query}");
        }
    }

    #[test]
    fn an_order_that_makes_no_sense_is_refused_and_not_guessed() {
        for (word, query) in [
            ("sleep", ""),
            ("slow", "ms=fast"),
            ("slow", "ms=99999999999"),
            ("slow", "seconds=1"),
            ("slow", "ms"),
            ("fail", "percent=101"),
            ("fail", "status=42"),
            ("fail", "status=600"),
            ("ok", "health=maybe"),
            ("die", "health=false"),
        ] {
            assert!(Order::read(word, query).is_err(), "{word}?{query}");
        }
    }
}
