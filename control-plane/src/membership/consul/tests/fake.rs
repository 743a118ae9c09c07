//! A Consul made of a table and a script: it blocks like the real one, and misbehaves on request.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::http_client::Origin;

/// What it does instead of answering the next question about health.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Never answers.
    Hang,
    /// Closes the connection before a byte of an answer.
    Reset,
    /// Ends in the middle of the body.
    Truncated,
    /// Another status, with headers and a body.
    Status(u16, &'static str, &'static str),
    /// 200 with this index and body, whatever the table says.
    Says(u64, String),
}

/// One question that it was asked.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) target: String,
    pub(super) token: Option<String>,
    /// Which connection it came over.
    pub(super) connection: usize,
}

#[derive(Debug, Default)]
struct Table {
    index: u64,
    /// The JSON of each service's instances.
    services: BTreeMap<String, Vec<String>>,
    tags: BTreeMap<String, Vec<String>>,
    /// Headers of every answer.
    headers: String,
    agent: String,
    faults: VecDeque<Fault>,
    /// Every question about health fails like this.
    broken: Option<Fault>,
    seen: Vec<Seen>,
}

/// The fake; ends with its last handle.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
    origin: Origin,
    _accepting: Arc<JoinSet<()>>,
}

/// The JSON of an instance on its own node that is passing.
pub(super) fn instance(id: &str) -> String {
    checked(id, "passing")
}

/// The JSON of an instance whose check says so.
pub(super) fn checked(id: &str, status: &str) -> String {
    let port: usize = 1_000 + id.bytes().map(usize::from).sum::<usize>();
    format!(
        r#"{{"Node":{{"Node":"node-{id}","Address":"10.0.0.1"}},
        "Service":{{"ID":"{id}","Port":{port},"Tags":null,"Meta":null,"Address":""}},
        "Checks":[{{"CheckID":"service:{id}","Status":"{status}"}}]}}"#
    )
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let agent = r#"{"DebugConfig":{"ACLsEnabled":false,"ACLDefaultPolicy":"allow"}}"#.to_owned();
        let table = Arc::new(Mutex::new(Table { index: 10, agent, ..Table::default() }));
        let changed = Arc::new(Notify::new());
        let mut accepting = JoinSet::new();
        let (shared, woken) = (Arc::clone(&table), Arc::clone(&changed));
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, number, Arc::clone(&shared), Arc::clone(&woken)));
            }
        });
        Self { table, changed, origin, _accepting: Arc::new(accepting) }
    }

    pub(super) fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// Changes the table as one transaction of the catalog.
    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table.lock().unwrap();
        change(&mut table);
        table.index += 1;
        drop(table);
        self.changed.notify_waiters();
    }

    /// A service's instances as ids that are passing.
    pub(super) fn set(&self, service: &str, ids: &[&str]) {
        self.set_json(service, ids.iter().map(|id| instance(id)).collect());
    }

    pub(super) fn set_json(&self, service: &str, instances: Vec<String>) {
        self.change(|table| drop(table.services.insert(service.to_owned(), instances)));
    }

    pub(super) fn tag(&self, service: &str, tags: &[&str]) {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.change(|table| drop(table.tags.insert(service.to_owned(), tags)));
    }

    pub(super) fn untag(&self, service: &str) {
        self.change(|table| drop(table.tags.remove(service)));
    }

    /// Starts to count anew, as an agent that has lost its state.
    pub(super) fn count_from(&self, index: u64) {
        self.change(|table| table.index = index);
    }

    /// Does this instead of answering the next questions about health, and lets blocked ones go.
    pub(super) fn misbehave(&self, faults: impl IntoIterator<Item = Fault>) {
        self.change(|table| table.faults.extend(faults));
    }

    /// Fails every question about health, until told otherwise.
    pub(super) fn break_down(&self, broken: Option<Fault>) {
        self.change(|table| table.broken = broken);
    }

    pub(super) fn say_in_headers(&self, headers: &str) {
        headers.clone_into(&mut self.table.lock().unwrap().headers);
    }

    pub(super) fn say_of_agent(&self, json: &str) {
        json.clone_into(&mut self.table.lock().unwrap().agent);
    }

    /// What has been asked so far under a path.
    pub(super) fn seen(&self, path: &str) -> Vec<Seen> {
        let table = self.table.lock().unwrap();
        table.seen.iter().filter(|seen| seen.target.starts_with(path)).cloned().collect()
    }

    /// Whether every misbehaviour has been played.
    pub(super) fn is_done(&self) -> bool {
        self.table.lock().unwrap().faults.is_empty()
    }
}

async fn serve(mut stream: TcpStream, connection: usize, table: Arc<Mutex<Table>>, changed: Arc<Notify>) {
    while let Some(head) = read_head(&mut stream).await {
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let token = head.lines().find_map(|line| line.strip_prefix("x-consul-token: ")).map(str::to_owned);
        table.lock().unwrap().seen.push(Seen { target: target.clone(), token, connection });
        if !block(&mut stream, &target, &table, &changed).await {
            return;
        }
        let answer = match fault(&target, &table) {
            None => {
                let table = table.lock().unwrap();
                text(
                    200,
                    &format!("x-consul-index: {}\r\n{}", table.index, table.headers),
                    &body(&target, &table),
                )
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Reset) => return,
            Some(Fault::Says(index, body)) => text(200, &format!("x-consul-index: {index}\r\n"), &body),
            Some(Fault::Status(status, headers, body)) => text(status, headers, body),
            Some(Fault::Truncated) => {
                let whole = text(200, "x-consul-index: 99\r\n", "[{\"Node\":{\"Node\":\"n\"}}]");
                // Whether it arrives is no matter: the connection ends here.
                drop(stream.write_all(&whole.as_bytes()[..whole.len() - 9]).await);
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Waits as a blocking query does; false when the caller has gone.
async fn block(stream: &mut TcpStream, target: &str, table: &Mutex<Table>, changed: &Notify) -> bool {
    let parameter =
        |name: &str| target.split(['?', '&']).find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let Some(index) = parameter("index").and_then(|index| index.parse::<u64>().ok()) else { return true };
    let wait: u64 = parameter("wait").and_then(|wait| wait.strip_suffix("ms")?.parse().ok()).unwrap_or(0);
    let deadline = tokio::time::Instant::now() + Duration::from_millis(wait);
    loop {
        let woken = changed.notified();
        // An index from a count that is higher hangs until the wait ends, as the real one does.
        {
            let table = table.lock().unwrap();
            if table.index > index || !table.faults.is_empty() || table.broken.is_some() {
                return true;
            }
        }
        let mut byte = [0];
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep_until(deadline) => return true,
            read = stream.peek(&mut byte) => if !matches!(read, Ok(1..)) { return false; }
        }
    }
}

fn fault(target: &str, table: &Mutex<Table>) -> Option<Fault> {
    let mut table = table.lock().unwrap();
    if !target.starts_with("/v1/health/") {
        return None;
    }
    table.faults.pop_front().or_else(|| table.broken.clone())
}

fn body(target: &str, table: &Table) -> String {
    let path = target.split('?').next().unwrap_or_default();
    if let Some(service) = path.strip_prefix("/v1/health/service/") {
        return format!("[{}]", table.services.get(service).map(|list| list.join(",")).unwrap_or_default());
    }
    match path {
        "/v1/catalog/services" => serde_json::to_string(&table.tags).unwrap(),
        "/v1/agent/self" => table.agent.clone(),
        _ => "null".to_owned(),
    }
}

fn text(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(text).ok()
}
