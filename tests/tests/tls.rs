//! TLS from clients to the proxy: real clients at the edge, callers of the mesh, hostile ones, and certificates that change.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use gilmok_tests::caller::{self, Caller};
use gilmok_tests::certificates::{Authority, Leaf, Spec, TlsCaller, client_config};
use gilmok_tests::eventually::{SOON, eventually, within};
use gilmok_tests::load::{Ask, Load};
use gilmok_tests::peer::{run, words};
use gilmok_tests::proxy::{Proxy, ProxySettings, service};
use gilmok_tests::scratch::Scratch;
use gilmok_tests::upstream::Upstream;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const IDENTITY: &str = "[identity]\ncert_file = \"own.pem\"\nkey_file = \"own.key\"\nca_file = \"ca.pem\"";

/// A proxy with an edge listener that has these certificates, in front of `upstream`.
async fn edge(leaves: &[Leaf], listen: &str, limits: &str, upstream: &Upstream) -> Proxy {
    let scratch = Scratch::new();
    let mut tables = format!("[limits]\n{limits}\n");
    for (place, leaf) in leaves.iter().enumerate() {
        leaf.write(scratch.path(), &format!("edge{place}"));
        tables.push_str(&format!(
            "[[edge.certificates]]\ncert_file = \"edge{place}.pem\"\nkey_file = \"edge{place}.key\"\n"
        ));
    }
    let mesh = service("app", "", &[upstream.address])
        + "[[routes]]\nhosts = [\"shop.example\"]\nservice = \"app\"\n";
    let settings =
        ProxySettings::of_mesh(mesh).listen(&format!("edge = \"127.0.0.1:0\"\n{listen}")).table(&tables);
    started(settings, scratch).await
}

/// A proxy with the identity of the service `app`, beside an app at `upstream`.
async fn inbound(authority: &Authority, listen: &str, upstream: &Upstream) -> Proxy {
    let scratch = Scratch::new();
    authority.sign(&Spec::service("app")).write(scratch.path(), "own");
    scratch.write("ca.pem", authority.pem());
    let settings = ProxySettings::of_mesh("[services.app]\n")
        .listen(listen)
        .app("app", upstream.address, "")
        .table(IDENTITY);
    started(settings, scratch).await
}

async fn started(settings: ProxySettings, scratch: Scratch) -> Proxy {
    let proxy = Proxy::start_unready(settings, scratch).await;
    proxy.is_ready().await;
    proxy
}

/// curl to an address under a name; its exit code and what it printed.
async fn curl(address: SocketAddr, folder: &Path, more: &str, url: &str) -> (i32, String) {
    let port = address.port();
    let args = format!(
        "-sS --max-time 15 --cacert {}/root.pem --resolve shop.example:{port}:127.0.0.1 {more} https://shop.example:{port}{url}",
        folder.display()
    );
    let output = run("curl", words(&args), "").await;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap_or(-1), said)
}

/// Waits until so many handshakes were counted: a caller may know before the proxy has counted it.
async fn counted(proxy: &Proxy, labels: &[&str], count: f64) {
    eventually(&format!("{count} with {labels:?}"), async || {
        let now = proxy.metric("gilmok_tls_handshakes_total", labels).await;
        if now == count { Ok(()) } else { Err(now) }
    })
    .await;
}

const STATUS: &str = "-o /dev/null -w %{http_code}/%{http_version}";

