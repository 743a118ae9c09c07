//! The ads hang: without a breaker every page waits for them, with one and a fallback nobody notices.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::demo::mesh::Concerning;
use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::demo::tell::in_words;
use crate::demo::traffic::{HOUSE_AD, Page, Traffic};
use crate::table::indented;

pub(crate) const TITLE: &str = "The ads hang, and no page waits for them";

const ADS: [&str; 2] = ["ads-1", "ads-2"];
const PAGES_PER_SECOND: u32 = 200;
/// Pages before the ads hang, and after they are back.
const PAGES: u64 = 200;
/// How long they hang. In the first part the breaker may still be finding out.
const HANG: Duration = Duration::from_secs(5);
const FINDING_OUT: Duration = Duration::from_secs(2);
/// How often pages are counted until the breaker has closed again; once will do on a machine that has time.
const LOOKS_MAX: u32 = 20;
const OPEN_FOR: &str = "1s";

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    without(stage).await?;
    let change = policy();
    let revision = stage.write_and_wait(Method::PATCH, "/v1/services/ads", &change).await?;
    stage
        .teller
        .say(&format!("revision {revision} gives ads a breaker and a fallback (PATCH /v1/services/ads):"));
    stage.teller.show(&format!("{change:#}"));

    let traffic = Traffic::start_at_rate(&stage.mesh.layout.machines[0], "shop", PAGES_PER_SECOND)?;
    traffic.go_on_for(PAGES).await?;
    let before = Transitions::read(stage).await?;
    let began = Instant::now();
    order(stage, "hang").await?;
    let hung = Instant::now();
    traffic.until("the hang to last", |_| began.elapsed() >= HANG).await?;
    let during = Transitions::read(stage).await?;
    anyhow::ensure!(during.open > before.open, "no breaker of ads opened: {during:?}");

    let ended = Instant::now();
    order(stage, "ok").await?;
    let real = |page: &&Page| page.asked >= ended && !page.house;
    traffic.until("a real advertisement", |tally| tally.pages.iter().any(|page| real(&page))).await?;
    let back = ended.elapsed();
    let after = closed_again(stage, &traffic, during.closed).await?;
    let tally = traffic.none_failed()?;
    // What was answered before they were well cannot be real, however long it took.
    let mut hanging = tally.pages.iter().filter(|page| page.asked >= hung && page.asked + page.took < ended);
    anyhow::ensure!(hanging.all(|page| page.house), "a page without the house's picture while the ads hang");

    let within = |from: Instant, to: Instant| {
        let pages = tally.pages.iter().filter(move |page| page.asked >= from && page.asked < to);
        pages.copied().collect::<Vec<_>>()
    };
    let rows = [
        ("before", within(began.checked_sub(HANG).unwrap_or(began), began)),
        ("they hang, the first 2 s", within(began, began + FINDING_OUT)),
        ("they hang, from then on", within(began + FINDING_OUT, ended)),
        ("they are back", within(ended, Instant::now())),
    ];
    let head =
        ["", "pages", "median", "p99", "slowest", "with the house's picture"].map(str::to_owned).to_vec();
    let rows: Vec<_> =
        std::iter::once(head).chain(rows.iter().map(|(what, pages)| row(what, pages))).collect();
    stage.teller.show(&indented(&rows));
    let house = tally.pages.iter().filter(|page| page.house).count();
    stage.teller.say(&format!(
        "{} pages, none failed; {house} with the house's picture, among them every one while the ads hung",
        tally.answered
    ));
    stage.teller.say(&format!(
        "the breaker opened {} times and closed again (gilmok_breaker_transitions_total)",
        after.open - before.open
    ));
    stage.teller.say(&format!(
        "the first real ads came {} after they were well; open_for is {OPEN_FOR}",
        in_words(back)
    ));
    Ok(())
}

/// Goes on until a breaker of ads has closed again: on a busy machine well ads are slow calls for a while.
async fn closed_again(stage: &Stage<'_>, traffic: &Traffic, before: u64) -> anyhow::Result<Transitions> {
    for _ in 0..LOOKS_MAX {
        traffic.go_on_for(PAGES).await?;
        let now = Transitions::read(stage).await?;
        if now.closed > before {
            return Ok(now);
        }
    }
    anyhow::bail!("no breaker of ads closed again within {LOOKS_MAX} times {PAGES} pages")
}

