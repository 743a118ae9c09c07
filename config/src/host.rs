//! The host a request names, in the one form that routing compares.

use std::borrow::Cow;

/// Longest host name, in bytes (RFC 1035).
pub const HOST_BYTES_MAX: usize = 253;

/// Lower-cases a host, strips its port and the root's dot, and checks its characters.
/// Allocates only where something had to be lower-cased. IPv6 literals keep their brackets.
///
/// `None` means that this is no host: routing must not go on with it.
#[must_use]
pub fn canonical(text: &str) -> Option<Cow<'_, str>> {
    let host = strip_port(text)?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let bracketed = host.starts_with('[');
    let allowed = |byte: u8| {
        if bracketed {
            byte.is_ascii_hexdigit() || b"[]:.".contains(&byte)
        } else {
            byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
        }
    };
    // One dot is the root's; a name with two ends in an empty label.
    if host.is_empty() || host.ends_with('.') || host.len() > HOST_BYTES_MAX || !host.bytes().all(allowed) {
        return None;
    }
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Some(Cow::Owned(host.to_ascii_lowercase()))
    } else {
        Some(Cow::Borrowed(host))
    }
}

fn strip_port(text: &str) -> Option<&str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')? + 2;
            (&text[..end], &text[end..])
        }
        None => match text.find(':') {
            Some(at) => (&text[..at], &text[at..]),
            None => (text, ""),
        },
    };
    match port.strip_prefix(':') {
        None => port.is_empty().then_some(host),
        Some(digits) => {
            (digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(host)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_take_one_form() {
        for (text, expected) in [
            ("ads", Some("ads")),
            ("ADS.Mesh:8080", Some("ads.mesh")),
            ("ads.:80", Some("ads")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:80", Some("[::1]")),
            ("ads:", Some("ads")),
            ("", None),
            (".", None),
            ("..", None),
            ("ads..:80", None),
            (":80", None),
            ("a b", None),
            ("a/b", None),
            ("a@b", None),
            ("ads:80:90", None),
            ("ads:http", None),
            ("[::1", None),
            ("[::1]x", None),
            ("häuser", None),
        ] {
            assert_eq!(canonical(text).as_deref(), expected, "{text}");
        }
        assert_eq!(canonical(&"a".repeat(254)), None);
    }

    #[test]
    fn a_host_that_is_canonical_already_is_borrowed() {
        assert!(matches!(canonical("ads.mesh:80"), Some(Cow::Borrowed(_))));
    }
}