#[tokio::test]
async fn curl_openssl_and_python_are_served_at_the_edge() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let leaf = authority.sign(&Spec::names(&["shop.example"]));
    let proxy = edge(&[leaf], "", "", &upstream).await;
    let folder = proxy.scratch.path();
    proxy.scratch.write("root.pem", authority.pem());
    let at = proxy.edge();
    for (more, told) in [
        ("--http2", "200/2"),
        ("--http1.1", "200/1.1"),
        ("--tls-max 1.2 --http1.1", "200/1.1"),
        ("--tls-max 1.2 --http2", "200/2"),
        ("--no-alpn", "200/1.1"),
        ("--http2-prior-knowledge", "200/2"),
    ] {
        assert_eq!(curl(at, folder, &format!("{more} {STATUS}"), "/").await, (0, told.to_owned()), "{more}");
    }
    assert_eq!(upstream.requests()[0].header("x-forwarded-proto"), Some("https"));
    let args = words(&format!(
        "s_client -connect {at} -servername shop.example -CAfile {}/root.pem -tls1_3 -alpn http/1.1 -quiet -verify_return_error",
        folder.display()
    ));
    let output =
        run("openssl", args, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").await;
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("HTTP/1.1 200"), "{output:?}");
    // Both versions, and sessions that are taken up again.
    let script = "import ssl,socket,sys\n\
        port,ca=int(sys.argv[1]),sys.argv[2]\n\
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):\n\
        \x20   c=ssl.create_default_context(cafile=ca); c.minimum_version=c.maximum_version=version\n\
        \x20   session=None\n\
        \x20   for turn in range(2):\n\
        \x20       s=c.wrap_socket(socket.create_connection(('127.0.0.1',port)),server_hostname='shop.example',session=session)\n\
        \x20       s.sendall(b'GET / HTTP/1.1\\r\\nHost: shop.example\\r\\n\\r\\n')\n\
        \x20       assert s.recv(100).startswith(b'HTTP/1.1 200')\n\
        \x20       print(s.version(), s.session_reused); session=s.session; s.close()\n";
    let args = ["-c", script, &at.port().to_string(), &folder.join("root.pem").display().to_string()];
    let output = run("python3", args.map(str::to_owned).to_vec(), "").await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "TLSv1.2 False\nTLSv1.2 True\nTLSv1.3 False\nTLSv1.3 True\n", "{output:?}");
    let resumed = ["listener=\"edge\"", "result=\"resumed\""];
    counted(&proxy, &resumed, 2.0).await;
}

#[tokio::test]
async fn the_edge_refuses_what_is_too_old_or_not_agreed_upon() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let proxy = edge(&[authority.sign(&Spec::names(&["shop.example"]))], "", "", &upstream).await;
    let at = proxy.edge();
    proxy.scratch.write("root.pem", authority.pem());
    // No protocol in common: refused, not spoken in another one.
    let refused = TlsCaller::connect(&client_config(&authority, None, &["h3"]), at, "shop.example").await;
    assert!(refused.unwrap_err().to_string().contains("NoApplicationProtocol"));
    // HTTP/1.1 was agreed upon: the preface of HTTP/2 is no request.
    let mut caller = TlsCaller::connect(&client_config(&authority, None, &["http/1.1"]), at, "shop.example")
        .await
        .unwrap();
    let answer = caller.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() >= 400));
    let (code, _) = curl(at, proxy.scratch.path(), "--tls-max 1.1 --ciphers DEFAULT@SECLEVEL=0", "/").await;
    assert_eq!(code, 35);
    // Plaintext is not served on a port that speaks TLS only.
    let mut plain = Caller::connect(at).await;
    plain.send(caller::get("shop.example", "/")).await;
    assert!(plain.try_answer(SOON).await.is_err());
    assert!(upstream.requests().is_empty());
    eventually("the refusals to be counted", async || {
        let metrics = proxy.metrics().await;
        let count = |result: &str| {
            gilmok_tests::observe::sum(
                &metrics,
                "gilmok_tls_handshakes_total",
                &[&format!("result=\"{result}\"")],
            )
        };
        if count("no_protocol") >= 2.0 && count("not_tls") == 1.0 { Ok(()) } else { Err(metrics.clone()) }
    })
    .await;
}

