//! Connections by hand: garbage, callers who are slow or leave, feeds, and the end of the process.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

/// Nothing here takes longer on a machine that works.
const SOON: Duration = Duration::from_secs(20);

const HASTY: Patience = Patience {
    head: Duration::from_millis(200),
    body: Duration::from_millis(200),
    stall: Duration::from_millis(200),
};

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends these bytes and reads until the other end closes.
    async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut caller = self.connect().await;
        // The other end may have refused and closed before everything was sent.
        drop(caller.write_all(bytes.as_ref()).await);
        rest_of(&mut caller).await
    }
}

async fn rest_of(caller: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is as good an end as any.
    drop(timeout(SOON, caller.read_to_end(&mut answer)).await.expect("the other end closes"));
    String::from_utf8_lossy(&answer).into_owned()
}

async fn read_until(caller: &mut TcpStream, read: &mut String, wanted: &str) {
    let reading = async {
        let mut piece = [0; 4_096];
        while !read.contains(wanted) {
            let count = caller.read(&mut piece).await.unwrap();
            assert!(count > 0, "ended before {wanted}: {read}");
            read.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    };
    timeout(SOON, reading).await.expect("it comes soon");
}

#[tokio::test]
async fn garbage_is_refused_and_the_next_caller_is_served() {
    let served = Served::start("garbage").await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/mesh HTTP/9.9\r\n\r\n",
        b"GET /v1/mesh HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /v1/mesh HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"PUT /v1/mesh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = served.raw(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{garbage:?}: {answer}");
    }
    let mut head = b"GET /v1/mesh HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
    head.extend(std::iter::repeat_n(b'x', 200_000));
    let answer = served.raw(head).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(served.get("/v1/mesh").await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_is_not_known_says_what_is() {
    let served = Served::start("methods").await;
    let answer = served.raw("BREW /v1/mesh HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    let answer = answer.to_lowercase();
    assert!(answer.starts_with("http/1.1 405"), "{answer}");
    assert!(answer.contains("\r\nallow: get,head,put\r\n"), "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    let answer = served.raw("HEAD /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_without_a_length_keeps_the_limit() {
    let served = Served::start("chunked").await;
    let piece = "8000\r\n".to_owned() + &"x".repeat(0x8000) + "\r\n";
    let head = "PUT /v1/services/ads/breaker HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = served.raw(head.to_owned() + &piece.repeat(4) + "0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_page_in_a_browser_is_refused() {
    let served = Served::start("page").await;
    for (header, value) in [("origin", "http://evil.example"), ("host", "evil.example")] {
        let (status, _) = served.ask(Method::GET, "/v1/status", &[(header, value)], "").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{header}");
    }
}

#[tokio::test]
async fn whoever_is_slow_is_not_waited_for() {
    let served = Served::start_with("slow", HASTY).await;
    let answer = served.raw("GET /v1/mesh HTTP/1.1\r\nHost: lo").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    let answer = served.raw("PUT /v1/mesh HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
}

#[tokio::test]
async fn a_feed_tells_changes_and_ends_politely_with_the_process() {
    let served = Served::start("feed").await;
    served.put("/v1/services/ads", &json!({})).await;
    let mut follower = served.connect().await;
    follower.write_all(b"GET /v1/feed?node=web-1&wire=1 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut read = String::new();
    read_until(&mut follower, &mut read, r#"{"line":"synced","revision":1}"#).await;
    assert!(read.contains("content-type: application/x-ndjson"), "{read}");
    served.put("/v1/services/ads", &json!({"max_concurrent": 7})).await;
    read_until(&mut follower, &mut read, r#"{"line":"document","revision":2"#).await;
    assert!(served.get("/metrics").await.1.as_str().unwrap().contains("gilmok_feed_subscribers 1"));
    served.stop.send_replace(true);
    let rest = rest_of(&mut follower).await;
    assert!(rest.ends_with("0\r\n\r\n"), "the body has its end: {rest:?}");
    let refused = async {
        while TcpStream::connect(served.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("nobody listens any more");
}

#[tokio::test]
async fn a_backup_is_whole_and_becomes_a_store() {
    let served = Served::start("backup").await;
    for limit in 1..=3 {
        served.put("/v1/services/ads", &json!({"max_concurrent": limit})).await;
    }
    let (status, backup) = served.get("/v1/backup").await;
    assert_eq!(status, StatusCode::OK);
    let to = served.folder.0.join("restored");
    Store::restore(&to, backup.as_str().unwrap().as_bytes()).unwrap();
    let restored = Store::open(&to, 100).unwrap();
    assert_eq!(restored.head().unwrap().number, 3);
    assert_eq!(json!(restored.id()), served.get("/v1/status").await.1["store"]);
}

#[tokio::test]
async fn the_interface_describes_exactly_what_is_served() {
    let served = Served::start("interface").await;
    let (_, interface) = served.get("/openapi.json").await;
    for (path, described) in interface["paths"].as_object().unwrap() {
        let target = path.replace("{service}", "ads").replace("{id}", "a").replace("{number}", "1");
        let request = format!("BREW {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = served.raw(request).await;
        let allowed = answer.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap_or_default();
        let mut allowed: Vec<String> = allowed.split(',').map(str::to_lowercase).collect();
        // Whatever can be read has a head.
        allowed.retain(|method| method != "head");
        allowed.sort();
        let mut described: Vec<&String> = described.as_object().unwrap().keys().collect();
        described.sort();
        assert_eq!(allowed.iter().collect::<Vec<_>>(), described, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_write_that_waits_is_answered_when_the_process_ends() {
    let served = Served::start("overdue").await;
    let ack = json!({"node": "web-1", "instance": "1", "wire": 1, "state": "ready"}).to_string();
    served.ask(Method::POST, "/v1/feed/acks", &[], &ack).await;
    let mut waiting = served.connect().await;
    let request = "PUT /v1/services/ads?wait=5m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
    waiting.write_all(request.as_bytes()).await.unwrap();
    while served.get("/v1/status").await.1["revision"] != 1 {}
    served.stop.send_replace(true);
    let answer = rest_of(&mut waiting).await;
    assert!(answer.starts_with("HTTP/1.1 202") && answer.contains(r#""lagging":["web-1"]"#), "{answer}");
}
