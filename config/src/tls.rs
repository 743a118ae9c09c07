//! How a service is called that speaks TLS itself: whose word is taken for who it is, and what it is called there.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::grammar::Value;
use crate::host;

/// Longest text of authorities, in bytes.
pub const CA_BYTES_MAX: usize = 1 << 20;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// `[services.NAME.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The authorities that are believed, as PEM; `None` is those of the system that the proxy runs on.
    pub ca: Option<Arc<str>>,
    /// The name that the certificate must have; `None` is the one in the endpoint's address.
    pub server_name: Option<String>,
    /// Whether the certificate is checked at all.
    pub verify: bool,
}

impl UpstreamTls {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let (ca, ca_file) = (table.optional("ca"), table.optional("ca_file"));
        let server_name = table.optional("server_name").and_then(|v| read_server_name(&v));
        let verify = table.optional("verify").and_then(|v| v.boolean()).unwrap_or(true);
        if let Some(file) = &ca_file {
            file.fault(
                "a document that did not come from a file cannot name one",
                "`ca` with the certificates as PEM; `gilmok apply` puts the file's content there",
            );
        }
        if let (Some(ca), false) = (&ca, verify) {
            ca.fault("nothing is checked with `verify = false`", "only one of the two");
        }
        let ca = ca.and_then(|v| read_ca(&v));
        table.finish();
        Some(Self { ca, server_name, verify })
    }
}

fn read_ca(value: &Value<'_>) -> Option<Arc<str>> {
    let text = value.text()?;
    if text.len() > CA_BYTES_MAX {
        value.fault(format!("{} bytes", text.len()), format!("at most {CA_BYTES_MAX}"));
        return None;
    }
    if is_certificates(text) {
        return Some(text.into());
    }
    value.fault("no certificates in PEM", format!("one or more, each between `{BEGIN}` and `{END}`"));
    None
}

/// Whether a text is one or more certificates in PEM, as far as their outermost bytes say. Whether they are sound
/// authorities is found out where they are used.
fn is_certificates(text: &str) -> bool {
    const SEQUENCE: u8 = 0x30;
    let mut blocks = text.split(BEGIN);
    // Before the first one may stand what it is.
    blocks.next();
    let is_certificate = |block: &str| {
        let body = block.split_once(END).map(|(body, _)| body.split_ascii_whitespace().collect::<String>());
        let der = body.and_then(|body| BASE64.decode(body).ok());
        der.is_some_and(|der| der.first() == Some(&SEQUENCE))
    };
    let mut count = 0;
    blocks.inspect(|_| count += 1).all(is_certificate) && count > 0
}

fn read_server_name(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let is_name = text.parse::<IpAddr>().is_ok()
        || (!text.contains([':', '[']) && host::canonical(text).is_some_and(|name| name == text));
    if !is_name {
        value.fault("not a server's name", "a host name in lower case, or an IP address, without a port");
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::document::Document;

    fn read(keys: &str) -> Result<super::UpstreamTls, String> {
        let text = format!("[services.a]\n[services.a.tls]\n{keys}");
        let document = Document::parse_toml(&text).map_err(|problems| problems.to_string())?;
        Ok(document.services["a"].tls.clone().unwrap())
    }

    const PEM: &str = "ca = \"\"\"\nthe one of the office\n-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n\"\"\"\n";

    #[test]
    fn an_empty_table_is_tls_as_browsers_do_it() {
        let tls = read("").unwrap();
        assert!(tls.verify && tls.ca.is_none() && tls.server_name.is_none());
        let tls = read(&format!("server_name = \"ads.internal\"\n{PEM}")).unwrap();
        assert!(tls.ca.is_some_and(|ca| ca.contains("MAA=")));
        assert_eq!(tls.server_name.as_deref(), Some("ads.internal"));
        assert!(read("server_name = \"::1\"\n").is_ok());
    }

    #[test]
    fn what_would_surprise_is_refused() {
        for (keys, told) in [
            ("ca = \"\"\n", "no certificates in PEM"),
            ("ca = \"-----BEGIN CERTIFICATE-----\\nMAA=\\n\"\n", "no certificates in PEM"),
            (
                "ca = \"-----BEGIN CERTIFICATE-----\\nAAA=\\n-----END CERTIFICATE-----\"\n",
                "no certificates in PEM",
            ),
            ("ca_file = \"x\"\n", "cannot name one"),
            ("server_name = \"ads:443\"\n", "not a server's name"),
            ("server_name = \"[::1]\"\n", "not a server's name"),
            ("server_name = \"Ads\"\n", "not a server's name"),
            ("server_name = \"\"\n", "not a server's name"),
            ("verify = 1\n", "true or false"),
            ("verfy = false\n", "did you mean `verify`"),
        ] {
            let fault = read(keys).unwrap_err();
            assert!(fault.contains(told) && fault.contains("line 3"), "{keys}: {fault}");
        }
        assert!(read(&format!("verify = false\n{PEM}")).unwrap_err().contains("only one of the two"));
    }
}
