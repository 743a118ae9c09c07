//! What the settings say of TLS: the identity, the edge's certificates, and who may still come without.

use std::path::Path;

use gilmok_config::grammar::{Table, Value};
use gilmok_config::name::ServiceName;

use super::{App, read_path};
use crate::tls::{IdentityFiles, IdentitySettings, IssuedSettings, Mesh, Mode, Pair, PairFiles, TlsSettings};

/// Most certificates of the edge listener.
const CERTIFICATES_MAX: usize = 1_000;

const IDENTITY_HINT: &str =
    "add [identity] with cert_file, key_file, ca_file, or with issuer = \"control_plane\"";

const MODES: [(&str, Mode); 2] = [("permissive", Mode::Permissive), ("strict", Mode::Strict)];

/// `[identity]`, beside these apps. `has_control_planes` is whether there is anybody to give one.
pub(super) fn read_identity(
    value: &Value<'_>,
    base: &Path,
    apps: &[App],
    has_control_planes: bool,
) -> Option<IdentitySettings> {
    let mut table = value.table()?;
    let issuers = [("control_plane", true), ("files", false)];
    let issuer = table.optional("issuer");
    if issuer.as_ref().is_some_and(|issuer| issuer.choice(&issuers) == Some(true)) {
        if !has_control_planes && let Some(issuer) = &issuer {
            issuer.fault("there is no control plane to ask", "[source] control_plane names one");
        }
        let service = table.optional("service");
        let service = match service {
            Some(service) => service.named(ServiceName::parse),
            None => apps.first().map(|app| app.service.clone()),
        };
        let join_token_file = table.optional("join_token_file").and_then(|v| read_path(&v, base));
        table.finish();
        let Some(service) = service else {
            value.fault("nothing says which service this proxy is", "add `service`, or an app");
            return None;
        };
        return Some(IdentitySettings::Issued(IssuedSettings { service, join_token_file }));
    }
    let pair = read_pair(&mut table, base);
    let ca_file = table.required("ca_file").and_then(|v| read_path(&v, base));
    table.finish();
    let files = IdentityFiles { pair: pair?, ca_file: ca_file? };
    // They are read, so that a check tells what is wrong with them; nothing of the key is told.
    if let Err(why) = Mesh::read(&files, Mode::default()) {
        value.fault("no identity", why);
        return None;
    }
    Some(IdentitySettings::Files(files))
}

/// `[[edge.certificates]]`.
pub(super) fn read_certificates(value: &Value<'_>, base: &Path) -> Vec<PairFiles> {
    let Some(items) = value.items() else { return Vec::new() };
    if items.len() > CERTIFICATES_MAX {
        value.fault(format!("{} certificates", items.len()), format!("at most {CERTIFICATES_MAX}"));
        return Vec::new();
    }
    let read = |item: &Value<'_>| {
        let mut table = item.table()?;
        let files = read_pair(&mut table, base);
        table.finish();
        let files = files?;
        if let Err(why) = Pair::read(&files) {
            item.fault("no certificate with its key", why);
            return None;
        }
        Some(files)
    };
    items.iter().filter_map(read).collect()
}

fn read_pair(table: &mut Table<'_>, base: &Path) -> Option<PairFiles> {
    let mut path = |key| table.required(key).and_then(|v| read_path(&v, base));
    let (cert_file, key_file) = (path("cert_file"), path("key_file"));
    Some(PairFiles { cert_file: cert_file?, key_file: key_file? })
}

/// `tls` of `[outbound]`.
pub(super) fn read_outbound_mode(value: &Value<'_>, identity: Option<&IdentitySettings>) -> Mode {
    let mode = value.choice(&MODES).unwrap_or_default();
    if mode == Mode::Strict && identity.is_none() {
        value.fault("there is no identity to speak TLS with", IDENTITY_HINT);
    }
    mode
}

/// `inbound_tls` and `edge_tls` of `[listen]`.
pub(super) fn read_modes(table: &mut Table<'_>, tls: &mut TlsSettings) {
    if let Some(value) = table.optional("inbound_tls") {
        tls.inbound_mode = value.choice(&MODES).unwrap_or_default();
        if tls.inbound_mode == Mode::Strict && tls.identity.is_none() {
            value.fault("there is no identity to speak TLS with", IDENTITY_HINT);
        }
    }
    if let Some(value) = table.optional("edge_tls") {
        tls.edge_mode = value.choice(&MODES).unwrap_or_default();
        if tls.edge.is_empty() {
            value.fault("there is no certificate to speak TLS with", "add [[edge.certificates]]");
        }
    }
}
