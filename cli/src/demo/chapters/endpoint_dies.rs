//! An endpoint dies in the middle of traffic, and no request fails.

use std::time::Instant;

use anyhow::Context as _;

use crate::demo::mesh::{Concerning, SOON};
use crate::demo::stage::Stage;
use crate::demo::talk;
use crate::demo::tell::in_words;
use crate::demo::traffic::Traffic;

pub(crate) const TITLE: &str = "An endpoint dies, and no request fails";

const VICTIM: &str = "ads-1";
/// Pages before it dies, while it is dead, and after it is back.
const PAGES: u64 = 60;

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let victim = stage.mesh.layout.app(VICTIM)?.clone();
    let traffic = Traffic::start(&stage.mesh.layout.machines[0], "shop")?;
    traffic.go_on_for(PAGES).await?;
    stage.teller.say("callers on web-1 load the shop's page; it is made of ads, checkout and profile");

    let quiet = traffic.between_requests().await;
    let died = Instant::now();
    talk::order(victim.address, "die").await.with_context(|| Concerning(VICTIM.to_owned()))?;
    stage.mesh.process(VICTIM)?.ends(SOON).await?;
    drop(quiet);
    stage
        .teller
        .say(&format!("between two requests {VICTIM} was told to die (POST /control/die), and is gone"));
    let (pages, known) = tokio::join!(traffic.go_on_for(PAGES), stage.until_known(&victim, false));
    pages?;
    let forgotten = known?.saturating_duration_since(died);
    let tally = traffic.none_failed()?;
    stage.teller.say(&format!(
        "{} pages, none failed; the slowest took {}. What {VICTIM} could not take went to ads-2",
        tally.answered,
        in_words(tally.slowest)
    ));
    stage.teller.say(&format!(
        "the proxy beside it missed its health checks and took it out: forgotten everywhere {} after its death",
        in_words(forgotten)
    ));

    stage.mesh.process(VICTIM)?.begin()?;
    let began = Instant::now();
    let pid = stage.mesh.pid_of(VICTIM).await?;
    traffic.answered_by(pid).await.with_context(|| Concerning(VICTIM.to_owned()))?;
    let back = began.elapsed();
    traffic.go_on_for(PAGES / 2).await?;
    traffic.none_failed()?;
    stage.teller.say(&format!("{VICTIM} was started again and took part {} later", in_words(back)));
    Ok(())
}
