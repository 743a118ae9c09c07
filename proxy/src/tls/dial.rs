//! Calling over TLS: a sidecar of the mesh, which must be the service that was meant, or a service that speaks TLS itself.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::{env, fmt, io};

use gilmok_config::address::Address;
use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::ServiceName;
use gilmok_config::service::{Protocol, ServicePolicy};
use gilmok_config::tls::UpstreamTls;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, Error, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, TlsStream};

use super::mesh::Mesh;
use super::pair::{client, read};
use super::verify::{Unverified, told as told_of};
use super::{CLIENT_SESSIONS_MAX, Mode, alpn, unix_now};

/// Where the systems that we know keep the authorities they believe: Debian, Red Hat, SUSE, Alpine. A path in
/// `SSL_CERT_FILE` wins, as everywhere.
const SYSTEM_CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// What no certificate is for (RFC 6761, 6.4).
static NOBODY: LazyLock<ServerName<'static>> =
    LazyLock::new(|| ServerName::try_from("nobody.invalid").expect("invariant: a sound name"));
/// How often it is told that an endpoint cannot be called, and why.
const TELL_SECONDS: u64 = 60;

/// How one endpoint is called.
#[derive(Debug)]
pub(crate) struct Dial {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// Whether HTTP/2 must be agreed upon.
    is_h2: bool,
    /// When it was told last that it failed, in seconds of Unix time. Relaxed: a number of its own.
    told_at: AtomicU64,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialError {
    /// It is not who it should be, or cannot prove it.
    Certificate,
    /// It refuses us, or speaks otherwise.
    Protocol,
    /// The connection ended.
    Closed,
}

/// How the endpoints of one service are called, kept over snapshots while nothing of it changes.
#[derive(Debug, Default)]
pub(crate) struct Dialing {
    protocol: Protocol,
    /// Sidecars that say they speak mutual TLS.
    mesh: Option<(Arc<Mesh>, Arc<ClientConfig>)>,
    /// Endpoints that speak TLS themselves.
    own: Option<(UpstreamTls, Arc<ClientConfig>)>,
}

impl Dialing {
    /// Builds what a service needs: nothing, mostly.
    pub(crate) fn build(
        service: &ServiceName,
        policy: &ServicePolicy,
        endpoints: &[Endpoint],
        identity: Option<&Arc<Mesh>>,
        before: Option<&Self>,
    ) -> Self {
        let before = before.filter(|before| before.protocol == policy.protocol);
        let is_wanted = |identity: &&Arc<Mesh>| {
            let calls = |endpoint| calls_mesh(identity, endpoint, policy.tls.is_some());
            endpoints.iter().any(calls)
        };
        let mesh = identity.filter(is_wanted).map(|identity| {
            let kept = before.and_then(|before| before.mesh.as_ref());
            let kept = kept.filter(|(kept, _)| Arc::ptr_eq(kept, identity));
            let config = match kept {
                Some((_, config)) => Arc::clone(config),
                None => identity.client_config(service, policy.protocol),
            };
            (Arc::clone(identity), config)
        });
        let own = policy.tls.as_ref().map(|tls| {
            let kept = before.and_then(|before| before.own.as_ref());
            let config = match kept.filter(|(kept, _)| kept == tls) {
                Some((_, config)) => Arc::clone(config),
                None => own_config(tls, policy.protocol),
            };
            (tls.clone(), config)
        });
        Self { protocol: policy.protocol, mesh, own }
    }

