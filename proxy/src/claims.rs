//! Fields by which a caller would speak for the mesh: the mesh's own, and those that say for whom a request is made.

use gilmok_config::flag::FlagSet;
use http::HeaderMap;

/// Whether a field is the mesh's.
pub(crate) fn is_mesh(name: &str) -> bool {
    name.starts_with("gilmok-") || name == "feature-flags"
}

/// Whether a field says for whom a request is made, or how it came.
pub(crate) fn is_forwarding(name: &str) -> bool {
    name.starts_with("x-forwarded-") || name == "forwarded"
}

/// Whether an application may take a field for one of these: CGI and what came of it write every `-` as `_`, so that
/// `Gilmok_Version` and `Gilmok-Version` are the same there.
pub(crate) fn is_look_alike(name: &str) -> bool {
    if !name.contains('_') {
        return false;
    }
    let meant = name.replace('_', "-");
    is_mesh(&meant) || is_forwarding(&meant) || meant == "x-request-id"
}

/// Takes them out of a request's trailers, which some applications join with its headers. The mesh sends none there.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers, |name| is_mesh(name) || is_forwarding(name) || is_look_alike(name));
}

/// Takes out the headers that flags have for themselves, and what looks like them; of who is believed only the latter.
pub(crate) fn strip_flags(headers: &mut HeaderMap, set: &FlagSet, believed: bool) {
    if !set.single_headers().is_empty() {
        strip(headers, |name| set.is_like_single_header(name) && !(believed && set.is_single_header(name)));
    }
}

/// Takes out every field of these names.
pub(crate) fn strip(headers: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| goes(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alikes_are_known_and_others_are_left_alone() {
        for name in
            ["gilmok_version", "feature_flags", "x_forwarded_for", "x-forwarded_client-cert", "x_request_id"]
        {
            assert!(is_look_alike(name), "{name}");
        }
        for name in ["gilmok-version", "user_id", "feature_policy", "x-request-id", "xforwarded_for", ""] {
            assert!(!is_look_alike(name), "{name}");
        }
    }
}