#[tokio::test]
async fn each_name_has_its_certificate_and_both_are_spoken_while_migrating() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let leaves = ["shop.example", "*.ads.example"].map(|name| authority.sign(&Spec::names(&[name])));
    let proxy = edge(&leaves, "edge_tls = \"permissive\"", "", &upstream).await;
    let at = proxy.edge();
    let config = client_config(&authority, None, &[]);
    for name in ["shop.example", "x.ads.example"] {
        let mut caller = TlsCaller::connect(&config, at, name).await.unwrap();
        assert_eq!(caller.ask(caller::get("shop.example", "/")).await.unwrap().status(), 200);
    }
    assert!(TlsCaller::connect(&config, at, "other.example").await.is_err());
    let plain = caller::ask(at, caller::get("shop.example", "/")).await;
    assert_eq!(plain.status(), 200);
    let requests = upstream.requests();
    let schemes: Vec<_> =
        requests.iter().map(|request| request.header("x-forwarded-proto").unwrap()).collect();
    assert_eq!(schemes, ["https", "https", "http"]);
}

#[tokio::test]
async fn a_handshake_has_its_time_and_may_come_byte_by_byte() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("office");
    let leaf = authority.sign(&Spec::names(&["shop.example"]));
    let proxy = edge(&[leaf], "", "handshake_timeout = \"1s\"", &upstream).await;
    let mut silent = TcpStream::connect(proxy.edge()).await.unwrap();
    assert_eq!(within(SOON, "the end", silent.read(&mut [0])).await.unwrap_or(0), 0);
    counted(&proxy, &["result=\"timeout\""], 1.0).await;
    // A relay that passes on one byte at a time.
    let at = proxy.edge();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = listener.local_addr().unwrap();
    let relaying = tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(at).await.unwrap();
        far.set_nodelay(true).unwrap();
        let (mut from, mut to) = near.into_split();
        let (mut back, mut forth) = far.into_split();
        let there = async {
            while let Ok(byte) = from.read_u8().await {
                forth.write_u8(byte).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(there, async { drop(tokio::io::copy(&mut back, &mut to).await) });
    });
    let mut caller =
        TlsCaller::connect(&client_config(&authority, None, &[]), relay, "shop.example").await.unwrap();
    // A request of which each byte is a record of its own.
    let request = caller::get("shop.example", "/");
    let (last, most) = request.as_bytes().split_last().unwrap();
    for byte in most {
        caller.io.write_all(&[*byte]).await.unwrap();
        caller.io.flush().await.unwrap();
    }
    assert_eq!(caller.ask([*last]).await.unwrap().status(), 200);
    relaying.abort();
    // A hello cut into records of one byte is taken, too.
    let config = client_config(&authority, None, &[]);
    let mut client = rustls::ClientConnection::new(config, "shop.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let records: Vec<u8> = hello[5..].iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
    let mut stream = TcpStream::connect(proxy.edge()).await.unwrap();
    stream.write_all(&records).await.unwrap();
    assert_eq!(within(SOON, "the server's hello", stream.read_u8()).await.unwrap(), 0x16);
}

