//! Routes: which requests go to which service when the host alone does not say it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use regex::Regex;

use crate::grammar::{Table, Value};
use crate::name::ServiceName;
use crate::path::{has_prefix, read_absolute, read_method, read_prefix};
use crate::service::read_hosts;

/// Most routes of a mesh.
pub const ROUTES_MAX: usize = 10_000;
/// Largest compiled size of a `path_regex`, in bytes; the engine runs in linear time.
const REGEX_BYTES_MAX: usize = 256 << 10;
/// Most routes with a `path_regex`: what they hold in memory together is bounded by this.
const REGEXES_MAX: usize = 1_000;

/// One `[[routes]]` table.
#[derive(Clone, Debug)]
pub struct Route {
    /// Canonical hosts; empty matches every host.
    pub hosts: Vec<String>,
    pub path: PathMatch,
    /// Empty matches every method.
    pub methods: Vec<Method>,
    /// All of them must be there with this value.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// This flag has this variant for whoever asks.
    pub when_flag: Option<WhenFlag>,
    pub service: ServiceName,
    /// Taken off the path before it is sent on; whole segments.
    pub strip_prefix: Option<String>,
    /// Instead of the service's own.
    pub request_timeout: Option<Duration>,
}

/// `when_flag = "new-checkout:on"`: the flag, evaluated with the subject of the route's own service, and the variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhenFlag {
    flag: Box<str>,
    variant: Box<str>,
}

impl WhenFlag {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // Keys may hold anything; names of variants with a colon are the rarer ones.
        let (flag, variant) = text.rsplit_once(':')?;
        let is_sound = !flag.is_empty() && !variant.is_empty();
        is_sound.then(|| Self { flag: flag.into(), variant: variant.into() })
    }

    #[must_use]
    pub fn flag(&self) -> &str {
        &self.flag
    }

    #[must_use]
    pub fn variant(&self) -> &str {
        &self.variant
    }
}

/// How a route looks at the path. The path is compared as it was sent: no decoding, case matters.
#[derive(Clone, Debug)]
pub enum PathMatch {
    Any,
    Exact(String),
    /// Whole segments: `/api` matches `/api` and `/api/x`, not `/apix`. Kept without a trailing `/`.
    Prefix(String),
    /// The whole path.
    Regex(Regex),
}

impl Route {
    /// Whether the request is this route's, as far as itself says. The host was compared already; what flags say is to come.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.path.matches(path)
            && (self.methods.is_empty() || self.methods.contains(method))
            && self
                .headers
                .iter()
                .all(|(name, value)| headers.get_all(name).iter().any(|found| found == value))
    }

    /// Whether every request that `later` could match is taken by this route already.
    fn covers(&self, later: &Self) -> bool {
        let hosts = self.hosts.is_empty()
            || (!later.hosts.is_empty() && later.hosts.iter().all(|host| self.hosts.contains(host)));
        let methods = self.methods.is_empty()
            || (!later.methods.is_empty()
                && later.methods.iter().all(|method| self.methods.contains(method)));
        let headers = self.headers.iter().all(|header| later.headers.contains(header));
        let flags = self.when_flag.is_none() || self.when_flag == later.when_flag;
        hosts && methods && headers && flags && self.path.covers(&later.path)
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let hosts = table.optional("hosts").and_then(|v| read_hosts(&v)).unwrap_or_default();
        let path = read_path(&mut table);
        let methods = table.optional("methods").and_then(|v| v.list(read_method)).unwrap_or_default();
        let headers = table.optional("headers").and_then(|v| read_headers(&v)).unwrap_or_default();
        let when_flag = table.optional("when_flag").and_then(|v| read_when_flag(&v));
        let service = table.required("service").and_then(|v| v.named(ServiceName::parse));
        let strip_prefix = table.optional("strip_prefix").and_then(|v| read_prefix(&v));
        let request_timeout = table
            .optional("request_timeout")
            .and_then(|v| v.duration(Duration::from_millis(1), Duration::from_hours(24)));
        if let (Some(strip), Some(path)) = (&strip_prefix, &path)
            && !path.is_within(strip)
        {
            value.fault(
                format!("strip_prefix = \"{strip}\" is no part of what this route matches"),
                "the path must begin with the prefix that is stripped",
            );
        }
        table.finish();
        let (path, service) = (path?, service?);
        Some(Self { hosts, path, methods, headers, when_flag, service, strip_prefix, request_timeout })
    }
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => has_prefix(path, prefix),
            Self::Regex(regex) => regex.is_match(path),
        }
    }

    fn covers(&self, later: &Self) -> bool {
        match (self, later) {
            (Self::Any, _) => true,
            (Self::Exact(mine), Self::Exact(theirs)) => mine == theirs,
            (Self::Prefix(mine), Self::Prefix(theirs) | Self::Exact(theirs)) => has_prefix(theirs, mine),
            (Self::Regex(mine), Self::Regex(theirs)) => mine.as_str() == theirs.as_str(),
            (Self::Regex(mine), Self::Exact(theirs)) => mine.is_match(theirs),
            (Self::Exact(_) | Self::Prefix(_) | Self::Regex(_), _) => false,
        }
    }

    /// Whether every path that matches begins with `prefix`. Of a regex that is not known: it may.
    fn is_within(&self, prefix: &str) -> bool {
        match self {
            Self::Any => false,
            Self::Exact(path) | Self::Prefix(path) => has_prefix(path, prefix),
            Self::Regex(_) => true,
        }
    }
}

