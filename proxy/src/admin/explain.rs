//! What would become of a request: the same `decide` that routes, asked without sending anything.

use gilmok_config::decide::Target;
use gilmok_config::explain::{Described, Question, refused};
use serde_json::{Value, json};

use super::answer::{Problem, parameter};
use super::{Admin, config};
use crate::clock;
use crate::visitor::VisitorKeys;

/// `GET /explain?service=…`: also `host`, `path`, `method`, `listener`, `subject`, `key`.
pub(super) fn explain_query(admin: &Admin, query: &str) -> Result<Value, Problem> {
    let take = |name| parameter(query, name);
    let host = take("host").or_else(|| take("service")).ok_or_else(|| {
        Problem::bad_request("say what is asked about: ?service=NAME, or ?host=…&path=…&method=…".to_owned())
    })?;
    let (path, method) = (take("path"), take("method"));
    let (listener, subject, key) = (take("listener"), take("subject"), take("key"));
    let described = Described {
        host: &host,
        path: path.as_deref(),
        method: method.as_deref(),
        listener: listener.as_deref(),
        subject: subject.as_deref(),
        key: key.as_deref(),
        now: clock::unix_seconds(),
    };
    explain(admin, &described, &[])
}

/// `POST /explain` with `{"method", "host", "path", "headers", "listener", "subject", "key"}`.
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
    let described = Described {
        host: text("host")?.or(text("service")?).ok_or_else(hint)?,
        path: text("path")?,
        method: text("method")?,
        listener: text("listener")?,
        subject: text("subject")?,
        key: text("key")?,
        now: clock::unix_seconds(),
    };
    let mut headers = Vec::new();
    for (name, value) in body.get("headers").and_then(Value::as_object).into_iter().flatten() {
        let values = match value {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            headers.push((name.as_str(), value.as_str().ok_or_else(hint)?));
        }
    }
    explain(admin, &described, &headers)
}

fn explain(admin: &Admin, described: &Described<'_>, headers: &[(&str, &str)]) -> Result<Value, Problem> {
    let question = Question::new(described, headers.iter().copied());
    let question = question.map_err(|why| Problem::bad_request(why.to_owned()))?;
    let current = admin.in_force.load();
    if current.generation == 0 {
        return Err(Problem::unavailable("there is no snapshot in force yet"));
    }
    let now_ms = clock::now_ms();
    let is_healthy =
        |target: Target| current.upstreams[target.service].has_healthy(target.version, target.shard, now_ms);
    let key = current.keys.as_deref().map(|keys| keys.subject_key());
    let override_keys = current.keys.as_deref().map(VisitorKeys::override_keys).unwrap_or_default();
    let explained = question.explain(&current.snapshot, key, override_keys, &is_healthy);
    let explained = explained.map_err(|why| Problem::bad_request(format!("subject: {why}")))?;
    let revision = current.applied.as_ref().map(|applied| applied.revision);
    let mut told = json!({ "request": explained.request, "revision": revision });
    match explained.decision {
        Ok((decision, decision_told)) => {
            told["decision"] = decision_told;
            told["service"] = config::service(&current.upstreams[decision.service]);
        }
        Err(refusal) => told["refusal"] = refused(&current.snapshot, &refusal),
    }
    Ok(told)
}
