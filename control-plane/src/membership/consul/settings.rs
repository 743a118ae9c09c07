//! What a control plane is told about its Consul: `[membership.consul]`.

use std::path::{Path, PathBuf};

use gilmok_config::grammar::Value;

use crate::http_client::{Origin, TlsSettings};

/// Most addresses of one Consul.
const ADDRESSES_MAX: usize = 16;

/// `[membership.consul]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Agents that say the same; when one fails, the next is asked. The watches are spread over them.
    pub addresses: Vec<Origin>,
    /// Holds the token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// For `https` addresses.
    pub tls: TlsSettings,
    /// The agent's own where nothing is said.
    pub datacenter: Option<String>,
    /// Besides the services that the mesh document names, watch all that carry this tag.
    pub all_with_tag: Option<String>,
}

impl Settings {
    /// Consul at one address, everything else by default.
    #[must_use]
    pub fn at(address: Origin) -> Self {
        Self { addresses: vec![address], ..Self::default() }
    }

    /// Reads the table; faults are noted in it. Paths are relative to `folder`.
    #[must_use]
    pub fn read(value: &Value<'_>, folder: &Path) -> Option<Self> {
        let mut table = value.table()?;
        let addresses = table.required("address").and_then(|value| {
            if value.is_text() {
                return Some(vec![value.parsed::<Origin>()?]);
            }
            let addresses = value.list(Value::parsed::<Origin>)?;
            if addresses.len() > ADDRESSES_MAX {
                value.fault(format!("{} addresses", addresses.len()), format!("at most {ADDRESSES_MAX}"));
            } else if addresses.is_empty() {
                value.fault("no address", "name at least one");
            }
            Some(addresses)
        });
        let mut file = |key| table.optional(key).and_then(|value| value.text().map(|text| folder.join(text)));
        let token_file = file("token_file");
        let (ca_file, cert_file, key_file) = (file("ca_file"), file("cert_file"), file("key_file"));
        if cert_file.is_some() != key_file.is_some() {
            table.value().fault("cert_file and key_file belong together", "give both or none");
        }
        let mut text = |key| {
            let text = table.optional(key).and_then(|value| value.text())?;
            (!text.is_empty()).then(|| text.to_owned())
        };
        let (server_name, datacenter) = (text("server_name"), text("datacenter"));
        let all_with_tag = text("all_with_tag");
        table.finish();
        let tls = TlsSettings { ca_file, cert_file, key_file, server_name };
        Some(Self { addresses: addresses?, token_file, tls, datacenter, all_with_tag })
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::grammar::Faults;
    use gilmok_config::node::Node;
    use gilmok_config::problem::Problems;

    use super::*;

    fn read(toml: &str) -> Result<Settings, Problems> {
        let node = Node::parse_toml(toml).unwrap();
        let faults = Faults::new();
        let settings = Settings::read(&Value::root(&node, &faults), Path::new("/etc/gilmok"));
        faults.into_result(()).map(|()| settings.unwrap())
    }

    #[test]
    fn every_setting_is_read() {
        let settings = read(
            r#"
            address = ["https://a:8501", "unix:///run/consul.sock"]
            token_file = "consul.token"
            ca_file = "/ca.pem"
            cert_file = "c.pem"
            key_file = "k.pem"
            server_name = "server.dc1.consul"
            datacenter = "dc1"
            all_with_tag = "mesh"
            "#,
        );
        let expected = Settings {
            addresses: vec!["https://a:8501".parse().unwrap(), "unix:///run/consul.sock".parse().unwrap()],
            token_file: Some("/etc/gilmok/consul.token".into()),
            tls: TlsSettings {
                ca_file: Some("/ca.pem".into()),
                cert_file: Some("/etc/gilmok/c.pem".into()),
                key_file: Some("/etc/gilmok/k.pem".into()),
                server_name: Some("server.dc1.consul".to_owned()),
            },
            datacenter: Some("dc1".to_owned()),
            all_with_tag: Some("mesh".to_owned()),
        };
        assert_eq!(settings, Ok(expected));
        let one = read("address = \"http://127.0.0.1:8500\"\nall_with_tag = \"\"\n");
        assert_eq!(one, Ok(Settings::at("http://127.0.0.1:8500".parse().unwrap())));
    }

    #[test]
    fn every_fault_is_told() {
        let told = read("address = []\ncert_file = \"c\"\ntokn_file = \"x\"\n").unwrap_err().to_string();
        for part in ["no address", "belong together", "did you mean `token_file`"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(read("address = \"127.0.0.1:8500\"\n").unwrap_err().to_string().contains("http://"));
        assert!(read("").unwrap_err().to_string().contains("`address` is missing"));
    }
}
