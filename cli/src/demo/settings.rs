//! The settings files of the demo's children, and the document that the mesh begins with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::layout::{App, Layout, Machine};

/// How long a registration is believed without another word: short, so that a reader sees it lapse, and long enough
/// for a machine that is busy with other things.
const REGISTRATION_TTL: &str = "6s";
/// A dead app is found out within a second or so; one that is only slow has more time.
const HEALTH_CHECK: &str =
    r#"{ path = "/healthz", interval = "500ms", timeout = "2s", unhealthy_threshold = 2 }"#;

/// The header in which a tester of checkout says which version to show.
pub(crate) const VERSION_WANTED: &str = "x-version";

/// A feature of the shop.
pub(crate) const NEW_PAGE: &str = "new-page";
/// A feature of checkout, which is guarded.
pub(crate) const ONE_CLICK: &str = "one-click";

/// The file with what the control plane signs messages with.
pub(crate) const WEBHOOK_SECRET: &str = "webhook.secret";

/// Whose identities those of an encrypted demo are.
pub(crate) const TRUST_DOMAIN: &str = "demo.mesh";

/// The roots of an encrypted demo, as its control plane writes them down.
pub(crate) fn roots_file(dir: &Path) -> PathBuf {
    dir.join("store/roots.pem")
}

/// The file with what a sidecar joins with.
pub(crate) fn join_token_file(dir: &Path, machine: &Machine) -> PathBuf {
    dir.join(format!("join-{}.token", machine.name))
}

/// control-plane.toml.
pub(crate) fn control_plane(layout: &Layout, dir: &Path, consul: Option<&str>, encrypted: bool) -> String {
    let store = toml_text(&dir.join("store").to_string_lossy());
    let secret = toml_text(&dir.join(WEBHOOK_SECRET).to_string_lossy());
    let mut text = format!(
        "listen = \"{}\"\nwebhook_secret_file = {secret}\n\n[store]\ndir = {store}\n",
        layout.control_plane
    );
    if encrypted {
        push(
            &mut text,
            format_args!(
                "\n[identity]\ntrust_domain = \"{TRUST_DOMAIN}\"\n\n[tls]\nissuer = \"identity\"\nnames = [\"127.0.0.1\"]\n"
            ),
        );
    }
    if let Some(consul) = consul {
        push(&mut text, format_args!("\n[membership.consul]\naddress = {}\n", toml_text(consul)));
    }
    text
}

/// proxy.toml of one machine.
pub(crate) fn proxy(layout: &Layout, machine: usize, dir: &Path, consul: Option<&str>) -> String {
    let Machine { name, identity, outbound, admin, ofrep } = &layout.machines[machine];
    let mut text = format!(
        "node = \"{name}\"\n\n[listen]\noutbound = \"{outbound}\"\nadmin = \"{admin}\"\nofrep = \"{ofrep}\"\n"
    );
    if identity.is_some() {
        push(&mut text, format_args!("inbound_tls = \"strict\"\n"));
        let token = toml_text(&join_token_file(dir, &layout.machines[machine]).to_string_lossy());
        push(
            &mut text,
            format_args!("\n[identity]\nissuer = \"control_plane\"\njoin_token_file = {token}\n"),
        );
    }
    let state = toml_text(&dir.join(format!("state-{name}")).to_string_lossy());
    let scheme = if identity.is_some() { "https" } else { "http" };
    push(&mut text, format_args!("\n[source]\ncontrol_plane = [\"{scheme}://{}\"]\n", layout.control_plane));
    if identity.is_some() {
        let roots = toml_text(&roots_file(dir).to_string_lossy());
        push(&mut text, format_args!("ca_file = {roots}\n"));
    }
    push(&mut text, format_args!("\n[state]\ndir = {state}\n\n[workers]\ncount = 1\n"));
    push(&mut text, format_args!("\n[registration]\nttl = \"{REGISTRATION_TTL}\"\n"));
    if let Some(consul) = consul {
        push(&mut text, format_args!("consul = {}\n", toml_text(consul)));
    }
    // Nobody calls any more when the demo leaves; what takes time on a busy machine is to deregister.
    push(&mut text, format_args!("\n[drain]\nannounce = \"0s\"\ndeadline = \"6s\"\n"));
    for app in layout.apps_on(machine) {
        let App { service, version, shard, address, inbound, .. } = app;
        push(
            &mut text,
            format_args!(
                "\n[[apps]]\nservice = \"{service}\"\nversion = \"{version}\"\nshard = \"{shard}\"\n\
                 address = \"{address}\"\ninbound = \"{inbound}\"\n\
                 health_check = {HEALTH_CHECK}\n"
            ),
        );
    }
    text
}

