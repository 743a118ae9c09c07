//! Who may call the apps beside this proxy: what the document says is held, and what is denied is counted and told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use gilmok_config::access::{Access, AccessMode, Asking, Denial};
use gilmok_config::name::ServiceName;

/// Callers that are told apart for one app: beyond them they are counted as `other`. They have shown who they are, so
/// that there are no more than services; this bounds what a mistake can do.
const CALLERS_MAX: usize = 1_000;
/// How often a denial of the same kind is logged.
const TELL_MS: u64 = 60_000;

/// The rules of one app.
#[derive(Debug)]
pub(crate) struct Admission {
    service: ServiceName,
    access: Access,
    /// Kept over snapshots.
    denied: Arc<Denied>,
}

/// What was denied. A mutex: only denials take it.
#[derive(Debug, Default)]
struct Denied(Mutex<BTreeMap<Kind, Count>>);

/// Which denials are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) caller: Caller,
    pub(crate) denial: Denial,
    /// Whether it was let through all the same.
    pub(crate) is_dry: bool,
}

/// Who was denied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Caller {
    /// One too many to be told apart.
    Other,
    Service(ServiceName),
    /// It has not shown who it is.
    Unidentified,
}

#[derive(Debug, Default)]
struct Count {
    count: u64,
    /// In milliseconds of [`crate::clock`]; 0 is never.
    told_at_ms: u64,
}

impl Caller {
    /// The metric label `caller`. No service has the names of the others: they have a character that names have not.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Other => "(other)",
            Self::Service(service) => service.as_str(),
            Self::Unidentified => "(unidentified)",
        }
    }
}

impl Admission {
    /// The rules of the next snapshot; what was counted goes on. `is_identified` is whether this proxy can know anybody.
    pub(crate) fn following(
        before: Option<&Arc<Self>>,
        service: &ServiceName,
        access: Access,
        is_identified: bool,
    ) -> Arc<Self> {
        let before = before.filter(|before| before.service == *service);
        if let Some(before) = before.filter(|before| before.access == access) {
            return Arc::clone(before);
        }
        if !is_identified && !access.is_open() {
            tracing::warn!(
                "{service}: there are rules for who may call it, and without [identity] nobody is known here"
            );
        }
        let denied = before.map(|before| Arc::clone(&before.denied)).unwrap_or_default();
        Arc::new(Self { service: service.clone(), access, denied })
    }

    /// Lets a request through, or not.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn ask(&self, asking: &Asking<'_>, now_ms: u64) -> Result<(), Denial> {
        let Err(denial) = self.access.decide(asking) else { return Ok(()) };
        let is_dry = self.access.mode == AccessMode::DryRun;
        self.note(asking.caller, denial, is_dry, now_ms);
        if is_dry { Ok(()) } else { Err(denial) }
    }

    fn note(&self, caller: Option<&ServiceName>, denial: Denial, is_dry: bool, now_ms: u64) {
        let mut denied = self.denied.0.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = caller.map_or(Caller::Unidentified, |caller| Caller::Service(caller.clone()));
        let mut kind = Kind { caller, denial, is_dry };
        if denied.len() >= CALLERS_MAX && !denied.contains_key(&kind) {
            kind.caller = Caller::Other;
        }
        let who = kind.caller.clone();
        let count = denied.entry(kind).or_default();
        count.count += 1;
        if count.told_at_ms == 0 || now_ms.saturating_sub(count.told_at_ms) >= TELL_MS {
            count.told_at_ms = now_ms.max(1);
            drop(denied);
            let (service, who) = (&self.service, who.as_str());
            let would = if is_dry { "would be denied" } else { "is denied" };
            tracing::warn!("{service}: a call of {who} {would}: {}", denial.told());
        }
    }

    /// What was denied so far, and of whom.
    pub(crate) fn denied(&self) -> Vec<(Kind, u64)> {
        let denied = self.denied.0.lock().unwrap_or_else(PoisonError::into_inner);
        denied.iter().map(|(kind, count)| (kind.clone(), count.count)).collect()
    }

    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }
}

#[cfg(test)]
mod tests {
    use gilmok_config::access::{Callers, Rule};
    use http::Method;

    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    fn access(mode: AccessMode) -> Access {
        let rule = Rule { callers: Callers::Service(name("shop")), methods: Vec::new(), path_prefix: None };
        Access { allow: Some(vec![rule]), mode, ..Access::default() }
    }

    fn ask(admission: &Admission, caller: Option<&str>) -> Result<(), Denial> {
        let caller = caller.map(name);
        admission.ask(&Asking { caller: caller.as_ref(), method: &Method::GET, path: "/" }, 1)
    }

    #[test]
    fn what_is_denied_is_counted_by_caller_and_why_also_in_a_dry_run_and_over_snapshots() {
        let first = Admission::following(None, &name("profile"), access(AccessMode::DryRun), true);
        assert_eq!((ask(&first, Some("shop")), ask(&first, Some("ads"))), (Ok(()), Ok(())));
        let second = Admission::following(Some(&first), &name("profile"), access(AccessMode::Enforce), true);
        assert_eq!(ask(&second, Some("ads")), Err(Denial::Caller));
        assert_eq!(ask(&second, Some("ads")), Err(Denial::Caller));
        assert_eq!(ask(&second, None), Err(Denial::Unidentified));
        let told: Vec<_> = second
            .denied()
            .iter()
            .map(|(kind, count)| format!("{} {} {} {count}", kind.caller.as_str(), kind.denial, kind.is_dry))
            .collect();
        assert_eq!(told, ["ads caller false 2", "ads caller true 1", "(unidentified) unidentified false 1"]);
        let same = Admission::following(Some(&second), &name("profile"), access(AccessMode::Enforce), true);
        assert!(Arc::ptr_eq(&same, &second));
    }

    #[test]
    fn callers_that_are_told_apart_are_bounded() {
        let admission = Admission::following(None, &name("profile"), access(AccessMode::Enforce), true);
        for number in 0..CALLERS_MAX + 5 {
            assert!(ask(&admission, Some(&format!("a{number}"))).is_err());
        }
        let denied = admission.denied();
        assert_eq!(denied.len(), CALLERS_MAX + 1);
        assert_eq!(denied[0].0.caller, Caller::Other);
        assert_eq!(denied[0].1, 5);
    }
}
