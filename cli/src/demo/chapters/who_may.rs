//! Only who may, calls: in an encrypted mesh a service says who may call it, and everybody else is refused by the sidecar beside it.

use std::collections::BTreeSet;

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::demo::layout::Machine;
use crate::demo::stage::Stage;
use crate::demo::talk;

pub(crate) const TITLE: &str = "Only who may call the ads, calls them";

const CALLED: &str = "ads";
const MAY: &str = "shop";
const MAY_NOT: &str = "checkout";

pub(crate) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.teller.title(TITLE);
    let identities = identities(stage).await?;
    stage
        .teller
        .say("each sidecar has made a key that never leaves it, and had the control plane sign whose it is:");
    stage.teller.show(&format!("  {}", identities.into_iter().collect::<Vec<_>>().join("\n  ")));

    let rule = json!({"allow": [MAY]});
    let revision = stage.write_and_wait(Method::PATCH, "/v1/services/ads", &rule).await?;
    stage
        .teller
        .say(&format!("revision {revision} says who may call {CALLED}: PATCH /v1/services/{CALLED} {rule}"));
    let before = denied(stage).await?;
    let allowed = talk::client(of(stage, MAY)?.outbound)?.send(&talk::of_service(CALLED, "/")?).await?;
    anyhow::ensure!(allowed.status == StatusCode::OK, "{MAY} calls {CALLED}: {}", talk::brief(&allowed));
    let refused = talk::client(of(stage, MAY_NOT)?.outbound)?.send(&talk::of_service(CALLED, "/")?).await?;
    anyhow::ensure!(
        refused.status == StatusCode::FORBIDDEN,
        "{MAY_NOT} calls {CALLED}: {}",
        talk::brief(&refused)
    );
    let reason = refused.headers.get("proxy-status").and_then(|reason| reason.to_str().ok());
    let reason = reason.context("a refusal says why")?;
    anyhow::ensure!(denied(stage).await? == before + 1, "one call was denied, and is not counted");
    stage.teller.say(&format!("{MAY} calls {CALLED} and gets 200; {MAY_NOT} calls them too and gets 403"));
    stage.teller.say(&format!("Proxy-Status: {reason}"));

    let inbound = stage.mesh.layout.app("ads-1")?.inbound;
    let plain = talk::ask(inbound, Method::GET, "/").await;
    anyhow::ensure!(plain.is_err(), "a stranger without TLS got an answer");
    stage
        .teller
        .say(&format!("whoever comes to {inbound} without a certificate of the mesh gets no answer at all"));
    Ok(())
}

/// The machine of a service.
fn of<'s>(stage: &'s Stage<'_>, service: &str) -> anyhow::Result<&'s Machine> {
    let mut machines = stage.mesh.layout.machines.iter();
    machines
        .find(|machine| machine.identity == Some(service))
        .with_context(|| format!("no sidecar of {service}"))
}

/// Who the sidecars say they are.
async fn identities(stage: &Stage<'_>) -> anyhow::Result<BTreeSet<String>> {
    let mut identities = BTreeSet::new();
    for machine in &stage.mesh.layout.machines {
        let answer = talk::ask(machine.admin, Method::GET, "/config").await?;
        let config = talk::json(&answer, StatusCode::OK)?;
        let mut shown = config["certificates"].as_array().into_iter().flatten();
        let own = shown.find(|certificate| certificate["certificate"] == "identity");
        let names = own.and_then(|own| own["names"].as_array()).into_iter().flatten();
        let own: Vec<_> = names.filter_map(|name| name.as_str()).collect();
        anyhow::ensure!(!own.is_empty(), "{} has no identity: {}", machine.name, config["certificates"]);
        identities.extend(own.into_iter().map(str::to_owned));
    }
    Ok(identities)
}

/// How many calls of the ads were denied so far, at all of their sidecars.
async fn denied(stage: &Stage<'_>) -> anyhow::Result<u64> {
    let mut sum = 0;
    for machine in stage.mesh.layout.machines.iter().filter(|machine| machine.identity == Some(CALLED)) {
        let answer = talk::ask(machine.admin, Method::GET, "/metrics").await?;
        sum += denials(&String::from_utf8_lossy(&answer.body));
    }
    Ok(sum)
}

fn denials(metrics: &str) -> u64 {
    let series = format!("gilmok_access_denied_total{{service=\"{CALLED}\",");
    let of_service = metrics.lines().filter(|line| line.starts_with(&series));
    of_service.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_those_of_the_ads() {
        let metrics = "gilmok_access_denied_total{service=\"ads\",caller=\"checkout\",rule=\"none\",mode=\"enforce\"} 3\n\
                       gilmok_access_denied_total{service=\"ads\",caller=\"\",rule=\"none\",mode=\"enforce\"} 2\n\
                       gilmok_access_denied_total{service=\"shop\",caller=\"\",rule=\"none\",mode=\"enforce\"} 7\n";
        assert_eq!(denials(metrics), 5);
    }
}
