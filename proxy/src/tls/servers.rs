//! Calling servers of our own over TLS: control planes, by their names, with our identity where we have one.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::system_authorities;
use super::mesh::Mesh;
use super::pair::{Roots, client};
use super::verify::told;

/// Makes a connection to `host` one over TLS. Everything is read anew: connections are few and kept, and a new file counts
/// with the next of them. The caller bounds the time.
///
/// # Errors
/// Why it cannot be, in words for an operator.
pub(crate) async fn connect_server<T: AsyncRead + AsyncWrite + Unpin>(
    host: &str,
    ca_file: Option<&Path>,
    identity: Option<&Mesh>,
    stream: T,
) -> Result<TlsStream<T>, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(config(ca_file, identity)?);
    connector.connect(name, stream).await.map_err(|error| told(&error))
}

fn config(ca_file: Option<&Path>, identity: Option<&Mesh>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = match ca_file {
        Some(file) => RootCertStore::clone(&Roots::read(file)?.store),
        None => system_authorities(),
    };
    // A file of roots is a copy; those of our identity follow a change of the mesh's.
    if let (Some(_), Some(mesh)) = (ca_file, identity) {
        roots.roots.extend(mesh.roots.store.roots.iter().cloned());
    }
    let builder = client().with_root_certificates(roots);
    let mut config = match identity {
        Some(mesh) => {
            let certificate = SingleCertAndKey::from((*mesh.pair.certified).clone());
            builder.with_client_cert_resolver(Arc::new(certificate))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
