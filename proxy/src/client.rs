//! For which address a request is made, as those say who are trusted.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName};

use crate::settings::Network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address that a trusted peer calls for: the last one in `X-Forwarded-For` that is not trusted itself, or the
/// first one named; the peer's own where it names none.
pub(crate) fn named_client(peer: IpAddr, trusted: &[Network], headers: &HeaderMap) -> IpAddr {
    // The peer itself is trusted, by its address or by what it has shown of itself.
    let mut client = peer;
    let mut is_first = true;
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let entries = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    for entry in entries {
        if !is_first && !trusted.iter().any(|network| network.contains(client)) {
            break;
        }
        is_first = false;
        let Ok(named) = entry.trim().parse::<IpAddr>() else { break };
        client = named.to_canonical();
    }
    client
}
