//! What the reader is shown: what is where, and what to try.

use super::layout::{App, Machine};
use super::mesh::Mesh;
use super::tell::table;

/// A table of every process and its addresses.
pub(crate) fn what_is_where(mesh: &Mesh, consul: Option<&str>) -> String {
    let layout = &mesh.layout;
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["machine", "what", "calls of its apps", "reached through its proxy", "itself"])];
    rows.push(row(["-", "control plane", "", "", &layout.control_plane.to_string()]));
    for (index, machine) in layout.machines.iter().enumerate() {
        let Machine { name, outbound, admin } = machine;
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
    format!("{}\n\n  {members}\n  settings, state and logs: {}{moved}", table(&rows), mesh.dir.display())
}

/// Commands to play with.
pub(crate) fn what_to_try(mesh: &Mesh) -> String {
    let layout = &mesh.layout;
    let control_plane = layout.control_plane;
    let Some(web) = layout.machines.first() else { return String::new() };
    let at = |name: &str| layout.app(name).map(|app| app.address.to_string()).unwrap_or_default();
    let shop = layout.app("shop").map(|app| app.inbound.to_string()).unwrap_or_default();
    let (ads, checkout) = (at("ads-1"), at("checkout-v1"));
    let Machine { outbound, admin, .. } = web;
    let rows = [
        (format!("curl -s -H 'Host: shop' http://{outbound}/"), "the shop, as web-1 calls it"),
        (format!("http://{shop}/"), "the same as a page, for a browser"),
        (format!("curl -s -H 'Host: ads' http://{outbound}/"), "again and again: both endpoints of ads"),
        (format!("curl -X POST http://{ads}/control/die"), "ads-1 dies; it comes back after a while"),
        (format!("curl -X POST 'http://{checkout}/control/slow?ms=800'"), "also fail?percent=50, hang, ok"),
        (format!("curl -s http://{admin}/endpoints"), "who is alive, as the proxy of web-1 knows it"),
        (format!("curl -s 'http://{admin}/explain?service=ads'"), "what it would do with a request"),
        (format!("curl -s http://{control_plane}/v1/proxies"), "which proxy runs what"),
        (
            format!("curl -s http://{control_plane}/v1/membership"),
            "who is alive, as the control plane knows it",
        ),
        (
            format!(
                "curl -s -X PATCH 'http://{control_plane}/v1/services/ads?wait=5s' -d '{{\"hosts\": [\"x.example.com\"]}}' -H 'Content-Type: application/merge-patch+json'"
            ),
            "a change",
        ),
    ];
    let rows: Vec<_> =
        rows.into_iter().map(|(command, what)| vec![format!("# {what}\n  {command}")]).collect();
    format!("Everything stays up for you to play with. Try:\n\n{}\n\nCtrl-C ends all of it.", table(&rows))
}
