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
    let began = Instant::now();
    order(stage, "hang").await?;
    traffic.until("the hang to last", |_| began.elapsed() >= HANG).await?;
    let opened = breakers(stage).await?;
    anyhow::ensure!(count(&opened, "opened") > 0, "no breaker opened: {opened}");

    let ended = Instant::now();
    order(stage, "ok").await?;
    let real = |page: &&Page| page.asked >= ended && !page.house;
    traffic.until("a real advertisement", |tally| tally.pages.iter().any(|page| real(&page))).await?;
    let back = ended.elapsed();
    traffic.go_on_for(PAGES).await?;
    let closed = breakers(stage).await?;
    anyhow::ensure!(count(&closed, "closed") > 0, "no breaker closed again: {closed}");
    let tally = traffic.none_failed()?;

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
    stage.teller.say(&format!("{} pages, none failed and none without a picture", tally.answered));
    stage.teller.say(&format!(
        "the breaker opened {} times and closed again; real ads {} after they were well (open_for is {OPEN_FOR})",
        count(&closed, "opened"),
        in_words(back)
    ));
    Ok(())
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

/// The breakers of ads in the proxy beside the shop.
async fn breakers(stage: &Stage<'_>) -> anyhow::Result<Value> {
    let admin = stage.mesh.layout.machines[0].admin;
    let answer = talk::ask(admin, Method::GET, "/breakers?service=ads").await?;
    Ok(talk::json(&answer, StatusCode::OK)?["breakers"].clone())
}

fn count(breakers: &Value, what: &str) -> u64 {
    breakers.as_array().into_iter().flatten().filter_map(|breaker| breaker[what].as_u64()).sum()
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
