//! Who may call a service: a pure decision from who asks, by which method and for which path.
//!
//! Rules only allow. What no rule allows is denied where a service has rules, and goes by the mesh's default where it has
//! none. A path is compared as it is sent on, byte by byte, so that what is allowed is what the app gets; where an app may
//! read a path otherwise than it stands there (dot segments, double slashes, encoded slashes and dots), no rule with a path
//! allows it.

use std::fmt;

use http::Method;

use crate::grammar::Value;
use crate::name::ServiceName;
use crate::path::{has_prefix, read_method, read_prefix};

/// Most rules of one service.
pub const RULES_MAX: usize = 1_000;
/// Most methods of one rule.
const METHODS_MAX: usize = 32;

/// What becomes of callers of services without rules of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultAccess {
    #[default]
    Allow,
    Deny,
}

/// What becomes of a denial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// The request is let through; what would have been denied is counted and told.
    DryRun,
    #[default]
    Enforce,
}

/// Who may call one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `None`: nothing is said, and the default decides. Empty: nobody.
    pub allow: Option<Vec<Rule>>,
    pub default: DefaultAccess,
    pub mode: AccessMode,
}

/// One item of `allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub callers: Callers,
    /// Empty is every method.
    pub methods: Vec<Method>,
    /// Whole segments, without a slash at its end; `None` is every path.
    pub path_prefix: Option<String>,
}

/// Of whom a rule speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Every service of the mesh that has shown who it is.
    Identified,
    Service(ServiceName),
    /// Whoever has not shown who it is.
    Unidentified,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'r> {
    /// The service that the caller has shown to be.
    pub caller: Option<&'r ServiceName>,
    pub method: &'r Method,
    /// As it is sent on, without the query.
    pub path: &'r str,
}

/// Why a request is denied. The nearest that any rule came to allowing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denial {
    /// The mesh's default.
    Default,
    /// The caller has not shown who it is.
    Unidentified,
    /// No rule speaks of this caller.
    Caller,
    Method,
    Path,
    /// A rule would allow it if the path could be read in one way only.
    AmbiguousPath,
}

impl Denial {
    /// The word of the metric label `rule`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AmbiguousPath => "ambiguous_path",
            Self::Caller => "caller",
            Self::Default => "default",
            Self::Method => "method",
            Self::Path => "path",
            Self::Unidentified => "unidentified",
        }
    }

    /// What the caller is told.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Self::AmbiguousPath => {
                "the path can be read in more than one way, and who may call depends on it"
            }
            Self::Caller => "this caller may not call the service",
            Self::Default => "nobody may call the service until it says who",
            Self::Method => "this caller may not call the service by this method",
            Self::Path => "this caller may not call the service at this path",
            Self::Unidentified => "callers of the service must show who they are",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Access {
    /// Whether a request may be made. What a dry run makes of a denial is the caller's to see to.
    ///
    /// # Errors
    /// Why not.
    pub fn decide(&self, asking: &Asking<'_>) -> Result<(), Denial> {
        let Some(rules) = &self.allow else {
            return match self.default {
                DefaultAccess::Allow => Ok(()),
                DefaultAccess::Deny => Err(Denial::Default),
            };
        };
        let mut nearest = if asking.caller.is_some() { Denial::Caller } else { Denial::Unidentified };
        for rule in rules {
            match rule.allows(asking) {
                Ok(()) => return Ok(()),
                Err(denial) => nearest = nearest.max(denial),
            }
        }
        Err(nearest)
    }

    /// Whether everybody may do everything.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_none() && self.default == DefaultAccess::Allow
    }
}

