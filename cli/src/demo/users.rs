//! A few users whom the story follows, chosen by the same assignment by which the proxies decide, and what they see.

use anyhow::Context as _;
use gilmok_config::assignment::{PLACES, Salt};
use hyper::StatusCode;
use serde_json::Value;

use super::layout::{Layout, Machine};
use super::talk;

/// Users who are looked at when one is sought. One in a hundred is in the first percent.
const LOOKED_AT_MAX: u32 = 100_000;

/// Somebody whom the story follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// What `X-User-Id` says.
    pub(crate) name: String,
    /// Among a million.
    pub(crate) place: u32,
}

impl User {
    /// The first of `user-1`, `user-2`, … who gets a new version of `service` at `percent`, and not yet at `before`.
    ///
    /// # Errors
    /// When nobody does: there is no step between the two.
    pub(crate) fn who_comes(service: &str, before: u32, percent: u32) -> anyhow::Result<Self> {
        // The salt of a service whose document says none is its name, and a new version has the places from 0.
        let salt = Salt::new(service);
        let users = (1..LOOKED_AT_MAX).map(|number| {
            let name = format!("user-{number}");
            Self { place: salt.place(name.as_bytes()), name }
        });
        let mut comes = users.filter(|user| !user.is_within(before) && user.is_within(percent));
        comes.next().with_context(|| format!("nobody comes between {before} % and {percent} %"))
    }

    /// Whether the first so many percent of the users are with this one.
    pub(crate) fn is_within(&self, percent: u32) -> bool {
        self.place < PLACES / 100 * percent
    }
}

/// The version of a service that a user meets on two roads, each of which ends at a proxy that decides by itself: as part
/// of the shop's page on the first machine, and asked for directly on the last one.
///
/// # Errors
/// When there is no answer, or a page without this part.
pub(crate) async fn versions_met(layout: &Layout, service: &str, user: &User) -> anyhow::Result<[String; 2]> {
    let (Some(first), Some(last)) = (layout.machines.first(), layout.machines.last()) else {
        anyhow::bail!("the demo has no machines");
    };
    let page = ask(first, "shop", user).await?;
    let direct = ask(last, service, user).await?;
    let version = |said: &Value| {
        said["version"].as_str().map(str::to_owned).with_context(|| format!("no version in {said}"))
    };
    Ok([version(&page["parts"][service]["answer"])?, version(&direct)?])
}

async fn ask(machine: &Machine, host: &str, user: &User) -> anyhow::Result<Value> {
    let request = talk::as_user(talk::of_service(host, "/?format=json")?, &user.name)?;
    talk::json(&talk::client(machine.outbound)?.send(&request).await?, StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_who_is_followed_comes_with_the_step_and_not_before() {
        for (before, percent) in [(0, 1), (1, 10), (10, 50), (50, 100)] {
            let user = User::who_comes("checkout", before, percent).unwrap();
            assert!(!user.is_within(before) && user.is_within(percent), "{user:?}");
            assert_eq!(user.place, Salt::new("checkout").place(user.name.as_bytes()));
        }
        assert!(User::who_comes("checkout", 10, 10).is_err());
    }
}
