//! What operators write, and what they are told when it is wrong.

use super::*;
use crate::testing::Folder;

fn load(args: &[&str], variables: &[(&str, &str)]) -> Result<(Task, Settings), SettingsError> {
    let args = std::iter::once("gilmok-proxy").chain(args.iter().copied()).map(OsString::from);
    let variables: Vec<(String, OsString)> =
        variables.iter().map(|(name, text)| ((*name).to_owned(), OsString::from(text))).collect();
    Settings::load(args, &|name| variables.iter().find(|(n, _)| n == name).map(|(_, text)| text.clone()))
}

/// Reads a proxy.toml; every fault as one text without the file's name.
fn read(text: &str) -> Result<Settings, String> {
    let faults = Faults::new();
    let node = Node::parse_toml(text).map_err(|problems| problems.to_string())?;
    let (settings, _) = Settings::read(&Value::root(&node, &faults), Path::new("/etc/gilmok"), &|_| None);
    faults.into_result(settings).map_err(|problems| problems.to_string())
}

const PLANE: &str = "[source]\ncontrol_plane = [\"http://127.0.0.1:7070\"]\n";

#[test]
fn a_mesh_file_alone_is_enough() {
    let dir = Folder::new("alone");
    let mesh = dir.join("mesh.toml");
    std::fs::write(&mesh, "[services.ads]\n").unwrap();
    let (task, settings) = load(&["--mesh", mesh.to_str().unwrap()], &[]).unwrap();
    assert_eq!(task, Task::Serve);
    assert_eq!(settings.source, Source::MeshFile(mesh));
    assert_eq!(settings.listen.outbound, Some("127.0.0.1:15001".parse().unwrap()));
    assert_eq!(settings.listen.admin, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!(settings.listen.edge, None);
    assert_eq!(settings.registration, Registration::Nowhere);
    assert!(settings.access_log.is_none());
    assert!(settings.workers >= 1);
    assert!(is_node(&settings.node));
}

#[test]
fn everything_that_the_design_names_is_read() {
    let settings = read(
        r#"
        node = "web-1"
        zone = "a"
        log = "debug"
        [[apps]]
        service = "shop"
        version = "v1"
        shard = "0"
        address = "127.0.0.1:8080"
        inbound = "0.0.0.0:15006"
        advertise = "10.0.0.5:15006"
        health_check = { path = "/healthz" }
        [listen]
        outbound = "127.0.0.1:15001"
        edge = "0.0.0.0:8000"
        metrics = "0.0.0.0:15090"
        trusted = ["10.0.0.0/8"]
        [outbound]
        unknown_hosts = "pass"
        [source]
        control_plane = ["http://127.0.0.1:7070", "unix:///run/plane.sock"]
        token_file = "token"
        [registration]
        consul = "http://127.0.0.1:8500"
        [state]
        dir = "state"
        [workers]
        count = 3
        [drain]
        announce = "2s"
        deadline = "20s"
        [limits]
        connections = 100
        connections_per_ip = "none"
        header_bytes = "32KiB"
        body_bytes = "1GiB"
        [access_log]
        path = "access.log"
        queue = 100
        "#,
    )
    .unwrap();
    assert_eq!(settings.node, "web-1");
    assert_eq!(settings.apps[0].inbound.port(), 15006);
    assert_eq!(settings.apps[0].advertise.as_ref().unwrap().to_string(), "10.0.0.5:15006");
    assert_eq!(settings.listen.admin, None, "a present [listen] opens only what it names");
    assert_eq!(settings.outbound.unknown_hosts, UnknownHosts::Pass);
    let Source::ControlPlanes { servers, token_file } = &settings.source else { panic!("no control planes") };
    assert_eq!(servers.len(), 2);
    assert_eq!(token_file.as_deref(), Some(Path::new("/etc/gilmok/token")));
    assert!(matches!(settings.registration, Registration::Consul { .. }));
    assert_eq!(settings.state_dir, Path::new("/etc/gilmok/state"));
    assert_eq!(settings.workers, 3);
    assert_eq!(settings.limits.connections, 100);
    assert_eq!(settings.limits.body_bytes, Some(1 << 30));
    assert_eq!(settings.limits.uri_bytes, Limits::default().uri_bytes);
    let log = settings.access_log.unwrap();
    assert_eq!(log.target, LogTarget::File("/etc/gilmok/access.log".into()));
}

#[test]
fn apps_are_registered_where_the_mesh_is_told() {
    let settings = read(PLANE).unwrap();
    assert_eq!(settings.registration, Registration::ControlPlanes { ttl: Duration::from_secs(10) });
    let settings = read(&format!("{PLANE}[registration]\nenabled = false\n")).unwrap();
    assert_eq!(settings.registration, Registration::Nowhere);
    let settings = read(&format!("{PLANE}[registration]\nttl = \"3s\"\n")).unwrap();
    assert_eq!(settings.registration, Registration::ControlPlanes { ttl: Duration::from_secs(3) });
    assert!(read("[source]\nmesh_file = \"m\"\n[registration]\nttl = \"3s\"\n").is_err());
}

#[test]
fn every_fault_is_told_with_its_line() {
    let told = read("nod = \"x\"\n[limits]\nconnections = 0\n[listen]\nadmin = \"localhost\"\n").unwrap_err();
    for expected in [
        "line 1: nod: unknown key (did you mean `node`?)",
        "line 3: limits.connections: 0 is out of range",
        "line 5: listen.admin: not an address to listen on",
        "nothing says where the mesh is told",
    ] {
        assert!(told.contains(expected), "`{expected}` is not in:\n{told}");
    }
}

#[test]
fn one_listener_to_an_address() {
    let app = |port| {
        format!("[[apps]]\nservice = \"a\"\naddress = \"127.0.0.1:1\"\ninbound = \"127.0.0.1:{port}\"\n")
    };
    let told = read(&format!("{}{}{PLANE}", app(15006), app(15006))).unwrap_err();
    assert_eq!(
        told,
        "line 8: apps[1].inbound: 127.0.0.1:15006 is apps[0].inbound's already (one listener to an address)"
    );
    assert!(read(&format!("{}{}{PLANE}", app(0), app(0))).is_ok(), "port 0 takes any free one");
    let told = read(&format!("{PLANE}[listen]\noutbound = \"0.0.0.0:1\"\nadmin = \"127.0.0.1:1\"\n"));
    assert!(told.unwrap_err().contains("is listen.admin's already"));
}

#[test]
fn what_is_registered_can_be_called() {
    let app = "[[apps]]\nservice = \"a\"\naddress = \"127.0.0.1:1\"\ninbound = \"0.0.0.0:2\"\n";
    let told = read(&format!("{app}{PLANE}")).unwrap_err();
    assert!(told.contains("line 4: apps[0].inbound: callers cannot be told 0.0.0.0"), "{told}");
    assert!(read(&format!("{app}[source]\nmesh_file = \"m\"\n")).is_ok(), "nobody is told");
}

#[test]
fn flags_win_over_the_environment_and_both_over_the_file() {
    let dir = Folder::new("override");
    let file = dir.join("proxy.toml");
    std::fs::write(&file, format!("node = \"file\"\nzone = \"file\"\n[workers]\ncount = 1\n{PLANE}"))
        .unwrap();
    let file = file.to_str().unwrap();
    let variables = [("GILMOK_NODE", "variable"), ("GILMOK_ZONE", "variable"), ("GILMOK_CONFIG", file)];
    let (_, settings) = load(&["--node", "flag", "--workers-count", "2"], &variables).unwrap();
    assert_eq!((settings.node.as_str(), settings.zone.as_str(), settings.workers), ("flag", "variable", 2));
    for planes in [
        &["--source-control-plane", "http://a:1,http://b:2"][..],
        &["--control-plane", "http://a:1", "--control-plane", "http://b:2"],
    ] {
        let (_, settings) = load(planes, &variables).unwrap();
        assert!(matches!(settings.source, Source::ControlPlanes { servers, .. } if servers.len() == 2));
    }
}

#[test]
fn a_misspelt_variable_is_told() {
    let names = ["GILMOK_MESH", "GILMOK_CONFIG", "GILMOK_NODE", "GILMOK_SOURCE_MESHFILE", "HOME"];
    assert_eq!(
        unknown_variables(names.map(OsString::from)),
        ["GILMOK_SOURCE_MESHFILE is no setting; did you mean GILMOK_SOURCE_MESH_FILE?"]
    );
}

#[test]
fn a_fault_of_a_flag_has_the_flags_name() {
    let told = load(&["--source-control-plane", "http://a:1", "--drain-announce", "9"], &[]).unwrap_err();
    let told = told.to_string();
    assert!(told.contains("drain.announce: \"9\" is not understood (said by --drain-announce)"), "{told}");
}

#[test]
fn a_flag_that_opens_a_listener_closes_none() {
    let (_, settings) =
        load(&["--source-control-plane", "http://a:1", "--listen-metrics", "127.0.0.1:0"], &[]).unwrap();
    assert!(settings.listen.metrics.is_some() && settings.listen.admin.is_some());
}

#[test]
fn a_check_tells_the_faults_of_both_files() {
    let dir = Folder::new("both");
    std::fs::write(dir.join("mesh.toml"), "[services.ads]\nprotocol = \"tcp\"\n").unwrap();
    std::fs::write(dir.join("proxy.toml"), "nodes = 1\n[source]\nmesh_file = \"mesh.toml\"\n").unwrap();
    let config = dir.join("proxy.toml");
    let told = load(&["--check", "--config", config.to_str().unwrap()], &[]).unwrap_err().to_string();
    assert!(told.contains("proxy.toml: line 1: nodes: unknown key"), "{told}");
    assert!(told.contains("mesh.toml: line 2: services.ads.protocol: \"tcp\" is not routed"), "{told}");
}

#[test]
fn a_command_is_taken_as_it_stands() {
    let args = ["run", "--source-control-plane", "http://a:1", "--", "app", "--config", "its-own"];
    let (task, settings) = load(&args, &[]).unwrap();
    assert_eq!(task, Task::Run(["app", "--config", "its-own"].map(OsString::from).to_vec()));
    assert!(matches!(settings.source, Source::ControlPlanes { .. }));
    assert!(matches!(load(&["run"], &[]), Err(SettingsError::Usage(_))));
    assert!(matches!(load(&["--frobnicate"], &[]), Err(SettingsError::Usage(_))));
}

#[test]
fn flags_are_named_after_their_settings() {
    command().debug_assert();
    for setting in &overlay::OVERRIDABLE {
        assert_eq!(setting.flag, setting.path.replace(['.', '_'], "-"));
    }
}

#[test]
fn control_planes_over_tls_are_believed_by_the_authorities_that_are_named() {
    let planes = "[source]\ncontrol_plane = [\"https://a:1\", \"http://b:2\"]\nca_file = \"ca.pem\"\n";
    let settings = read(&format!("[admin]\ntoken_file = \"admin.token\"\n{planes}")).unwrap();
    let Source::ControlPlanes { servers, .. } = &settings.source else { panic!("no control planes") };
    let believed = servers.iter().map(|server| server.tls.as_ref().and_then(|tls| tls.ca_file.clone()));
    assert_eq!(believed.collect::<Vec<_>>(), [Some("/etc/gilmok/ca.pem".into()), None]);
    assert_eq!(settings.admin_token_file, Some("/etc/gilmok/admin.token".into()));
    let told = read(&planes.replace("https", "http")).unwrap_err();
    assert!(told.contains("line 3: source.ca_file: no control plane is called over TLS"), "{told}");
    let consul = format!("{planes}[registration]\nconsul = \"https://127.0.0.1:8500\"\n");
    let told = read(&consul).unwrap_err();
    assert!(told.contains("registration.consul: an agent is called in the clear"), "{told}");
}

#[test]
fn an_identity_that_a_control_plane_gives_is_that_of_an_app_or_of_the_service_that_is_named() {
    let dir = Folder::new("issuer");
    let file = dir.join("proxy.toml");
    let load_of = |text: &str| {
        std::fs::write(&file, text).unwrap();
        load(&["--config", file.to_str().unwrap()], &[]).map(|(_, settings)| settings.tls.identity)
    };
    let app = "[[apps]]\nservice = \"shop\"\naddress = \"127.0.0.1:1\"\ninbound = \"127.0.0.1:0\"\n";
    let given = "[identity]\nissuer = \"control_plane\"\n";
    for (text, service, token) in [
        (format!("{PLANE}{app}{given}"), "shop", None),
        (
            format!("{PLANE}{app}{given}service = \"edge\"\njoin_token_file = \"t\"\n"),
            "edge",
            Some(dir.join("t")),
        ),
        (format!("{PLANE}{given}service = \"edge\"\n[listen]\ninbound_tls = \"strict\"\n"), "edge", None),
    ] {
        let Some(IdentitySettings::Issued(issued)) = load_of(&text).unwrap() else { panic!("{text}") };
        assert_eq!((issued.service.as_str(), issued.join_token_file), (service, token));
    }
    for (text, expected) in [
        (format!("{PLANE}{given}"), "nothing says which service this proxy is"),
        (format!("{PLANE}{app}[identity]\nissuer = \"me\"\n"), "identity.issuer"),
        (format!("{PLANE}{app}{given}cert_file = \"a\"\n"), "identity.cert_file: unknown key"),
        (format!("[source]\nmesh_file = \"none\"\n{app}{given}"), "there is no control plane to ask"),
    ] {
        let told = load_of(&text).unwrap_err().to_string();
        assert!(told.contains(expected), "{text}: {told}");
    }
}
