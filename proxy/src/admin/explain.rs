//! What would become of a request: the same `decide` that routes, asked without sending anything.

use gilmok_config::decide::{Facts, Listener, Refusal, decide};
use gilmok_config::host::canonical;
use gilmok_config::subject::Baggage;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::answer::{Problem, parameter};
use super::{Admin, config};
use crate::clock;
use crate::visitor::VisitorKeys;

/// A request that is only asked about.
#[derive(Debug)]
struct Question {
    listener: Listener,
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    subject: Option<String>,
}

/// `GET /explain?service=…`: also `host`, `path`, `method`, `listener`, `subject`.
pub(super) fn explain_query(admin: &Admin, query: &str) -> Result<Value, Problem> {
    let take = |name| parameter(query, name);
    let host = take("host").or_else(|| take("service")).ok_or_else(|| {
        Problem::bad_request("say what is asked about: ?service=NAME, or ?host=…&path=…&method=…".to_owned())
    })?;
    let (listener, method, path) = (take("listener"), take("method"), take("path"));
    let question =
        question(listener.as_deref(), method.as_deref(), &host, path.as_deref(), HeaderMap::new())?;
    explain(admin, Question { subject: take("subject"), ..question })
}

/// `POST /explain` with `{"method", "host", "path", "headers", "listener", "subject"}`.
pub(super) fn explain_body(admin: &Admin, body: &[u8]) -> Result<Value, Problem> {
    const HINT: &str =
        "the body is JSON: {\"method\": \"GET\", \"host\": \"ads\", \"path\": \"/\", \"headers\": {}}";
    let hint = || Problem::bad_request(HINT.to_owned());
    let body: Value = serde_json::from_slice(body).map_err(|_| hint())?;
    let text = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(hint()),
    };
    let host = text("host")?.or(text("service")?).ok_or_else(hint)?;
    let mut headers = HeaderMap::new();
    for (name, value) in body.get("headers").and_then(Value::as_object).into_iter().flatten() {
        let values = match value {
            Value::String(text) => vec![text.as_str()],
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().ok_or_else(hint)).collect::<Result<_, _>>()?
            }
            _ => return Err(hint()),
        };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| hint())?;
        for value in values {
            headers.append(name.clone(), HeaderValue::from_str(value).map_err(|_| hint())?);
        }
    }
    let question = question(text("listener")?, text("method")?, host, text("path")?, headers)?;
    explain(admin, Question { subject: text("subject")?.map(str::to_owned), ..question })
}

fn question(
    listener: Option<&str>,
    method: Option<&str>,
    host: &str,
    path: Option<&str>,
    headers: HeaderMap,
) -> Result<Question, Problem> {
    let listener = match listener {
        None | Some("outbound") => Listener::Outbound,
        Some("edge") => Listener::Edge,
        Some(_) => return Err(Problem::bad_request("listener is outbound or edge".to_owned())),
    };
    let method = Method::from_bytes(method.unwrap_or("GET").as_bytes())
        .map_err(|_| Problem::bad_request("this is no method".to_owned()))?;
    let host =
        canonical(host).ok_or_else(|| Problem::bad_request("this is no host".to_owned()))?.into_owned();
    let path = path.unwrap_or("/");
    if !path.starts_with('/') {
        return Err(Problem::bad_request("a path begins with /".to_owned()));
    }
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let (path, query) = (path.to_owned(), query.map(str::to_owned));
    Ok(Question { listener, method, host, path, query, headers, subject: None })
}

fn explain(admin: &Admin, mut question: Question) -> Result<Value, Problem> {
    let current = admin.in_force.load();
    if current.generation == 0 {
        return Err(Problem::unavailable("there is no snapshot in force yet"));
    }
    let asked = json!({
        "listener": question.listener.as_str(),
        "method": question.method.as_str(),
        "host": question.host,
        "path": question.path,
        "subject": question.subject,
    });
    let revision = current.applied.as_ref().map(|applied| applied.revision);
    let now_ms = clock::now_ms();
    let is_healthy = |service: usize, version| current.upstreams[service].has_healthy(version, now_ms);
    // Where a subject stands is the service's to say, so it has to be known first.
    if let (Ok(decision), Some(subject)) = (
        decide(&current.snapshot, &question.facts(current.keys.as_deref()), &is_healthy),
        question.subject.take(),
    ) && let Some(traffic) = &current.upstreams[decision.service].policy.traffic
    {
        let written = traffic.subject.write(&subject, &mut question.headers);
        let written = written.map_err(|why| Problem::bad_request(format!("subject: {why}")))?;
        question.query = written.or(question.query);
    }
    match decide(&current.snapshot, &question.facts(current.keys.as_deref()), &is_healthy) {
        Ok(decision) => {
            let upstream = &current.upstreams[decision.service];
            let route = decision.route.map(|at| {
                let route = &current.snapshot.routes()[at];
                json!({ "place": at, "hosts": route.hosts, "strip_prefix": route.strip_prefix })
            });
            Ok(json!({
                "request": asked,
                "revision": revision,
                "decision": {
                    "service": upstream.name,
                    "route": route,
                    "why": if route.is_some() { "the first route that matches" } else { "the service's own name" },
                    "split": decision.split.and_then(|split| Some(split.told(upstream.policy.traffic.as_deref()?))),
                },
                "service": config::service(upstream),
            }))
        }
        Err(Refusal::NoDestination) => Ok(json!({
            "request": asked,
            "revision": revision,
            "refusal": {
                "status": 404,
                "error": "destination_not_found",
                "why": "no service and no route answers to this host and path",
            },
        })),
    }
}

impl Question {
    fn facts<'q>(&'q self, keys: Option<&'q VisitorKeys>) -> Facts<'q> {
        let query = self.query.as_deref();
        let baggage = Baggage { trusted: true, key: keys.map(VisitorKeys::subject_key) };
        Facts {
            query,
            baggage,
            ..Facts::of(self.listener, &self.host, &self.path, &self.method, &self.headers)
        }
    }
}
