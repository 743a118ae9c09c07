//! Balancing by the subject: a user keeps an endpoint while it is well, and nobody else's moves when it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use gilmok_tests::caller::{Caller, ask};
use gilmok_tests::eventually::eventually;
use gilmok_tests::proxy::{Proxy, service};
use gilmok_tests::sick::{Sick, Sickness};
use gilmok_tests::upstream::{Upstream, ok};
use serde_json::json;

const BALANCERS: [&str; 2] = ["ring_hash", "maglev"];
const USERS: usize = 40;

/// Upstreams that say their number.
async fn upstreams(many: usize) -> Vec<Upstream> {
    let mut all = Vec::new();
    for number in 0..many {
        all.push(Upstream::saying(&number.to_string()).await);
    }
    all
}

fn addresses(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(|upstream| upstream.address).collect()
}

fn request(user: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: app\r\n{user}\r\n")
}

/// Who answers each user.
async fn who_answers(proxy: &Proxy) -> BTreeMap<usize, String> {
    let mut answers = BTreeMap::new();
    let mut caller = proxy.caller().await;
    for user in 0..USERS {
        let answer = caller.ask(request(&format!("X-User-Id: user-{user}\r\n"))).await;
        assert_eq!(answer.status(), 200);
        answers.insert(user, answer.text());
    }
    answers
}

#[tokio::test]
async fn a_user_has_one_endpoint_in_every_proxy_and_moves_only_with_it() {
    let upstreams = upstreams(4).await;
    let all = addresses(&upstreams);
    for balancer in BALANCERS {
        let policy = format!("load_balancer = \"{balancer}\"");
        let proxy = Proxy::start(service("app", &policy, &all)).await;
        let before = who_answers(&proxy).await;
        assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 4, "all have users: {before:?}");
        assert_eq!(who_answers(&proxy).await, before);
        // Another proxy, told in another order.
        let other: Vec<SocketAddr> = all.iter().rev().copied().collect();
        let other = Proxy::start(service("app", &policy, &other)).await;
        assert_eq!(who_answers(&other).await, before);
        // One that takes nothing more, and then again.
        let weightless = |weight: u32| {
            let last = format!("[[services.app.endpoints]]\naddress = \"{}\"\nweight = {weight}\n", all[3]);
            format!("{}{last}", service("app", &policy, &all[..3]))
        };
        proxy.reload(weightless(0)).await;
        let after = who_answers(&proxy).await;
        let moved: Vec<usize> = (0..USERS).filter(|user| after[user] != before[user]).collect();
        let own = moved.iter().filter(|user| before[*user] == "3").count();
        assert!(before.values().filter(|answer| *answer == "3").count() == own && own > 0, "{balancer}");
        if balancer == "ring_hash" {
            assert_eq!(own, moved.len(), "nobody else has moved");
        }
        proxy.reload(weightless(1)).await;
        assert_eq!(who_answers(&proxy).await, before, "and they come back");
    }
}

#[tokio::test]
async fn a_request_without_a_subject_goes_by_load_and_a_caller_is_told() {
    let upstreams = upstreams(3).await;
    let proxy = Proxy::start(service("app", "load_balancer = \"maglev\"", &addresses(&upstreams))).await;
    let mut answers = BTreeSet::new();
    for _ in 0..USERS {
        let answer = ask(proxy.outbound(), request("Gilmok-Explain: 1\r\n")).await;
        let decision = answer.header("gilmok-decision").unwrap();
        assert!(decision.ends_with(" endpoint_by=load"), "{decision}");
        answers.insert(answer.text());
    }
    assert_eq!(answers.len(), 3);
    let answer = ask(proxy.outbound(), request("X-User-Id: ann\r\nGilmok-Explain: 1\r\n")).await;
    assert!(answer.header("gilmok-decision").unwrap().ends_with(" endpoint_by=subject"));
    let explained = proxy.admin_json("/explain?service=app&subject=ann").await;
    let expected = json!({ "load_balancer": "maglev", "why": "by the subject" });
    assert_eq!(explained["decision"]["balancing"], expected, "{explained}");
    let nobody = proxy.admin_json("/explain?service=app").await;
    assert_eq!(nobody["decision"]["balancing"]["why"], "no subject: by load", "{nobody}");
}

#[tokio::test]
async fn each_retry_goes_to_the_next_endpoint_of_the_user() {
    let mut sick = Vec::new();
    for number in 0..4 {
        sick.push(Sick::start(&number.to_string()).await);
        sick[number].is(Sickness::status(503));
    }
    let all: Vec<SocketAddr> = sick.iter().map(|sick| sick.upstream.address).collect();
    for balancer in BALANCERS {
        let policy = format!("load_balancer = \"{balancer}\"");
        let retry = "[services.app.retry]\nattempts = 3\non = [\"503\"]\n";
        let proxy = Proxy::start(service("app", &policy, &all) + retry).await;
        let before: Vec<usize> = sick.iter().map(Sick::asked).collect();
        let answer = ask(proxy.outbound(), request("X-User-Id: ann\r\n")).await;
        assert_eq!(answer.status(), 503);
        let asked = sick.iter().zip(&before).map(|(sick, before)| sick.asked() - before);
        assert_eq!(asked.collect::<Vec<_>>(), [1; 4], "{balancer}: each once");
    }
}

#[tokio::test]
async fn a_bound_sends_a_busy_users_requests_to_others() {
    let hanging = || {
        Upstream::start(|mut conversation| async move {
            while let Some(request) = conversation.request().await {
                if request.start.contains("/hang") {
                    conversation.hang().await;
                }
                conversation.send(ok("")).await;
            }
        })
    };
    let upstreams = [hanging().await, hanging().await, hanging().await, hanging().await];
    for balancer in BALANCERS {
        let policy = format!("load_balancer = \"{balancer}\"\nhash_balance_factor = 125");
        let proxy = Proxy::start(service("app", &policy, &addresses(&upstreams))).await;
        let counts = || upstreams.iter().map(|upstream| upstream.requests().len()).collect::<Vec<_>>();
        let before = counts();
        let mut callers = Vec::new();
        for number in 1..=20 {
            let mut caller = Caller::connect(proxy.outbound()).await;
            caller.send("GET /hang HTTP/1.1\r\nHost: app\r\nX-User-Id: ann\r\n\r\n").await;
            callers.push(caller);
            eventually("the request is there", || {
                let now: usize = counts().iter().zip(&before).map(|(now, before)| now - before).sum();
                async move { if now == number { Ok(()) } else { Err(now) } }
            })
            .await;
        }
        let mut each: Vec<usize> = counts().iter().zip(&before).map(|(now, before)| now - before).collect();
        each.sort_unstable();
        // A quarter of 20 and 25 % more, rounded up, is 7; without the bound one would have them all.
        assert!(each[3] == 7 && each[0] >= 1, "{balancer}: {each:?}");
    }
}
