//! The authority as its callers meet it: leaves that others believe, steps of a change of the root, files of an operator.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("gilmok-authority-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

const TTL: u64 = 3_600;

fn now() -> u64 {
    UnixTime::now().as_secs()
}

fn settings() -> Settings {
    Settings {
        trust_domain: "mesh.local".into(),
        leaf_ttl: Duration::from_secs(TTL),
        given: None,
        new_root: false,
    }
}

fn open(folder: &Folder) -> Authority {
    Authority::open(settings(), &folder.0, false, now()).unwrap()
}

fn shop() -> ServiceName {
    ServiceName::parse("shop").unwrap()
}

fn csr() -> String {
    let params = CertificateParams::new(["admin".to_owned()]).unwrap();
    pem::write("CERTIFICATE REQUEST", params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der())
}

fn certificate(certificate: &rcgen::Certificate) -> String {
    pem::write("CERTIFICATE", certificate.der())
}

fn key_pem(key: &KeyPair) -> String {
    pem::write("PRIVATE KEY", key.serialized_der())
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

/// Whether somebody who trusts these roots believes this chain at a time.
fn believes(roots: &Roots, leaf: &Leaf, at: u64) -> bool {
    let certificates = chain(&leaf.chain);
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let between = &certificates[1..];
    chain(&roots.pem).iter().any(|root| signer::verify(root, &certificates[0], between, at).is_ok())
}

#[test]
fn a_leaf_is_of_the_service_and_of_nothing_that_the_request_says() {
    let folder = Folder::new();
    let authority = open(&folder);
    let now = now();
    let issued = authority.issue(&shop(), &csr(), now, 0).unwrap();
    assert_eq!(issued.identity.to_string(), "spiffe://mesh.local/service/shop");
    assert_eq!(issued.leaf.not_after, now + TTL);
    let der = chain(&issued.leaf.chain);
    let contains = |text: &str| der[0].windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("spiffe://mesh.local/service/shop") && !contains("admin"));
    assert!(believes(&issued.roots, &issued.leaf, now));
    assert!(!believes(&issued.roots, &issued.leaf, now + TTL + 1), "it ends");
    assert!(!believes(&issued.roots, &issued.leaf, now - 3_600), "it begins");
    let other = authority.issue(&shop(), &csr(), now, 0).unwrap();
    assert_ne!(issued.leaf.serial, other.leaf.serial);
}

#[test]
fn the_key_is_made_once_and_read_by_its_owner_only() {
    let folder = Folder::new();
    let roots = open(&folder).roots();
    let file = folder.0.join(FILE);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(open(&folder).roots(), roots);
    let other = Settings { trust_domain: "other".into(), ..settings() };
    let why = Authority::open(other, &folder.0, false, now()).unwrap_err();
    assert!(why.contains("of mesh.local, not of other"), "{why}");
    let kept = std::fs::read_to_string(&file).unwrap();
    for text in ["", "{}", &kept.replace("gilmok-authority-1", "gilmok-authority-2"), &kept[..kept.len() / 2]]
    {
        std::fs::write(&file, text).unwrap();
        let why = Authority::open(settings(), &folder.0, false, now()).unwrap_err();
        assert!(why.contains(FILE) && !why.contains("KEY"), "{why}");
    }
    assert!(!format!("{:?}", open(&Folder::new())).contains("KEY"));
}

