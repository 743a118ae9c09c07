//! What operators type to move users from version to version, against a real control plane and a real proxy.

use std::process::Stdio;

use gilmok_tests::control_plane::ControlPlane;
use gilmok_tests::eventually::{eventually, soon};
use gilmok_tests::operator::{Said, command, gilmok};
use gilmok_tests::process::{Signal, program};
use gilmok_tests::proxy::{Proxy, ProxySettings};
use gilmok_tests::upstream::Upstream;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// A control plane with the service `shop` in two versions, and a proxy that follows it.
struct Mesh {
    plane: ControlPlane,
    proxy: Proxy,
    _upstreams: [Upstream; 2],
}

impl Mesh {
    /// With this share of v2, in percent.
    async fn start(percent: u32) -> Self {
        let upstreams = [Upstream::saying("v1").await, Upstream::saying("v2").await];
        let endpoints = upstreams.iter().zip(["v1", "v2"]);
        let endpoints: Vec<Json> = endpoints
            .map(|(upstream, version)| json!({ "address": upstream.address.to_string(), "version": version }))
            .collect();
        let traffic = json!({ "stable": "v1", "weights": { "v1": 100 - percent, "v2": percent } });
        let plane = ControlPlane::start().await;
        plane.put("/v1/services/shop", &json!({ "endpoints": endpoints, "traffic": traffic })).await;
        let settings = ProxySettings::of_control_planes(&[plane.address]).top("node = \"web-1\"");
        let proxy = Proxy::start_with(settings).await;
        Self { plane, proxy, _upstreams: upstreams }
    }

    /// Which version a user is served by.
    async fn version_of(&self, user: &str) -> String {
        let lines = format!("GET / HTTP/1.1\r\nHost: shop\r\nX-User-Id: {user}\r\n\r\n");
        gilmok_tests::caller::ask(self.proxy.outbound(), lines).await.text()
    }
}

#[tokio::test]
async fn both_planes_explain_the_version_that_a_user_then_gets() {
    let mesh = Mesh::start(50).await;
    let admin = format!("http://{}", mesh.proxy.admin_address());
    for user in ["user-1", "user-4", "user-42"] {
        let version = mesh.version_of(user).await;
        for more in [&[][..], &["--proxy", &admin]] {
            let args = [&["explain", "shop", "--subject", user], more].concat();
            let said = gilmok(&mesh.plane, &args).await;
            let line = format!("  version   {version}: the subject's place in the table\n  bucket    ");
            assert!(said.code == 0 && said.out.contains(&line), "{args:?}: {said:?}");
            assert!(
                said.out.contains(" of 1000000, by the salt `shop`\n") && said.out.contains("moved     no"),
                "{said:?}"
            );
        }
    }
}

#[tokio::test]
async fn shares_are_planned_then_changed_and_the_rest_of_the_table_stays() {
    let mesh = Mesh::start(1).await;
    let plane = &mesh.plane;
    let pins = json!([{ "subject": "tester", "version": "v2" }]);
    let traffic = json!({ "stable": "v1", "weights": { "v1": 99, "v2": 1 }, "salt": "spring", "pins": pins });
    plane.put("/v1/services/shop/traffic?force=true", &traffic).await;
    let said = gilmok(plane, &["traffic", "plan", "shop", "v1=90", "v2=10"]).await;
    let expected = "9 % of the subjects of shop would move, everybody else stays\n\n\
        FROM  TO  SHARE OF SUBJECTS\nv1    v2  9 %\n";
    assert_eq!((said.code, said.out.as_str()), (0, expected));
    assert_eq!(plane.json("/v1/services/shop/traffic").await["traffic"]["weights"]["v2"], 1, "nothing moved");

    let said =
        gilmok(plane, &["traffic", "set", "shop", "v1=90", "v2=10", "--wait", "10s", "--reason", "more"])
            .await;
    assert_eq!(said.out, "shop goes to v1 90 %, v2 10 %: revision 3, and every live proxy runs it\n");
    let now = plane.json("/v1/services/shop/traffic").await;
    assert_eq!((&now["traffic"]["salt"], &now["traffic"]["pins"]), (&json!("spring"), &pins));
    let said = gilmok(plane, &["traffic"]).await;
    let cells: Vec<_> =
        said.out.lines().nth(1).unwrap().split("  ").filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells.iter().map(|cell| cell.trim()).collect::<Vec<_>>(),
        ["shop", "v1", "v1 90 %, v2 10 %", "-"]
    );
    for args in [&["traffic", "show", "shop"][..], &["services", "show", "shop"]] {
        let said = gilmok(plane, args).await;
        assert!(said.code == 0 && said.out.contains("  shares  v1 90 %, v2 10 %\n"), "{args:?}: {said:?}");
    }
    let said = gilmok(plane, &["services"]).await;
    assert!(said.out.contains("v1 90 %, v2 10 %"), "{said:?}");
}

