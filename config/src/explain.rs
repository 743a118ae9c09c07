//! What would become of a request that is only described: the same question in both planes, answered by what decides.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use crate::baggage::SubjectKey;
use crate::decide::{
    Decision, Facts, Listener, Liveness, Refusal, decide, destination, tell_flags, with_flags,
};
use crate::flag::{FEATURE_FLAGS, OverrideFault, OverrideKey, Overrides};
use crate::host::canonical;
use crate::snapshot::Snapshot;
use crate::subject::Baggage;

/// Most flags that are told of one request.
const FLAGS_TOLD_MAX: usize = 100;

/// A request as somebody describes it; what is left out has its usual value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Described<'d> {
    pub host: &'d str,
    /// `/` by default; may have a query.
    pub path: Option<&'d str>,
    /// `GET` by default.
    pub method: Option<&'d str>,
    /// `outbound` (the default) or `edge`.
    pub listener: Option<&'d str>,
    /// Who is asking; is put where the service looks for it.
    pub subject: Option<&'d str>,
    /// What it is sharded by, as if it stood where the service looks for it.
    pub key: Option<&'d str>,
    /// Seconds since 1970; only flags may depend on it.
    pub now: u64,
}

/// A request that is only asked about.
#[derive(Clone, Debug)]
pub struct Question {
    listener: Listener,
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    subject: Option<String>,
    key: Option<String>,
    now: u64,
}

/// What would become of it.
#[derive(Debug)]
pub struct Explained {
    /// The request as it was understood.
    pub request: Value,
    /// Where it goes, and the same told with everything that it followed from.
    pub decision: Result<(Decision, Value), Refusal>,
}

impl Question {
    /// A question about a request with these headers.
    ///
    /// # Errors
    /// What is not understood.
    pub fn new<'d>(
        described: &Described<'d>,
        headers: impl IntoIterator<Item = (&'d str, &'d str)>,
    ) -> Result<Self, &'static str> {
        let listener = match described.listener {
            None | Some("outbound") => Listener::Outbound,
            Some("edge") => Listener::Edge,
            Some(_) => return Err("listener: outbound or edge"),
        };
        let method = Method::from_bytes(described.method.unwrap_or("GET").as_bytes());
        let method = method.map_err(|_| "method: this is no method")?;
        let host = canonical(described.host).map(Cow::into_owned).ok_or("host: this is no host")?;
        let path = described.path.unwrap_or("/");
        if !path.starts_with('/') {
            return Err("path: a path begins with `/`");
        }
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "headers: one name is none")?;
            map.append(name, HeaderValue::from_str(value).map_err(|_| "headers: one value is none")?);
        }
        Ok(Self {
            listener,
            method,
            host,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers: map,
            subject: described.subject.map(str::to_owned),
            key: described.key.map(str::to_owned),
            now: described.now,
        })
    }

    /// Answers it. The keys are the mesh's: for subjects that are told in baggage, and for what testers may see.
    ///
    /// # Errors
    /// Why the subject cannot be put where the service looks for it.
    pub fn explain(
        mut self,
        snapshot: &Snapshot,
        subject_key: Option<&SubjectKey>,
        override_keys: &[OverrideKey],
        is_healthy: Liveness<'_>,
    ) -> Result<Explained, &'static str> {
        let request = json!({
            "listener": self.listener.as_str(),
            "method": self.method.as_str(),
            "host": self.host,
            "path": self.path,
            "subject": self.subject,
            "key": self.key,
        });
        // Where a subject stands is the service's to say, so it has to be known first.
        if let Some(subject) = self.subject.take() {
            self.write(&subject, snapshot, subject_key)?;
        }
        let overrides = Overrides::read(&self.headers, override_keys, || self.now);
        let facts = Facts { overrides: overrides.unwrap_or_default(), ..self.facts(subject_key) };
        let decision = decide(snapshot, &facts, is_healthy);
        let decision = decision.map(|decision| {
            let mut told = told(snapshot, &decision, &facts);
            told["override_refused"] = json!(overrides.err().map(OverrideFault::as_str));
            (decision, told)
        });
        Ok(Explained { request, decision })
    }

    /// Puts the subject where whoever decides will look for it.
    fn write(
        &mut self,
        subject: &str,
        snapshot: &Snapshot,
        subject_key: Option<&SubjectKey>,
    ) -> Result<(), &'static str> {
        // Routes that ask a flag look for it where their own services do.
        let by_flag: Vec<usize> = snapshot.at_host(&self.host).routes().collect();
        for route in
            by_flag.into_iter().map(|at| &snapshot.routes()[at]).filter(|route| route.when_flag.is_some())
        {
            let service = snapshot.service_index(route.service.as_str());
            let Some(flags) = service.map(|at| snapshot.flags_of(at)) else { continue };
            // Where it cannot be written, nobody is there for the route.
            let written = flags.subject.write(subject, &mut self.headers).ok().flatten();
            self.query = written.or(self.query.take());
        }
        let Ok((service, _)) = destination(snapshot, &self.facts(subject_key)) else { return Ok(()) };
        let policy = &snapshot.services()[service].policy;
        let flags = policy.flags.as_ref().map(|flags| &flags.subject);
        let subjects = policy.subject().into_iter().chain(flags);
        for inputs in subjects {
            let written = inputs.write(subject, &mut self.headers)?;
            self.query = written.or(self.query.take());
        }
        Ok(())
    }

    fn facts<'q>(&'q self, key: Option<&'q SubjectKey>) -> Facts<'q> {
        Facts {
            query: self.query.as_deref(),
            key: self.key.as_deref(),
            now: self.now,
            baggage: Baggage { trusted: true, key },
            ..Facts::of(self.listener, &self.host, &self.path, &self.method, &self.headers)
        }
    }
}

