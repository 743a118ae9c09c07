//! Rows in columns for people.

/// Rows in columns, two spaces apart, each line indented.
pub(crate) fn indented(rows: &[Vec<String>]) -> String {
    lines(rows).map(|line| format!("  {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A head and its rows in columns, two spaces apart.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let head = head.map(str::to_uppercase).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows.into_iter().map(Vec::from)).collect();
    lines(&rows).collect::<Vec<_>>().join("\n")
}

fn lines(rows: &[Vec<String>]) -> impl Iterator<Item = String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    rows.iter().map(move |row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    })
}

/// How wide what is said may be: as wide as the terminal, where there is one.
pub(crate) fn columns() -> usize {
    const ELSEWHERE: usize = 80;
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(ELSEWHERE)
}

/// What stands where there is nothing.
pub(crate) fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// How long ago, as people say it.
pub(crate) fn ago(ms: u64) -> String {
    match ms / 1_000 {
        0 => "now".to_owned(),
        s @ 1..=119 => format!("{s} s ago"),
        s @ 120..=7_199 => format!("{} min ago", s / 60),
        s @ 7_200..=172_799 => format!("{} h ago", s / 3_600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// How long something takes, as people say it: whole seconds, two units.
pub(crate) fn lasting(ms: u64) -> String {
    match ms / 1_000 {
        s @ 0..=59 => format!("{s}s"),
        s @ 60..=3_599 => format!("{}m{:02}s", s / 60, s % 60),
        s @ 3_600..=86_399 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        s => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// A share of a hundred, with as many of four decimals as it has.
pub(crate) fn percent(value: f64) -> String {
    let text = format!("{value:.4}");
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A bar of so many cells, of which a share from 0 to 1 is full.
pub(crate) fn bar(share: f64, cells: usize) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a few cells, and a share between 0 and 1; what is no number comes to 0"
    )]
    let full = (share.clamp(0.0, 1.0) * cells as f64).round() as usize;
    "█".repeat(full) + &"░".repeat(cells - full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned);
        assert_eq!(table(["a", "b"], [row(["long", ""]), row(["x", "y"])]), "A     B\nlong\nx     y");
        assert_eq!(indented(&[row(["a", "b"]).to_vec(), row(["long", ""]).to_vec()]), "  a     b\n  long");
    }

    #[test]
    fn times_are_told_roughly() {
        for (ms, told) in
            [(900, "now"), (5_000, "5 s ago"), (600_000, "10 min ago"), (86_400_000, "24 h ago")]
        {
            assert_eq!(ago(ms), told);
        }
        for (seconds, told) in [(0, "0s"), (59, "59s"), (490, "8m10s"), (3_660, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(lasting(seconds * 1_000), told);
        }
        assert_eq!((or_dash(""), or_dash("x")), ("-".to_owned(), "x".to_owned()));
    }

    #[test]
    fn shares_are_told_exactly_and_drawn_roughly() {
        for (value, told) in [(100.0, "100 %"), (12.5, "12.5 %"), (0.01, "0.01 %"), (0.0, "0 %")] {
            assert_eq!(percent(value), told);
        }
        assert_eq!((bar(0.0, 4), bar(0.5, 4), bar(2.0, 4)), ("░░░░".into(), "██░░".into(), "████".into()));
        assert_eq!(bar(f64::NAN, 2), "░░");
    }
}