#[tokio::test]
async fn a_new_certificate_is_used_without_dropping_a_connection_and_a_wrong_one_is_refused() {
    let upstream = Upstream::saying("fine").await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let spec = Spec::names(&["shop.example"]);
    let proxy = edge(&[old.sign(&spec)], "", "", &upstream).await;
    let (at, folder) = (proxy.edge(), proxy.scratch.path());
    let mut open = TlsCaller::connect(&client_config(&old, None, &[]), at, "shop.example").await.unwrap();
    let refused = async || {
        proxy
            .metric("gilmok_certificate_reloads_total", &["certificate=\"edge[0]\"", "result=\"refused\""])
            .await
    };
    // A key that does not fit, then what is no certificate, then one that has ended.
    let ended = Spec {
        begins: (Duration::from_secs(7_200), false),
        ends: (Duration::from_secs(60), false),
        ..spec.clone()
    };
    let mut faults = 0.0;
    for step in 0..3 {
        match step {
            0 => drop(std::fs::write(folder.join("edge0.key"), new.sign(&spec).key_pem())),
            1 => drop(std::fs::write(folder.join("edge0.pem"), "no certificate")),
            _ => drop(new.sign(&ended).write(folder, "edge0")),
        }
        faults = eventually("the refusal", async || {
            let now = refused().await;
            if now > faults { Ok(now) } else { Err(now) }
        })
        .await;
        assert!(TlsCaller::connect(&client_config(&old, None, &[]), at, "shop.example").await.is_ok());
    }
    let told = proxy.admin_json("/config").await["certificates"][0].clone();
    assert!(told["fault"].as_str().unwrap().contains("has ended already"), "{told}");
    new.sign(&spec).write(folder, "edge0");
    eventually("the new one", async || {
        TlsCaller::connect(&client_config(&new, None, &[]), at, "shop.example").await
    })
    .await;
    assert_eq!(
        open.ask(caller::get("shop.example", "/")).await.unwrap().status(),
        200,
        "an open one goes on"
    );
    let told = proxy.admin_json("/config").await["certificates"][0].clone();
    assert_eq!(
        (&told["fault"], &told["names"][0]),
        (&serde_json::Value::Null, &"shop.example".into()),
        "{told}"
    );
    let ends = proxy.metric("gilmok_certificate_end_seconds", &["certificate=\"edge[0]\""]).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((23.0..24.1).contains(&((ends - now) / 3_600.0)), "{ends}");
    // Nothing of any key is told anywhere.
    let key = std::fs::read_to_string(folder.join("edge0.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    for text in [proxy.admin("/config").await.text(), proxy.metrics().await, proxy.process.log()] {
        assert!(!text.contains(secret) && !text.contains("PRIVATE"), "{text}");
    }
}

#[tokio::test]
async fn a_caller_that_shows_who_it_is_is_believed_and_told_to_the_app() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let proxy = inbound(&authority, "trusted = [\"192.0.2.0/24\"]", &upstream).await;
    let at = proxy.inbound(0);
    let shop = authority.sign(&Spec::service("shop"));
    let forged = "GET / HTTP/1.1\r\nHost: app\r\nX-Forwarded-Client-Cert: URI=spiffe://mesh/service/admin\r\n\
                  X_Forwarded_Client_Cert: x\r\nConnection: x-forwarded-client-cert\r\nGilmok-Timeout: 5000\r\n\
                  X-Forwarded-For: 198.51.100.7\r\n\r\n";
    let name = "127.0.0.1";
    // rustls checks names and addresses as browsers do; this certificate has neither, so who answers is not checked here.
    let with_name = |names: &[&str]| Spec {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Spec::service("app")
    };
    authority.sign(&with_name(&[name])).write(proxy.scratch.path(), "own");
    let config = client_config(&authority, Some(&shop), &[]);
    let mut caller =
        eventually("a certificate for the address", async || TlsCaller::connect(&config, at, name).await)
            .await;
    assert_eq!(caller.ask(forged).await.unwrap().status(), 200);
    let seen = upstream.only_request().await;
    let told = seen.header("x-forwarded-client-cert").unwrap();
    assert!(
        told.starts_with("By=spiffe://mesh/service/app;Hash=")
            && told.ends_with(";URI=spiffe://mesh/service/shop"),
        "{told}"
    );
    assert_eq!(seen.all("x-forwarded-client-cert").len(), 1);
    assert_eq!(seen.header("x_forwarded_client_cert"), None);
    assert_eq!(
        seen.header("x-forwarded-for"),
        Some("198.51.100.7, 127.0.0.1"),
        "a peer of the mesh is believed"
    );
    assert!(
        seen.header("gilmok-timeout").is_some_and(|left| left.parse::<u64>().unwrap() <= 5_000),
        "{seen:?}"
    );
    // Without a certificate, encrypted or not: a stranger.
    let mut stranger =
        TlsCaller::connect(&client_config(&authority, None, &["http/1.1"]), at, name).await.unwrap();
    assert_eq!(stranger.ask(forged).await.unwrap().status(), 200);
    assert_eq!(caller::ask(at, forged).await.status(), 200);
    for seen in &upstream.requests()[1..] {
        assert_eq!(seen.header("x-forwarded-client-cert"), None, "{seen:?}");
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    }
}

