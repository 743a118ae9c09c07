//! What one try at an endpoint came to: an answer and the connection it comes on, or a failure and what is known of it.

use http::{HeaderValue, Response};
use hyper::body::Incoming;

use super::deadline::Expired;
use super::fault::Fault;
use crate::metrics::Outcome;
use crate::upstream::pool::Lease;

/// An endpoint's answer and the connection it comes on.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
}

/// A try that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) fault: Fault,
    /// What the endpoint or its connection did; the metrics tell it.
    pub(super) outcome: Outcome,
    /// Whether the application may have seen the request.
    pub(super) sent: bool,
    /// An answer that the policy of retries counts as a failure. It is given if there is no better one.
    pub(super) answered: Option<Box<Answered>>,
    /// Where the endpoint says that the key is.
    pub(super) owner: Option<Owner>,
}

/// The shard of a key, as an owner that has lost it says.
#[derive(Debug)]
pub(super) struct Owner {
    /// Place in the rule's shards.
    pub(super) shard: usize,
    /// By which map.
    pub(super) map: Option<HeaderValue>,
}

impl Failed {
    /// Nothing came back of what was sent.
    pub(super) fn sent(fault: Fault, outcome: Outcome) -> Self {
        Self { fault, outcome, sent: true, answered: None, owner: None }
    }

    /// The application has certainly seen nothing.
    pub(super) fn unsent(fault: Fault, outcome: Outcome) -> Self {
        Self { sent: false, ..Self::sent(fault, outcome) }
    }

    pub(super) fn late(expired: Expired) -> Self {
        match expired {
            // Its patience, not the endpoint's fault.
            Expired::Caller => Self::sent(Fault::CallerTimeout, Outcome::Timeout),
            Expired::Idle => Self::sent(Fault::UploadUntaken, Outcome::Timeout),
            Expired::Service => Self::sent(Fault::Timeout, Outcome::Timeout),
            Expired::Version => Self::sent(Fault::Drained, Outcome::Cancelled),
        }
    }

    /// What the caller gets of it.
    pub(super) fn end(self) -> Result<Answered, Fault> {
        self.answered.map_or(Err(self.fault), |answered| Ok(*answered))
    }
}
