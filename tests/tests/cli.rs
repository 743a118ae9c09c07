//! What operators type, against a real control plane and a real proxy: what it says, and how it says no.

use std::path::Path;
use std::process::Stdio;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, soon};
use gilmok_tests::operator::{Said, command, gilmok};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::scratch::Scratch;
use serde_json::json;
use tokio::io::AsyncWriteExt;

const MESH: &str =
    "[services.ads]\n[[services.ads.endpoints]]\naddress = \"127.0.0.1:9\"\nversion = \"v1\"\n";

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test]
async fn a_document_is_checked_applied_seen_and_restored() {
    let plane = ControlPlane::start().await;
    let settings = ProxySettings::of_control_planes(&[plane.address]).top("node = \"web-1\"");
    let proxy = Proxy::start_unready(settings, Scratch::new()).await;
    let said = gilmok(&plane, &["revisions"]).await;
    assert!(said.code == 0 && said.out.contains("`gilmok apply FILE`"), "{said:?}");

    let file = shown(&plane.scratch.write("mesh.toml", MESH));
    let said = gilmok(&plane, &["check", &file]).await;
    assert_eq!((said.code, said.out), (0, format!("{file} is sound: services 1, endpoints 1, routes 0\n")));
    let said = gilmok(&plane, &["apply", &file, "--dry-run"]).await;
    assert_eq!((said.code, said.out.as_str()), (0, "+ services.ads\n"));
    let said = gilmok(&plane, &["apply", &file, "--reason", "the first"]).await;
    assert_eq!((said.code, said.out), (0, format!("{file} is in force: revision 1\n")));
    eventually("the proxy to follow", async || {
        let said = gilmok(&plane, &["status"]).await;
        if said.out.contains("1 live, 1 following") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    let said = gilmok(&plane, &["apply", &file, "--dry-run"]).await;
    assert_eq!(said.out, "nothing would change\n");

    let other = shown(&plane.scratch.write("other.json", "{\"services\": {\"shop\": {}}}"));
    let said = gilmok(&plane, &["apply", &other, "--revision", "1", "--json", "--wait", "10s"]).await;
    assert_eq!(said.json(), json!({ "revision": 2, "converged": true }));
    let said = gilmok(&plane, &["apply", &file, "--revision", "1"]).await;
    assert_eq!(
        (said.code, said.err.as_str()),
        (1, "gilmok: the newest revision is 2; read it, and decide again\n")
    );

    let said = gilmok(&plane, &["revisions"]).await;
    let lines: Vec<_> = said.out.lines().collect();
    assert!(lines[1].starts_with("2 ") && lines[2].starts_with("1 "), "{said:?}");
    assert!(lines[2].contains("kim") && lines[2].ends_with("the first"), "{said:?}");
    let said = gilmok(&plane, &["revisions", "show", "1", "--json"]).await;
    assert_eq!(said.json()["document"]["services"]["ads"]["endpoints"][0]["version"], "v1");
    let said = gilmok(&plane, &["revisions", "restore", "1", "--reason", "back", "--wait", "10s"]).await;
    assert_eq!(said.out, "revision 1 is in force again: revision 3, and every live proxy runs it\n");
    eventually("the proxy to run it", async || {
        let said = gilmok(&plane, &["proxies"]).await;
        let line = said.out.lines().nth(1).unwrap_or_default().to_owned();
        let cells: Vec<_> = line.split_whitespace().collect();
        if cells.first() == Some(&"web-1") && cells.contains(&"3") { Ok(()) } else { Err(said.out) }
    })
    .await;
    let admin = format!("http://{}", proxy.admin_address());
    for args in [&["explain", "ads"][..], &["explain", "ads", "--proxy", &admin]] {
        let said = gilmok(&plane, args).await;
        assert!(said.code == 0 && said.out.contains("goes to   ads"), "{said:?}");
        assert!(said.out.contains("endpoint  127.0.0.1:9, version v1"), "{said:?}");
    }
    let said = gilmok(&plane, &["explain", "nobody.example"]).await;
    assert!(said.out.contains("refused   destination_not_found"), "{said:?}");
    let said = gilmok(&plane, &["proxies", "accept-store", "--proxy", &admin, "--json"]).await;
    assert_eq!(said.json()["store"], gilmok(&plane, &["status", "--json"]).await.json()["store"]);
}

#[tokio::test]
async fn who_is_alive_is_told_and_a_backup_makes_a_store() {
    let plane = ControlPlane::start().await;
    plane.put("/v1/mesh", &json!({ "services": { "ads": { "protocol": "h2" } } })).await;
    let member = json!({ "address": "10.1.2.3:80", "version": "v2", "ttl": "60s" });
    plane.put("/v1/membership/ads/ads-7", &member).await;
    for args in [&["membership"][..], &["membership", "ads"], &["services", "show", "ads"]] {
        let said = gilmok(&plane, args).await;
        assert!(said.code == 0 && said.out.contains("ads-7     10.1.2.3:80  v2"), "{said:?}");
    }
    let said = gilmok(&plane, &["services"]).await;
    let cells: Vec<_> = said.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["ads", "1", "of", "1", "v2", "-", "h2", "both"]);
    let said = gilmok(&plane, &["services", "--json"]).await;
    assert_eq!(said.json()["ads"]["policy"]["protocol"], "h2");

    let file = shown(&plane.scratch.path().join("store.backup"));
    assert_eq!(gilmok(&plane, &["backup", &file]).await.code, 0);
    let said = gilmok(&plane, &["backup", &file]).await;
    assert!(said.code == 70 && said.err.contains("is there already"), "{said:?}");
    let again = Scratch::new();
    let config = again.write("control-plane.toml", "listen = \"127.0.0.1:0\"\n[store]\ndir = \"data\"\n");
    let args = ["control-plane", "--config", &shown(&config), "--restore", &file];
    let said: Said = soon("the restore", command("http://127.0.0.1:1", &args).output()).await.unwrap().into();
    assert_eq!(said.code, 0, "{said:?}");
    let restored = ControlPlane::start_with("", again).await;
    let said = gilmok(&restored, &["revisions", "show", "1", "--json"]).await;
    assert_eq!(said.json()["document"]["services"]["ads"]["protocol"], "h2");
}

#[tokio::test]
async fn every_no_says_what_to_do() {
    let plane = ControlPlane::start_with("", Scratch::new()).await;
    let bad =
        shown(&plane.scratch.write("bad.toml", "[services.ads]\nprotocl = \"h2\"\nmax_concurrent = 0\n"));
    for args in [["check", &bad], ["apply", &bad]] {
        let said = gilmok(&plane, &args).await;
        assert_eq!(said.code, 78, "{said:?}");
        let lines: Vec<_> = said.err.lines().collect();
        assert_eq!(
            lines[0],
            format!("gilmok: {bad}: line 2: services.ads.protocl: unknown key (did you mean `protocol`?)")
        );
        assert!(
            lines[1].starts_with(&format!("gilmok: {bad}: line 3: services.ads.max_concurrent")),
            "{said:?}"
        );
    }
    let said = gilmok(&plane, &["check", &bad, "--json"]).await;
    assert_eq!(said.json()["problems"][0]["line"], 2);
    for (args, code, what) in [
        (&["check", "not-there.toml"][..], 78, "not-there.toml: No such file"),
        (&["services", "show", "nobody"], 1, "there is no service `nobody`; `gilmok services` lists them"),
        (&["membership", "nobody"], 1, "membership knows no service `nobody`"),
        (&["revisions", "show", "9"], 1, "revision 9 was never written"),
        (&["revisions", "restore", "9"], 1, "revision 9 was never written"),
        (&["explain", "ads"], 1, "the store was never written"),
        (
            &["status", "--control-plane", "http://127.0.0.1:1"],
            70,
            "--control-plane or GILMOK_CLI_CONTROL_PLANE",
        ),
        (
            &["explain", "ads", "--proxy", "http://127.0.0.1:1"],
            70,
            "is this its admin listener? --proxy names another",
        ),
        (&["status", "--control-plane", "somewhere"], 64, "an address is \"http://name:port\""),
        (&["status", "--token-file", "not-there"], 78, "not-there: No such file"),
        (&["apply", "a.toml", "--wait", "soon"], 64, "a duration has a unit"),
        (&["frobnicate"], 64, "unrecognized subcommand"),
    ] {
        let said = gilmok(&plane, args).await;
        assert!(said.code == code && said.err.contains(what), "{args:?}: {said:?}");
    }
}

#[tokio::test]
async fn a_document_can_come_from_standard_input_and_shells_can_complete() {
    let plane = ControlPlane::start().await;
    let mut child = command(&format!("http://{}", plane.address), &["apply", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(MESH.as_bytes()).await.unwrap();
    let said: Said = soon("the command to end", child.wait_with_output()).await.unwrap().into();
    assert!(said.code == 0 && said.out.contains("revision 1"), "{said:?}");
    for shell in ["bash", "zsh", "fish"] {
        let said = gilmok(&plane, &["completions", shell]).await;
        assert!(said.code == 0 && said.out.contains("accept-store"), "{shell}");
    }
}
