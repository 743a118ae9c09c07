//! `[ofrep]`: who may ask the OFREP listener beside the applications on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gilmok_config::grammar::Value;
use http::Uri;

use super::read_path;

/// Most web pages that may ask.
const ORIGINS_MAX: usize = 1_000;
/// A control plane says something every few seconds, and a restart of one takes less than this.
const STALE_AFTER: Duration = Duration::from_mins(1);
/// Two of its words may be late.
const STALE_AFTER_MIN: Duration = Duration::from_secs(5);
const STALE_AFTER_MAX: Duration = Duration::from_hours(24 * 365);

/// Who may ask for flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfrepSettings {
    /// Origins of web pages, such as `https://shop.example.com`; `*` is every page.
    pub allowed_origins: Vec<String>,
    /// The token that callers need; without one, applications on this machine and trusted addresses may ask.
    pub token_file: Option<PathBuf>,
    /// After how long without a word of the source every reason is `STALE`.
    pub stale_after: Duration,
}

impl Default for OfrepSettings {
    fn default() -> Self {
        Self { allowed_origins: Vec::new(), token_file: None, stale_after: STALE_AFTER }
    }
}

impl OfrepSettings {
    pub(super) fn read(value: &Value<'_>, base: &Path) -> Self {
        let Some(mut table) = value.table() else { return Self::default() };
        let origins = table.optional("allowed_origins");
        let token_file = table.optional("token_file").and_then(|v| read_path(&v, base));
        let stale_after = table.optional("stale_after");
        table.finish();
        let stale_after = stale_after.and_then(|v| v.duration(STALE_AFTER_MIN, STALE_AFTER_MAX));
        Self {
            allowed_origins: origins.and_then(|v| read_origins(&v)).unwrap_or_default(),
            token_file,
            stale_after: stale_after.unwrap_or(STALE_AFTER),
        }
    }
}

fn read_origins(value: &Value<'_>) -> Option<Vec<String>> {
    let origins = value.list(|item| {
        let text = item.text()?;
        if text != "*" && !is_origin(text) {
            item.fault(
                "not the origin of a web page",
                "\"https://shop.example.com\", or \"*\" for every page",
            );
            return None;
        }
        Some(text.to_owned())
    })?;
    if origins.len() > ORIGINS_MAX {
        value.fault(format!("{} origins", origins.len()), format!("at most {ORIGINS_MAX}"));
        return None;
    }
    Some(origins)
}

/// Scheme, host and port as browsers send them: nothing behind, not even a slash.
fn is_origin(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        let host = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        scheme && host && uri.path() == "/" && uri.query().is_none() && !text.ends_with('/')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_scheme_and_host_and_nothing_else() {
        for text in ["https://shop.example.com", "http://localhost:3000", "http://[::1]:3000"] {
            assert!(is_origin(text), "{text}");
        }
        for text in
            ["shop.example.com", "https://a/", "https://a/b", "ftp://a", "https://", "null", "https://u@a"]
        {
            assert!(!is_origin(text), "{text}");
        }
    }
}
