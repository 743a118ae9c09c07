//! A token that stands in a file, and whether a caller shows it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use http::HeaderValue;

/// Longest token that is read, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Whether what a caller shows is the token in this file, read anew, so that another one needs no restart. An empty file lets
/// nobody in.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn is_shown(file: &Path, given: Option<&[u8]>) -> io::Result<bool> {
    let mut token = Vec::new();
    File::open(file)?.take(TOKEN_BYTES_MAX).read_to_end(&mut token)?;
    let token = token.trim_ascii();
    Ok(!token.is_empty() && given.is_some_and(|given| same(token, given)))
}

/// The token of `Bearer TOKEN`; the scheme's case means nothing.
pub(crate) fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn only_the_whole_token_will_do() {
        let dir = Folder::new("shown-token");
        let file = dir.join("token");
        assert!(is_shown(&file, Some(b"abc")).is_err());
        std::fs::write(&file, "abc\n").unwrap();
        for (given, expected) in
            [(Some("abc"), true), (Some("ab"), false), (Some("abd"), false), (Some(""), false), (None, false)]
        {
            assert_eq!(is_shown(&file, given.map(str::as_bytes)).unwrap(), expected, "{given:?}");
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(!is_shown(&file, Some(b"")).unwrap(), "an empty token is none");
        for (value, token) in
            [("Bearer abc", Some("abc")), ("bearer  abc ", Some("abc")), ("Basic abc", None)]
        {
            assert_eq!(bearer(&HeaderValue::from_static(value)), token.map(str::as_bytes), "{value}");
        }
    }
}
