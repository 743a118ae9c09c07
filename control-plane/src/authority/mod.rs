//! The authority of a mesh: makes certificates of services' identities, and changes its root without a failed call.
//!
//! In reading order: `der` and `pem`, what certificates are written in; `facts`, what is read of one; `signer`, what makes
//! them; `request`, by which proxies ask for one; at what `pace`; and what is `kept` on disk.
//!
//! A root changes in three steps, each asked for by itself. First the new one is trusted beside the old; then it signs; then the
//! old one goes, once everything that it signed has ended. Whoever asks for a step checks that proxies have taken the one before.

mod der;
mod facts;
mod kept;
mod pace;
mod pem;
mod request;
mod signer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gilmok_config::hash::content_hash;
use gilmok_config::identity::Identity;
use gilmok_config::name::ServiceName;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use facts::Facts;
use kept::{Kept, KeptSigner, Retiring};
use pace::Pace;
pub use request::{REQUEST_BYTES_MAX, RequestError};
pub use signer::Leaf;
use signer::{MadeKey, Signer};

/// The files in the store's folder: what is secret, what everybody may trust, and the certificate of the control plane's own
/// listener with its key.
const FILE: &str = "authority.json";
const ROOTS_FILE: &str = "roots.pem";
const OWN_FILE: &str = "listener.pem";
/// The service that the control plane itself is.
const OWN_SERVICE: &str = "gilmok-control-plane";
/// Longest file of a certificate or key that an operator gives, in bytes.
const GIVEN_BYTES_MAX: u64 = 1 << 20;

/// `[identity]` of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub trust_domain: Arc<str>,
    /// How long a leaf lasts.
    pub leaf_ttl: Duration,
    /// An authority that the operator keeps; without it there is one of our own.
    pub given: Option<Given>,
    /// Whether another root is made where the one that there was is lost.
    pub new_root: bool,
}

/// Where an operator's authority stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its certificate, those above it, and last the one that proxies trust.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    settings: Settings,
    dir: PathBuf,
    /// Where our own is kept; `None` where it is given.
    file: Option<PathBuf>,
    /// A std mutex: held for one signature, or for the writing of a step of the root's change, never across an await.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    signing: Arc<Signer>,
    next: Option<Arc<Signer>>,
    /// From when on `next` may sign: what was given before it was announced has ended then.
    signs_from: Option<u64>,
    retiring: Option<Retiring>,
    pace: Pace,
    /// Whether the roots of now are written down for those who call over TLS.
    is_told: bool,
}

/// How far a change of the root has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// There is one root.
    Settled,
    /// Another root is trusted beside the one that signs.
    Announced,
    /// The new root signs; the old one is still trusted.
    Signing,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settled => "settled",
            Self::Announced => "announced",
            Self::Signing => "signing",
        })
    }
}

/// A certificate with what its owner has to trust.
#[derive(Clone, Debug)]
pub struct Issued {
    pub leaf: Leaf,
    pub identity: Identity,
    pub roots: Roots,
}

/// What proxies are to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// In PEM; the one that signs first.
    pub pem: String,
    /// By which it is told whether a proxy has these.
    pub digest: String,
}

/// How it stands with a root, as operators are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Its common name.
    pub name: String,
    pub signs: bool,
    /// In seconds of Unix time.
    pub ends: u64,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("the request: {0}")]
    Request(#[from] RequestError),
    #[error("too many certificates are asked for; in {0:?} there is another one")]
    Pace(Duration),
    #[error("{0}")]
    Authority(String),
}

/// Why a step of the root's change was not done.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(
        "the authority is given by cert_file and key_file: its root is changed there, as docs/security.md tells"
    )]
    Given,
    #[error("from `{from}` there is no step to `{to}`")]
    Order { from: Phase, to: Phase },
    #[error("{0}")]
    Failed(String),
}

