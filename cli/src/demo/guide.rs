//! What the reader is shown: what is where, and what to try.

use super::chapters::bad_version::PLAN_FILE;
use super::layout::{App, Machine};
use super::mesh::Mesh;
use super::settings::VERSION_WANTED;
use crate::table::indented;

/// A table of every process and its addresses.
pub(crate) fn what_is_where(mesh: &Mesh, consul: Option<&str>) -> String {
    let layout = &mesh.layout;
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["machine", "what", "calls of its apps", "reached through its proxy", "itself"])];
    rows.push(row(["-", "control plane", "", "", &layout.control_plane.to_string()]));
    for (index, machine) in layout.machines.iter().enumerate() {
        let Machine { name, outbound, admin, .. } = machine;
        rows.push(row([name, "proxy", &outbound.to_string(), "", &format!("{admin} (admin)")]));
        for app in layout.apps_on(index) {
            let App { name: app, version, shard, inbound, address, .. } = app;
            let shard = if shard.is_empty() { String::new() } else { format!(", shard {shard}") };
            rows.push(row([
                name,
                &format!("{app} ({version}{shard})"),
                "",
                &inbound.to_string(),
                &address.to_string(),
            ]));
        }
    }
    let members = match consul {
        None => "who is alive: the control plane's embedded registry, which the proxies tell of their apps"
            .to_owned(),
        Some(consul) => format!("who is alive: Consul at {consul}, where the proxies register their apps"),
    };
    let moved = match layout.shift {
        0 => String::new(),
        shift => {
            format!("\n  some of the usual ports are in use, so every port is {shift} higher than usual")
        }
    };
    format!("{}\n\n  {members}\n  settings, state and logs: {}{moved}", indented(&rows), mesh.dir.display())
}

/// Commands to play with; each line that is no comment can be copied as it is.
pub(crate) fn what_to_try(mesh: &Mesh) -> String {
    let layout = &mesh.layout;
    let scheme = if layout.is_encrypted() { "https" } else { "http" };
    let control_plane = format!("{scheme}://{}", layout.control_plane);
    let roots = mesh.roots().map(|roots| roots.display().to_string());
    let believing = |flag: &str| roots.as_ref().map(|roots| format!(" {flag} '{roots}'")).unwrap_or_default();
    let program =
        std::env::current_exe().map_or_else(|_| "gilmok".to_owned(), |path| path.display().to_string());
    let gilmok = |command: &str| {
        format!("'{program}' {command} --control-plane {control_plane}{}", believing("--ca-file"))
    };
    let Some(Machine { outbound, admin, .. }) = layout.machines.first() else { return String::new() };
    let app = |name: &str| layout.app(name).map(|app| format!("http://{}", app.address)).unwrap_or_default();
    let shop = layout.app("shop").map(|app| format!("http://{}/", app.inbound)).unwrap_or_default();
    let mut tries = vec![
        ("the shop, as an app on web-1 calls it", format!("curl -s -H 'Host: shop' http://{outbound}/")),
        ("the same as a page, for a browser", shop.clone()),
        ("now one endpoint of ads, now the other", format!("curl -s -H 'Host: ads' http://{outbound}/")),
        (
            "one of them dies, and comes back after a while",
            format!("curl -s -X POST {}/control/die", app("ads-1")),
        ),
        (
            "another app is slow; also fail?percent=50, hang, and ok",
            format!("curl -s -X POST '{}/control/slow?ms=800'", app("checkout-v2")),
        ),
        (
            "the ads hang: the shop shows the house's picture instead; ok ends it",
            format!("curl -s -X POST {}/control/hang", app("ads-2")),
        ),
        (
            "the drill: what does the shop look like without ads? Then auto",
            gilmok("breakers force ads open --for 1m"),
        ),
        (
            "everybody has v2 of checkout; a tester sees whichever version the header names",
            format!("curl -s -H 'Host: checkout' -H '{VERSION_WANTED}: v3' http://{outbound}/"),
        ),
        ("which version a user gets, and why", gilmok("explain checkout --subject user-1")),
        (
            "v3 comes to everybody, by the plan in this file; a few users go on coming to checkout for it",
            gilmok(&format!("rollout start checkout --file '{}'", mesh.dir.join(PLAN_FILE).display())),
        ),
        (
            "how it goes, until it ends; also rollout pause, promote, abort, and show with the evidence",
            gilmok("rollout watch checkout"),
        ),
        ("everybody to v2 at once; traffic rollback is the way back", gilmok("traffic switch checkout v2")),
        ("who gets what, and whether the old version may be stopped", gilmok("traffic show checkout")),
        (
            "v3 fails one request in five: the same rollout again takes itself back",
            format!("curl -s -X POST '{}/control/fail?percent=20'", app("checkout-v3")),
        ),
        ("the features, and what their users came to", gilmok("flags")),
        (
            "the one with the bug: who killed it, and why; flags unkill is the way back",
            gilmok("flags show one-click"),
        ),
        ("why a user has a feature or has not", gilmok("flags explain new-page --subject user-1")),
        ("what guards the services", format!("'{program}' breakers --proxy http://{admin}")),
        ("whom the proxy of web-1 would call", format!("curl -s http://{admin}/endpoints")),
        ("what it would do with a request, and why", format!("curl -s 'http://{admin}/explain?service=ads'")),
        ("what it counted", format!("curl -s http://{admin}/metrics")),
        ("the mesh at a glance, and who is alive", gilmok("status")),
        ("the same by instance; also services, revisions, explain ads", gilmok("membership")),
        ("which proxy runs what", gilmok("proxies")),
        (
            "a change, answered once it runs in every proxy",
            format!(
                "curl -s{} -X PUT '{control_plane}/v1/services/ads?wait=5s' -H 'Content-Type: application/json' \
                 -d '{{\"load_balancer\": \"round_robin\"}}'",
                believing("--cacert")
            ),
        ),
    ];
    if let Some(stranger) = layout.machines.iter().find(|machine| machine.identity == Some("checkout")) {
        // A browser has no identity: the door is closed to it.
        tries.retain(|(_, line)| *line != shop);
        tries.extend([
            (
                "who may call ads: the shop may, checkout gets 403",
                format!("curl -s -i -H 'Host: ads' http://{}/", stranger.outbound),
            ),
            ("whose identities the control plane signs, and until when", gilmok("identity show")),
            ("which tokens there are", gilmok("tokens list")),
        ]);
    }
    let tries: Vec<_> = tries.iter().map(|(what, line)| format!("  # {what}\n  {line}")).collect();
    format!(
        "Everything stays up for you to play with. Try:\n\n{}\n\nCtrl-C ends all of it.",
        tries.join("\n")
    )
}
