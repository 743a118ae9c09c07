//! Settings as operators meet them: files, flags, environment, and every fault with its line.

use super::*;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gilmok-settings-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn load(args: &[&str], environment: &[(&str, &str)]) -> Result<(Task, Settings), SettingsError> {
    let args = std::iter::once("gilmok-control-plane").chain(args.iter().copied()).map(OsString::from);
    let variable = |name: &str| {
        environment.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    Settings::load(args, &variable)
}

fn faults_of(text: &str) -> String {
    let folder = Folder::new(&format!("faulty-{}", fastrand::u64(..)));
    let file = folder.write("control-plane.toml", text);
    let error = load(&["--config", file.to_str().unwrap()], &[]).unwrap_err();
    error.to_string().replace(&format!("{}: ", file.display()), "")
}

#[test]
fn nothing_said_is_the_embedded_control_plane_on_loopback() {
    let (task, settings) = load(&[], &[]).unwrap();
    assert_eq!(task, Task::Serve);
    assert_eq!(settings.listen.to_string(), LISTEN_DEFAULT);
    assert_eq!(settings.store, StoreSettings { dir: "data".into(), history: 1_000 });
    assert!(settings.consul.is_none() && settings.token_file.is_none() && settings.port_file.is_none());
}

#[test]
fn every_setting_is_read_and_paths_are_relative_to_the_file() {
    let folder = Folder::new("whole");
    folder.write("admin.token", "secret\n");
    let file = folder.write(
        "control-plane.toml",
        "listen = \"0.0.0.0:0\"\ntoken_file = \"admin.token\"\nlog = \"debug\"\nport_file = \"port.json\"\n\
         [store]\ndir = \"/var/lib/store\"\nhistory = 5\n[membership.consul]\naddress = \"http://127.0.0.1:8500\"\n",
    );
    let (_, settings) = load(&["--config", file.to_str().unwrap()], &[]).unwrap();
    assert_eq!(settings.listen.to_string(), "0.0.0.0:0");
    assert_eq!(settings.token_file, Some(folder.0.join("admin.token")));
    assert_eq!(settings.port_file, Some(folder.0.join("port.json")));
    assert_eq!(settings.store, StoreSettings { dir: "/var/lib/store".into(), history: 5 });
    assert_eq!(settings.consul.unwrap().addresses.len(), 1);
    assert_eq!(settings.log, LevelFilter::DEBUG);
}

#[test]
fn a_misspelt_variable_is_told() {
    let names = ["GILMOK_CONFIG", "GILMOK_CONSUL", "GILMOK_TOKENFILE", "HOME"];
    assert_eq!(
        unknown_variables(names.map(OsString::from)),
        ["GILMOK_TOKENFILE is no setting; did you mean GILMOK_TOKEN_FILE?"]
    );
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let folder = Folder::new("overlay");
    let file = folder.write(
        "c.toml",
        "listen = \"127.0.0.1:1\"\n[membership.consul]\naddress = \"http://a:1\"\ndatacenter = \"dc1\"\n",
    );
    let file = file.to_str().unwrap();
    let environment = [("GILMOK_CONFIG", file), ("GILMOK_LISTEN", "127.0.0.1:2"), ("GILMOK_LOG", "")];
    let (_, settings) = load(&["--consul", "http://b:2"], &environment).unwrap();
    assert_eq!(settings.listen.port(), 2);
    let consul = settings.consul.unwrap();
    assert_eq!(consul.addresses[0].to_string(), "http://b:2");
    assert_eq!(consul.datacenter.as_deref(), Some("dc1"), "the rest of the table stays");
    let (task, settings) =
        load(&["--listen", "127.0.0.1:3", "--check", "--store", "/s"], &environment).unwrap();
    assert_eq!((task, settings.listen.port(), settings.store.dir), (Task::Check, 3, "/s".into()));
}

#[test]
fn every_fault_is_told_at_once_with_its_line() {
    let told = faults_of(
        "listen = \"localhost\"\ntoken_file = \"none\"\n[store]\nhistory = 0\ndri = \"x\"\n\
         [membership.consul]\ndatacenter = \"d\"\n[membership.etcd]\n",
    );
    let lines: Vec<&str> = told.lines().collect();
    for (line, expected) in [
        (0, "line 1: listen: not an address to listen on"),
        (1, "line 2: token_file: "),
        (2, "line 4: store.history: 0 is out of range"),
        (3, "line 5: store.dri: unknown key (did you mean `dir`?)"),
        (4, "line 6: membership.consul: `address` is missing"),
        (5, "line 8: membership.etcd: unknown key"),
    ] {
        assert!(lines.get(line).is_some_and(|told| told.starts_with(expected)), "{expected}\n{told}");
    }
    assert_eq!(lines.len(), 6, "{told}");
}

#[test]
fn the_store_in_consul_is_refused_in_plain_words() {
    let told = faults_of("[store]\nconsul = \"http://127.0.0.1:8500\"\n");
    assert!(told.starts_with("line 2: store.consul: the intent cannot be kept in Consul yet"), "{told}");
}

#[test]
fn a_fault_of_a_flag_names_the_flag() {
    let told = load(&["--listen", "here"], &[]).unwrap_err().to_string();
    assert!(told.contains("(said by --listen)"), "{told}");
    let told = load(&[], &[("GILMOK_LISTEN", "here")]).unwrap_err().to_string();
    assert!(told.contains("(said by GILMOK_LISTEN)"), "{told}");
}

#[test]
fn what_cannot_be_read_is_told() {
    assert!(matches!(load(&["--what"], &[]), Err(SettingsError::Usage(_))));
    let told = load(&["--config", "/no/such/file"], &[]).unwrap_err().to_string();
    assert!(told.starts_with("/no/such/file: cannot be read"), "{told}");
    assert!(faults_of("listen = \n").contains("line 1: not TOML"));
}

#[test]
fn tls_is_read_and_its_faults_are_told() {
    let folder = Folder::new("tls");
    let file = folder.write(
        "c.toml",
        "loopback = \"token\"\n[tls]\ncert_file = \"a.pem\"\nkey_file = \"a.key\"\nclient_ca_file = \"ca.pem\"\n\
         trust_domain = \"mesh.example\"\nmode = \"permissive\"\n",
    );
    let (_, settings) = load(&["--config", file.to_str().unwrap()], &[]).unwrap();
    assert_eq!(settings.on_loopback, OnLoopback::Token);
    let expected = TlsSettings {
        cert_file: folder.0.join("a.pem"),
        key_file: folder.0.join("a.key"),
        client_ca_file: Some(folder.0.join("ca.pem")),
        trust_domain: Some("mesh.example".into()),
        mode: crate::tls::Mode::Permissive,
    };
    assert_eq!(settings.tls, Some(expected));
    let told = faults_of(
        "loopback = \"closed\"\n[tls]\ncert_file = \"a\"\ntrust_domain = \"A b\"\nmode = \"off\"\n",
    );
    for expected in [
        "line 1: loopback: ",
        "line 2: tls: `key_file` is missing",
        "line 4: tls.trust_domain: nobody is known by it",
        "line 4: tls.trust_domain: no trust domain",
        "line 5: tls.mode: ",
    ] {
        assert!(told.lines().any(|line| line.starts_with(expected)), "{expected}\n{told}");
    }
}

#[test]
fn who_makes_certificates_is_read_and_what_is_no_authority_is_told() {
    let folder = Folder::new("identity");
    let load_of = |text: &str| {
        let file = folder.write("c.toml", text);
        load(&["--config", file.to_str().unwrap()], &[]).unwrap().1.identity
    };
    assert!(load_of("").is_none());
    let settings = load_of("[identity]\ntrust_domain = \"mesh.local\"\n").unwrap();
    assert_eq!(
        (&*settings.trust_domain, settings.leaf_ttl.as_secs(), settings.given),
        ("mesh.local", 3_600, None)
    );
    assert_eq!(
        load_of("[identity]\ntrust_domain = \"m\"\nleaf_ttl = \"10s\"\n").unwrap().leaf_ttl.as_secs(),
        10
    );
    folder.write("ca.key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
    for (text, expected) in [
        ("[identity]\n", "`trust_domain` is missing"),
        ("[identity]\ntrust_domain = \"Mesh\"\n", "not a trust domain"),
        ("[identity]\ntrust_domain = \"m/x\"\n", "not a trust domain"),
        ("[identity]\ntrust_domain = \"m\"\nleaf_ttl = \"1s\"\n", "identity.leaf_ttl"),
        ("[identity]\ntrust_domain = \"m\"\nca_cert_file = \"ca.pem\"\n", "one of the two is missing"),
        (
            "[identity]\ntrust_domain = \"m\"\nca_cert_file = \"/none\"\nca_key_file = \"/none\"\n",
            "no authority",
        ),
    ] {
        let told = faults_of(text);
        assert!(told.contains(expected) && !told.contains("c2VjcmV0"), "{text}: {told}");
    }
}

#[test]
fn the_listeners_own_certificate_may_be_made_here() {
    let folder = Folder::new("own-tls");
    let identity = "[identity]\ntrust_domain = \"mesh.local\"\n";
    let load_of = |text: &str| {
        let file = folder.write("c.toml", text);
        load(&["--config", file.to_str().unwrap()], &[]).unwrap().1
    };
    let settings =
        load_of(&format!("{identity}[tls]\nissuer = \"identity\"\nnames = [\"plane\", \"10.0.0.1\"]\n"));
    let tls = settings.tls.unwrap();
    assert_eq!(tls.cert_file, folder.0.join("data/listener.pem"));
    assert_eq!((&tls.key_file, tls.trust_domain.as_deref()), (&tls.cert_file, Some("mesh.local")));
    assert_eq!(tls.client_ca_file, Some(folder.0.join("data/roots.pem")));
    assert_eq!(settings.own_names.len(), 2);
    assert_eq!(load_of(&format!("{identity}[tls]\nissuer = \"identity\"\n")).own_names.len(), 3);
    for (text, expected) in [
        ("[tls]\nissuer = \"identity\"\n".to_owned(), "no authority to make a certificate"),
        (format!("{identity}[tls]\nissuer = \"identity\"\nnames = []\n"), "0 names"),
        (format!("{identity}[tls]\nissuer = \"identity\"\nnames = [\"a b\"]\n"), "no name of a host"),
        (
            format!("{identity}[tls]\nissuer = \"identity\"\ncert_file = \"x\"\n"),
            "tls.cert_file: unknown key",
        ),
    ] {
        let told = faults_of(&text);
        assert!(told.contains(expected), "{text}: {told}");
    }
}