impl Settings {
    /// Reads what is given, so that a check tells what is wrong with it.
    ///
    /// # Errors
    /// Why it is no authority.
    pub fn check(&self) -> Result<(), String> {
        self.given.as_ref().map_or(Ok(()), |given| given.read(&self.trust_domain).map(drop))
    }
}

impl Given {
    fn read(&self, domain: &str) -> Result<Signer, String> {
        let (certificates, key) = (read(&self.cert_file)?, read(&self.key_file)?);
        Signer::read(&certificates, &key, domain)
            .map_err(|why| format!("{} with {}: {why}", self.cert_file.display(), self.key_file.display()))
    }
}

impl Authority {
    /// Opens the authority that the settings name, or our own in this folder; makes it where there is none. `was_there` is
    /// whether there has been one of our own: then its loss is told, since proxies believe no other.
    ///
    /// # Errors
    /// Why there is none, in words for an operator.
    pub fn open(settings: Settings, dir: &Path, was_there: bool, now: u64) -> Result<Self, String> {
        let inner = |signing, next, signs_from, retiring| {
            let (signing, pace) = (Arc::new(signing), Pace::default());
            Mutex::new(Inner { signing, next, signs_from, retiring, pace, is_told: true })
        };
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let opened = |settings, file, inner| {
            let authority = Self { settings, dir: dir.to_owned(), file, inner };
            authority.tell_roots(&authority.roots())?;
            Ok(authority)
        };
        if let Some(given) = &settings.given {
            let inner = inner(given.read(&settings.trust_domain)?, None, None, None);
            return opened(settings, None, inner);
        }
        let file = dir.join(FILE);
        let leaf_seconds = settings.leaf_ttl.as_secs();
        let mut kept = match Kept::read(&file)? {
            Some(kept) => kept,
            None if was_there && !settings.new_root => {
                return Err(format!(
                    "{} is gone, and proxies believe no other root: put it back from where it is kept, or start once with identity.new_root = true and let every proxy join anew (without its NODE.identity)",
                    file.display()
                ));
            }
            None => {
                let kept =
                    Kept::new(&settings.trust_domain, leaf_seconds, make(&settings.trust_domain, now)?);
                kept.write(&file)?;
                kept
            }
        };
        if *kept.domain != *settings.trust_domain {
            return Err(format!(
                "{}: it is the authority of {}, not of {}",
                file.display(),
                kept.domain,
                settings.trust_domain
            ));
        }
        if kept.leaf_seconds < leaf_seconds {
            kept.leaf_seconds = leaf_seconds;
            kept.write(&file)?;
        }
        let kept_domain = kept.domain.clone();
        let open = |kept: &KeptSigner| {
            Signer::read(kept.certificate.as_bytes(), kept.key.as_bytes(), &kept_domain)
                .map_err(|why| format!("{}: {why}", file.display()))
        };
        let next = kept.next.as_ref().map(open).transpose()?.map(Arc::new);
        let inner = inner(open(&kept.signing)?, next, kept.signs_from(), kept.retiring.clone());
        opened(settings, Some(file), inner)
    }

    /// Writes down what proxies are to trust, for those who call the control plane over TLS.
    fn tell_roots(&self, roots: &Roots) -> Result<(), String> {
        kept::replace(&self.dir.join(ROOTS_FILE), 0o644, roots.pem.as_bytes())
    }

    /// Where that is written.
    #[must_use]
    pub fn roots_file(dir: &Path) -> PathBuf {
        dir.join(ROOTS_FILE)
    }

    /// Where the certificate of the control plane's own listener is written, and its key.
    #[must_use]
    pub fn own_file(dir: &Path) -> PathBuf {
        dir.join(OWN_FILE)
    }

