//! Getting an identity from a control plane and keeping it: asked for with a join token, renewed long before its end, with roots
//! that follow those of the mesh.
//!
//! In reading order: what is asked for ([`request`]), when ([`timing`]), what of it is on disk ([`kept`]), and what operators are
//! told ([`status`]). A control plane that is gone costs nothing until the certificate ends; that it is gone is told from the
//! first failure on.

mod kept;

mod request;

mod status;

mod timing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gilmok_config::hash::content_hash;
use gilmok_config::moment::format_moment;
use gilmok_config::unit::format_duration;
use gilmok_config::wire::IdentityReport;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use self::kept::Kept;
use self::request::Request;
use self::status::Asked;
pub(crate) use self::status::{ASKED, Status};
use self::timing::{Life, pause, roots_every};
use crate::current::InForce;
use crate::settings::Server;
use crate::source::http::{Client, HttpError, TokenHeader};
use crate::tls::{IssuedSettings, Mesh, Mode, Pair, Roots, Tls};

/// How often it is told that there is no answer, while there is none.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long workers may take to use a new identity before it is gone on without a word of them.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// Keeps the identity of this process.
#[derive(Debug)]
pub(crate) struct Enrolment {
    settings: IssuedSettings,
    calls: Mode,
    planes: Vec<Plane>,
    /// Which of them answered last.
    place: usize,
    file: PathBuf,
    tls: Arc<Tls>,
    in_force: Arc<InForce>,
    status: Arc<Status>,
    /// Told to control planes with acks.
    reports: watch::Sender<Option<IdentityReport>>,
    held: Option<Held>,
    renew_at_ms: u64,
    failures: u32,
    told: Option<Instant>,
}

/// One control plane, as it is asked.
#[derive(Debug)]
struct Plane {
    /// By the identity that there is already: only over TLS.
    showing: Option<Client>,
    /// By the token.
    joining: Client,
}

/// The identity that is in use.
struct Held {
    mesh: Arc<Mesh>,
    kept: Kept,
    life: Life,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("mesh", &self.mesh).field("life", &self.life).finish_non_exhaustive()
    }
}

/// Where an identity is asked for and kept, and who uses it.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) servers: Vec<Server>,
    /// That of `[source]`.
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
    pub(crate) node: String,
    pub(crate) calls: Mode,
    pub(crate) tls: Arc<Tls>,
    pub(crate) in_force: Arc<InForce>,
    pub(crate) reports: watch::Sender<Option<IdentityReport>>,
}

/// A certificate, as a control plane answers.
#[derive(Deserialize)]
struct Certificate {
    chain: String,
    roots: String,
}

/// Roots, as a control plane answers.
#[derive(Deserialize)]
struct RootsAnswer {
    roots: String,
}

impl Enrolment {
    /// Takes up what was kept, if it lasts; otherwise nothing is put in force until a control plane has given an identity.
    pub(crate) fn start(settings: &IssuedSettings, around: Around) -> Self {
        let token_file = settings.join_token_file.clone().or(around.token_file);
        let plane = |server: Server| {
            let showing = server
                .tls
                .is_some()
                .then(|| Client::new(server.clone(), None, TokenHeader::Bearer).showing(&around.tls));
            Plane { showing, joining: Client::new(server, token_file.clone(), TokenHeader::Bearer) }
        };
        let mut enrolment = Self {
            settings: settings.clone(),
            calls: around.calls,
            planes: around.servers.into_iter().map(plane).collect(),
            place: 0,
            file: around.state_dir.join(format!("{}.identity", around.node)),
            tls: around.tls,
            in_force: around.in_force,
            status: Arc::default(),
            reports: around.reports,
            held: None,
            renew_at_ms: 0,
            failures: 0,
            told: None,
        };
        enrolment.in_force.wait_for_identity();
        match enrolment.recall() {
            Ok(Some(held)) => {
                tracing::info!("identity: {} goes on", held.mesh.identity);
                if let Err(why) = enrolment.use_from_now_on(held) {
                    tracing::warn!("identity: what was kept cannot be used, asking for another: {why}");
                }
                enrolment.status.recalled(enrolment.renew_at_ms / 1_000);
            }
            Ok(None) => tracing::info!("identity: asking for the first one; nothing is served before"),
            Err(why) => tracing::warn!("identity: what was kept cannot be used, asking for another: {why}"),
        }
        enrolment
    }

