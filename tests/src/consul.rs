//! A real Consul: found on the machine or brought from Debian's archive, and run as one agent on loopback.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use gilmok_control_plane::http_client::{Client, Origin, Request, Response, Settings};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::eventually::SOON;
use crate::process::{Signal, send_signal};
use crate::scratch::Scratch;

/// The release of Debian whose archive has Consul (1.8.7).
const SUITE: &str = "bullseye";
/// How often other ports are tried when an agent does not come up: another process may have taken one.
const STARTS_MAX: usize = 5;
/// Where agents listen: below the range that the system gives out by itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The program: `$CONSUL`, or `consul` on PATH, or Debian's package below `target/`, downloaded once.
///
/// # Panics
/// When there is none; the message says what to install.
#[must_use]
pub fn program() -> &'static Path {
    match found() {
        Ok(path) => path,
        Err(reason) => panic!(
            "this test needs a real Consul: {reason}\n\
             Install one (1.8.7 or later) so that `consul` is on PATH, or name it: CONSUL=/path/to/consul"
        ),
    }
}

/// Looked for once in each process; may take as long as a download.
fn found() -> &'static Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(find)
}

fn find() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("CONSUL") {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!("CONSUL={} is no file", named.display()))
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let on_path =
        std::env::split_paths(&folders).map(|folder| folder.join("consul")).find(|path| path.is_file());
    on_path.map_or_else(download, Ok)
}

/// Brings Debian's package into a folder of our own; nothing of the system is touched.
fn download() -> Result<PathBuf, String> {
    // Tests lie in target/PROFILE/deps.
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = test.ancestors().nth(3).ok_or("the test lies in no target folder")?;
    let folder = target.join("debian-consul");
    let program = folder.join("root/usr/bin/consul");
    let told = |what: &Path, error: &std::io::Error| format!("{}: {error}", what.display());
    for part in ["lists/partial", "cache/archives/partial"] {
        let part = folder.join(part);
        std::fs::create_dir_all(&part).map_err(|error| told(&part, &error))?;
    }
    // Tests in other processes wait here until the first one has it.
    let lock = folder.join("lock");
    let lock = std::fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _held = lock.map_err(|error| told(&folder, &error))?;
    if program.is_file() {
        return Ok(program);
    }
    let sources = folder.join("sources.list");
    std::fs::write(&sources, source()?).map_err(|error| told(&sources, &error))?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&folder).arg("-qq");
        for (option, value) in [
            ("Dir::Etc::sourcelist", sources.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::Etc::preferences", Path::new("/dev/null")),
            ("Dir::Etc::preferencesparts", Path::new("/dev/null")),
            ("Dir::State", &folder),
            ("Dir::State::lists", &folder.join("lists")),
            ("Dir::State::status", Path::new("/dev/null")),
            ("Dir::Cache", &folder.join("cache")),
            ("APT::Sandbox::User", Path::new("")),
            ("Acquire::Languages", Path::new("none")),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false")),
            ("Acquire::Retries", Path::new("2")),
            ("Acquire::http::Timeout", Path::new("30")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        run(command.args(args))
    };
    apt(&["update"])?;
    apt(&["download", "consul"])?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let files = std::fs::read_dir(&folder).map_err(|error| told(&folder, &error))?;
    let package = files.flatten().map(|entry| entry.path()).find(is_package).ok_or("no package came")?;
    // Renamed once it is whole, so that an interrupted run leaves no half of a program.
    let (fresh, root) = (folder.join("root.new"), folder.join("root"));
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&fresh))?;
    std::fs::rename(&fresh, &root).map_err(|error| told(&root, &error))?;
    if program.is_file() { Ok(program) } else { Err(format!("{} holds no consul", package.display())) }
}

fn run(command: &mut Command) -> Result<Output, String> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("Debian's package of {SUITE} could not be brought: {program}: {}", said.trim()))
}

/// This machine's own Debian archive, with the suite's name replaced.
fn source() -> Result<String, String> {
    let mut texts = vec![(PathBuf::from("/etc/apt/sources.list"), false)];
    for entry in std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        let path = entry.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => texts.push((path, false)),
            Some("sources") => texts.push((path, true)),
            _ => {}
        }
    }
    let read = |(path, stanzas): (PathBuf, bool)| {
        let text = std::fs::read_to_string(path).ok()?;
        if stanzas { archive_in_stanzas(&text) } else { archive_in_lines(&text) }
    };
    let (uri, options) =
        texts.into_iter().find_map(read).ok_or("no Debian archive is among the sources of this machine")?;
    Ok(format!("deb [{options}] {uri} {SUITE} main\n"))
}

/// Whether a suite is a release of Debian itself: not its updates, not its security archive, not somebody else's.
fn is_release(suite: &str) -> bool {
    const RELEASES: [&str; 9] =
        ["bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"];
    RELEASES.contains(&suite)
}