    /// Makes a certificate for the control plane's own listener, of these names, and writes it down with its key; how long it
    /// lasts. Blocks for the length of a write to the disk.
    ///
    /// # Errors
    /// Why there is none.
    pub fn issue_own(&self, names: &[ServerName<'_>], now: u64) -> Result<Duration, String> {
        let service = ServiceName::parse(OWN_SERVICE)?;
        let identity = Identity { domain: Arc::clone(&self.settings.trust_domain), service };
        let signing = Arc::clone(&self.lock().signing);
        let key = MadeKey::make()?;
        let leaf = signing.issue(&identity, names, &key.public, now, self.settings.leaf_ttl.as_secs())?;
        // In one file, so that neither is ever without the other.
        let text = Zeroizing::new([leaf.chain.as_str(), &key.text].concat());
        kept::replace(&self.dir.join(OWN_FILE), 0o600, text.as_bytes())?;
        Ok(Duration::from_secs(leaf.not_after.saturating_sub(now)))
    }

    /// The trust domain of every identity that is given.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.settings.trust_domain
    }

    #[must_use]
    pub fn leaf_ttl(&self) -> Duration {
        self.settings.leaf_ttl
    }

    /// Whether an operator keeps it.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.file.is_none()
    }

    /// Makes a certificate of a service for the key of a request. `now` is in seconds of Unix time, `now_ms` of a clock that
    /// nobody sets.
    ///
    /// # Errors
    /// Why there is none.
    pub fn issue(
        &self,
        service: &ServiceName,
        request: &str,
        now: u64,
        now_ms: u64,
    ) -> Result<Issued, IssueError> {
        let (signing, roots) = {
            let mut inner = self.lock();
            inner.pace.take(service, now_ms).map_err(|ms| IssueError::Pace(Duration::from_millis(ms)))?;
            (Arc::clone(&inner.signing), inner.roots())
        };
        // Only now: checking a signature is the work that the pace bounds.
        let key = request::key_of(request)?;
        let identity = Identity { domain: Arc::clone(&self.settings.trust_domain), service: service.clone() };
        let leaf = signing.issue(&identity, &[], &key, now, self.settings.leaf_ttl.as_secs());
        Ok(Issued { leaf: leaf.map_err(IssueError::Authority)?, identity, roots })
    }

    /// What proxies are to trust.
    #[must_use]
    pub fn roots(&self) -> Roots {
        let mut inner = self.lock();
        self.tell(&mut inner);
        inner.roots()
    }

    /// Writes the roots down where they are not yet; what fails is tried again when they are asked for.
    fn tell(&self, inner: &mut Inner) {
        if inner.is_told {
            return;
        }
        match self.tell_roots(&inner.roots()) {
            Ok(()) => inner.is_told = true,
            Err(why) => tracing::error!("those who call over TLS are not told the roots of now: {why}"),
        }
    }

    /// How it stands with each of them.
    #[must_use]
    pub fn standing(&self) -> Vec<Root> {
        let inner = self.lock();
        let told = |(der, signs): (Vec<u8>, bool)| {
            let facts = Facts::read(&der);
            Root {
                name: facts.as_ref().map(Facts::name).unwrap_or_default(),
                signs,
                ends: facts.map_or(0, |facts| facts.not_after),
            }
        };
        inner.trusted().into_iter().zip([true, false, false]).map(told).collect()
    }

    /// Until when the key that signs may sign, in seconds of Unix time.
    #[must_use]
    pub fn signs_until(&self) -> u64 {
        self.lock().signing.not_after()
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase()
    }

    /// From when on the new root may sign: whoever was silent meanwhile has no certificate any more. In seconds of Unix time;
    /// `None` but in [`Phase::Announced`].
    #[must_use]
    pub fn signs_from(&self) -> Option<u64> {
        self.lock().signs_from
    }

    /// When the last certificate of the old root has ended, in seconds of Unix time; `None` but in [`Phase::Signing`].
    #[must_use]
    pub fn leaves_end(&self) -> Option<u64> {
        self.lock().retiring.as_ref().map(|retiring| retiring.leaves_end)
    }

    /// Makes a step of the root's change from where it was found to be, or none where it was made already. Back from
    /// [`Phase::Announced`] to [`Phase::Settled`] gives the change up. Blocks for the length of a write to the disk.
    ///
    /// # Errors
    /// Why it was not done; everything is as before.
    pub fn step(&self, found: Phase, to: Phase, now: u64) -> Result<(), StepError> {
        let file = self.file.as_ref().ok_or(StepError::Given)?;
        let mut inner = self.lock();
        let from = inner.phase();
        if from == to {
            return Ok(());
        }
        if from != found {
            return Err(StepError::Order { from, to });
        }
        // What is on disk is what is true: both are changed under the lock.
        let kept = Kept::read(file).map_err(StepError::Failed)?;
        let mut kept = kept.ok_or_else(|| StepError::Failed(format!("{} is gone", file.display())))?;
        let domain = &self.settings.trust_domain;
        let read = |kept: &KeptSigner| Signer::read(kept.certificate.as_bytes(), kept.key.as_bytes(), domain);
        match (from, to) {
            (Phase::Settled, Phase::Announced) => {
                kept.next = Some(make(domain, now).map_err(StepError::Failed)?);
                kept.announced = Some(now);
            }
            (Phase::Announced, Phase::Settled) => (kept.next, kept.announced) = (None, None),
            (Phase::Announced, Phase::Signing) => {
                let Some(next) = kept.next.take() else { return Err(StepError::Order { from, to }) };
                let old = std::mem::replace(&mut kept.signing, next);
                let leaves_end = now.saturating_add(kept.leaf_seconds);
                kept.retiring = Some(Retiring { certificate: old.certificate.clone(), leaves_end });
                kept.leaf_seconds = self.settings.leaf_ttl.as_secs();
                kept.announced = None;
            }
            (Phase::Signing, Phase::Settled) => kept.retiring = None,
            _ => return Err(StepError::Order { from, to }),
        }
        let signing = read(&kept.signing).map_err(StepError::Failed)?;
        let next = kept.next.as_ref().map(read).transpose().map_err(StepError::Failed)?;
        kept.write(file).map_err(StepError::Failed)?;
        inner.signing = Arc::new(signing);
        inner.next = next.map(Arc::new);
        inner.signs_from = kept.signs_from();
        inner.retiring = kept.retiring.clone();
        inner.is_told = false;
        self.tell(&mut inner);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic leaves it whole: it is changed once nothing can fail any more.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn phase(&self) -> Phase {
        match (&self.next, &self.retiring) {
            (Some(_), _) => Phase::Announced,
            (None, Some(_)) => Phase::Signing,
            (None, None) => Phase::Settled,
        }
    }

    /// The roots in DER, the one that signs first.
    fn trusted(&self) -> Vec<Vec<u8>> {
        let signers = [Some(&self.signing), self.next.as_ref()];
        let own = signers.into_iter().flatten().map(|signer| signer.root().to_vec());
        let retiring = self.retiring.iter().filter_map(|retiring| pem::first(&retiring.certificate));
        own.chain(retiring).collect()
    }

    fn roots(&self) -> Roots {
        let pem = pem::certificates(self.trusted().iter().map(Vec::as_slice));
        Roots { digest: content_hash(pem.as_bytes()), pem }
    }
}

fn make(domain: &str, now: u64) -> Result<KeptSigner, String> {
    let (signer, mut key) = Signer::make_root(domain, now)?;
    Ok(KeptSigner { certificate: signer.pem(), key: std::mem::take(&mut *key) })
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read as _;
    let told = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
    let opened = std::fs::File::open(file).map_err(|error| told(&error))?;
    opened.take(GIVEN_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| told(&error))?;
    if bytes.len() as u64 > GIVEN_BYTES_MAX {
        return Err(told(&format_args!("longer than {GIVEN_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
