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
        assert_eq!((or_dash(""), or_dash("x")), ("-".to_owned(), "x".to_owned()));
    }
}