    pub(crate) fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Keeps it until the process ends.
    pub(crate) async fn keep(mut self) {
        self.report().await;
        loop {
            let asked = if self.held.is_none() || unix_ms() >= self.renew_at_ms {
                Asked::Certificate
            } else {
                Asked::Roots
            };
            let done = match asked {
                Asked::Certificate => self.renew().await,
                Asked::Roots => self.look_at_roots().await,
            };
            let life = self.held.as_ref().map(|held| held.life);
            let wait = match done {
                Ok(server) => {
                    if self.failures > 0 {
                        tracing::info!("identity: {server} answers again");
                    }
                    (self.failures, self.told) = (0, None);
                    self.status.answered(asked, server, self.renew_at_ms / 1_000);
                    let due = Duration::from_millis(self.renew_at_ms.saturating_sub(unix_ms()));
                    roots_every(life).mul_f64(0.9 + 0.2 * fastrand::f64()).min(due)
                }
                Err(why) => {
                    self.failures = self.failures.saturating_add(1);
                    self.status.failed(asked, &why);
                    self.tell(asked, &why);
                    pause(self.failures, life, fastrand::f64())
                }
            };
            sleep(wait).await;
        }
    }

    /// Asks for a certificate of a new key; who gave it.
    async fn renew(&mut self) -> Result<String, String> {
        let request = Request::make()?;
        let body = json!({ "csr": request.pem, "service": self.settings.service }).to_string();
        let (answer, server) =
            self.ask(&Method::POST, "/v1/identity/certificates", Some(body.into())).await?;
        let told = |why: String| format!("{server}: its certificate cannot be used: {why}");
        let answer: Certificate = serde_json::from_slice(&answer).map_err(|error| told(error.to_string()))?;
        let kept = Kept::new(unix_ms(), answer.chain, answer.roots, &request.key);
        let held = self.check(kept).map_err(told)?;
        self.take(held).await.map_err(told)?;
        Ok(server)
    }

    /// Asks which roots are to be trusted; who said it.
    async fn look_at_roots(&mut self) -> Result<String, String> {
        let (answer, server) = self.ask(&Method::GET, "/v1/identity/roots", None).await?;
        let told = |why: String| format!("{server}: its roots cannot be used: {why}");
        let answer: RootsAnswer = serde_json::from_slice(&answer).map_err(|error| told(error.to_string()))?;
        let Some(held) = self.held.as_ref().filter(|held| held.kept.roots != answer.roots) else {
            return Ok(server);
        };
        let roots = Roots::parse(answer.roots.as_bytes()).map_err(|why| told(why.to_owned()))?;
        if held.mesh.roots.share_one_with(&roots) && !held.mesh.is_believed_by(&roots) {
            // Peers are about to refuse us: with them a certificate comes that they believe.
            tracing::warn!("identity: {server} tells roots that do not believe our certificate; renewing");
            return self.renew().await;
        }
        let mut kept = held.kept.clone();
        kept.roots = answer.roots;
        let held = self.check(kept).map_err(told)?;
        self.take(held).await.map_err(told)?;
        Ok(server)
    }

    /// Asks one control plane after the other, beginning with the one that answered last.
    async fn ask(
        &mut self,
        method: &Method,
        target: &str,
        body: Option<Bytes>,
    ) -> Result<(Bytes, String), String> {
        let mut faults = Vec::new();
        for turn in 0..self.planes.len() {
            let place = (self.place + turn) % self.planes.len();
            let plane = &mut self.planes[place];
            let server = format!("control plane {}", plane.joining.server());
            match plane.send(self.held.is_some(), method, target, body.clone()).await {
                Ok(answer) => {
                    self.place = place;
                    return Ok((answer, server));
                }
                Err(error) => faults.push(format!("{server}: {error}")),
            }
        }
        Err(faults.join("; "))
    }

