//! What the settings say of the authority: `[identity]`.

use std::path::Path;
use std::time::Duration;

use gilmok_config::grammar::Value;
use gilmok_config::identity::Identity;

use super::read_path;
use crate::authority::{Given, Settings};

const LEAF_TTL_DEFAULT: Duration = Duration::from_hours(1);
/// A proxy renews at half of it: less would be a load, and more would make a stolen key last.
const LEAF_TTL_MIN: Duration = Duration::from_secs(2);
const LEAF_TTL_MAX: Duration = Duration::from_hours(30 * 24);

/// Reads the table. An operator's files are read, so that a check tells what is wrong with them; nothing of the key is told.
pub(super) fn read(value: &Value<'_>, folder: &Path) -> Option<Settings> {
    let mut table = value.table()?;
    let trust_domain = table.required("trust_domain").and_then(|value| {
        let text = value.text()?;
        // The grammar of a domain is that of the identities that it makes.
        let made = format!("spiffe://{text}/service/any").parse::<Identity>();
        if made.is_err() {
            value.fault("not a trust domain", "lower-case letters, digits, `.`, `-`, `_`: \"mesh.example\"");
        }
        made.ok().map(|identity| identity.domain)
    });
    let leaf_ttl = table.optional("leaf_ttl").and_then(|value| value.duration(LEAF_TTL_MIN, LEAF_TTL_MAX));
    let new_root = table.optional("new_root").and_then(|value| value.boolean()).unwrap_or_default();
    let (cert_file, key_file) = (table.optional("ca_cert_file"), table.optional("ca_key_file"));
    table.finish();
    let given = match (&cert_file, &key_file) {
        (Some(cert), Some(key)) => {
            Some(Given { cert_file: read_path(cert, folder)?, key_file: read_path(key, folder)? })
        }
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => {
            one.fault("one of the two is missing", "an authority is ca_cert_file and ca_key_file");
            return None;
        }
    };
    let leaf_ttl = leaf_ttl.unwrap_or(LEAF_TTL_DEFAULT);
    let settings = Settings { trust_domain: trust_domain?, leaf_ttl, given, new_root };
    if let Err(why) = settings.check() {
        value.fault("no authority", why);
    }
    Some(settings)
}
