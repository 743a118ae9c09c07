//! Starting: one proxy per port (reference P20), sockets that are inherited, and files that are wrong.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use gilmok_tests::load::{Ask, Load};
use gilmok_tests::process::{Process, Signal, program};
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use tokio::process::Command;

#[tokio::test]
async fn a_second_proxy_on_a_port_ends_and_says_which() {
    let upstream = Upstream::saying("fine").await;
    let first = Proxy::start(service("app", "", &[upstream.address])).await;
    let outbound = first.outbound();
    let scratch = Scratch::new();
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let args = Proxy::prepare(&settings.listen(&format!("outbound = \"{outbound}\"")), &scratch);
    let mut second = Process::start(&program(), args, &scratch.path().join("second.log"));
    let status = second.ended(Duration::from_secs(10)).await;
    assert!(!status.success());
    let log = second.log();
    assert!(log.contains(&outbound.port().to_string()) && log.contains("outbound"), "{log}");
    for _ in 0..20 {
        assert_eq!(first.get("app", "/").await.status(), 200);
    }
}

/// A command that starts a program with this listener as descriptor 3, as systemd would.
fn with_listener(listener: &std::net::TcpListener, args: Vec<std::ffi::OsString>) -> Command {
    let mut command = Command::new("sh");
    // The listener comes as standard input and is moved; the shell's pid becomes the program's.
    let script =
        "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(program()).args(args);
    let passed = OwnedFd::from(listener.try_clone().expect("a listener can be cloned"));
    command.stdin(Stdio::from(passed));
    command
}

#[tokio::test]
async fn a_proxy_hands_its_listener_over_to_the_next_without_a_failed_request() {
    let upstream = Upstream::saying("fine").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let settings = || {
        ProxySettings::of_mesh(service("app", "", &[upstream.address]))
            .listen(&format!("outbound = \"{address}\""))
            .table("[drain]\nannounce = \"100ms\"\ndeadline = \"5s\"")
    };
    let start = async || {
        let scratch = Scratch::new();
        let args = Proxy::prepare(&settings(), &scratch);
        let process = Process::spawn(with_listener(&listener, args), &scratch.path().join("proxy.log"));
        Proxy::adopt(process, scratch).await
    };
    let mut current = start().await;
    assert_eq!(current.outbound(), address);
    let load = Load::start(address, 8, &Ask::of("app"));
    let h2 = Load::start_h2(address, 4, &Ask::of("app"));
    for _ in 0..5 {
        load.flows(100).await;
        h2.flows(50).await;
        // Both accept from the same queue for a while; then the old one leaves.
        let next = start().await;
        current.process.signal(Signal::Terminate).await;
        assert!(current.process.ended(Duration::from_secs(20)).await.success());
        current = next;
    }
    load.flows(100).await;
    h2.flows(50).await;
    let (http1, h2) = tokio::join!(load.stop(), h2.stop());
    http1.expect_no_failure();
    h2.expect_no_failure();
}

async fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program()).arg("proxy").args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(20), output).await;
    let output = output.expect("it ends by itself").expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn every_fault_of_a_mesh_file_is_told_with_its_line_and_ends_with_78() {
    let scratch = Scratch::new();
    let text = "[services.app]\nmax_concurrent = 0\nprotocol = \"tcp\"\n\n[services.\"not a name\"]\n\n[[routes]]\nservice = \"nobody\"\n";
    let file = scratch.write("mesh.toml", text);
    let file = file.to_str().unwrap();
    for args in [vec!["--mesh", file], vec!["--mesh", file, "--check"]] {
        let (code, told) = run(&args).await;
        assert_eq!(code, Some(78), "{told}");
        for part in ["line 2", "line 3", "max_concurrent", "not a name", "nobody"] {
            assert!(told.contains(part), "no {part:?} in: {told}");
        }
    }
}

#[tokio::test]
async fn a_sound_file_passes_the_check_and_a_wrong_command_line_ends_with_64() {
    let scratch = Scratch::new();
    let file = scratch.write("mesh.toml", "[services.app]\n");
    let (code, told) = run(&["--mesh", file.to_str().unwrap(), "--check"]).await;
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = run(&["--no-such-flag"]).await;
    assert_eq!(code, Some(64), "{told}");
    let (code, told) = run(&["--mesh", "/nowhere/mesh.toml"]).await;
    assert_eq!(code, Some(78), "{told}");
    assert!(told.contains("/nowhere/mesh.toml"), "{told}");
}

#[tokio::test]
async fn run_starts_the_command_once_ready_and_returns_its_code() {
    let upstream = Upstream::saying("fine").await;
    let scratch = Scratch::new();
    let settings = ProxySettings::of_mesh(service("app", "", &[upstream.address]));
    let ports = scratch.path().join("ports.json");
    let mut args = Proxy::prepare(&settings, &scratch);
    args.insert(1, "run".into());
    // The command calls the app through the proxy, whose address it reads, and leaves with a code of its own.
    let script = format!(
        "port=$(sed 's/.*\"outbound\":\"127.0.0.1:\\([0-9]*\\)\".*/\\1/' {}); \
         curl -sf -H 'Host: app' http://127.0.0.1:$port/ > {}/said || exit 9; exit 7",
        ports.display(),
        scratch.path().display()
    );
    args.extend(["--".into(), "sh".into(), "-c".into(), script.into()]);
    let mut process = Process::start(&program(), args, &scratch.path().join("proxy.log"));
    let status = process.ended(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(7), "{}", process.log());
    assert_eq!(std::fs::read_to_string(scratch.path().join("said")).unwrap(), "fine");
}