/// The archive and its options in a file of one-line entries.
fn archive_in_lines(text: &str) -> Option<(String, String)> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let signed = options.split_whitespace().find(|option| option.starts_with("signed-by="));
        (is_release(suite) && words.any(|component| component == "main"))
            .then(|| (uri.to_owned(), signed.unwrap_or_default().to_owned()))
    })
}

/// The archive and its options in a file of deb822 stanzas.
fn archive_in_stanzas(text: &str) -> Option<(String, String)> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let uri = field("URIs")?.split_whitespace().next()?;
        let suits = field("Suites")?.split_whitespace().any(is_release);
        let main = field("Components")?.split_whitespace().any(|component| component == "main");
        let signed = field("Signed-By").filter(|path| path.starts_with('/'));
        let options = signed.map(|path| format!("signed-by={path}")).unwrap_or_default();
        (suits && main).then(|| (uri.to_owned(), options))
    })
}

/// An agent that is a server. Ends when dropped, and with the test's process.
#[derive(Debug)]
pub struct Consul {
    scratch: Scratch,
    ports: [u16; 3],
    config: Value,
    token: Option<String>,
    running: Option<Running>,
    client: Client,
}

/// The agent's process below a shell that ends it when our end of the shell's input is closed, by whatever.
#[derive(Debug)]
struct Running {
    shell: Child,
    input: Option<ChildStdin>,
    pid: u32,
}

impl Running {
    /// Whether the agent runs, even if it is stopped; what has ended stays a zombie below its shell.
    fn is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, state)| !state.trim_start().starts_with('Z'))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.input.take());
        // The shell kills the agent and ends at once.
        drop(self.shell.wait());
    }
}

impl Consul {
    /// An agent with a leader, ready for everything.
    ///
    /// # Panics
    /// When there is no Consul, or it does not come up.
    pub async fn start() -> Self {
        Self::start_with(json!({}), None).await
    }

    /// An agent with more configuration; `token` is used for the test's own calls.
    ///
    /// # Panics
    /// When there is no Consul, or it does not come up.
    pub async fn start_with(config: Value, token: Option<&str>) -> Self {
        tokio::task::spawn_blocking(found).await.expect("looking for consul does not panic");
        let mut log = String::new();
        for _ in 0..STARTS_MAX {
            let mut consul = Self::new(config.clone(), token);
            if consul.run().await {
                return consul;
            }
            log = consul.log();
        }
        panic!("consul does not come up:\n{log}");
    }

