//! `[tls]`: how callers are received, and by which roots sidecars among them are known.

use std::path::Path;
use std::sync::Arc;

use gilmok_config::grammar::Value;
use gilmok_config::identity::Identity;
use rustls::pki_types::ServerName;

use super::read_path;
use crate::authority::{self, Authority};
use crate::tls::{Mode, TlsSettings};

/// Names of this machine for itself.
const NAMES_DEFAULT: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const NAMES_MAX: usize = 100;

/// Whether the certificate is made here.
const ISSUERS: [(&str, bool); 2] = [("files", false), ("identity", true)];
const MODES: [(&str, Mode); 2] = [("permissive", Mode::Permissive), ("strict", Mode::Strict)];

/// Reads the table. `own` is the authority of this control plane and the folder where it writes what it makes. Answers also the
/// names of the certificate that it is to make for this listener; none where there are files.
pub(super) fn read(
    value: &Value<'_>,
    folder: &Path,
    own: Option<(&authority::Settings, &Path)>,
) -> Option<(TlsSettings, Vec<ServerName<'static>>)> {
    let mut table = value.table()?;
    let (client_ca_file, trust_domain) = (table.optional("client_ca_file"), table.optional("trust_domain"));
    let mode = table.optional("mode");
    let issuer = table.optional("issuer");
    let is_own = issuer.as_ref().and_then(|issuer| issuer.choice(&ISSUERS)).unwrap_or_default();
    let mut file = |key| if is_own { None } else { table.required(key) };
    let (cert_file, key_file) = (file("cert_file"), file("key_file"));
    let names = if is_own { table.optional("names") } else { None };
    table.finish();
    let mode = mode.and_then(|value| value.choice(&MODES)).unwrap_or_default();
    if is_own {
        let Some((authority, dir)) = own else {
            value.fault("there is no authority to make a certificate", "[identity] with trust_domain");
            return None;
        };
        let names = match names {
            Some(names) => read_names(&names)?,
            None => NAMES_DEFAULT.iter().filter_map(|name| ServerName::try_from(*name).ok()).collect(),
        };
        let roots = || Authority::roots_file(dir);
        let file = Authority::own_file(dir);
        let settings = TlsSettings {
            cert_file: file.clone(),
            key_file: file,
            client_ca_file: Some(
                client_ca_file.and_then(|value| read_path(&value, folder)).unwrap_or_else(roots),
            ),
            trust_domain: Some(
                trust_domain
                    .and_then(|value| read_domain(&value))
                    .unwrap_or_else(|| Arc::clone(&authority.trust_domain)),
            ),
            mode,
        };
        return Some((settings, names));
    }
    if let (Some(domain), None) = (&trust_domain, &client_ca_file) {
        domain.fault("nobody is known by it", "`client_ca_file` with the roots of the mesh");
    }
    // Where certificates are made here, those of this domain are meant.
    let of_own = || own.filter(|_| client_ca_file.is_some()).map(|(own, _)| Arc::clone(&own.trust_domain));
    let trust_domain = trust_domain.and_then(|value| read_domain(&value)).or_else(of_own);
    let client_ca_file = client_ca_file.and_then(|value| read_path(&value, folder));
    let (cert_file, key_file) = (
        cert_file.and_then(|value| read_path(&value, folder)),
        key_file.and_then(|value| read_path(&value, folder)),
    );
    let settings =
        TlsSettings { cert_file: cert_file?, key_file: key_file?, client_ca_file, trust_domain, mode };
    Some((settings, Vec::new()))
}

fn read_names(value: &Value<'_>) -> Option<Vec<ServerName<'static>>> {
    let names = value.list(|name| {
        let read = ServerName::try_from(name.text()?.to_owned());
        if read.is_err() {
            name.fault("no name of a host", "\"plane.internal\", or an IP address");
        }
        read.ok()
    })?;
    if names.is_empty() || names.len() > NAMES_MAX {
        value.fault(format!("{} names", names.len()), format!("1 to {NAMES_MAX}"));
        return None;
    }
    Some(names)
}

fn read_domain(value: &Value<'_>) -> Option<Arc<str>> {
    let identity = format!("spiffe://{}/service/any", value.text()?).parse::<Identity>();
    if identity.is_err() {
        value.fault("no trust domain", "\"mesh.example\": lower-case letters, digits, `.`, `-`, `_`");
    }
    identity.ok().map(|identity| identity.domain)
}