impl Rule {
    fn allows(&self, asking: &Asking<'_>) -> Result<(), Denial> {
        match (&self.callers, asking.caller) {
            (Callers::Identified, Some(_)) | (Callers::Unidentified, None) => {}
            (Callers::Service(named), Some(caller)) if named == caller => {}
            (_, Some(_)) => return Err(Denial::Caller),
            (_, None) => return Err(Denial::Unidentified),
        }
        if !self.methods.is_empty() && !self.methods.contains(asking.method) {
            return Err(Denial::Method);
        }
        let Some(prefix) = &self.path_prefix else { return Ok(()) };
        if !has_prefix(asking.path, prefix) {
            return Err(Denial::Path);
        }
        if is_ambiguous(asking.path) { Err(Denial::AmbiguousPath) } else { Ok(()) }
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        if value.is_text() {
            let callers = read_callers(value)?;
            return Some(Self { callers, methods: Vec::new(), path_prefix: None });
        }
        let mut table = value.table()?;
        let (service, unidentified) = (table.optional("service"), table.optional("unidentified"));
        let methods = table.optional("methods").and_then(|v| read_methods(&v)).unwrap_or_default();
        let path_prefix = table.optional("path_prefix").map(|v| read_plain_prefix(&v));
        table.finish();
        let callers = match (service, unidentified) {
            (Some(service), None) => read_callers(&service),
            (None, Some(said)) if said.boolean()? => Some(Callers::Unidentified),
            _ => {
                table_fault(value);
                None
            }
        };
        // A path that is wrong must not become every path.
        let path_prefix = match path_prefix {
            Some(prefix) => Some(prefix?),
            None => None,
        };
        Some(Self { callers: callers?, methods, path_prefix })
    }
}

fn table_fault(value: &Value<'_>) {
    value.fault("a rule speaks of somebody", "service = \"NAME\", service = \"*\", or unidentified = true");
}

/// Whether somebody may read a path otherwise than as its bytes stand there: dot segments and double slashes, which some
/// take out; backslashes, which some turn; what servers put behind `;`; and dots, slashes, backslashes, semicolons and
/// what is no text in percent-encoding, once or several times over, also as overlong UTF-8.
#[must_use]
pub fn is_ambiguous(path: &str) -> bool {
    let is_odd_segment = |segment: &str| segment == "." || segment == "..";
    let segments_are_odd = path.contains("//") || path.split('/').any(is_odd_segment);
    segments_are_odd
        || path.contains(['\\', ';'])
        || !path.starts_with('/')
        || has_odd_escape(path.as_bytes())
}

/// Whether there is a percent sign that hides something, or begins nothing.
fn has_odd_escape(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        rest = &rest[at + 1..];
        // `%2525…2e`, read often enough, is a dot: encoded percent signs count for what stands behind them.
        let mut inner = rest;
        let mut is_nested = false;
        while let Some(after) = inner.strip_prefix(b"25") {
            (inner, is_nested) = (after, true);
        }
        let decoded = inner.split_first_chunk::<2>().and_then(|(digits, _)| hex(*digits));
        match decoded {
            // What hides no other character, or is never a part of UTF-8.
            Some(b'.' | b'/' | b'\\' | b';' | 0..=0x1f | 0x7f | 0xc0 | 0xc1 | 0xf5..=0xff) => return true,
            // What need not be encoded is compared as it stands, and may be read as what it means.
            Some(byte) if !is_nested && (byte.is_ascii_alphanumeric() || b"-_~".contains(&byte)) => {
                return true;
            }
            Some(_) => {}
            // A percent sign at the end of encoded ones stands for itself.
            None if is_nested => {}
            None => return true,
        }
    }
    false
}

fn hex(digits: [u8; 2]) -> Option<u8> {
    let text = std::str::from_utf8(&digits).ok()?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(text, 16).ok()
}

/// `allow` of a service.
pub(crate) fn read_rules(value: &Value<'_>) -> Option<Vec<Rule>> {
    let items = value.items()?;
    if items.len() > RULES_MAX {
        value.fault(format!("{} rules", items.len()), format!("at most {RULES_MAX}"));
        return None;
    }
    Some(items.iter().filter_map(Rule::read).collect())
}

const DEFAULTS: [(&str, DefaultAccess); 2] = [("allow", DefaultAccess::Allow), ("deny", DefaultAccess::Deny)];
const MODES: [(&str, AccessMode); 2] = [("enforce", AccessMode::Enforce), ("dry_run", AccessMode::DryRun)];

pub(crate) fn read_default(value: &Value<'_>) -> Option<DefaultAccess> {
    value.choice(&DEFAULTS)
}

pub(crate) fn read_mode(value: &Value<'_>) -> Option<AccessMode> {
    value.choice(&MODES)
}

fn read_callers(value: &Value<'_>) -> Option<Callers> {
    if value.text()? == "*" {
        return Some(Callers::Identified);
    }
    value.named(ServiceName::parse).map(Callers::Service)
}

