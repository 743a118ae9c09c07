//! What is read off a running process: memory and processor time from /proc, series from /metrics.

use std::collections::BTreeMap;

/// Resident memory in bytes.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    kib * 1024
}

/// Processor time used so far, user and system, in ticks of the kernel (usually 10 ms).
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name in parentheses may hold anything; the fields are counted behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// How many descriptors the process has open.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count()
}

/// Every series of a Prometheus text, by its name with labels.
#[must_use]
pub fn series(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let split = samples.filter_map(|line| line.rsplit_once(' '));
    split.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

/// The sum of all series of this name whose labels contain every one of `labels`, such as `code="2xx"`.
#[must_use]
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let matching = series(text).into_iter().filter(|(series, _)| {
        let own = series.split('{').next().unwrap_or_default();
        own == name && labels.iter().all(|label| series.contains(label))
    });
    matching.map(|(_, value)| value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_up_by_name_and_label() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 4\nab{x=\"1\"} 9\nb 1.5\n";
        assert!((sum(text, "a", &[]) - 7.0).abs() < f64::EPSILON);
        assert!((sum(text, "a", &["x=\"1\""]) - 3.0).abs() < f64::EPSILON);
        assert!((sum(text, "b", &[]) - 1.5).abs() < f64::EPSILON);
    }
}
