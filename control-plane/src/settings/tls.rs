//! `[tls]`: how callers are received, and by which roots sidecars among them are known.

use std::path::Path;
use std::sync::Arc;

use gilmok_config::grammar::Value;
use gilmok_config::identity::Identity;

use super::read_path;
use crate::tls::{Mode, TlsSettings};

const MODES: [(&str, Mode); 2] = [("permissive", Mode::Permissive), ("strict", Mode::Strict)];

pub(super) fn read(value: &Value<'_>, folder: &Path) -> Option<TlsSettings> {
    let mut table = value.table()?;
    let (cert_file, key_file) = (table.required("cert_file"), table.required("key_file"));
    let (client_ca_file, trust_domain) = (table.optional("client_ca_file"), table.optional("trust_domain"));
    let mode = table.optional("mode");
    table.finish();
    if let (Some(domain), None) = (&trust_domain, &client_ca_file) {
        domain.fault("nobody is known by it", "`client_ca_file` with the roots of the mesh");
    }
    let trust_domain = trust_domain.and_then(|value| read_domain(&value));
    let mode = mode.and_then(|value| value.choice(&MODES)).unwrap_or_default();
    let client_ca_file = client_ca_file.and_then(|value| read_path(&value, folder));
    let (cert_file, key_file) = (
        cert_file.and_then(|value| read_path(&value, folder)),
        key_file.and_then(|value| read_path(&value, folder)),
    );
    Some(TlsSettings { cert_file: cert_file?, key_file: key_file?, client_ca_file, trust_domain, mode })
}

fn read_domain(value: &Value<'_>) -> Option<Arc<str>> {
    let identity = format!("spiffe://{}/service/any", value.text()?).parse::<Identity>();
    if identity.is_err() {
        value.fault("no trust domain", "\"mesh.example\": lower-case letters, digits, `.`, `-`, `_`");
    }
    identity.ok().map(|identity| identity.domain)
}
