//! `sem_ver`: comparing versions as semver.org has them, with what flagd forgives.

use std::cmp::Ordering;

use semver::Version;

use super::value::Value;

/// Compares two versions; `None` where one is none, or the operator is none.
pub(super) fn compare(ours: &Value<'_>, operator: &Value<'_>, theirs: &Value<'_>) -> Option<bool> {
    let (ours, theirs) = (version(ours)?, version(theirs)?);
    // What was built of the same source is the same version.
    let order = ours.cmp_precedence(&theirs);
    Some(match operator.as_text()? {
        "=" => order == Ordering::Equal,
        "!=" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        ">=" => order != Ordering::Less,
        "^" => ours.major == theirs.major,
        "~" => (ours.major, ours.minor) == (theirs.major, theirs.minor),
        _ => return None,
    })
}

/// Whether a literal is an operator that [`compare`] knows.
pub(super) fn is_operator(text: &str) -> bool {
    ["=", "!=", "<", "<=", ">", ">=", "^", "~"].contains(&text)
}

/// A version: a `v` before it is left out, what is missing of `major.minor.patch` is 0, and numbers are written.
pub(super) fn version(value: &Value<'_>) -> Option<Version> {
    let number;
    let text = match value {
        Value::Number(written) => {
            number = written.text();
            &number
        }
        _ => value.as_text()?,
    };
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    if let Ok(version) = Version::parse(text) {
        return Some(version);
    }
    let is_partial = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let padding = match text.bytes().filter(|byte| *byte == b'.').count() {
        0 => ".0.0",
        1 => ".0",
        _ => return None,
    };
    if is_partial { Version::parse(&format!("{text}{padding}")).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_flagds_suite_has_it() {
        let text = |ours, operator, theirs| {
            compare(&Value::text(ours), &Value::text(operator), &Value::text(theirs))
        };
        for (ours, operator, theirs, expected) in [
            ("2.0.0", "=", "2.0.0", Some(true)),
            ("2.0.0-alpha", "<", "2.0.0", Some(true)),
            ("2.0.0-alpha.2", "<", "2.0.0-alpha.10", Some(true)),
            ("2.0.0.0", "=", "2.0.0", None),
            ("3.0.1", "~", "3.0.0", Some(true)),
            ("3.1.0", "~", "3.0.0", Some(false)),
            ("3.1.0", "^", "3.0.0", Some(true)),
            ("v1.0.0", "=", "V1.0.0", Some(true)),
            ("1", "^", "1.5", Some(true)),
            ("1.0.0+a", "=", "1.0.0+b", Some(true)),
            ("1.0.0", "===", "1.0.0", None),
            ("01.0.0", "=", "1.0.0", None),
            ("not-a-version", "=", "1.0.0", None),
            ("1.0-alpha", "=", "1.0.0", None),
            ("", "=", "1.0.0", None),
            ("vv1", "=", "1.0.0", None),
        ] {
            assert_eq!(text(ours, operator, theirs), expected, "{ours} {operator} {theirs}");
        }
        let one = Value::text("1.1");
        assert_eq!(compare(&Value::real(1.2), &Value::text(">"), &one), Some(true));
        assert_eq!(compare(&Value::real(1.0), &Value::text(">"), &one), Some(false));
        assert_eq!(compare(&Value::Boolean(true), &Value::text(">"), &one), None);
    }
}
