//! What the two planes tell each other: the lines of the feed, and the proxies' answers.
//!
//! A feed is NDJSON: [`FeedLine::Hello`], then the document, then a full set of endpoints ended by
//! [`FeedLine::Synced`]; after that only what changes, and heartbeats. Endpoints have no order among
//! each other: each line holds the whole set of one service.
//! Fields that a reader does not know are ignored, unless the line lists them in `required`.

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::name::{Name, ServiceName};
use crate::problem::{Problem, Problems};

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

/// Longest body of `POST /v1/feed/acks`, in bytes: counts of [`COUNTED_SERVICES_MAX`] services with room to spare.
pub const ACK_BYTES_MAX: usize = 4 << 20;

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
        /// The keys of visitors' cookies and of hashed subjects, one a line; the first one signs. Secret.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        visitor_keys: String,
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

/// Longest text in an ack that is no name and no problem, in bytes: instance, version, store, hash, address.
pub const ACK_TEXT_BYTES_MAX: usize = 512;
/// Most apps that callers reach through one proxy.
pub const APPS_MAX: usize = 100;
/// Longest texts of what was refused, taken together, in bytes.
pub const REFUSED_BYTES_MAX: usize = 64 << 10;

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
    /// What was counted since the process started, of services whose traffic names versions; at most
    /// [`COUNTED_SERVICES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<ServiceCounts>,
    /// The apps that callers reach through this proxy; at most [`APPS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<InboundApp>,
    /// How it stands to batches that are closed; at most [`FENCES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fences: Vec<FenceReport>,
    /// Flags that were evaluated and have not been told of yet; at most [`FLAG_COUNTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<FlagCounts>,
    /// What guarded flags' variants came to; those of which anything was counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guarded: Vec<GuardedCounts>,
    /// Its identity, where a control plane gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityReport>,
}

/// How it stands with an identity that a control plane gave, as every worker uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
    /// The digest of the roots that are trusted: [`crate::hash::content_hash`] of their PEM as it was told.
    pub roots: String,
    /// The last second of the certificate, of Unix time.
    pub ends: u64,
}

/// Most counts of flags that one ack tells; where more have grown, acks take turns.
pub const FLAG_COUNTS_MAX: usize = 1_000;

/// How often a flag came to a variant for a reason since this control plane last took an ack that said so. What grows is told
/// within 10 s. An ack whose answer is lost is told again, so that a count may be a little too large and never too small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagCounts {
    pub flag: String,
    /// Empty where the application keeps the default in its code.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// In OpenFeature's words, [`crate::flag::Reason::as_str`]; `ERROR` where there was no evaluation.
    pub reason: String,
    pub count: u64,
}

/// What a proxy counted of one guarded flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedCounts {
    pub flag: String,
    pub variants: Vec<VariantCounts>,
}

/// What a proxy counted of one variant: of requests that the flag was told with. All only grow while the process lives and
/// the flag has the same variants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantCounts {
    pub variant: String,
    /// Subjects' first requests to a service in a day for which a share had decided on the variant.
    pub trials: u64,
    /// Trials that failed.
    pub failures: u64,
    /// Trials by how long they took, as [`VersionCounts::latency`] has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<(u16, u64)>,
}

/// Most batches that one ack speaks of.
pub const FENCES_MAX: usize = 256;

/// An app that callers reach through an inbound listener of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundApp {
    pub service: ServiceName,
    /// Empty where it says none.
    #[serde(default, skip_serializing_if = "Name::is_empty")]
    pub shard: Name,
    /// Where membership is told that it is; absent where that is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// How a proxy stands to a batch of keys that is closed for unsafe methods. There is one only once every worker runs a
/// snapshot in which the batch is closed; it is sent at once when anything of it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    pub service: ServiceName,
    /// The revision that closed the batch, [`crate::sharding::moving::Next::closed`].
    pub closed: u64,
    /// Unsafe requests under way from this proxy to the service's endpoints that are of the batch, or that were decided on
    /// before it was known.
    #[serde(default)]
    pub calling: u64,
    /// The same through the inbound listeners of this proxy, to the apps beside it.
    #[serde(default)]
    pub serving: u64,
    /// Whether a restart would find the batch closed.
    #[serde(default)]
    pub persisted: bool,
}

/// What a proxy counted of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounts {
    pub service: ServiceName,
    pub versions: Vec<VersionCounts>,
}