#[test]
fn a_root_changes_in_three_steps_and_at_each_everybody_is_believed() {
    let folder = Folder::new();
    let authority = open(&folder);
    let now = now();
    let issue = |authority: &Authority| authority.issue(&shop(), &csr(), now, 0).unwrap();
    let old = issue(&authority);
    assert!(matches!(
        authority.step(Phase::Settled, Phase::Signing, now),
        Err(StepError::Order { from: Phase::Settled, to: Phase::Signing })
    ));
    authority.step(Phase::Settled, Phase::Announced, now).unwrap();
    let announced = issue(&authority);
    assert_eq!(chain(&announced.roots.pem).len(), 2);
    assert!(believes(&old.roots, &announced.leaf, now), "the old one still signs");
    // What a process that is started anew finds is the same.
    let authority = open(&folder);
    assert_eq!((authority.phase(), authority.roots()), (Phase::Announced, announced.roots.clone()));
    assert_eq!(authority.signs_from(), Some(now + TTL));
    authority.step(Phase::Announced, Phase::Signing, now).unwrap();
    assert_eq!((authority.signs_from(), authority.leaves_end()), (None, Some(now + TTL)));
    let signing = issue(&authority);
    assert!(!believes(&old.roots, &signing.leaf, now), "the new one signs");
    assert!(believes(&announced.roots, &signing.leaf, now) && believes(&signing.roots, &old.leaf, now));
    let authority = open(&folder);
    assert_eq!((authority.phase(), authority.roots()), (Phase::Signing, signing.roots.clone()));
    authority.step(Phase::Signing, Phase::Signing, now).unwrap();
    assert!(authority.step(Phase::Announced, Phase::Settled, now).is_err(), "it has come further");
    assert_eq!(authority.roots(), signing.roots, "asked for again it does nothing");
    authority.step(Phase::Signing, Phase::Settled, now).unwrap();
    let settled = authority.roots();
    assert_eq!(chain(&settled.pem).len(), 1);
    assert!(believes(&settled, &signing.leaf, now) && !believes(&settled, &old.leaf, now));
    assert_eq!(authority.standing().len(), 1);
}

#[test]
fn a_change_that_is_given_up_leaves_the_old_root() {
    let folder = Folder::new();
    let authority = open(&folder);
    let before = authority.roots();
    authority.step(Phase::Settled, Phase::Announced, now()).unwrap();
    authority.step(Phase::Announced, Phase::Settled, now()).unwrap();
    assert_eq!(authority.roots(), before);
    assert_eq!(open(&folder).roots(), before);
}

#[test]
fn leaves_of_a_life_that_was_longer_are_waited_for() {
    let folder = Folder::new();
    drop(open(&folder));
    let short = Settings { leaf_ttl: Duration::from_secs(10), ..settings() };
    let authority = Authority::open(short, &folder.0, false, now()).unwrap();
    let now = now();
    authority.step(Phase::Settled, Phase::Announced, now).unwrap();
    authority.step(Phase::Announced, Phase::Signing, now).unwrap();
    assert_eq!(authority.leaves_end(), Some(now + TTL));
}

#[test]
fn a_service_that_asks_too_often_waits() {
    let folder = Folder::new();
    let authority = open(&folder);
    let request = csr();
    let refused = (0..1_000).find_map(|_| authority.issue(&shop(), &request, now(), 0).err()).unwrap();
    assert!(matches!(refused, IssueError::Pace(wait) if !wait.is_zero()), "{refused}");
    assert!(authority.issue(&ServiceName::parse("ads").unwrap(), &request, now(), 0).is_ok());
}

