//! Moments as documents write them: RFC 3339, whole seconds, e.g. `2026-11-23T20:00:00Z`.

/// Seconds of a day.
const DAY: u64 = 86_400;
/// The last one that can be written, in seconds since 1970: the end of the year 9999.
const LAST: u64 = 253_402_300_799;
/// From the first of March of the year 0 to 1970, in days.
const TO_1970: u64 = 719_468;
/// Days of 400 years, after which the calendar repeats.
const ERA: u64 = 146_097;

/// Reads a moment as seconds since 1970, UTC; parts of a second are left out.
///
/// # Errors
/// What would be right.
pub fn parse_moment(text: &str) -> Result<u64, &'static str> {
    const HINT: &str = "a moment after 1970 as RFC 3339 has it: \"2026-11-23T20:00:00Z\"";
    read(text).ok_or(HINT)
}

fn read(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(at);
    let clock = match clock.split_once('.') {
        Some((clock, part)) if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) => clock,
        Some(_) => return None,
        None => clock,
    };
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Howard Hinnant's days_from_civil: years begin on the first of March.
    let year_from_march = if month > 2 { year } else { year.checked_sub(1)? };
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (year_from_march / 400, year_from_march % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * ERA + day_of_era).checked_sub(TO_1970)?;
    // A day that its month does not have would be one of the next month.
    if civil(days) != (year, month, day) {
        return None;
    }
    let local = days * DAY + hour * 3_600 + minute * 60 + second;
    let moment = if zone.eq_ignore_ascii_case("z") {
        local
    } else {
        let [hours, minutes] = numbers(&zone[1..], ':', [2, 2])?;
        let offset = hours * 3_600 + minutes * 60;
        if hours > 23 || minutes > 59 {
            return None;
        }
        if zone.starts_with('+') { local.checked_sub(offset)? } else { local + offset }
    };
    (moment <= LAST).then_some(moment)
}

/// Numbers of exactly so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u64; N]> {
    let mut parts = text.split(between);
    let mut read = [0; N];
    for (number, digits) in read.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(read)
}

/// Year, month and day of a day since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    // Howard Hinnant's civil_from_days: eras of 400 years that begin on the first of March.
    let shifted = days + TO_1970;
    let (era, day_of_era) = (shifted / ERA, shifted % ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Writes seconds since 1970 the way they are read; what is later than the year 9999 is written as its end.
#[must_use]
pub fn format_moment(seconds: u64) -> String {
    let seconds = seconds.min(LAST);
    let (year, month, day) = civil(seconds / DAY);
    let second = seconds % DAY;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_are_read_wherever_their_clock_stands() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2026-11-23T13:04:05Z", 1_795_439_045),
            ("2026-11-23t14:04:05.999+01:00", 1_795_439_045),
            ("2026-11-23 08:34:05-04:30", 1_795_439_045),
            ("9999-12-31T23:59:59Z", LAST),
        ] {
            assert_eq!(parse_moment(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "tomorrow",
            "2026-11-23",
            "2026-11-23T20:00:00",
            "2026-11-23T20:00Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00Zulu",
            "2026-01-01T00:00:00+é",
            "1969-12-31T23:59:59Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
            "+026-01-01T00:00:00Z",
        ] {
            assert!(parse_moment(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in 0..=LAST) {
            prop_assert_eq!(parse_moment(&format_moment(seconds)), Ok(seconds));
        }

        #[test]
        fn nothing_breaks_it(text in "[0-9TtZz:.+ -]{0,30}") {
            if let Ok(moment) = parse_moment(&text) {
                prop_assert_eq!(parse_moment(&format_moment(moment)), Ok(moment));
            }
        }
    }
}
