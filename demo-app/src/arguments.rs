//! The command line of the demo app, each flag also as a variable `GILMOK_DEMO_…`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// What one demo app is told at its start.
#[derive(Clone, Debug, Parser)]
#[command(name = "gilmok-demo-app", disable_version_flag = true)]
#[command(
    about = "A small service that says who it is, and can be told to be slow, failing, hanging or dead"
)]
pub(crate) struct Arguments {
    /// The service that it plays; `shop` makes a page of what the others answer
    #[arg(long, env = "GILMOK_DEMO_SERVICE", default_value = "shop")]
    pub(crate) service: String,
    /// The version that it says it is
    #[arg(long, env = "GILMOK_DEMO_VERSION", default_value = "v1")]
    pub(crate) version: String,
    /// The shard that it says it holds
    #[arg(long, env = "GILMOK_DEMO_SHARD", default_value = "")]
    pub(crate) shard: String,
    /// Where it listens; port 0 takes any free one
    #[arg(long, env = "GILMOK_DEMO_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// The outbound listener of the proxy beside it, for calls to other services
    #[arg(long, env = "GILMOK_DEMO_MESH", default_value = "http://127.0.0.1:15001", value_parser = authority)]
    pub(crate) mesh: String,
    /// Where the proxy beside it answers questions for flags (OFREP); without it the shop asks for none
    #[arg(long, env = "GILMOK_DEMO_FLAGS", value_name = "URL", value_parser = authority)]
    pub(crate) flags: Option<String>,
    /// Where apps of this service listen themselves, by the addresses at which the mesh reaches them: what moves from one shard
    /// to another is copied there, past the proxies
    #[arg(long, env = "GILMOK_DEMO_COPY_TO", value_name = "INBOUND=APP", value_delimiter = ',', value_parser = way)]
    pub(crate) copy_to: Vec<(String, SocketAddr)>,
    /// File to write the address of the listener to, as JSON
    #[arg(long, env = "GILMOK_DEMO_PORT_FILE", value_name = "PATH")]
    pub(crate) port_file: Option<PathBuf>,
}

/// `host:port` of an `http://` URL without a path.
fn authority(text: &str) -> Result<String, &'static str> {
    const HINT: &str = "\"http://host:port\"";
    let authority = text.strip_prefix("http://").ok_or(HINT)?.trim_end_matches('/');
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(authority.to_owned()),
        Some(_) | None => Err(HINT),
    }
}

fn way(text: &str) -> Result<(String, SocketAddr), &'static str> {
    const HINT: &str = "\"host:port=ip:port\"";
    let (inbound, app) = text.split_once('=').ok_or(HINT)?;
    Ok((inbound.to_owned(), app.parse().map_err(|_| HINT)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_who_the_app_is() {
        let args = "gilmok-demo-app --service ads --version v2 --shard 1 --listen 127.0.0.1:0 --mesh http://127.0.0.1:15001/";
        let arguments = Arguments::try_parse_from(args.split(' ')).unwrap();
        assert_eq!(
            (arguments.service.as_str(), arguments.version.as_str(), arguments.shard.as_str()),
            ("ads", "v2", "1")
        );
        assert_eq!(arguments.mesh, "127.0.0.1:15001");
        let args = "gilmok-demo-app --copy-to a.example:1=127.0.0.1:2,127.0.0.1:3=[::1]:4";
        let ways = Arguments::try_parse_from(args.split(' ')).unwrap().copy_to;
        let expected = [("a.example:1", "127.0.0.1:2"), ("127.0.0.1:3", "[::1]:4")];
        assert_eq!(ways, expected.map(|(inbound, app)| (inbound.to_owned(), app.parse().unwrap())));
        assert!(Arguments::try_parse_from("gilmok-demo-app --copy-to 127.0.0.1:1".split(' ')).is_err());
    }

    #[test]
    fn a_mesh_that_is_no_plain_address_is_refused() {
        for text in
            ["127.0.0.1:15001", "https://127.0.0.1:15001", "http://127.0.0.1", "http://a:1/b", "http://:1"]
        {
            assert!(authority(text).is_err(), "{text}");
        }
    }
}