fn read_methods(value: &Value<'_>) -> Option<Vec<Method>> {
    let items = value.items()?;
    if items.is_empty() || items.len() > METHODS_MAX {
        value.fault(
            format!("{} methods", items.len()),
            format!("1 to {METHODS_MAX}, or none said for every one"),
        );
        return None;
    }
    Some(items.iter().filter_map(read_method).collect())
}

fn read_plain_prefix(value: &Value<'_>) -> Option<String> {
    let prefix = read_prefix(value)?;
    if is_ambiguous(&format!("{prefix}/")) {
        value.fault(
            "a path that can be read in more than one way",
            "as it is sent, without dots, `//`, `;` or `%`",
        );
        return None;
    }
    Some(prefix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::Document;
    use crate::snapshot::{Membership, Snapshot};

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    fn read(keys: &str) -> Result<Access, String> {
        let text = format!("[services.profile]\n{keys}\n[services.shop]\n[services.admin]\n");
        let document = Document::parse_toml(&text).map_err(|problems| problems.to_string())?;
        Ok(Snapshot::join(&document, &Membership::new()).access_of("profile"))
    }

    fn ask(access: &Access, caller: Option<&str>, method: &str, path: &str) -> Result<(), Denial> {
        let caller = caller.map(name);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        access.decide(&Asking { caller: caller.as_ref(), method: &method, path })
    }

    #[test]
    fn rules_allow_and_what_they_do_not_allow_is_denied() {
        let access = read(
            "allow = [\"shop\", { service = \"admin\", methods = [\"GET\"], path_prefix = \"/users\" }, \
             { unidentified = true, path_prefix = \"/healthz\" }, { service = \"*\", methods = [\"OPTIONS\"] }]",
        )
        .unwrap();
        for (caller, method, path, expected) in [
            (Some("shop"), "DELETE", "/anything/../at//all", Ok(())),
            (Some("admin"), "GET", "/users", Ok(())),
            (Some("admin"), "GET", "/users/7", Ok(())),
            (Some("admin"), "GET", "/users/", Ok(())),
            (Some("admin"), "POST", "/users", Err(Denial::Method)),
            (Some("admin"), "GET", "/usersx", Err(Denial::Path)),
            (Some("admin"), "GET", "/Users", Err(Denial::Path)),
            (Some("admin"), "GET", "/", Err(Denial::Path)),
            (Some("admin"), "GET", "*", Err(Denial::Path)),
            (Some("admin"), "GET", "/users/../admin", Err(Denial::AmbiguousPath)),
            (Some("ads"), "GET", "/users", Err(Denial::Method)),
            (Some("ads"), "OPTIONS", "/x", Ok(())),
            (None, "OPTIONS", "/x", Err(Denial::Path)),
            (None, "GET", "/healthz", Ok(())),
        ] {
            assert_eq!(ask(&access, caller, method, path), expected, "{caller:?} {method} {path}");
        }
    }

    #[test]
    fn silence_is_the_default_and_an_empty_list_is_nobody() {
        assert_eq!(ask(&read("").unwrap(), None, "GET", "/"), Ok(()));
        assert!(read("").unwrap().is_open());
        let closed = Access { default: DefaultAccess::Deny, ..Access::default() };
        assert_eq!(ask(&closed, Some("shop"), "GET", "/"), Err(Denial::Default));
        let nobody = read("allow = []").unwrap();
        assert_eq!(ask(&nobody, Some("shop"), "GET", "/"), Err(Denial::Caller));
        assert_eq!(ask(&nobody, None, "GET", "/"), Err(Denial::Unidentified));
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_known() {
        for path in [
            "/users/../admin",
            "/users/..",
            "/users/./x",
            "/users//admin",
            "//users",
            "/users/%2e%2e/admin",
            "/users/%2E%2e/admin",
            "/users/.%2e/admin",
            "/users%2f..%2fadmin",
            "/users%2Fadmin",
            "/users/%5c..%5cadmin",
            "/users\\..\\admin",
            "/users/..;/admin",
            "/users;x=1/admin",
            "/users/%3b/admin",
            "/users/%252e%252e/admin",
            "/users/%25252e%25252e/admin",
            "/users/%252fadmin",
            "/users/%00",
            "/users/%0a",
            "/users/%7f",
            "/users/%c0%ae%c0%ae/admin",
            "/users/%c0%afadmin",
            "/users/%ff",
            "/users/%",
            "/users/%2",
            "/users/%zz",
            "/users/%u002e",
            "/users/%+2e",
            "/%75sers",
            "",
            "*",
            "users",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in [
            "/",
            "/users",
            "/users/",
            "/users/7",
            "/users/a.b",
            "/users/...",
            "/users/..a",
            "/users/a%20b",
            "/users/%C3%A9t%C3%A9",
            "/users/100%25",
            "/users/%25ab",
            "/users/~x-_",
            "/users/a:b@c,d=e+f!$&'()*",
        ] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn what_would_allow_more_than_it_says_is_refused() {
        for (keys, told) in [
            ("allow = \"shop\"", "a list"),
            ("allow = [\"Shop\"]", "not understood"),
            ("allow = [{ methods = [\"GET\"] }]", "speaks of somebody"),
            ("allow = [{ unidentified = false }]", "speaks of somebody"),
            ("allow = [{ service = \"shop\", unidentified = true }]", "speaks of somebody"),
            ("allow = [{ service = \"shop\", methods = [] }]", "0 methods"),
            ("allow = [{ service = \"shop\", methods = [\"get\"] }]", "not a method"),
            ("allow = [{ service = \"shop\", path_prefix = \"users\" }]", "not a path"),
            ("allow = [{ service = \"shop\", path_prefix = \"/users/../x\" }]", "more than one way"),
            ("allow = [{ service = \"shop\", path_prefix = \"/%75sers\" }]", "more than one way"),
            ("allow = [{ service = \"shop\", path = \"/users\" }]", "unknown key"),
            ("access_mode = \"off\"", "one of: enforce, dry_run"),
        ] {
            assert!(read(keys).unwrap_err().contains(told), "{keys}: {}", read(keys).unwrap_err());
        }
        let all = read("allow = [{ service = \"shop\", path_prefix = \"/\" }]").unwrap();
        assert_eq!(ask(&all, Some("shop"), "GET", "/x"), Ok(()));
        assert_eq!(ask(&all, Some("shop"), "GET", "/x/../y"), Err(Denial::AmbiguousPath));
    }

    /// What servers make of a path: decoded as often as it changes, backslashes turned, parameters dropped, double
    /// slashes and dot segments resolved.
    fn resolved(path: &str) -> String {
        let mut text = path.to_owned();
        for _ in 0..8 {
            let bytes = text.as_bytes();
            let (mut decoded, mut at) = (Vec::new(), 0);
            while at < bytes.len() {
                let code = bytes.get(at + 1..at + 3).and_then(|two| hex([two[0], two[1]]));
                match (bytes[at], code) {
                    (b'%', Some(byte)) => {
                        decoded.push(byte);
                        at += 3;
                    }
                    (byte, _) => {
                        decoded.push(byte);
                        at += 1;
                    }
                }
            }
            text = String::from_utf8_lossy(&decoded).into_owned();
        }
        let mut segments: Vec<&str> = Vec::new();
        let turned = text.replace('\\', "/");
        for segment in turned.split('/').map(|segment| segment.split(';').next().unwrap_or_default()) {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                other => segments.push(other),
            }
        }
        format!("/{}", segments.join("/"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn whatever_a_server_makes_of_an_allowed_path_lies_below_the_prefix(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "/", "users", "admin", ".", "..", "%2e", "%2F", "%5c", "\\", ";", "%25", "2e", "2f", "%", "%75", "a",
                    "%c0%ae", "%3B", "25", "é", "%C3%A9",
                ]),
                0..8,
            ),
        ) {
            let path = format!("/users{}", parts.concat());
            let rule = Rule {
                callers: Callers::Identified,
                methods: Vec::new(),
                path_prefix: Some("/users".to_owned()),
            };
            let access = Access { allow: Some(vec![rule]), ..Access::default() };
            if ask(&access, Some("shop"), "GET", &path).is_ok() {
                let seen = resolved(&path);
                prop_assert!(has_prefix(&seen, "/users"), "{path} is {seen}");
            }
        }
    }
}
