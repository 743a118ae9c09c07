//! TLS on both sides of the proxy: who we are, who others are, and how that is found out.
//!
//! In reading order: reading a certificate with its key and the roots ([`pair`]), who a peer
//! is ([`verify`]); receiving clients outside ([`edge`]) and callers of the mesh ([`mesh`]), in a [`handshake`] that is
//! bounded, over a [`stream`] that may be plain; calling out ([`dial`]), control planes too
//! ([`servers`]); and how all of it follows its files ([`live`]).

mod pair;

mod verify;

mod edge;

mod mesh;

mod stream;

mod handshake;

mod dial;

mod servers;

mod live;

use gilmok_config::certificate as der;
use gilmok_config::service::Protocol;

pub(crate) use dial::{Dial, DialError, Dialing, is_refusal};
pub(crate) use handshake::Handshakes;
pub(crate) use live::{Door, Follower, Tls, TlsSettings};
pub(crate) use mesh::{CallerIdentity, IdentityFiles, IdentitySettings, IssuedSettings, Mesh};
pub(crate) use pair::{Pair, PairFiles, Roots};
pub(crate) use servers::connect_server;
pub(crate) use stream::Stream;

/// What servers offer, the best first.
const SERVER_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Sessions that are remembered for the endpoints of one service.
const CLIENT_SESSIONS_MAX: usize = 64;

/// Whether a listener that speaks TLS takes plaintext as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Both, told apart by the first byte; of callers of the mesh also those without a certificate.
    #[default]
    Permissive,
    /// TLS only; callers of the mesh must show who they are.
    Strict,
}

/// What is to be spoken over TLS, as it is offered to servers.
fn alpn(protocol: Protocol) -> Vec<Vec<u8>> {
    vec![match protocol {
        Protocol::H2 => b"h2".to_vec(),
        Protocol::Http1 => b"http/1.1".to_vec(),
    }]
}

/// Seconds of Unix time.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