fn told(snapshot: &Snapshot, decision: &Decision, facts: &Facts<'_>) -> Value {
    let service = &snapshot.services()[decision.service];
    let route = decision.route.map(|at| {
        let route = &snapshot.routes()[at];
        json!({ "place": at, "service": route.service, "hosts": route.hosts, "strip_prefix": route.strip_prefix,
            "when_flag": route.when_flag.as_ref().map(|when| format!("{}:{}", when.flag(), when.variant())) })
    });
    let why = match decision.route {
        Some(at) => format!("routes[{at}] is the first that matches"),
        None => format!("`{}` is one of the service's own names", facts.host),
    };
    let traffic = service.policy.traffic.as_deref();
    let split = decision.split.zip(traffic).map(|(split, traffic)| split.told(traffic));
    let sharding = service.policy.sharding.as_deref();
    let shard = decision.shard.zip(sharding).map(|(shard, sharding)| sharding.told_of(shard));
    let balancing = service.policy.by_subject.as_ref().map(|_| {
        let balancer = service.policy.load_balancer.as_str();
        let by_subject = decision.subject_hash.is_some();
        json!({ "load_balancer": balancer, "why": if by_subject { "by the subject" } else { "no subject: by load" } })
    });
    json!({ "service": service.name, "route": route, "why": why, "split": split, "shard": shard,
        "balancing": balancing, "flags": flags_told(snapshot, decision, facts) })
}

/// The flags that the service would be told, and each that a route asked for it.
fn flags_told(snapshot: &Snapshot, decision: &Decision, facts: &Facts<'_>) -> Option<Value> {
    let emission = snapshot.services()[decision.service].emission.as_ref()?;
    let mut headers = HeaderMap::new();
    let told = tell_flags(snapshot, facts, decision.service, &mut headers, &mut |_| {});
    let evaluated = with_flags(snapshot, facts, decision.service, |set, asked| {
        let each = emission.places().filter_map(|at| set.flags().get(at)).take(FLAGS_TOLD_MAX);
        let each = each.map(|flag| match set.evaluate_flag(flag, asked) {
            Ok(found) => json!({
                "flag": flag.key(),
                "variant": found.variant().map(|variant| variant.name()),
                "reason": found.reason.as_str(),
                "detail": found.detail.map(|detail| detail.to_string()),
            }),
            Err(failure) => json!({ "flag": flag.key(), "reason": "ERROR", "error": failure.code.as_str() }),
        });
        each.collect::<Vec<_>>()
    });
    let header = headers.get(FEATURE_FLAGS).and_then(|value| value.to_str().ok());
    Some(json!({ "header": header, "dropped": told.dropped, "evaluated": evaluated }))
}

