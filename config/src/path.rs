//! Paths and methods as documents say them, and how a prefix of whole segments is compared.

use http::Method;

use crate::grammar::Value;

/// Whether `path` begins with the whole segments of `prefix` (which has no trailing `/`).
#[must_use]
pub fn has_prefix(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(crate) fn read_absolute<'d>(value: &Value<'d>) -> Option<&'d str> {
    let text = value.text()?;
    if text.starts_with('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
    {
        return Some(text);
    }
    value.fault("not a path", "a path begins with `/` and has no spaces, `?` or `#`");
    None
}

pub(crate) fn read_prefix(value: &Value<'_>) -> Option<String> {
    Some(read_absolute(value)?.trim_end_matches('/').to_owned())
}

pub(crate) fn read_method(value: &Value<'_>) -> Option<Method> {
    let text = value.text()?;
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if text.bytes().all(|byte| !byte.is_ascii_lowercase()) => Some(method),
        _ => {
            value.fault("not a method", "in capitals: \"GET\", \"POST\"");
            None
        }
    }
}
