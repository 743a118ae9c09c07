//! The store as its users rely on it: nothing acknowledged is lost, nobody overwrites what they have not read.

use serde_json::json;

use super::*;
use gilmok_config::name::ServiceName;

fn draft(number: u32) -> Draft {
    let intent = Intent::parse(&json!({"services": {"ads": {"max_concurrent": number}}})).unwrap();
    Draft {
        who: "test".to_owned(),
        what: "put mesh".to_owned(),
        reason: String::new(),
        intent,
        flags: Vec::new(),
        schedule: None,
        records: Vec::new(),
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gilmok-store-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_new_start() {
    let folder = Folder::new("reopen");
    let (id, hash);
    {
        let store = Store::open(&folder.0, 10).unwrap();
        assert!(store.head().is_none());
        store.append(0, draft(1)).await.unwrap();
        let second = store.append(1, draft(2)).await.unwrap();
        (id, hash) = (store.id().to_owned(), second.hash.clone());
    }
    let store = Store::open(&folder.0, 10).unwrap();
    assert_eq!(store.id(), id);
    let head = store.head().unwrap();
    assert_eq!((head.number, &head.hash), (2, &hash));
    assert_eq!(store.audit(u64::MAX, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn whoever_has_not_read_the_head_does_not_write() {
    let folder = Folder::new("conflict");
    let store = Store::open(&folder.0, 10).unwrap();
    store.append(0, draft(1)).await.unwrap();
    assert!(matches!(store.append(0, draft(2)).await, Err(StoreError::Conflict { head: 1 })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_lose_nothing() {
    const WRITERS: usize = 8;
    const WRITES: usize = 5;
    let folder = Folder::new("race");
    let store = Store::open(&folder.0, 1000).unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for write in 0..WRITES {
                    let name = ServiceName::parse(&format!("s{writer}-{write}")).unwrap();
                    loop {
                        let head = store.head();
                        let number = head.as_ref().map_or(0, |head| head.number);
                        let mut document = head.map_or_else(|| json!({}), |head| head.document.clone());
                        document["services"][name.as_str()] = json!({});
                        let intent = Intent::parse(&document).unwrap();
                        let draft = Draft { intent, ..draft(1) };
                        match store.append(number, draft).await {
                            Ok(_) => break,
                            Err(StoreError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let head = store.head().unwrap();
    assert_eq!(head.number, (WRITERS * WRITES) as u64);
    assert_eq!(head.document["services"].as_object().unwrap().len(), WRITERS * WRITES);
}

#[tokio::test]
async fn history_is_bounded_and_read_newest_first() {
    let folder = Folder::new("history");
    let store = Store::open(&folder.0, 3).unwrap();
    for number in 0..5 {
        store.append(number, draft(u32::try_from(number).unwrap() + 1)).await.unwrap();
    }
    let numbers = |page: Vec<Revision>| page.into_iter().map(|revision| revision.number).collect::<Vec<_>>();
    assert_eq!(numbers(store.revisions(u64::MAX, 10).await.unwrap()), [5, 4, 3]);
    assert_eq!(numbers(store.revisions(5, 1).await.unwrap()), [4]);
    assert_eq!(store.revision(1).await.unwrap(), None);
    assert_eq!(store.revision(4).await.unwrap().unwrap().number, 4);
    assert_eq!(store.audit(u64::MAX, 10).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_backup_goes_on_where_it_was_taken() {
    let (from, to) = (Folder::new("backup-from"), Folder::new("backup-to"));
    let store = Store::open(&from.0, 10).unwrap();
    store.append(0, draft(1)).await.unwrap();
    store.append(1, draft(2)).await.unwrap();
    let mut backup = Vec::new();
    store.backup(&mut backup).unwrap();
    Store::restore(&to.0, backup.as_slice()).unwrap();
    assert!(matches!(Store::restore(&to.0, backup.as_slice()), Err(BackupError::NotEmpty(_))));
    let restored = Store::open(&to.0, 10).unwrap();
    assert_eq!(restored.identity(), store.identity());
    assert_eq!(restored.append(2, draft(3)).await.unwrap().number, 3);
}

#[tokio::test]
async fn a_backup_that_is_not_whole_is_refused_and_leaves_nothing() {
    let (from, to) = (Folder::new("broken-from"), Folder::new("broken-to"));
    let store = Store::open(&from.0, 10).unwrap();
    store.append(0, draft(1)).await.unwrap();
    let mut backup = Vec::new();
    store.backup(&mut backup).unwrap();
    let text = String::from_utf8(backup).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let cut = lines[..lines.len() - 1].join("\n") + "\n";
    let changed = text.replace("max_concurrent", "max_concurrenT");
    let headless = lines[1..].join("\n");
    for broken in [cut.as_str(), changed.as_str(), headless.as_str(), "", "garbage\n"] {
        assert!(Store::restore(&to.0, broken.as_bytes()).is_err(), "{broken}");
    }
    assert!(Store::open(&to.0, 10).unwrap().head().is_none());
}

#[test]
fn a_store_is_opened_once() {
    let folder = Folder::new("twice");
    let _open = Store::open(&folder.0, 10).unwrap();
    let error = Store::open(&folder.0, 10).unwrap_err().to_string();
    assert!(error.contains("another control plane"), "{error}");
}