    /// How an endpoint is called that is at this address; `None` is in the clear. `before` is how it was called, and
    /// goes on while it is the same.
    pub(crate) fn of(
        &self,
        service: &ServiceName,
        endpoint: &Endpoint,
        ip: Option<IpAddr>,
        before: Option<&Arc<Dial>>,
    ) -> Option<Arc<Dial>> {
        let by_address = || ip.map(ServerName::from);
        let (config, name) = match (&self.mesh, &self.own) {
            (Some((mesh, config)), own) if calls_mesh(mesh, endpoint, own.is_some()) => {
                // Only a hint for whoever looks at the wire: who it must be stands in the verifier.
                (config, named(&format!("{service}.mesh")).or_else(by_address))
            }
            (_, Some((tls, config))) => {
                let of_address = match &endpoint.address {
                    Address::Name { host, .. } => named(host),
                    Address::Socket(_) | Address::Unix(_) => None,
                };
                let said = tls.server_name.as_deref().and_then(named);
                (config, said.or(of_address).or_else(by_address).or_else(|| named(service.as_str())))
            }
            (_, None) => return None,
        };
        // Whoever has no name at all is asked for none that anybody has: never called in the clear for it.
        let name = name.unwrap_or_else(|| NOBODY.clone());
        if let Some(before) =
            before.filter(|before| Arc::ptr_eq(&before.config, config) && before.name == name)
        {
            return Some(Arc::clone(before));
        }
        let (config, is_h2) = (Arc::clone(config), self.protocol == Protocol::H2);
        Some(Arc::new(Dial { config, name, is_h2, told_at: AtomicU64::new(0) }))
    }
}

/// Whether an endpoint is called over mutual TLS: a sidecar that says of itself that it speaks it; strictly, whoever is
/// not said to speak TLS itself.
fn calls_mesh(mesh: &Mesh, endpoint: &Endpoint, speaks_own: bool) -> bool {
    (endpoint.inbound && endpoint.mtls) || (mesh.calls == Mode::Strict && !speaks_own)
}

fn named(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).ok()
}

fn own_config(tls: &UpstreamTls, protocol: Protocol) -> Arc<ClientConfig> {
    let builder = client();
    let mut config = if tls.verify {
        builder.with_root_certificates(roots(tls.ca.as_deref())).with_no_client_auth()
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified::new()))
            .with_no_client_auth()
    };
    config.alpn_protocols = alpn(protocol);
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
    Arc::new(config)
}

/// The authorities that are believed. Where there are none, nobody is: calls fail and say why.
fn roots(ca: Option<&str>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    let (pem, of) = match ca {
        Some(pem) => (Some(pem.as_bytes().to_vec()), "the document"),
        None => (system_roots(), "this system"),
    };
    let certificates = pem.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem).flatten());
    let (added, ignored) = store.add_parsable_certificates(certificates);
    if added == 0 {
        tracing::error!("no authority of {of} can be used, so no endpoint that speaks TLS is believed");
    } else if ignored > 0 {
        tracing::warn!("{ignored} of {} authorities of {of} cannot be used", added + ignored);
    }
    store
}

/// The authorities that this system believes.
pub(super) fn system_authorities() -> RootCertStore {
    roots(None)
}

fn system_roots() -> Option<Vec<u8>> {
    let said = env::var_os("SSL_CERT_FILE");
    let mut files = said.iter().map(Path::new).chain(SYSTEM_CA_FILES.iter().map(Path::new));
    let file = files.find(|file| file.is_file())?;
    read(file).map(|bytes| bytes.to_vec()).inspect_err(|why| tracing::error!("{why}")).ok()
}

impl Dial {
    /// Makes a connection one over TLS. The caller bounds the time.
    ///
    /// # Errors
    /// Why it cannot be; who is to be called is told, once in a while.
    pub(crate) async fn connect<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        peer: &(dyn fmt::Display + Sync),
        stream: T,
    ) -> Result<Box<TlsStream<T>>, DialError> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = match connector.connect(self.name.clone(), stream).await {
            Ok(stream) => stream,
            Err(error) => {
                let why = of_error(&error);
                self.tell(peer, &told_of(&error));
                return Err(why);
            }
        };
        if self.is_h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            self.tell(peer, &"it does not speak HTTP/2");
            return Err(DialError::Protocol);
        }
        Ok(Box::new(stream.into()))
    }

    fn tell(&self, peer: &(dyn fmt::Display + Sync), why: &dyn fmt::Display) {
        let now = unix_now();
        if now.saturating_sub(self.told_at.load(Relaxed)) >= TELL_SECONDS {
            self.told_at.store(now, Relaxed);
            tracing::warn!("no TLS with {} at {peer}: {why}", self.name.to_str());
        }
    }
}

/// Whether a callee has refused us by what it thinks of our certificate. It says so after the handshake, where a request
/// may be on its way already, and has delivered nothing of it (RFC 8446, 4.4.2.4).
pub(crate) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::AlertDescription as Alert;
    let error = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
    let Some(Error::AlertReceived(alert)) = error.and_then(|source| source.downcast_ref::<Error>()) else {
        return false;
    };
    matches!(
        alert,
        Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            // Its signature is not the authority's.
            | Alert::DecryptError
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
    )
}

