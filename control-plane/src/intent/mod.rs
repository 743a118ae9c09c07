//! Intent: what operators asked for, and how a command changes it. Pure: documents in, documents out.

mod force;

mod merge_patch;

pub use force::Force;
use gilmok_config::document::Document;
use gilmok_config::hash::content_hash;
use gilmok_config::name::ServiceName;
use gilmok_config::node::Node;
use gilmok_config::problem::Problems;
use serde_json::{Map, Value};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    DeleteService(ServiceName),
    /// What a service's breaker is to do.
    ForceBreaker(ServiceName, Force),
    /// A merge patch of one service's table (RFC 7396).
    PatchService(ServiceName, Value),
    PutMesh(Value),
    PutService(ServiceName, Value),
    /// The document of an earlier revision, as a new one.
    Restore {
        number: u64,
        document: Value,
    },
}

/// Why a command changes nothing: a decision, not a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The result would be no sound document.
    Faulty(Problems),
    /// It speaks of a service that is not there.
    NoService(ServiceName),
}

/// A sound document in the one form in which it is kept: keys in order, no defaults filled in.
#[derive(Clone, Debug)]
pub struct Intent {
    /// As JSON.
    pub json: Value,
    /// The same as compact text, which is what is hashed and sent.
    pub text: String,
    /// [`content_hash`] of the text.
    pub hash: String,
    /// What it says.
    pub document: Document,
}

impl Intent {
    /// Checks a document and brings it into its form.
    ///
    /// # Errors
    /// Every fault with its path.
    pub fn parse(json: &Value) -> Result<Self, Problems> {
        let node = Node::from(json);
        let document = Document::read(&node)?;
        let json = node.to_json();
        let text = json.to_string();
        let hash = content_hash(text.as_bytes());
        Ok(Self { json, text, hash, document })
    }

    /// Nothing asked for yet.
    #[must_use]
    pub fn empty() -> Self {
        Self::parse(&Value::Object(Map::new())).expect("invariant: an empty document is sound")
    }
}

impl Command {
    /// What the audit says was done.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::DeleteService(name) => format!("delete service {name}"),
            Self::ForceBreaker(name, force) => format!("force breaker of {name}: {}", force.what()),
            Self::PatchService(name, _) => format!("patch service {name}"),
            Self::PutMesh(_) => "put mesh".to_owned(),
            Self::PutService(name, _) => format!("put service {name}"),
            Self::Restore { number, .. } => format!("restore revision {number}"),
        }
    }

    /// The label `kind` of `gilmok_writes_total`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::DeleteService(_) => "delete_service",
            Self::ForceBreaker(..) => "force_breaker",
            Self::PatchService(..) => "patch_service",
            Self::PutMesh(_) => "put_mesh",
            Self::PutService(..) => "put_service",
            Self::Restore { .. } => "restore",
        }
    }
}

/// Applies a command to the document in force.
///
/// # Errors
/// Why it changes nothing.
pub fn apply(current: &Value, command: &Command) -> Result<Intent, Refusal> {
    let next = match command {
        Command::PutMesh(document) | Command::Restore { document, .. } => document.clone(),
        Command::PutService(name, table) => with_service(current, name, Some(table.clone())),
        Command::PatchService(name, patch) => {
            let table = service(current, name).ok_or_else(|| Refusal::NoService(name.clone()))?;
            with_service(current, name, Some(merge_patch::merge(table, patch)))
        }
        Command::ForceBreaker(name, force) => {
            let table = service(current, name).ok_or_else(|| Refusal::NoService(name.clone()))?;
            with_service(current, name, Some(force::forced(table, force)))
        }
        Command::DeleteService(name) => {
            service(current, name).ok_or_else(|| Refusal::NoService(name.clone()))?;
            with_service(current, name, None)
        }
    };
    Intent::parse(&next).map_err(Refusal::Faulty)
}

/// One service's table as the operators wrote it.
#[must_use]
pub fn service<'d>(document: &'d Value, name: &ServiceName) -> Option<&'d Value> {
    document.get("services")?.get(name.as_str())
}

fn with_service(document: &Value, name: &ServiceName, table: Option<Value>) -> Value {
    let mut next = match document {
        Value::Object(root) => root.clone(),
        _ => Map::new(),
    };
    let services = next.entry("services").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(services) = services {
        match table {
            Some(table) => services.insert(name.to_string(), table),
            None => services.remove(name.as_str()),
        };
    }
    Value::Object(next)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    #[test]
    fn a_service_is_put_patched_and_deleted() {
        let ads = name("ads");
        let put =
            apply(&json!({}), &Command::PutService(ads.clone(), json!({"request_timeout": "2s"}))).unwrap();
        assert_eq!(put.json, json!({"services": {"ads": {"request_timeout": "2s"}}}));
        let patch = json!({"request_timeout": null, "max_concurrent": 7});
        let patched = apply(&put.json, &Command::PatchService(ads.clone(), patch)).unwrap();
        assert_eq!(patched.json, json!({"services": {"ads": {"max_concurrent": 7}}}));
        let deleted = apply(&patched.json, &Command::DeleteService(ads.clone())).unwrap();
        assert_eq!(deleted.json, json!({"services": {}}));
        assert_eq!(
            apply(&deleted.json, &Command::DeleteService(ads.clone())).unwrap_err(),
            Refusal::NoService(ads)
        );
    }

    #[test]
    fn the_same_document_has_the_same_hash_whatever_the_order_of_its_keys() {
        let one = Intent::parse(&json!({"services": {"a": {}, "b": {"max_concurrent": 1}}})).unwrap();
        let two = Intent::parse(&json!({"services": {"b": {"max_concurrent": 1}, "a": {}}})).unwrap();
        assert_eq!((one.text, one.hash), (two.text, two.hash));
    }

    #[test]
    fn a_service_that_a_route_needs_is_not_deleted() {
        let document = json!({"services": {"a": {}}, "routes": [{"path_prefix": "/a", "service": "a"}]});
        let refused = apply(&document, &Command::DeleteService(name("a"))).unwrap_err();
        let Refusal::Faulty(problems) = refused else { panic!("{refused:?}") };
        assert_eq!(problems.0[0].path, "routes[0].service");
    }

    #[test]
    fn every_fault_is_told() {
        let table = json!({"request_timeout": 5, "max_concurrent": 0, "colour": "red"});
        let refused = apply(&json!({}), &Command::PutService(name("a"), table)).unwrap_err();
        let Refusal::Faulty(problems) = refused else { panic!("{refused:?}") };
        assert_eq!(problems.0.len(), 3, "{problems}");
    }
}
