//! `[ofrep]`: who may ask the OFREP listener beside the applications on this machine.

use std::path::{Path, PathBuf};

use gilmok_config::grammar::Value;
use http::Uri;

use super::read_path;

/// Most web pages that may ask.
const ORIGINS_MAX: usize = 1_000;

/// Who may ask for flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfrepSettings {
    /// Origins of web pages, such as `https://shop.example.com`; `*` is every page.
    pub allowed_origins: Vec<String>,
    /// The token that callers need; without one, applications on this machine and trusted addresses may ask.
    pub token_file: Option<PathBuf>,
}

impl OfrepSettings {
    pub(super) fn read(value: &Value<'_>, base: &Path) -> Self {
        let Some(mut table) = value.table() else { return Self::default() };
        let origins = table.optional("allowed_origins");
        let token_file = table.optional("token_file").and_then(|v| read_path(&v, base));
        table.finish();
        Self { allowed_origins: origins.and_then(|v| read_origins(&v)).unwrap_or_default(), token_file }
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
