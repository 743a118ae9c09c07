//! Durations ("250ms"), sizes ("1MiB"), shares (12.5 %) and how they are written.

use std::time::Duration;

/// What a duration may come to, in microseconds: 100,000 days.
const MICROS_MAX: f64 = 100_000.0 * 86_400e6;

/// Reads a duration: one or more numbers with a unit, e.g. `250ms`, `1.5s`, `1h30m`. Units: us, ms, s, m, h, d.
///
/// # Errors
/// What would be right.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const HINT: &str = "a duration has a unit: \"250ms\", \"5s\", \"1h30m\"";
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(HINT);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(HINT)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, after) = tail.split_at(letters);
        let micros = match unit {
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            "m" => 60e6,
            "h" => 3_600e6,
            "d" => 86_400e6,
            _ => return Err(HINT),
        };
        let amount: f64 = number.parse().map_err(|_| HINT)?;
        // Whole microseconds, so that what is written is read back as the same duration.
        let part = (amount * micros).round();
        if !(0.0..=MICROS_MAX).contains(&part) {
            return Err(HINT);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked against the range above"
        )]
        let part = Duration::from_micros(part as u64);
        total = total.checked_add(part).ok_or(HINT)?;
        rest = after;
    }
    Ok(total)
}

/// Writes a duration the way it is read.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0 => "0s".to_owned(),
        _ if us.is_multiple_of(3_600_000_000) => format!("{}h", us / 3_600_000_000),
        _ if us.is_multiple_of(60_000_000) => format!("{}m", us / 60_000_000),
        _ if us.is_multiple_of(1_000_000) => format!("{}s", us / 1_000_000),
        _ if us.is_multiple_of(1_000) => format!("{}ms", us / 1_000),
        _ => format!("{us}us"),
    }
}

/// Reads a size in bytes: `512`, `64KiB`, `1MiB`, `2GiB`.
///
/// # Errors
/// What would be right.
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    const HINT: &str = "a size is a number of bytes or has a unit: \"512B\", \"64KiB\", \"1MiB\", \"1GiB\"";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(HINT),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or(HINT)
}

/// A share in parts per million: a percentage with four decimals, exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppm(u32);

impl Ppm {
    pub const NONE: Self = Self(0);
    pub const HALF: Self = Self(500_000);
    pub const WHOLE: Self = Self(1_000_000);

    /// A percentage from 0 to 100 with at most four decimals.
    #[must_use]
    pub fn from_percent(percent: f64) -> Option<Self> {
        let ppm = (percent * 10_000.0).round();
        let is_exact = (percent * 10_000.0 - ppm).abs() < 1e-6;
        if !(0.0..=1_000_000.0).contains(&ppm) || !is_exact {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked against the range above"
        )]
        Some(Self(ppm as u32))
    }

    /// So many parts per million; a whole has a million of them.
    #[must_use]
    pub fn new(parts: u32) -> Option<Self> {
        (parts <= 1_000_000).then_some(Self(parts))
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// As a percentage, 0 to 100.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// What is missing to a whole.
    #[must_use]
    pub fn rest(self) -> Self {
        Self(1_000_000 - self.0)
    }

    /// Whether `part` of `whole` is at least this share.
    #[must_use]
    pub fn is_reached(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 1_000_000 >= u128::from(whole) * u128::from(self.0)
    }

    /// This share of `whole`, rounded down.
    #[must_use]
    pub fn of(self, whole: usize) -> usize {
        usize::try_from(whole as u128 * u128::from(self.0) / 1_000_000).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, ms) in [("250ms", 250), ("0s", 0), ("1.5s", 1_500), ("5m", 300_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "5 s", "-1s", "1e3s", "5parsec", "1s5", "..s", "99999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("0", 0), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1 << 20)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1KB", "-1", "1.5MiB", "99999999999999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_are_exact_to_four_decimals() {
        for (percent, ppm) in [(0.0, 0), (0.0001, 1), (12.5, 125_000), (33.3333, 333_333), (100.0, 1_000_000)]
        {
            assert_eq!(Ppm::from_percent(percent).map(Ppm::get), Some(ppm), "{percent}");
        }
        for percent in [-1.0, 100.0001, 130.0, 0.000_01, f64::NAN, f64::INFINITY] {
            assert_eq!(Ppm::from_percent(percent), None, "{percent}");
        }
        assert!(Ppm::HALF.is_reached(1, 2) && !Ppm::HALF.is_reached(1, 3));
        assert_eq!((Ppm::HALF.of(3), Ppm::WHOLE.of(3), Ppm::NONE.of(3)), (1, 3, 0));
    }

    proptest! {
        #[test]
        fn a_written_duration_is_read_back(us in 0_u64..8_000_000_000_000_000) {
            let duration = Duration::from_micros(us);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
