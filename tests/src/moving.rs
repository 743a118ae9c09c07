//! A service whose odd keys move from shard 1 to shard 2, step by step, and an application that answers when it is told to.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use tokio::sync::watch;

use crate::upstream::{Upstream, ok};

/// How far the move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody knows of it.
    Before,
    /// It is known which keys move; nothing is different yet.
    Open,
    /// What may change one of them waits.
    Closed,
    /// They are at their new shard.
    Moved,
}

/// The revision that a closed batch says it was closed by.
pub const CLOSED_BY: u64 = 41;

impl Step {
    /// The rule of `profile`: the keys are numbers in the second segment of the path, and even ones are at shard 0.
    #[must_use]
    pub fn rule(self) -> String {
        let (epoch, shards) = match self {
            Self::Before | Self::Open | Self::Closed => (7, "[\"0\", \"1\"]"),
            Self::Moved => (8, "[\"0\", \"2\"]"),
        };
        let mut rule = format!(
            "[services.profile.sharding]\nkey = \"path_segment:2\"\nkey_separator = \",\"\nstrategy = \"modulo\"\nhash = \"identity\"\nwhen_no_key = \"any\"\nepoch = {epoch}\nshards = {shards}\n"
        );
        if matches!(self, Self::Open | Self::Closed) {
            rule.push_str("[services.profile.sharding.next]\nshards = [\"0\", \"2\"]\n");
        }
        if self == Self::Closed {
            writeln!(rule, "closed = {CLOSED_BY}").expect("a string takes text");
        }
        rule
    }

    /// The whole document, with an endpoint for each shard.
    #[must_use]
    pub fn mesh(self, endpoints: &[(&str, SocketAddr)]) -> String {
        self.mesh_with(endpoints, "")
    }

    /// The same with more keys for each endpoint.
    #[must_use]
    pub fn mesh_with(self, endpoints: &[(&str, SocketAddr)], more: &str) -> String {
        let mut text = self.rule();
        for (shard, address) in endpoints {
            write!(
                text,
                "[[services.profile.endpoints]]\naddress = \"{address}\"\nshard = \"{shard}\"\n{more}\n"
            )
            .expect("a string takes text");
        }
        text
    }
}

/// An application that answers a path once that is let go, with its own name.
#[derive(Debug)]
pub struct Patient {
    pub upstream: Upstream,
    let_go: watch::Sender<BTreeSet<String>>,
}

impl Patient {
    /// # Panics
    /// When no port is free.
    pub async fn start(name: &'static str) -> Self {
        let let_go = watch::Sender::new(BTreeSet::new());
        let listening = let_go.clone();
        let upstream = Upstream::start(move |mut conversation| {
            let mut let_go = listening.subscribe();
            async move {
                while let Some(request) = conversation.request().await {
                    let path = request.start.split(' ').nth(1).unwrap_or_default().to_owned();
                    // The sender lives as long as the application.
                    drop(let_go.wait_for(|paths| paths.contains(&path)).await);
                    conversation.send(ok(name)).await;
                }
            }
        });
        Self { upstream: upstream.await, let_go }
    }

    /// Answers requests for this path, from now on at once.
    pub fn let_go(&self, path: &str) {
        self.let_go.send_modify(|paths| {
            paths.insert(path.to_owned());
        });
    }
}