    /// Whether an identity is sound, ours, and one that peers believe.
    fn check(&self, kept: Kept) -> Result<Held, String> {
        let pair = Pair::parse(kept.chain.as_bytes(), kept.key.as_bytes()).map_err(|why| why.to_string())?;
        let roots = Roots::parse(kept.roots.as_bytes()).map_err(|why| format!("the roots: {why}"))?;
        let life = Life { since_ms: kept.since_ms, ends_ms: pair.facts.not_after.saturating_mul(1_000) };
        let mesh = Mesh::of(pair, roots, self.calls)?;
        let (new, own) = (&mesh.identity, &self.settings.service);
        if new.service != *own {
            return Err(format!("it is {new}, and this process is {own}"));
        }
        if let Some(held) = self.held.as_ref().filter(|held| held.mesh.identity != *new) {
            return Err(format!("it is {new}, and this process is {}", held.mesh.identity));
        }
        if self.held.as_ref().is_some_and(|held| !held.mesh.roots.share_one_with(&mesh.roots)) {
            return Err(format!(
                "its roots share none with those of before, so it is another authority; where that is meant, take {} away and start anew",
                self.file.display()
            ));
        }
        if !mesh.is_believed_by(&mesh.roots) {
            return Err(
                "peers would not believe it: it is not signed by its roots, or not valid now".to_owned()
            );
        }
        Ok(Held { mesh: Arc::new(mesh), kept, life })
    }

    /// What an earlier start has kept, while it lasts.
    fn recall(&self) -> Result<Option<Held>, String> {
        match Kept::read(&self.file)? {
            Some(kept) => self.check(kept).map(Some),
            None => Ok(None),
        }
    }

    /// Uses an identity, keeps it for the next start, and tells of it.
    async fn take(&mut self, held: Held) -> Result<(), String> {
        let (kept, file) = (held.kept.clone(), self.file.clone());
        self.use_from_now_on(held)?;
        match tokio::task::spawn_blocking(move || kept.write(&file)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::warn!("identity: it cannot be kept for the next start: {why}"),
            // The runtime is going down.
            Err(_cancelled) => {}
        }
        self.report().await;
        Ok(())
    }

    fn use_from_now_on(&mut self, held: Held) -> Result<(), String> {
        // First towards callers, where it may still be refused.
        self.tls.put_identity(&held.mesh)?;
        self.in_force.put_identity(Arc::clone(&held.mesh));
        let is_renewed = self.held.as_ref().is_none_or(|before| before.life != held.life);
        if is_renewed {
            self.renew_at_ms = held.life.renew_at_ms(fastrand::f64());
        }
        self.held = Some(held);
        Ok(())
    }

    /// Tells control planes what every worker uses.
    async fn report(&self) {
        let Some(held) = &self.held else { return };
        let taken = self.in_force.taken_by_all(self.in_force.load().generation);
        if timeout(TAKEN_WITHIN, taken).await.is_err() {
            return;
        }
        let roots = content_hash(held.kept.roots.as_bytes());
        let report = IdentityReport { roots, ends: held.life.ends_ms / 1_000 };
        self.reports.send_if_modified(|before| before.replace(report.clone()) != Some(report));
    }

    /// Tells that there is no answer: at once, and then once in a while, the louder the nearer the end is.
    fn tell(&mut self, asked: Asked, why: &str) {
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        let what = match asked {
            Asked::Certificate => "another certificate",
            Asked::Roots => "the roots",
        };
        let Some(held) = &self.held else {
            tracing::error!("identity: there is none yet, and nothing is served before: {why}");
            return;
        };
        let (now, end) = (unix_ms(), format_moment(held.life.ends_ms / 1_000));
        let left = held.life.left(now);
        if left.is_zero() {
            tracing::error!(
                "identity: it has ended, on {end}; peers refuse it, and there is no answer about {what}: {why}"
            );
        } else if held.life.is_near_its_end(now) {
            let left = format_duration(Duration::from_secs(left.as_secs()));
            tracing::error!(
                "identity: it ends in {left}, on {end}, and there is no answer about {what}: {why}"
            );
        } else {
            tracing::warn!("identity: no answer about {what}; the one in use lasts until {end}: {why}");
        }
    }
}

impl Plane {
    /// Asks by the identity that there is. Where there is none, or nothing comes of it, by the token.
    async fn send(
        &mut self,
        has_identity: bool,
        method: &Method,
        target: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, HttpError> {
        if let Some(client) = self.showing.as_mut().filter(|_| has_identity) {
            // Whatever goes wrong may be for what is shown: its roots are not known there, or it has ended.
            if let Ok(answer) = client.send(method.clone(), target, body.clone()).await {
                return Ok(answer);
            }
        }
        self.joining.send(method.clone(), target, body).await
    }
}

/// Milliseconds of Unix time.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