#[tokio::test]
async fn whoever_would_lose_something_is_told_so() {
    let mesh = Mesh::start(10).await;
    for (args, code, what) in [
        (&["traffic", "set", "shop", "v1=90", "v2=5"][..], 1, "the weights sum to 95 (they sum to 100)"),
        (&["traffic", "set", "shop", "v1=90", "v9=10"], 1, "the version `v9`"),
        (&["traffic", "plan", "shop", "v1=90", "v9=10"], 1, "the version `v9`"),
        (&["traffic", "set", "shop", "v1=50", "v2=50", "--revision", "7"], 1, "the newest revision is 1"),
        (&["traffic", "set", "shop", "v1"], 64, "a version and its share"),
        (&["traffic", "set", "nobody", "v1=100"], 1, "there is no service `nobody`"),
        (&["traffic", "switch", "shop", "v9"], 1, "the version `v9`"),
        (&["traffic", "rollback", "shop"], 1, "there is nothing to roll back"),
        (&["rollout", "show", "shop"], 1, "there is no rollout of `shop`"),
        (&["rollout", "watch", "shop"], 1, "there is no rollout of `shop`"),
        (&["rollout", "abort", "shop"], 1, "rollout of `shop`"),
        (&["rollout", "start", "shop", "--to", "v2"], 64, "--preset"),
        (&["rollout", "start", "shop", "--to", "v2", "--steps", "10%:5m"], 1, "the plan has no end"),
        (&["rollout", "start", "shop", "--to", "v2", "--preset", "Canary5"], 1, "no preset has this name"),
        (&["rollout", "start", "shop", "--to", "v9", "--preset", "AllAtOnce"], 1, "the version `v9`"),
    ] {
        let said = gilmok(&mesh.plane, args).await;
        assert!(said.code == code && said.err.contains(what), "{args:?}: {said:?}");
    }
    assert_eq!(mesh.plane.json("/v1/status").await["revision"], 1);
}

#[tokio::test]
async fn a_switch_says_who_acknowledged_and_a_rollback_brings_everybody_back() {
    let mesh = Mesh::start(50).await;
    let plane = &mesh.plane;
    let mut before = Vec::new();
    for user in 0..20 {
        before.push(mesh.version_of(&format!("user-{user}")).await);
    }
    assert!(before.iter().any(|version| version == "v1") && before.iter().any(|version| version == "v2"));
    let said = gilmok(plane, &["traffic", "switch", "shop", "v2", "--wait", "10s"]).await;
    let expected = "shop is served by v2 alone: revision 2, and every live proxy runs it\n\
        1 of 1 live proxies acknowledged it\nv1 may be stopped: ";
    assert!(said.code == 0 && said.out.starts_with(expected), "{said:?}");
    for user in 0..20 {
        assert_eq!(mesh.version_of(&format!("user-{user}")).await, "v2");
    }
    let said = gilmok(plane, &["traffic", "show", "shop"]).await;
    assert!(said.out.contains("switch from v1 to v2") && said.out.contains("by kim, revision 2"), "{said:?}");
    assert!(said.out.contains("`gilmok traffic rollback` brings back v1 50 %, v2 50 %\n"), "{said:?}");

    let said = gilmok(plane, &["traffic", "rollback", "shop", "--wait", "10s", "--json"]).await;
    let told = said.json();
    assert_eq!((&told["revision"], &told["converged"]), (&json!(3), &json!(true)), "{said:?}");
    assert_eq!(told["proxies"], json!({ "live": 1, "acknowledged": 1 }));
    for (user, version) in before.iter().enumerate() {
        assert_eq!(mesh.version_of(&format!("user-{user}")).await, *version, "user-{user}");
    }
    let said = gilmok(plane, &["traffic", "rollback", "shop"]).await;
    assert!(said.code == 1 && said.err.contains("gilmok traffic switch shop v2"), "{said:?}");
}