fn of_error(error: &io::Error) -> DialError {
    match error.get_ref().and_then(|source| source.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => DialError::Certificate,
        Some(_) => DialError::Protocol,
        None => DialError::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::mesh::IdentityFiles;
    use super::*;
    use crate::testing::Folder;
    use crate::testing::certificates::{Authority, write};

    fn identity(calls: Mode) -> Arc<Mesh> {
        let (dir, authority) = (Folder::new("dial"), Authority::new("mesh"));
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let pair = write(&dir, "own", &authority.leaf("spiffe://mesh/service/shop"));
        Arc::new(Mesh::read(&IdentityFiles { pair, ca_file }, calls).unwrap())
    }

    fn endpoint(address: &str, is_sidecar: bool) -> Endpoint {
        let mut endpoint = Endpoint::at(address.parse().unwrap());
        (endpoint.inbound, endpoint.mtls) = (is_sidecar, is_sidecar);
        endpoint
    }

    fn policy(tls: Option<&str>) -> ServicePolicy {
        let own = |name: &str| UpstreamTls {
            ca: None,
            server_name: (!name.is_empty()).then(|| name.to_owned()),
            verify: false,
        };
        ServicePolicy { tls: tls.map(own), ..ServicePolicy::default() }
    }

    /// The name that an endpoint is asked for; `None` is in the clear.
    fn asked(
        service: &str,
        policy: &ServicePolicy,
        mesh: Option<&Arc<Mesh>>,
        endpoint: &Endpoint,
    ) -> Option<String> {
        let service = ServiceName::parse(service).unwrap();
        let all = std::slice::from_ref(endpoint);
        let ip = match &endpoint.address {
            Address::Socket(socket) => Some(socket.ip()),
            Address::Name { .. } => Some([10, 0, 0, 9].into()),
            Address::Unix(_) => None,
        };
        let dial = Dialing::build(&service, policy, all, mesh, None).of(&service, endpoint, ip, None);
        dial.map(|dial| dial.name.to_str().into_owned())
    }

    #[test]
    fn who_is_called_how() {
        let (gentle, strict) = (identity(Mode::Permissive), identity(Mode::Strict));
        let (sidecar, other) = (endpoint("10.0.0.1:1", true), endpoint("10.0.0.1:1", false));
        let (named, local) = (endpoint("ads.example:1", false), endpoint("unix:///ads.sock", false));
        let (plain, own, said) = (policy(None), policy(Some("")), policy(Some("ads.internal")));
        for (policy, mesh, endpoint, expected) in [
            (&plain, None, &sidecar, None),
            (&plain, Some(&gentle), &sidecar, Some("ads.mesh")),
            (&plain, Some(&gentle), &other, None),
            (&plain, Some(&strict), &other, Some("ads.mesh")),
            (&own, Some(&strict), &other, Some("10.0.0.1")),
            (&own, Some(&gentle), &sidecar, Some("ads.mesh")),
            (&own, None, &named, Some("ads.example")),
            (&said, None, &named, Some("ads.internal")),
            (&said, None, &other, Some("ads.internal")),
            (&own, None, &local, Some("ads")),
        ] {
            assert_eq!(asked("ads", policy, mesh, endpoint).as_deref(), expected, "{policy:?} {endpoint:?}");
        }
        // A name that cannot be asked for is no reason to speak in the clear.
        let strange = asked("a-.b", &plain, Some(&gentle), &endpoint("unix:///x.sock", true));
        assert_eq!(strange.as_deref(), Some("nobody.invalid"));
    }

    #[test]
    fn what_is_unchanged_goes_on_and_services_share_nothing() {
        let mesh = identity(Mode::Permissive);
        let (ads, news) = (ServiceName::parse("ads").unwrap(), ServiceName::parse("news").unwrap());
        let (policy, all) = (policy(None), [endpoint("10.0.0.1:1", true)]);
        let build = |service, before| Dialing::build(service, &policy, &all, Some(&mesh), before);
        let of = |dialing: &Dialing, service, before| dialing.of(service, &all[0], None, before).unwrap();
        let first = build(&ads, None);
        let dial = of(&first, &ads, None);
        let second = build(&ads, Some(&first));
        assert!(Arc::ptr_eq(&of(&second, &ads, Some(&dial)), &dial));
        assert!(!Arc::ptr_eq(&of(&build(&news, None), &news, None).config, &dial.config), "nor sessions");
    }
}