/// What the document says of ads from here on.
fn policy() -> Value {
    let house = json!({"service": "ads", "version": "house", "image": HOUSE_AD});
    json!({
        "circuit_breaker": {
            "window": "1s", "min_requests": 10, "slow_call": "100ms", "slow_percent": 20,
            "open_for": OPEN_FOR, "open_for_max": OPEN_FOR,
        },
        "fallback": [{"respond": {
            "status": 200, "headers": {"content-type": "application/json"}, "body": house.to_string(),
        }}],
    })
}

/// One page while the ads hang and nothing is done about it.
async fn without(stage: &Stage<'_>) -> anyhow::Result<()> {
    order(stage, "hang").await?;
    let client = talk::client(stage.mesh.layout.machines[0].outbound)?;
    let began = Instant::now();
    let page = talk::json(&client.send(&talk::of_service("shop", "/?format=json")?).await?, StatusCode::OK)?;
    let took = began.elapsed();
    order(stage, "ok").await?;
    anyhow::ensure!(page["missing"] == json!(["ads"]), "the page should miss its ads: {}", page["missing"]);
    stage.teller.say(&format!(
        "both endpoints of ads hang (POST /control/hang). A page takes {}, and comes without ads",
        in_words(took)
    ));
    Ok(())
}

async fn order(stage: &Stage<'_>, what: &str) -> anyhow::Result<()> {
    for name in ADS {
        let address = stage.mesh.layout.app(name)?.address;
        talk::order(address, what).await.with_context(|| Concerning(name.to_owned()))?;
    }
    Ok(())
}

/// How often the breakers of ads entered a state, as the metrics of the proxy beside the shop say.
#[derive(Debug)]
struct Transitions {
    open: u64,
    closed: u64,
}

impl Transitions {
    async fn read(stage: &Stage<'_>) -> anyhow::Result<Self> {
        let answer = talk::ask(stage.mesh.layout.machines[0].admin, Method::GET, "/metrics").await?;
        anyhow::ensure!(answer.status == StatusCode::OK, "GET /metrics: {}", talk::brief(&answer));
        Ok(Self::of(&String::from_utf8_lossy(&answer.body)))
    }

    fn of(metrics: &str) -> Self {
        let to = |state: &str| {
            let series = format!("gilmok_breaker_transitions_total{{service=\"ads\",to=\"{state}\"}} ");
            // A state that was never entered has no series.
            metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
        };
        Self { open: to("open"), closed: to("closed") }
    }
}

fn row(what: &str, pages: &[Page]) -> Vec<String> {
    let mut took: Vec<_> = pages.iter().map(|page| page.took).collect();
    took.sort_unstable();
    let at = |percent: usize| {
        let place = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        took.get(place).map_or_else(|| "-".to_owned(), |took| in_words(*took))
    };
    let house = pages.iter().filter(|page| page.house).count();
    vec![what.to_owned(), pages.len().to_string(), at(50), at(99), at(100), house.to_string()]
}

#[cfg(test)]
mod tests {
    use gilmok_config::document::Document;

    use super::*;

    #[test]
    fn what_the_chapter_says_of_ads_is_sound() {
        let document = Document::parse_json(&json!({"services": {"ads": policy()}})).unwrap();
        let ads = &document.services["ads"];
        assert!(ads.circuit_breaker.is_some_and(|breaker| breaker.slow_call < Some(ads.request_timeout)));
        assert_eq!(ads.fallback.len(), 1);
    }

    #[test]
    fn transitions_are_those_of_ads() {
        let metrics = "gilmok_breaker_transitions_total{service=\"ads\",to=\"half_open\"} 4\n\
                       gilmok_breaker_transitions_total{service=\"ads\",to=\"open\"} 5\n\
                       gilmok_breaker_transitions_total{service=\"shop\",to=\"closed\"} 7\n";
        let Transitions { open, closed } = Transitions::of(metrics);
        assert_eq!((open, closed), (5, 0));
    }
}