/// Reads the routes and refuses those that no request can reach.
pub(crate) fn read_all(value: &Value<'_>) -> Vec<Route> {
    let Some(items) = value.items() else { return Vec::new() };
    if items.len() > ROUTES_MAX {
        value.fault(format!("{} routes", items.len()), format!("at most {ROUTES_MAX}"));
        return Vec::new();
    }
    let mut routes: Vec<Route> = Vec::with_capacity(items.len());
    let mut regexes = 0;
    // Only routes that share a host, or have none, can cover each other.
    let mut by_host: std::collections::HashMap<String, Vec<usize>> = std::collections::HashMap::new();
    for item in &items {
        let Some(route) = Route::read(item) else { continue };
        regexes += usize::from(matches!(route.path, PathMatch::Regex(_)));
        if regexes > REGEXES_MAX {
            item.fault("too many routes with a path_regex", format!("at most {REGEXES_MAX}"));
            break;
        }
        let mut candidates: Vec<usize> = by_host.get("").cloned().unwrap_or_default();
        candidates.extend(route.hosts.first().and_then(|host| by_host.get(host)).into_iter().flatten());
        if let Some(earlier) = candidates.into_iter().find(|earlier| routes[*earlier].covers(&route)) {
            item.fault(
                format!("no request reaches this route: routes[{earlier}] takes them all"),
                "put the narrower route first",
            );
        }
        if route.hosts.is_empty() {
            by_host.entry(String::new()).or_default().push(routes.len());
        }
        for host in &route.hosts {
            by_host.entry(host.clone()).or_default().push(routes.len());
        }
        routes.push(route);
    }
    routes
}

fn read_path(table: &mut Table<'_>) -> Option<PathMatch> {
    let prefix = table.optional("path_prefix");
    let exact = table.optional("path");
    let regex = table.optional("path_regex");
    match (prefix, exact, regex) {
        (None, None, None) => Some(PathMatch::Any),
        (Some(prefix), None, None) => {
            let prefix = read_prefix(&prefix)?;
            Some(if prefix.is_empty() { PathMatch::Any } else { PathMatch::Prefix(prefix) })
        }
        (None, Some(exact), None) => read_absolute(&exact).map(|path| PathMatch::Exact(path.to_owned())),
        (None, None, Some(regex)) => {
            let text = regex.text()?;
            // First by itself: `a)|(b` is sound only inside of what makes it match the whole path.
            let build = |text: &str| regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
            match build(text).and_then(|_| build(&format!("^(?:{text})$"))) {
                Ok(compiled) => Some(PathMatch::Regex(compiled)),
                Err(error) => {
                    let what = error.to_string().lines().last().unwrap_or_default().to_owned();
                    regex.fault(format!("not a regular expression: {what}"), "");
                    None
                }
            }
        }
        _ => {
            table.value().fault("more than one of `path_prefix`, `path` and `path_regex`", "one of them");
            None
        }
    }
}

fn read_when_flag(value: &Value<'_>) -> Option<WhenFlag> {
    let when = WhenFlag::parse(value.text()?);
    if when.is_none() {
        value.fault("not a flag and a variant", "\"new-checkout:on\"");
    }
    when
}

fn read_headers(value: &Value<'_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (name, expected) in value.entries()? {
        let parsed = HeaderName::from_bytes(name.as_bytes());
        if parsed.is_err() {
            expected.fault("not a header name", "");
        }
        let text = expected.text();
        let wanted = text.and_then(|text| HeaderValue::from_str(text).ok());
        if text.is_some() && wanted.is_none() {
            expected.fault("not a header value", "visible ASCII characters");
        }
        if let (Ok(name), Some(wanted)) = (parsed, wanted) {
            if headers.iter().any(|(other, _)| *other == name) {
                expected.fault("the same header again in other letters", "one value for each header");
            }
            headers.push((name, wanted));
        }
    }
    Some(headers)
}