#[tokio::test]
async fn openssl_and_python_come_in_with_a_certificate_and_are_known_when_they_come_again() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let proxy = inbound(&authority, "inbound_tls = \"strict\"", &upstream).await;
    let (at, folder) = (proxy.inbound(0), proxy.scratch.path());
    authority.sign(&Spec::service("shop")).write(folder, "client");
    let files = folder.display();
    for version in ["-tls1_2", "-tls1_3"] {
        for (shows, is_good) in
            [(format!("-cert {files}/client.pem -key {files}/client.key"), true), (String::new(), false)]
        {
            let args = format!(
                "s_client -connect {at} {version} {shows} -CAfile {files}/ca.pem -alpn http/1.1 -quiet -verify_return_error"
            );
            let request = "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
            let output = run("openssl", words(&args), request).await;
            assert_eq!(output.stdout.starts_with(b"HTTP/1.1 200"), is_good, "{version} {shows}: {output:?}");
        }
    }
    let script = "import ssl,socket,sys\n\
        port,folder=int(sys.argv[1]),sys.argv[2]\n\
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):\n\
        \x20   c=ssl.create_default_context(cafile=folder+'/ca.pem'); c.minimum_version=c.maximum_version=version\n\
        \x20   c.check_hostname=False; c.load_cert_chain(folder+'/client.pem', folder+'/client.key')\n\
        \x20   session=None\n\
        \x20   for turn in range(2):\n\
        \x20       s=c.wrap_socket(socket.create_connection(('127.0.0.1',port)),session=session)\n\
        \x20       s.sendall(b'GET / HTTP/1.1\\r\\nHost: app\\r\\n\\r\\n')\n\
        \x20       assert s.recv(100).startswith(b'HTTP/1.1 200')\n\
        \x20       print(s.version(), s.session_reused); session=s.session; s.close()\n";
    let args = ["-c", script, &at.port().to_string(), &files.to_string()];
    let output = run("python3", args.map(str::to_owned).to_vec(), "").await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "TLSv1.2 False\nTLSv1.2 True\nTLSv1.3 False\nTLSv1.3 True\n", "{output:?}");
    let requests = upstream.requests();
    assert_eq!(requests.len(), 6, "{requests:?}");
    for request in requests {
        let told = request.header("x-forwarded-client-cert").unwrap();
        assert!(told.ends_with(";URI=spiffe://mesh/service/shop"), "{told}");
    }
}

