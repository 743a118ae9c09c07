//! One line of the access log: an entry as JSON, every text bounded.

use std::time::{Duration, SystemTime};

use gilmok_config::moment::format_moment;
use http::Version;
use serde::Serialize;

use super::Entry;

/// Longest path and longest query in a line, in bytes.
const PATH_BYTES_MAX: usize = 1_024;
/// Longest of every other text that callers choose, in bytes.
const TEXT_BYTES_MAX: usize = 256;

#[derive(Serialize)]
struct Line<'e> {
    time: String,
    listener: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<std::net::IpAddr>,
    /// The service that the caller has shown to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'e str>,
    protocol: &'e str,
    method: &'e str,
    host: &'e str,
    path: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'e str>,
    /// 0: the caller left before there was an answer.
    status: u16,
    service: &'e str,
    version: &'e str,
    shard: &'e str,
    endpoint: String,
    attempts: u32,
    duration_us: u64,
    bytes_received: u64,
    bytes_sent: u64,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_status: Option<&'e str>,
}

/// Appends an entry as one line. The query is written only if `query` says so.
pub(super) fn write(lines: &mut Vec<u8>, entry: &Entry, query: bool) {
    let took = Duration::from_micros(entry.duration_us);
    let began = entry.ended.and_then(|ended| ended.checked_sub(took)).unwrap_or(SystemTime::UNIX_EPOCH);
    let header = |value: &'_ Option<http::HeaderValue>| -> Option<String> {
        let text = value.as_ref()?.to_str().ok()?;
        Some(bounded(text, TEXT_BYTES_MAX).to_owned())
    };
    let (request_id, proxy_status) = (header(&entry.request_id), header(&entry.proxy_status));
    let line = Line {
        time: rfc3339(began),
        listener: entry.listener,
        peer: entry.peer,
        caller: entry.caller.as_ref().map(|caller| caller.as_str()),
        protocol: protocol(entry.protocol),
        method: bounded(entry.method.as_str(), TEXT_BYTES_MAX),
        host: bounded(&entry.host, TEXT_BYTES_MAX),
        path: bounded(entry.uri.path(), PATH_BYTES_MAX),
        query: entry.uri.query().filter(|_| query).map(|text| bounded(text, PATH_BYTES_MAX)),
        status: entry.status,
        service: entry.service.as_ref().map_or("", |service| service.as_str()),
        version: entry.version.as_str(),
        shard: entry.shard.as_str(),
        endpoint: entry.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        attempts: entry.attempts,
        duration_us: entry.duration_us,
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        complete: entry.complete,
        request_id: request_id.as_deref(),
        proxy_status: proxy_status.as_deref(),
    };
    let before = lines.len();
    match serde_json::to_writer(&mut *lines, &line) {
        Ok(()) => lines.push(b'\n'),
        // Not half a line.
        Err(_) => lines.truncate(before),
    }
}

fn bounded(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// A moment in UTC with milliseconds, e.g. `2026-11-23T13:00:00.000Z`.
fn rfc3339(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole = format_moment(since.as_secs());
    format!("{}.{:03}Z", whole.trim_end_matches('Z'), since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_704_067_199_999, "2023-12-31T23:59:59.999Z"),
            (1_795_439_045_007, "2026-11-23T13:04:05.007Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)), expected);
        }
    }

    fn line(entry: &Entry, query: bool) -> serde_json::Value {
        let mut lines = Vec::new();
        write(&mut lines, entry, query);
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&lines).unwrap()
    }

    #[test]
    fn a_query_is_told_only_when_asked_for() {
        let entry = Entry { uri: "/login?password=x".parse().unwrap(), ..Entry::default() };
        assert_eq!(line(&entry, false)["path"], "/login");
        assert!(line(&entry, false).get("query").is_none());
        assert_eq!(line(&entry, true)["query"], "password=x");
    }

    #[test]
    fn what_callers_send_cannot_break_or_bloat_a_line() {
        let entry = Entry {
            uri: format!("/{}", "a".repeat(60_000)).parse().unwrap(),
            host: "x\"\n{".repeat(1_000),
            ..Entry::default()
        };
        let mut lines = Vec::new();
        write(&mut lines, &entry, true);
        assert!(lines.len() < 4_096, "{} bytes", lines.len());
        assert_eq!(line(&entry, true)["path"].as_str().unwrap().len(), PATH_BYTES_MAX);
    }
}