/// What a proxy counted of one version, read after the revision that the same ack says was applied: whatever was decided by
/// an earlier one is in `in_flight` until it has ended. All else only grows while the process lives and the version does:
/// it is one that its service's traffic or an endpoint names, or one that something is in flight to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionCounts {
    pub version: Name,
    /// Requests under way now, with streams and tunnels until their end. That they have come down to 0 is told within
    /// [`ACK_MS`].
    pub in_flight: u64,
    /// Requests that were answered by it or for it.
    pub requests: u64,
    /// Tries at its endpoints.
    pub attempts: u64,
    /// Tries that met nobody: no connection, or a refused one.
    pub unreachable: u64,
    /// Subjects' first requests in ten minutes of one split; see [`crate::traffic`].
    pub trials: u64,
    /// Trials that failed.
    pub failures: u64,
    /// Trials by how long they took until the head of the answer: bucket of [`latency_bucket`] and count, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<(u16, u64)>,
    /// Requests of this version that the stable one took, because it had no healthy endpoint.
    #[serde(default)]
    pub moved: u64,
    /// What copies of other versions' requests came to here; absent until there is one to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorCounts>,
}

/// What the copies that a version got of other versions' requests came to. All only grow, as those of [`VersionCounts`] do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MirrorCounts {
    /// Copies that were sent, those under way included.
    pub sent: u64,
    /// Of those that ended: the answer's hundred was that of the answer to the caller, or another one.
    pub same: u64,
    pub different: u64,
    /// No answer came: nobody there, or not in time.
    pub failed: u64,
    /// Not sent, because too many were under way.
    pub dropped: u64,
    /// Not sent, because the request had a body or asked for an upgrade; or not compared, because its caller left first.
    pub skipped: u64,
    /// Of those compared, how long the copies took until the head of the answer, as [`VersionCounts::latency`] has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<(u16, u64)>,
    /// The same of the answers to the callers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub real_latency: Vec<(u16, u64)>,
}

/// Most services that one ack counts.
pub const COUNTED_SERVICES_MAX: usize = 256;
/// Most versions that it counts of one of them.
pub const COUNTED_VERSIONS_MAX: usize = 64;
/// Buckets of a latency: four to an octave from 64 µs; what is shorter is in the first, what is longer in the last.
pub const LATENCY_BUCKETS: u16 = 96;

/// The bucket that a latency in microseconds is counted in.
#[must_use]
pub fn latency_bucket(us: u64) -> u16 {
    const FIRST: u32 = 6;
    if us < 1 << FIRST {
        return 0;
    }
    let octave = us.ilog2();
    // The two bits behind the highest: a quarter of an octave.
    let quarter = us >> (octave - 2) & 3;
    let bucket = 1 + 4 * u64::from(octave - FIRST) + quarter;
    u16::try_from(bucket).unwrap_or(u16::MAX).min(LATENCY_BUCKETS - 1)
}

/// Where a bucket ends, in microseconds; the last one does not.
#[must_use]
pub fn latency_bucket_end_us(bucket: u16) -> Option<u64> {
    if bucket >= LATENCY_BUCKETS - 1 {
        return None;
    }
    let (octave, quarter) = (bucket / 4, u64::from(bucket % 4));
    Some((64 << octave) + (16 << octave) * quarter)
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

impl Refused {
    /// How long its texts are together, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of_problem = |problem: &Problem| {
            problem.path.len() + problem.what.len() + problem.hint.as_ref().map_or(0, String::len)
        };
        self.store.len() + self.hash.len() + self.problems.0.iter().map(of_problem).sum::<usize>()
    }

    /// With as many of its problems, from the first, as [`REFUSED_BYTES_MAX`] lets it have.
    #[must_use]
    pub fn fitting(mut self) -> Self {
        while self.bytes() > REFUSED_BYTES_MAX && self.problems.0.pop().is_some() {}
        self
    }
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
    fn every_latency_is_in_the_bucket_that_ends_behind_it() {
        for us in (0..5_000).chain((12..40).map(|bits| 1_u64 << bits)).chain([u64::MAX]) {
            let bucket = latency_bucket(us);
            assert!(latency_bucket_end_us(bucket).is_none_or(|end| us < end), "{us} in {bucket}");
            let before = bucket.checked_sub(1).and_then(latency_bucket_end_us);
            assert!(before.is_none_or(|end| us >= end), "{us} in {bucket}");
        }
        assert_eq!(latency_bucket(u64::MAX), LATENCY_BUCKETS - 1);
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