/// An authority as an operator makes it elsewhere: a root, and one below it with names that a map could not hold.
fn office() -> (String, String, String) {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let (root_key, key) =
        (KeyPair::generate().unwrap(), KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
    let root = params("office");
    let root_pem = certificate(&root.self_signed(&root_key).unwrap());
    let between = certificate(&params("mesh").signed_by(&key, &Issuer::new(root, root_key)).unwrap());
    (root_pem, between, key_pem(&key))
}

#[test]
fn an_operators_authority_signs_below_its_root() {
    let folder = Folder::new();
    let (root, between, key) = office();
    let (cert_file, key_file) = (folder.0.join("ca.pem"), folder.0.join("ca.key"));
    let given = Settings {
        given: Some(Given { cert_file: cert_file.clone(), key_file: key_file.clone() }),
        ..settings()
    };
    std::fs::write(&key_file, &key).unwrap();
    let now = now();
    // With its root, and alone: then it is what proxies trust.
    for (certificates, root, length) in [(between.clone() + &root, &root, 2), (between.clone(), &between, 1)]
    {
        std::fs::write(&cert_file, certificates).unwrap();
        let authority = Authority::open(given.clone(), &folder.0, false, now).unwrap();
        let issued = authority.issue(&shop(), &csr(), now, 0).unwrap();
        assert_eq!(chain(&issued.roots.pem), chain(root));
        assert_eq!(chain(&issued.leaf.chain).len(), length);
        assert!(believes(&issued.roots, &issued.leaf, now));
        assert!(matches!(authority.step(Phase::Settled, Phase::Announced, now), Err(StepError::Given)));
        assert!(!folder.0.join(FILE).exists(), "its key is nowhere else");
    }
    let faulty = |certificates: &str, key: &str| {
        std::fs::write(&cert_file, certificates).unwrap();
        std::fs::write(&key_file, key).unwrap();
        let why = given.check().unwrap_err();
        assert!(!why.contains("PRIVATE"), "{why}");
        why
    };
    let other = KeyPair::generate().unwrap();
    assert!(faulty(&between, &key_pem(&other)).contains("the key is not that of"));
    assert!(faulty(&(between.clone() + &office().0), &key).contains("would not believe"), "another root");
    assert!(faulty("", &key).contains("0 certificates"));
    assert!(faulty(&between, "").contains("no private key"));
    let leaf = CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&other).unwrap();
    let leaf = certificate(&leaf);
    assert!(faulty(&leaf, &key_pem(&other)).contains("no authority"));
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let only_lists = certificate(&params.self_signed(&other).unwrap());
    assert!(faulty(&only_lists, &key_pem(&other)).contains("keyCertSign"));
}

#[test]
fn the_control_plane_has_a_certificate_of_its_own_names() {
    let folder = Folder::new();
    let authority = open(&folder);
    let roots = || std::fs::read_to_string(Authority::roots_file(&folder.0)).unwrap();
    assert_eq!(roots(), authority.roots().pem);
    let names = ["plane.internal", "127.0.0.1", "::1"].map(|name| ServerName::try_from(name).unwrap());
    assert_eq!(authority.issue_own(&names, now()).unwrap().as_secs(), TTL);
    let file = Authority::own_file(&folder.0);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    let (leaf, root) = (chain(&text).remove(0), chain(&roots()).remove(0));
    assert!(signer::verify(&root, &leaf, &[], UnixTime::now()).is_ok());
    let leaf = rustls::server::ParsedCertificate::try_from(&leaf).unwrap();
    for name in &names {
        rustls::client::verify_server_name(&leaf, name).unwrap();
    }
    let other = ServerName::try_from("other.internal").unwrap();
    assert!(rustls::client::verify_server_name(&leaf, &other).is_err());
    authority.step(Phase::Settled, Phase::Announced, now()).unwrap();
    assert_eq!(roots(), authority.roots().pem, "it follows");
    assert_eq!(chain(&roots()).len(), 2);
}

#[test]
fn a_root_that_is_lost_is_not_replaced_without_a_word() {
    let folder = Folder::new();
    let before = open(&folder).roots();
    assert!(Authority::open(settings(), &folder.0, true, now()).is_ok());
    std::fs::remove_file(folder.0.join(FILE)).unwrap();
    let why = Authority::open(settings(), &folder.0, true, now()).unwrap_err();
    assert!(why.contains("is gone") && why.contains("new_root"), "{why}");
    let told = Settings { new_root: true, ..settings() };
    let authority = Authority::open(told.clone(), &folder.0, true, now()).unwrap();
    assert_ne!(authority.roots(), before);
    // It does not make one at each start.
    assert_eq!(Authority::open(told, &folder.0, true, now()).unwrap().roots(), authority.roots());
}

#[test]
fn roots_that_could_not_be_written_down_are_written_when_they_are_asked_for() {
    let folder = Folder::new();
    let authority = open(&folder);
    let file = Authority::roots_file(&folder.0);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    authority.step(Phase::Settled, Phase::Announced, now()).unwrap();
    assert!(file.is_dir());
    std::fs::remove_dir(&file).unwrap();
    let roots = authority.roots();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), roots.pem);
}