/// What the operator of the demo says first.
pub(crate) fn document() -> Value {
    json!({
        "services": {
            "shop": {"request_timeout": "10s", "flags": told(NEW_PAGE)},
            // Shorter than the shop's own patience, so that a hang is the ads' time-out and not a caller that left.
            "ads": {"request_timeout": "2s"},
            "checkout": {"request_timeout": "5s", "traffic": checkout(), "flags": told(ONE_CLICK)},
            "profile": {"request_timeout": "5s", "sharding": profile()},
        },
        "routes": [
            {"hosts": ["shop.example.com"], "service": "shop"},
        ],
        "flags": {"set": {"flags": {NEW_PAGE: feature(&json!({})), ONE_CLICK: feature(&guard())}}},
    })
}

/// A service that is told one flag, for whoever is asking.
fn told(flag: &str) -> Value {
    json!({"emit": [flag], "subject": ["header:x-user-id"]})
}

/// A feature that is off for everybody at first.
fn feature(extension: &Value) -> Value {
    json!({
        "state": "ENABLED",
        "variants": {"on": true, "off": false},
        "defaultVariant": "off",
        "targeting": share(0),
        "x-gilmok": extension,
    })
}

/// The rule by which a feature is on for so many percent of the users.
pub(crate) fn share(percent: u32) -> Value {
    json!({"fractional": [["on", percent], ["off", 100 - percent]]})
}

fn guard() -> Value {
    json!({"guard": {"metrics": ["errors"], "onFail": "kill"}})
}

/// Whose shard each user is: one of four, in equal parts.
fn profile() -> Value {
    json!({
        "key": "path_segment:2",
        "strategy": "slots",
        "map": {"0": "0-4095", "1": "4096-8191", "2": "8192-12287", "3": "12288-16383"},
        // Whoever asks who is there asks for no user.
        "when_no_key": "any",
    })
}

/// Who gets which version of checkout: everybody the first one, but for testers, who say which they want to see.
fn checkout() -> Value {
    let tester = |version: &str| json!({"header": VERSION_WANTED, "equals": version, "version": version});
    json!({
        "stable": "v1",
        "weights": {"v1": 100},
        "subject": ["header:x-user-id"],
        "pins": [tester("v1"), tester("v2"), tester("v3")],
    })
}

/// A string of TOML: JSON's escapes are among its own.
fn toml_text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn push(text: &mut String, piece: std::fmt::Arguments<'_>) {
    text.write_fmt(piece).expect("invariant: a string takes any text");
}

#[cfg(test)]
mod tests {
    use gilmok_config::document::Document;
    use gilmok_proxy::settings::Settings;

    use super::*;

    #[test]
    fn the_mesh_begins_with_a_sound_document() {
        let document = Document::parse_json(&document()).unwrap();
        let layout = Layout::choose(false).unwrap();
        for app in &layout.apps {
            assert!(document.services.keys().any(|name| name.to_string() == app.service), "{}", app.name);
        }
    }

    #[test]
    fn the_proxies_understand_their_settings() {
        let dir = std::env::temp_dir().join(format!("gilmok-demo-settings-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (consul, encrypted) in [(None, false), (Some("http://127.0.0.1:8500"), false), (None, true)] {
            let layout = Layout::choose(encrypted).unwrap();
            for machine in 0..layout.machines.len() {
                let file = dir.join("proxy.toml");
                std::fs::write(join_token_file(&dir, &layout.machines[machine]), "token").unwrap();
                std::fs::create_dir_all(dir.join("store")).unwrap();
                std::fs::write(
                    roots_file(&dir),
                    include_str!("../../../control-plane/src/http_client/fixtures/ca.pem"),
                )
                .unwrap();
                std::fs::write(&file, proxy(&layout, machine, &dir, consul)).unwrap();
                let args = ["gilmok-proxy".into(), "--config".into(), file.into_os_string()];
                let (_, settings) = Settings::load(args, &|_| None).unwrap();
                assert_eq!(settings.apps.len(), layout.apps_on(machine).count());
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
