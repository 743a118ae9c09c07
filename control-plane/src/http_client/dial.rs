//! Opening a connection to an origin: TCP, TLS over TCP, or a unix domain socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{Error, Origin};

/// The trust store of Debian and its relatives, for `https` without a `ca_file`.
const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How an `https` origin is checked, and who we say we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file of the authorities that are believed; default: the system's own.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate and its chain; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the private key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have; default: the origin's.
    pub server_name: Option<String>,
}

impl TlsSettings {
    /// Reads the files.
    ///
    /// They are read for each new connection, so that a rotated certificate is used without a restart;
    /// connections are few and kept.
    pub(super) fn load(&self) -> Result<Arc<rustls::ClientConfig>, Error> {
        let ca_file = self.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_CA_FILE));
        let mut roots = rustls::RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(read_certificates(ca_file)?);
        if added == 0 {
            return Err(Error::Settings(format!("{}: no certificate in it", ca_file.display())));
        }
        // The provider is passed, never process-global: no other part of the process can change it.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Settings(error.to_string()))?
            .with_root_certificates(roots);
        let config = match (&self.cert_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert_file), Some(key_file)) => {
                let key = PrivateKeyDer::from_pem_file(key_file)
                    .map_err(|error| Error::Settings(format!("{}: {error}", key_file.display())))?;
                builder
                    .with_client_auth_cert(read_certificates(cert_file)?, key)
                    .map_err(|error| Error::Settings(format!("{}: {error}", cert_file.display())))?
            }
            _ => return Err(Error::Settings("cert_file and key_file belong together".to_owned())),
        };
        Ok(Arc::new(config))
    }
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    read.map_err(|error| Error::Settings(format!("{}: {error}", file.display())))
}

/// What bytes go over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Opens a connection. The caller bounds the time.
pub(super) async fn dial(origin: &Origin, tls: &TlsSettings) -> Result<Box<dyn Stream>, Error> {
    let unreachable =
        |error: io::Error| Error::Unreachable { origin: origin.clone(), reason: error.to_string() };
    match origin {
        Origin::Http { host, port } => Ok(Box::new(tcp(host, *port).await.map_err(unreachable)?)),
        Origin::Https { host, port } => {
            let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
            let name = ServerName::try_from(name)
                .map_err(|error| Error::Settings(format!("server name of {origin}: {error}")))?;
            let connector = tokio_rustls::TlsConnector::from(tls.load()?);
            let stream = tcp(host, *port).await.map_err(unreachable)?;
            Ok(Box::new(connector.connect(name, stream).await.map_err(unreachable)?))
        }
        Origin::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(unreachable)?)),
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
