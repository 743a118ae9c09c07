//! What the two planes tell each other: the lines of the feed, and the proxies' answers.
//!
//! A feed is NDJSON: [`FeedLine::Hello`], then the document, then a full set of endpoints ended by
//! [`FeedLine::Synced`]; after that only what changes, and heartbeats. Endpoints have no order among
//! each other: each line holds the whole set of one service.
//! Fields that a reader does not know are ignored, unless the line lists them in `required`.

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::name::ServiceName;
use crate::problem::Problems;

/// The level this build speaks. The control plane also speaks the one before.
pub const WIRE_LEVEL: u32 = 1;
/// The lowest level this build understands.
pub const WIRE_LEVEL_MIN: u32 = 1;
/// Longest line of a feed, in bytes.
pub const LINE_BYTES_MAX: usize = crate::node::DOCUMENT_BYTES_MAX + (1 << 20);
/// How often a quiet feed says that it is alive, in milliseconds. Three missed ones end a connection.
pub const HEARTBEAT_MS: u64 = 2_000;
/// How often a proxy reports to every control plane, in milliseconds.
pub const ACK_MS: u64 = 1_000;

/// One line of `GET /v1/feed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum FeedLine {
    /// The intent. Comes first, and again at each new revision.
    Document {
        revision: u64,
        /// [`crate::hash::content_hash`] of the document's compact JSON text as the control plane keeps it.
        /// A proxy computes it anew and refuses a document that is not what it names.
        hash: String,
        document: serde_json::Value,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        required: Vec<String>,
    },
    /// The whole set of one service's endpoints; empty means that it has none.
    Endpoints {
        service: ServiceName,
        endpoints: Vec<Endpoint>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        required: Vec<String>,
    },
    /// Membership no longer speaks of this service.
    Forget { service: ServiceName },
    /// Nothing changed.
    Heartbeat { revision: u64 },
    /// Who speaks.
    Hello {
        /// The store's identity, made once when the store is.
        store: String,
        revision: u64,
        hash: String,
        /// The level that the lines after this one have.
        wire: u32,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        required: Vec<String>,
    },
    /// The first full set is complete: everything before this line is one state.
    Synced { revision: u64 },
}

impl FeedLine {
    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong: not a line, or one that requires what this build does not know.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > LINE_BYTES_MAX {
            return Err(format!("a line of {} bytes; at most {LINE_BYTES_MAX}", text.len()));
        }
        let line: Self = serde_json::from_slice(text).map_err(|error| format!("not a feed line: {error}"))?;
        let required = match &line {
            Self::Document { required, .. }
            | Self::Endpoints { required, .. }
            | Self::Hello { required, .. } => required.as_slice(),
            Self::Forget { .. } | Self::Heartbeat { .. } | Self::Synced { .. } => &[],
        };
        match required.first() {
            Some(unknown) => {
                Err(format!("requires `{unknown}`, which this version does not know; upgrade the proxy"))
            }
            None => Ok(line),
        }
    }

    /// The line as it is sent, with its line feed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// The body of `POST /v1/feed/acks`: what a proxy runs, sent on every change and each [`ACK_MS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ack {
    /// The proxy's node name, stable over restarts.
    pub node: String,
    /// This start of the process.
    pub instance: String,
    pub wire: u32,
    /// The version of the program.
    #[serde(default)]
    pub version: String,
    /// What every worker runs; absent until there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
    /// What was refused last, until something newer is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// Draining or ready.
    #[serde(default)]
    pub state: ProxyState,
}

/// A revision that runs in every worker of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub store: String,
    pub revision: u64,
    pub hash: String,
    /// Whether it came from the proxy's disk and no control plane has confirmed it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last_known_good: bool,
}

/// A revision that a proxy did not take, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub store: String,
    pub revision: u64,
    pub hash: String,
    pub problems: Problems,
}

/// What a proxy is up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyState {
    Draining,
    #[default]
    Ready,
    /// Listening, but without a snapshot.
    Waiting,
}

/// The body of `PUT /v1/membership/{service}/{id}`: one endpoint that says of itself that it is alive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// How long it is believed without another word, as a document's duration ("10s").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_ignored_unless_it_is_required() {
        let line = br#"{"line":"heartbeat","revision":4,"mood":"fine"}"#;
        assert_eq!(FeedLine::parse(line), Ok(FeedLine::Heartbeat { revision: 4 }));
        let line = br#"{"line":"endpoints","service":"a","endpoints":[],"required":["tcp"]}"#;
        assert!(FeedLine::parse(line).unwrap_err().contains("`tcp`"));
    }

    #[test]
    fn a_line_is_read_back_as_it_was_written() {
        let endpoint = Endpoint::at("10.0.0.1:80".parse().unwrap());
        let line = FeedLine::Endpoints {
            service: ServiceName::parse("ads").unwrap(),
            endpoints: vec![endpoint],
            required: Vec::new(),
        };
        let bytes = line.to_bytes();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            "{\"line\":\"endpoints\",\"service\":\"ads\",\"endpoints\":[{\"address\":\"10.0.0.1:80\"}]}\n"
        );
        assert_eq!(FeedLine::parse(&bytes), Ok(line));
    }
}
