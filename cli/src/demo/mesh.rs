//! The demo's mesh as processes: started together, brought back when one has ended, ended together.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use gilmok_control_plane::http_client::{Client, Request};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::layout::{App, CONTROL_PLANE, Layout, Machine, proxy_of};
use super::process::Process;
use super::tell::Teller;
use super::{settings, talk};

/// How long something that should happen soon may take on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How often it is looked whether it has happened.
const POLL: Duration = Duration::from_millis(20);

/// All processes of the demo.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) layout: Layout,
    pub(crate) dir: PathBuf,
    processes: Vec<Process>,
}

/// The name of the process that a fault is about, as context of an error.
#[derive(Debug)]
pub(crate) struct Concerning(pub(crate) String);

impl std::fmt::Display for Concerning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "something is wrong with {}", self.0)
    }
}

impl Mesh {
    /// Writes the settings and starts everything, without waiting for it: but for the control plane, where the mesh is
    /// `encrypted` and it has to say first who may join.
    ///
    /// # Errors
    /// When no ports are free, a file cannot be written, this executable cannot be started, or the control plane does not come.
    pub(crate) async fn start(dir: &Path, consul: Option<&str>, encrypted: bool) -> anyhow::Result<Self> {
        let layout = Layout::choose(encrypted)?;
        let mut mesh = Self { layout, dir: dir.to_owned(), processes: Vec::new() };
        let secret = dir.join(settings::WEBHOOK_SECRET);
        std::fs::write(&secret, format!("{:032x}\n", fastrand::u128(..)))
            .with_context(|| format!("cannot write {}", secret.display()))?;
        let text = settings::control_plane(&mesh.layout, dir, consul, encrypted);
        mesh.start_from_file(CONTROL_PLANE, "control-plane", &text)?;
        if encrypted {
            mesh.control_plane_ready().await?;
            mesh.let_join().await?;
        }
        for index in 0..mesh.layout.machines.len() {
            let text = settings::proxy(&mesh.layout, index, dir, consul);
            mesh.start_from_file(&proxy_of(&mesh.layout.machines[index]), "proxy", &text)?;
        }
        for app in mesh.layout.apps.clone() {
            let Machine { outbound, ofrep, .. } = mesh.layout.machines[app.machine];
            let App { name, service, version, shard, address, .. } = app;
            let mut args = format!(
                "--service={service} --version={version} --shard={shard} --listen={address} --mesh=http://{outbound} --flags=http://{ofrep}"
            );
            let apps = mesh.layout.apps.iter().filter(|other| other.service == service);
            let ways: Vec<_> = apps.map(|app| format!("{}={}", app.inbound, app.address)).collect();
            if encrypted && !shard.is_empty() {
                args = format!("{args} --copy-to={}", ways.join(","));
            }
            let mut process = Process::new(name, "demo-app", args.split(' ').map(OsString::from), dir);
            if !app.later {
                process.begin()?;
            }
            mesh.processes.push(process);
        }
        Ok(mesh)
    }

    /// Writes for each sidecar the token with which it asks for certificates of its service, and of no other.
    async fn let_join(&self) -> anyhow::Result<()> {
        for machine in &self.layout.machines {
            let asked = json!({"name": machine.name, "scopes": ["join"], "services": [machine.identity], "ttl": "10m"});
            let answer =
                self.control_plane()?.send(&talk::with_json(Method::POST, "/v1/tokens", &asked)).await?;
            let made = talk::json(&answer, StatusCode::CREATED)?;
            let token = made["token"].as_str().with_context(|| format!("no token in {made}"))?;
            let file = settings::join_token_file(&self.dir, machine);
            std::fs::write(&file, token).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn start_from_file(&mut self, name: &str, program: &str, text: &str) -> anyhow::Result<()> {
        let file = self.dir.join(format!("{name}.toml"));
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let args = ["--config".into(), file.into_os_string()];
        let mut process = Process::new(name, program, args, &self.dir);
        process.begin()?;
        self.processes.push(process);
        Ok(())
    }

    /// The process of this name: `control-plane`, `proxy-MACHINE`, or an app's.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        let process = self.processes.iter_mut().find(|process| process.name == name);
        process.ok_or_else(|| anyhow!("there is no process `{name}` in the demo"))
    }

    /// A client of the control plane.
    ///
    /// # Errors
    /// When the roots of an encrypted mesh cannot be read.
    pub(crate) fn control_plane(&self) -> anyhow::Result<Client> {
        talk::control_plane(self.layout.control_plane, self.roots())
    }

    /// The file with the roots of an encrypted mesh.
    pub(crate) fn roots(&self) -> Option<PathBuf> {
        self.layout.is_encrypted().then(|| settings::roots_file(&self.dir))
    }

    /// The JSON that `GET target` of the control plane gives.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub(crate) async fn read(&self, target: &str) -> anyhow::Result<Value> {
        let control_plane = self.control_plane()?;
        let answer = talk::ask_by(&control_plane, target).await;
        let json = answer.and_then(|answer| talk::json(&answer, StatusCode::OK));
        json.with_context(|| format!("GET {target}")).with_context(|| Concerning(CONTROL_PLANE.to_owned()))
    }