/// A refusal as it is explained: what the caller would be answered, and why.
#[must_use]
pub fn refused(snapshot: &Snapshot, refusal: &Refusal) -> Value {
    match refusal {
        Refusal::NoDestination => json!({
            "status": 404,
            "error": "destination_not_found",
            "why": "no service and no route answers to this host and path",
        }),
        Refusal::NoShard { service, fault } => {
            let service = &snapshot.services()[*service];
            let sharding = service.policy.sharding.as_deref();
            json!({
                "status": 400,
                "error": "http_request_error",
                "service": service.name,
                "why": sharding.map_or_else(|| fault.as_str().to_owned(), |sharding| sharding.tell(fault)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;
    use crate::snapshot::Membership;

    const MESH: &str = "[services.shop.traffic]\nstable = \"v1\"\nweights = { v1 = 50, v2 = 50 }\n";

    fn snapshot(more: &str) -> Snapshot {
        let text = format!("{MESH}{more}\n[[routes]]\nhosts = [\"shop.example.com\"]\nservice = \"shop\"\n");
        Snapshot::join(&Document::parse_toml(&text).unwrap(), &Membership::new())
    }

    fn explained(snapshot: &Snapshot, described: &Described<'_>, key: Option<&SubjectKey>) -> Value {
        let question = Question::new(described, []).unwrap();
        question.explain(snapshot, key, &[], &|_| true).unwrap().decision.unwrap().1
    }

    #[test]
    fn a_subject_is_put_where_its_service_looks_for_it() {
        let by_host = Described { host: "shop", subject: Some("user-4"), ..Described::default() };
        let by_route = Described { host: "shop.example.com", listener: Some("edge"), ..by_host };
        for more in ["", "subject = [\"query:user\"]", "subject = [\"cookie:uid\"]"] {
            for described in [by_host, by_route] {
                let told = explained(&snapshot(more), &described, None);
                // The places of the salt `shop`, as mmh3 and cbor2 have them.
                assert_eq!(
                    (&told["split"]["version"], &told["split"]["place"]),
                    (&json!("v2"), &json!(427_659))
                );
                let by = told["why"].as_str().unwrap();
                assert!(by.starts_with("routes[0]") || by.starts_with("`shop` is"), "{told}");
            }
        }
    }

    #[test]
    fn subjects_in_baggage_are_hashed_with_the_key() {
        let snapshot = snapshot("subject = [\"baggage\", \"header:x-user-id\"]");
        let described = Described { host: "shop", subject: Some("user-4"), ..Described::default() };
        let bare = explained(&snapshot, &described, None);
        let keyed = explained(&snapshot, &described, Some(&SubjectKey::new(b"0123456789abcdef")));
        assert_ne!(bare["split"]["place"], keyed["split"]["place"]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let ads = Described { host: "ads", ..Described::default() };
        for (described, fault) in [
            (Described { host: "a b", ..ads }, "host"),
            (Described { path: Some("ads"), ..ads }, "path"),
            (Described { method: Some("G T"), ..ads }, "method"),
            (Described { listener: Some("inbound"), ..ads }, "listener"),
        ] {
            assert!(Question::new(&described, []).unwrap_err().starts_with(fault), "{described:?}");
        }
        assert!(Question::new(&ads, [("a b", "c")]).unwrap_err().starts_with("headers"));
        let nobody = Question::new(&Described { host: "nobody.example", ..ads }, []).unwrap();
        let told = nobody.explain(&snapshot(""), None, &[], &|_| true).unwrap();
        assert_eq!(told.decision.map(drop), Err(Refusal::NoDestination));
        let by_address = snapshot("subject = [\"client_ip\"]");
        let question =
            Question::new(&Described { host: "shop", subject: Some("10.0.0.1"), ..ads }, []).unwrap();
        assert!(question.explain(&by_address, None, &[], &|_| true).is_err());
    }
}