/// The state of the rollout of `shop`, once it is this one.
async fn comes_to(plane: &ControlPlane, state: &str) {
    eventually(&format!("the rollout to be {state}"), async || {
        let told = plane.json("/v1/services/shop/rollout").await;
        if told["state"] == state { Ok(()) } else { Err(told["why"].to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_rollout_is_begun_watched_steered_and_taken_back() {
    let mesh = Mesh::start(0).await;
    let plane = &mesh.plane;
    let said = gilmok(plane, &["rollout"]).await;
    assert!(said.code == 0 && said.out.contains("`gilmok rollout start SERVICE"), "{said:?}");
    let start = ["rollout", "start", "shop", "--to", "v2", "--steps", "10%:1h,gate,100%"];
    let said = gilmok(plane, &start).await;
    assert!(
        said.code == 0 && said.out.starts_with("the rollout of shop to v2 has begun: revision "),
        "{said:?}"
    );
    comes_to(plane, "holding").await;
    let said = gilmok(plane, &["rollout"]).await;
    let row: Vec<_> = said.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..8], ["shop", "v2", "holding", "1", "of", "3", "10", "%"], "{said:?}");
    let said = gilmok(plane, &["traffic"]).await;
    assert!(said.out.contains("v2: holding at 10 %"), "{said:?}");
    let set = ["traffic", "set", "shop", "v1=50", "v2=50"];
    for args in [&start[..], &set, &["traffic", "switch", "shop", "v2"]] {
        let said = gilmok(plane, args).await;
        assert!(said.code == 1 && said.err.contains("gilmok rollout abort shop"), "{args:?}: {said:?}");
    }

    assert_eq!(gilmok(plane, &["rollout", "pause", "shop"]).await.code, 0);
    let said = gilmok(plane, &["rollout", "show", "shop"]).await;
    assert!(
        said.out.contains("`gilmok rollout resume shop` goes on, `gilmok rollout abort` goes back"),
        "{said:?}"
    );
    assert_eq!(gilmok(plane, &["rollout", "resume", "shop"]).await.code, 0);
    let said = gilmok(plane, &["rollout", "promote", "shop"]).await;
    assert!(said.code == 1 && said.err.contains("the evidence does not say yet"), "{said:?}");
    assert_eq!(gilmok(plane, &["rollout", "promote", "shop", "--force"]).await.code, 0);
    comes_to(plane, "gated").await;
    let said = gilmok(plane, &["rollout", "show", "shop"]).await;
    assert!(
        said.out.starts_with("shop: v1 -> v2, gated; begun ")
            && said.out.contains("  ✓  10 %   1h\n  ▸  gate   a human's word\n"),
        "{said:?}"
    );

    let abort = ["rollout", "abort", "shop", "--wait", "10s", "--reason", "wrong prices"];
    let said = gilmok(plane, &abort).await;
    assert!(said.code == 0 && said.out.contains("every live proxy runs it"), "{said:?}");
    let said = gilmok(plane, &["rollout", "watch", "shop"]).await;
    assert!(said.code == 1 && said.err.contains("the rollout of shop to v2 was aborted"), "{said:?}");
    let said = gilmok(plane, &["rollout", "show", "shop", "--history"]).await;
    for what in ["started", "step", "paused", "resumed", "promoted", "gate", "aborted"] {
        let mut history = said.out.lines().skip_while(|line| !line.starts_with("WHEN"));
        let entry = history.find(|line| line.contains(&format!("  {what} ")));
        assert!(
            entry.is_some_and(|entry| entry.contains("kim") || entry.contains("rollout")),
            "{what}: {said:?}"
        );
    }
    assert!(said.out.contains("wrong prices"), "{said:?}");
    assert_eq!(gilmok(plane, &["rollout", "forget", "shop"]).await.code, 0);
    assert_eq!(gilmok(plane, &["rollout", "show", "shop"]).await.code, 1);
}

#[tokio::test]
async fn a_rollout_is_watched_to_its_end_over_a_killed_control_plane() {
    let mesh = Mesh::start(0).await;
    let Mesh { plane, proxy, _upstreams } = mesh;
    let plan = "candidate = \"v2\"\nanalysis = \"off\"\n\
        [[steps]]\npercent = 10\nhold = \"2s\"\n[[steps]]\npercent = 100\nhold = \"2s\"\n";
    let plan = plane.scratch.write("plan.toml", plan).display().to_string();
    let url = format!("http://{}", plane.address);
    let mut watching = command(&url, &["rollout", "start", "shop", "--file", &plan, "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut line = async || soon("a line", lines.next_line()).await.unwrap();
    assert!(line().await.unwrap().starts_with("the rollout of shop to v2 has begun: revision "));
    while !line().await.unwrap().starts_with("shop: v1 -> v2, holding, 10 %, step 1 of 2: ") {}
    let plane = plane.restart_after(Signal::Kill, "").await;
    let mut last = String::new();
    while let Some(next) = line().await {
        last = next;
    }
    assert_eq!(last, "shop: v1 -> v2, done, 100 %, step 2 of 2: v2 is the stable version");
    let ended: Said = soon("the command to end", watching.wait_with_output()).await.unwrap().into();
    assert_eq!(ended.code, 0, "{ended:?}");
    let said = gilmok(&plane, &["rollout", "watch", "shop", "--json"]).await;
    assert_eq!((said.code, &said.json()["state"]), (0, &json!("done")));
    eventually("the proxy to serve v2", async || {
        let answer = proxy.get("shop", "/").await.text();
        if answer == "v2" { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn on_a_terminal_a_rollout_is_drawn_in_place() {
    let mesh = Mesh::start(0).await;
    let plan = json!({ "candidate": "v2", "analysis": "off", "steps": [{ "percent": 10, "hold": "2s" }, { "percent": 100 }] });
    mesh.plane.put("/v1/services/shop/rollout", &plan).await;
    let watch = format!("{} rollout watch shop", program().display());
    let url = format!("http://{}", mesh.plane.address);
    // util-linux's, which runs a command on a terminal of its own.
    let mut script = Command::new("script");
    script.args(["-qec", &watch, "/dev/null"]).env("GILMOK_CLI_CONTROL_PLANE", url).stdin(Stdio::null());
    let said: Said = soon("the rollout to be done", script.output()).await.unwrap().into();
    assert!(said.code == 0 && said.out.contains("shop: v1 -> v2, done; begun "), "{said:?}");
    assert!(said.out.contains("A\r\u{1b}[J") && said.out.contains("  ████░░░░"), "{said:?}");
}