    /// Waits until the control plane takes writes.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) async fn control_plane_ready(&mut self) -> anyhow::Result<()> {
        let (address, roots) = (self.layout.control_plane, self.roots());
        self.eventually(CONTROL_PLANE, "the control plane to be ready", async || {
            let answer = talk::ask_by(&talk::control_plane(address, roots.clone())?, "/readyz").await?;
            if answer.status == StatusCode::OK { Ok(()) } else { bail!(talk::brief(&answer)) }
        })
        .await
    }

    /// Waits until every proxy is ready and every app that the mesh begins with can be called from every machine.
    ///
    /// # Errors
    /// When that does not come.
    pub(crate) async fn whole(&mut self) -> anyhow::Result<()> {
        for machine in self.layout.machines.clone() {
            let Machine { admin, outbound, .. } = machine;
            let proxy = proxy_of(&machine);
            self.eventually(&proxy, "a proxy to be ready", async || {
                let answer = talk::ask(admin, Method::GET, "/readyz").await?;
                if answer.status == StatusCode::OK { Ok(()) } else { bail!(talk::brief(&answer)) }
            })
            .await?;
            for app in self.layout.apps.clone() {
                // Nobody is sent to a shard that holds nothing.
                if app.later {
                    continue;
                }
                self.eventually(app.name, "an app to be reached through the mesh", async || {
                    let client = talk::client(outbound)?;
                    let pid = answering_pid(&client, &app).await?;
                    anyhow::ensure!(Some(pid) == pid_of(&app).await, "another endpoint answered");
                    Ok(())
                })
                .await?;
            }
        }
        Ok(())
    }

    /// The process id that an app says it has, once it answers.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) async fn pid_of(&mut self, name: &str) -> anyhow::Result<u64> {
        let app = self.layout.app(name)?.clone();
        self.eventually(name, "an app to answer", async || {
            pid_of(&app).await.context("it does not answer yet")
        })
        .await
    }

    /// Tries until it works. The last try's error is told when it does not, or when a process has ended meanwhile.
    ///
    /// # Errors
    /// The time is up, or a process has ended that should run.
    pub(crate) async fn eventually<T>(
        &mut self,
        concerned: &str,
        what: &str,
        mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + SOON;
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            self.check_running()?;
            if Instant::now() > deadline {
                let error = error.context(format!("waited {} s for {what}", SOON.as_secs()));
                return Err(error.context(Concerning(concerned.to_owned())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether everything runs that should.
    ///
    /// # Errors
    /// Names one that has ended.
    pub(crate) fn check_running(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.ended_unasked() {
                let error = anyhow!("{} has ended by itself: {status}", process.name);
                return Err(error.context(Concerning(process.name.clone())));
            }
        }
        Ok(())
    }

    /// Starts again what has ended without being asked to; their names.
    ///
    /// # Errors
    /// When one cannot be started.
    pub(crate) fn bring_back(&mut self) -> anyhow::Result<Vec<String>> {
        let mut brought_back = Vec::new();
        for process in &mut self.processes {
            if process.ended_unasked().is_some() {
                process.begin()?;
                brought_back.push(process.name.clone());
            }
        }
        Ok(brought_back)
    }

    /// The end of the log of one process.
    pub(crate) fn last_words(&mut self, name: &str) -> String {
        self.process(name).map(|process| process.last_words()).unwrap_or_default()
    }

    /// Ends everything: callers first, so that nobody complains about those they call. Says who had to be killed.
    pub(crate) async fn end(mut self, teller: &Teller) {
        for process in &mut self.processes {
            process.ask_to_leave();
        }
        for process in &mut self.processes {
            if !process.leave().await {
                teller.say(&format!("{} did not leave when it was asked to, and was killed", process.name));
            }
        }
    }
}

/// The process that answers a call of this app's service.
async fn answering_pid(client: &Client, app: &App) -> anyhow::Result<u64> {
    let request = talk::of_service(app.service, "/who")?;
    // Where versions are split, it is a tester who asks: the others do not all reach it.
    let wanted = HeaderName::from_static(settings::VERSION_WANTED);
    let answer = client.send(&request.header(wanted, HeaderValue::from_static(app.version))).await?;
    let said = talk::json(&answer, StatusCode::OK)?;
    said["pid"].as_u64().with_context(|| format!("no pid in {said}"))
}

/// The process of an app, asked directly.
async fn pid_of(app: &App) -> Option<u64> {
    let client = talk::client(app.address).ok()?;
    let answer = client.send(&Request::get("/who")).await.ok()?;
    talk::json(&answer, StatusCode::OK).ok()?["pid"].as_u64()
}
