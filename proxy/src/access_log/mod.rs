//! The access log: entries go through a bounded queue to a thread that writes them; workers never wait for it.

mod line;

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use gilmok_config::name::{Name, ServiceName};
use http::{HeaderValue, Method, Uri, Version};

use crate::settings::{AccessLogSettings, LogTarget};
use crate::upstream::endpoint::Peer;

/// What one line tells. Cheap to fill on a worker: what is text here was counted, not copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// When the request had ended; [`AccessLog::record`] notes it.
    ended: Option<SystemTime>,
    pub(crate) listener: &'static str,
    pub(crate) peer: Option<std::net::IpAddr>,
    /// The service that the caller has shown to be.
    pub(crate) caller: Option<ServiceName>,
    pub(crate) protocol: Version,
    pub(crate) method: Method,
    /// Bounded when written; the query is left out unless the settings ask for it.
    pub(crate) uri: Uri,
    /// Canonical.
    pub(crate) host: String,
    pub(crate) status: u16,
    pub(crate) service: Option<ServiceName>,
    pub(crate) version: Name,
    pub(crate) shard: Name,
    /// Who was tried last.
    pub(crate) endpoint: Option<Peer>,
    /// Tries at endpoints, the first one included.
    pub(crate) attempts: u32,
    pub(crate) duration_us: u64,
    /// Of the request's body.
    pub(crate) bytes_received: u64,
    /// Of the answer's body.
    pub(crate) bytes_sent: u64,
    /// Whether the answer went out whole.
    pub(crate) complete: bool,
    pub(crate) request_id: Option<HeaderValue>,
    /// The `Proxy-Status` of an answer of our own.
    pub(crate) proxy_status: Option<HeaderValue>,
}

/// Takes entries. Clones feed the same queue.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    /// Bounded and never waited for.
    queue: SyncSender<Box<Entry>>,
    shared: Arc<Shared>,
}

/// What the queue's two ends tell each other.
#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    /// Asked by a rotation of logs: the file's name may mean another file now.
    reopen: AtomicBool,
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    thread: JoinHandle<()>,
}

/// Entries written at once, so that a busy log costs few system calls.
const BATCH_MAX: usize = 1_024;
/// How long the writer lets entries gather. Without it every entry would cost a worker the writer's wake-up.
const GATHER: Duration = Duration::from_millis(20);

impl AccessLog {
    /// Opens the log and starts its writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub(crate) fn start(settings: &AccessLogSettings) -> io::Result<(Self, Writer)> {
        let sink = Sink::open(&settings.target)?;
        let (queue, entries) = sync_channel(settings.queue);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let query = settings.query;
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&entries, sink, &theirs, query))?;
        Ok((Self { queue, shared }, Writer { thread }))
    }

    /// Hands an entry to the writer, or drops and counts it. Never blocks.
    pub(crate) fn record(&self, mut entry: Box<Entry>) {
        entry.ended = Some(SystemTime::now());
        match self.queue.try_send(entry) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// Entries that were dropped because the writer could not keep up, or could not write.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Opens the file anew before the next entry.
    pub(crate) fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
    }
}

impl Writer {
    /// Waits until everything is written, which is once every [`AccessLog`] is gone.
    pub(crate) fn finish(self) {
        drop(self.thread.join());
    }
}

/// Where lines go.
#[derive(Debug)]
struct Sink {
    target: LogTarget,
    file: Option<File>,
}

impl Sink {
    fn open(target: &LogTarget) -> io::Result<Self> {
        let file = match target {
            LogTarget::File(path) => Some(File::options().append(true).create(true).open(path)?),
            LogTarget::Stderr | LogTarget::Stdout => None,
        };
        Ok(Self { target: target.clone(), file })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match (&mut self.file, &self.target) {
            (Some(file), _) => file.write_all(lines),
            (None, LogTarget::Stderr) => io::stderr().lock().write_all(lines),
            (None, LogTarget::Stdout | LogTarget::File(_)) => {
                let mut out = io::stdout().lock();
                out.write_all(lines).and_then(|()| out.flush())
            }
        }
    }
}

fn write_all(entries: &Receiver<Box<Entry>>, mut sink: Sink, shared: &Shared, query: bool) {
    let mut lines = Vec::new();
    let mut failing = false;
    while let Ok(first) = entries.recv() {
        std::thread::park_timeout(GATHER);
        if shared.reopen.swap(false, Relaxed) {
            match Sink::open(&sink.target) {
                Ok(opened) => sink = opened,
                Err(error) => tracing::error!("cannot reopen the access log; writing on: {error}"),
            }
        }
        let mut next = Some(first);
        while next.is_some() {
            lines.clear();
            let mut count = 0;
            while let Some(entry) = next {
                line::write(&mut lines, &entry, query);
                count += 1;
                next = if count < BATCH_MAX { entries.try_recv().ok() } else { None };
            }
            match sink.write(&lines) {
                Ok(()) => failing = false,
                Err(error) => {
                    shared.dropped.fetch_add(count as u64, Relaxed);
                    // Told once for each time that it begins, not for each line.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!("cannot write the access log; dropping entries: {error}");
                    }
                }
            }
            next = entries.try_recv().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path: &std::path::Path, queue: usize) -> AccessLogSettings {
        AccessLogSettings { target: LogTarget::File(path.to_owned()), queue, query: false }
    }

    #[test]
    fn every_entry_is_written_before_the_log_ends() {
        let dir = crate::testing::Folder::new("access-log");
        let path = dir.join("access.log");
        let (log, writer) = AccessLog::start(&settings(&path, 10_000)).unwrap();
        for status in 0..3_000 {
            log.record(Box::new(Entry { status, listener: "outbound", ..Entry::default() }));
        }
        drop(log);
        writer.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3_000);
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["status"], 2_999);
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_does_not_block() {
        let (queue, entries) = sync_channel(2);
        let log = AccessLog { queue, shared: Arc::default() };
        for _ in 0..5 {
            log.record(Box::default());
        }
        assert_eq!(log.dropped(), 3);
        drop(entries);
        log.record(Box::default());
        assert_eq!(log.dropped(), 4);
    }

    #[test]
    fn a_rotated_log_is_opened_anew() {
        let dir = crate::testing::Folder::new("access-log-rotated");
        let path = dir.join("access.log");
        let (log, writer) = AccessLog::start(&settings(&path, 100)).unwrap();
        std::fs::rename(&path, dir.join("access.log.1")).unwrap();
        log.reopen();
        log.record(Box::default());
        drop(log);
        writer.finish();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