    /// Three servers that elect a leader, so that one may be lost, and keep what they know on disk.
    ///
    /// # Panics
    /// When there is no Consul, or they do not come up.
    pub async fn start_three() -> [Self; 3] {
        tokio::task::spawn_blocking(found).await.expect("looking for consul does not panic");
        let mut logs = String::new();
        for _ in 0..STARTS_MAX {
            let mut servers: [Self; 3] = std::array::from_fn(|_| Self::new(json!({}), None));
            let joined = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.ports[2]));
            for (number, server) in servers.iter_mut().enumerate() {
                server.config = json!({
                    "server": true,
                    "bootstrap_expect": 3,
                    "node_name": format!("server-{number}"),
                    "data_dir": server.scratch.path().join("data"),
                    "retry_join": joined,
                    "retry_interval": "1s",
                    "performance": { "raft_multiplier": 1 },
                });
                server.spawn();
            }
            let mut ready = true;
            for server in &servers {
                ready &= server.ready().await;
                logs += &server.log();
            }
            if ready {
                return servers;
            }
        }
        panic!("three servers do not come up:\n{logs}");
    }

    /// An agent that does not run yet.
    fn new(config: Value, token: Option<&str>) -> Self {
        let ports = std::array::from_fn(|_| free_port());
        let origin = Origin::Http { host: "127.0.0.1".into(), port: ports[0] };
        let client = Client::new(Settings::new(origin)).expect("plain http needs no files");
        let (scratch, token) = (Scratch::new(), token.map(str::to_owned));
        Self { scratch, ports, config, token, running: None, client }
    }

    /// Where it answers.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.client.origin().clone()
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    /// Ends it the hard way.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts it again where it was. A single agent has nothing in it then, and counts from 1.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&mut self) {
        self.stop();
        assert!(self.run().await, "consul does not come up again:\n{}", self.log());
    }

    /// Sends a signal to the agent.
    ///
    /// # Panics
    /// When it is stopped.
    pub async fn signal(&self, signal: Signal) {
        send_signal(self.running.as_ref().expect("it runs").pid, signal).await;
    }

    /// Registers an instance on 127.0.0.1 with whatever else `more` says.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn register(&self, service: &str, id: &str, port: u16, more: Value) {
        let mut registration = json!({ "Name": service, "ID": id, "Address": "127.0.0.1", "Port": port });
        if let (Value::Object(registration), Value::Object(more)) = (&mut registration, more) {
            registration.extend(more);
        }
        self.put("/v1/agent/service/register", &registration).await;
    }

    /// Takes an instance out.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn deregister(&self, id: &str) {
        self.put(&format!("/v1/agent/service/deregister/{id}"), &Value::Null).await;
    }

    /// `GET`s from the agent's API; says the status and the body.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn get(&self, target: &str) -> (u16, String) {
        let response = self.send(&self.signed(Request::get(target))).await;
        (response.status.as_u16(), String::from_utf8_lossy(&response.body).into_owned())
    }

    /// `PUT`s to the agent's API.
    ///
    /// # Panics
    /// When it does not answer 200.
    pub async fn put(&self, target: &str, body: &Value) -> Response {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let response = self.send(&self.signed(Request::new(Method::PUT, target).body(body))).await;
        let said = String::from_utf8_lossy(&response.body);
        assert!(response.status.is_success(), "PUT {target}: {} {said}", response.status);
        response
    }

    async fn send(&self, request: &Request) -> Response {
        match self.client.send(request).await {
            Ok(response) => response,
            Err(error) => panic!("{} {}: {error}\n{}", request.method, request.target, self.log()),
        }
    }

    fn signed(&self, request: Request) -> Request {
        match &self.token {
            Some(token) => {
                let value = http::HeaderValue::from_str(token).expect("a token is printable");
                request.header(http::HeaderName::from_static("x-consul-token"), value)
            }
            None => request,
        }
    }

    /// Starts the process and waits until it is ready; false when it ended before.
    async fn run(&mut self) -> bool {
        self.spawn();
        let ready = self.ready().await;
        if !ready {
            self.running = None;
        }
        ready
    }

    fn spawn(&mut self) {
        let [http, server, serf] = self.ports;
        let mut config = json!({
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": { "http": http, "server": server, "serf_lan": serf, "serf_wan": -1, "grpc": -1, "dns": -1 },
            "disable_update_check": true,
            "log_level": "warn",
        });
        merge(&mut config, &self.config);
        let config = self.scratch.write("agent.json", config.to_string());
        let log = std::fs::File::options().create(true).append(true).open(self.scratch.path().join("log"));
        let log = log.expect("a log can be written");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "\"$@\" >&2 </dev/null & echo $!; read -r _; kill -9 $!; wait $!", "sh"])
            .arg(program())
            .arg("agent")
            .args((!self.is_one_of_several()).then_some("-dev"))
            .arg("-config-file")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log));
        let mut shell = shell.spawn().expect("a shell is there");
        let input = shell.stdin.take();
        let pid = read_line(&mut shell).trim().parse().expect("the shell tells the agent's id");
        self.running = Some(Running { shell, input, pid });
    }

    fn is_one_of_several(&self) -> bool {
        self.config.get("retry_join").is_some()
    }

    /// Waits until there is a leader and the agent's own node is known, since only then a registration is taken.
    async fn ready(&self) -> bool {
        let nodes = Request::get("/v1/catalog/nodes?consistent").timeout(Duration::from_secs(1));
        let nodes = self.signed(nodes);
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline && self.running.as_ref().is_some_and(Running::is_alive) {
            if let Ok(response) = self.client.send(&nodes).await
                && response.status.is_success()
                && response.body.windows(9).any(|part| part == b"127.0.0.1")
            {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

/// Puts `more` over `config`, table by table.
fn merge(config: &mut Value, more: &Value) {
    match (config, more) {
        (Value::Object(config), Value::Object(more)) => {
            for (key, value) in more {
                merge(config.entry(key).or_insert(Value::Null), value);
            }
        }
        (config, more) => config.clone_from(more),
    }
}

/// The first line that the shell says.
fn read_line(shell: &mut Child) -> String {
    let mut line = String::new();
    if let Some(output) = &mut shell.stdout {
        let mut output = std::io::BufReader::new(output);
        std::io::BufRead::read_line(&mut output, &mut line).expect("the shell can be read");
    }
    line
}

/// A port that nobody listens on now, neither on TCP nor on UDP.
///
/// # Panics
/// Never: there are thousands.
#[must_use]
pub fn free_port() -> u16 {
    let is_free = |port: &u16| {
        std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
            && std::net::UdpSocket::bind(("127.0.0.1", *port)).is_ok()
    };
    std::iter::repeat_with(|| fastrand::u16(PORTS)).find(is_free).expect("some port is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_found_in_both_kinds_of_source_files() {
        let stanzas = "Types: deb\nURIs: http://security.example/debian\nSuites: bookworm-security\nComponents: main\n\n\
            Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
            Components: main\nSigned-By: /usr/share/keyrings/a.gpg\n";
        let found = Some((
            "http://mirror.example/debian".to_owned(),
            "signed-by=/usr/share/keyrings/a.gpg".to_owned(),
        ));
        assert_eq!(archive_in_stanzas(stanzas), found);
        let lines = "# deb http://no.example sid main\ndeb https://packages.example cloud main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian trixie main contrib\n";
        assert_eq!(archive_in_lines(lines), found);
        assert_eq!(archive_in_lines("deb http://x trixie contrib\n"), None);
    }
}