#[tokio::test]
async fn nobody_comes_in_strictly_without_being_somebody() {
    let upstream = Upstream::saying("fine").await;
    let (authority, other) = (Authority::new("mesh"), Authority::new("mesh"));
    let proxy = inbound(&authority, "inbound_tls = \"strict\"", &upstream).await;
    let (at, folder) = (proxy.inbound(0), proxy.scratch.path());
    let hour = Duration::from_secs(3_600);
    let shop = Spec::service("shop");
    let between = authority.constrained("between", "elsewhere");
    let cases: Vec<(&str, Leaf, bool)> = vec![
        ("good", authority.sign(&shop), true),
        (
            "expired",
            authority.sign(&Spec { begins: (2 * hour, false), ends: (hour, false), ..shop.clone() }),
            false,
        ),
        ("not yet", authority.sign(&Spec { begins: (hour, true), ..shop.clone() }), false),
        ("another authority of the same name", other.sign(&shop), false),
        ("self-signed", shop.self_signed(), false),
        (
            "a common name only",
            authority.sign(&Spec { common_name: "spiffe://mesh/service/shop".into(), ..Spec::default() }),
            false,
        ),
        ("a DNS name only", authority.sign(&Spec::names(&["shop"])), false),
        ("another domain", authority.sign(&Spec::uri("spiffe://other/service/shop")), false),
        ("no identity", authority.sign(&Spec::uri("https://mesh/service/shop")), false),
        ("another spelling", authority.sign(&Spec::uri("spiffe://MESH/service/shop")), false),
        (
            "two identities",
            authority.sign(&Spec {
                uris: vec!["spiffe://mesh/service/shop".into(), "spiffe://mesh/service/admin".into()],
                ..shop.clone()
            }),
            false,
        ),
        (
            "for servers only",
            authority.sign(&Spec { purposes: vec![ExtendedKeyUsagePurpose::ServerAuth], ..shop.clone() }),
            false,
        ),
        ("an authority that may not sign this", between.sign(&shop).under(&between), false),
    ];
    for (name, leaf, is_good) in cases {
        leaf.write(folder, "client");
        let args = words(&format!(
            "-sS --max-time 15 -k -o /dev/null -w %{{http_code}} --http1.1 --cert {0}/client.pem --key {0}/client.key https://{at}/",
            folder.display()
        ));
        let output = run("curl", args, "").await;
        assert_eq!(output.status.success() && output.stdout == b"200", is_good, "{name}: {output:?}");
    }
    let bare = run("curl", words(&format!("-sS --max-time 15 -k https://{at}/")), "").await;
    assert!(!bare.status.success(), "{bare:?}");
    let mut plain = Caller::connect(at).await;
    plain.send(caller::get("app", "/")).await;
    assert!(plain.try_answer(SOON).await.is_err());
    assert_eq!(upstream.requests().len(), 1, "only the good one reached the app");
    let log = proxy.process.log();
    assert_eq!(
        log.matches("no TLS with the caller 127.0.0.1").count(),
        3,
        "each reason once a minute: {log}"
    );
    assert!(log.contains("certificate expired"), "{log}");
    for (result, count) in
        [("full", 1.0), ("bad_certificate", 12.0), ("no_certificate", 1.0), ("not_tls", 1.0)]
    {
        let labels = ["listener=\"inbound\"", &format!("result=\"{result}\"")];
        counted(&proxy, &labels, count).await;
    }
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_by_which_its_caller_is_known() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let proxy = inbound(&authority, "inbound_tls = \"strict\"", &upstream).await;
    let folder = proxy.scratch.path();
    authority.sign(&Spec { names: vec!["127.0.0.1".into()], ..Spec::service("app") }).write(folder, "own");
    let short = authority.sign(&Spec { ends: (Duration::from_secs(4), true), ..Spec::service("shop") });
    let config = client_config(&authority, Some(&short), &["http/1.1"]);
    let at = proxy.inbound(0);
    let mut caller = eventually("a certificate for the address", async || {
        TlsCaller::connect(&config, at, "127.0.0.1").await
    })
    .await;
    assert_eq!(caller.ask(caller::get("app", "/")).await.unwrap().status(), 200);
    let end = within(SOON, "the end of the connection", caller.io.read(&mut [0])).await;
    assert_eq!(end.unwrap_or(0), 0);
    // Its session would be taken up again, and is not.
    let again = async || {
        let mut caller =
            TlsCaller::connect(&config, at, "127.0.0.1").await.map_err(|error| error.to_string())?;
        caller.ask(caller::get("app", "/")).await.map_err(|error| format!("{error:?}"))
    };
    assert!(again().await.is_err());
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn plaintext_callers_are_served_under_load_while_others_speak_tls() {
    let upstream = Upstream::saying("fine").await;
    let authority = Authority::new("mesh");
    let proxy = inbound(&authority, "", &upstream).await;
    let load = Load::start(proxy.inbound(0), 4, &Ask::of("app"));
    let shop = authority.sign(&Spec::service("shop"));
    shop.write(proxy.scratch.path(), "client");
    let folder = proxy.scratch.path().display();
    for _ in 0..5 {
        let args = format!(
            "-sS --max-time 15 -k --cert {folder}/client.pem --key {folder}/client.key https://{}/",
            proxy.inbound(0)
        );
        let output = run("curl", words(&args), "").await;
        assert_eq!(output.stdout, b"fine", "{output:?}");
    }
    load.flows(100).await;
    load.stop().await.expect_no_failure();
}
