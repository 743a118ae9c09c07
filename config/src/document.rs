//! The mesh document: what operators said, checked as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::access::{self, AccessMode, Callers, DefaultAccess};
use crate::fallback::Action;
use crate::flag::{Emission, Emit, FlagSet, Variant};
use crate::grammar::{Faults, Value};
use crate::name::{Name, ServiceName};
use crate::node::Node;
use crate::problem::{Problems, shown};
use crate::route::{self, Route, WhenFlag};
use crate::service::ServicePolicy;
use crate::traffic::Traffic;

/// Most services of a mesh.
pub const SERVICES_MAX: usize = 10_000;
/// Most services that are sharded, and most shards of all of them: what their tables hold in memory together is bounded by
/// this, at about 250 MiB.
const SHARDED_MAX: usize = 1_000;
const SHARDS_MAX: usize = 65_536;
/// Most services that balance by their subjects: their tables take 128 KiB each and 2 KiB for each shard,
/// or 2.2 KiB for each endpoint.
const BY_SUBJECT_MAX: usize = 1_000;
/// Most names that a warning lists.
const NAMED_MAX: usize = 10;

/// What a sound document says.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub services: BTreeMap<ServiceName, ServicePolicy>,
    pub routes: Vec<Route>,
    /// Who may call services that say nothing of it, and what becomes of denials where they say nothing of that.
    pub default_access: DefaultAccess,
    pub access_mode: AccessMode,
    /// The feature flags of the mesh, if there are any.
    pub flags: Option<Arc<FlagSet>>,
    /// What each service is told of them, made once: membership changes more often than documents.
    pub(crate) emissions: BTreeMap<ServiceName, Arc<Emission>>,
}

impl Document {
    /// Reads a document from TOML.
    ///
    /// # Errors
    /// Every fault, with path and line.
    pub fn parse_toml(text: &str) -> Result<Self, Problems> {
        Self::read(&Node::parse_toml(text)?)
    }

    /// Reads a document from JSON.
    ///
    /// # Errors
    /// Every fault, with its path.
    pub fn parse_json(json: &serde_json::Value) -> Result<Self, Problems> {
        Self::read(&Node::from(json))
    }

    /// Reads a document from its tree.
    ///
    /// # Errors
    /// Every fault, with its path and, where the tree has them, lines.
    pub fn read(node: &Node) -> Result<Self, Problems> {
        let faults = Faults::new();
        let document = Self::read_root(&Value::root(node, &faults));
        faults.into_result(document)
    }

    fn read_root(root: &Value<'_>) -> Self {
        let Some(mut table) = root.table() else { return Self::default() };
        let services = table.optional("services");
        let routes = table.optional("routes");
        let default_access = table.optional("default_access");
        let access_mode = table.optional("access_mode");
        let flags = table.optional("flags");
        table.finish();
        let mut document = Self {
            services: services.as_ref().map(read_services).unwrap_or_default(),
            routes: routes.as_ref().map(route::read_all).unwrap_or_default(),
            default_access: default_access.and_then(|v| access::read_default(&v)).unwrap_or_default(),
            access_mode: access_mode.and_then(|v| access::read_mode(&v)).unwrap_or_default(),
            flags: flags.as_ref().and_then(read_flags).map(Arc::new),
            emissions: BTreeMap::new(),
        };
        document.emissions = document.read_emissions(services.as_ref());
        document.check_followed(flags.as_ref());
        document.check_routes(routes.as_ref());
        document.check_fallbacks(services.as_ref());
        document.check_groups(services.as_ref());
        document
    }

    /// What is sound, and may still surprise whoever wrote it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let many = self.services.iter().filter_map(|(name, policy)| {
            let traffic = policy.traffic.as_deref()?;
            let shares = traffic.weights.values().filter(|weight| weight.get() > 0).count();
            (shares > 2 && !traffic.has_table).then(|| {
                format!(
                    "services.{name}.traffic: {shares} versions share without a table, so other weights would move users between them; write the table, or let a control plane keep it"
                )
            })
        });
        let flags = self.flags.iter().flat_map(|set| set.warnings());
        let misplaced = self.services.iter().flat_map(|(name, policy)| misplaced(name, policy));
        let told = many.chain(misplaced).chain(self.unknown_callers());
        told.chain(flags.map(ToString::to_string)).collect()
    }

    /// Callers that rules name and the document does not: membership may know them, or they are misspelt.
    fn unknown_callers(&self) -> impl Iterator<Item = String> {
        self.services.iter().flat_map(move |(name, policy)| {
            let rules = policy.allow.iter().flatten();
            let unknown = rules.filter_map(move |rule| match &rule.callers {
                Callers::Service(caller) if !self.services.contains_key(caller) => Some(caller),
                Callers::Service(_) | Callers::Identified | Callers::Unidentified => None,
            });
            unknown
                .map(move |caller| format!("services.{name}.allow: the document names no service `{caller}`"))
        })
    }

    /// What each service is told of the flags.
    fn read_emissions(&self, services: Option<&Value<'_>>) -> BTreeMap<ServiceName, Arc<Emission>> {
        let nothing = FlagSet::default();
        let set = self.flags.as_deref().unwrap_or(&nothing);
        let tables: BTreeMap<&str, Value<'_>> = services
            .filter(|value| value.is_table())
            .and_then(Value::entries)
            .into_iter()
            .flatten()
            .collect();
        let emit_of = |name: &ServiceName| {
            let flags = tables.get(name.as_str())?.table()?.optional("flags")?;
            flags.table()?.optional("emit")
        };
        let told = self.services.iter().filter_map(|(name, policy)| {
            let flags = policy.flags.as_ref().filter(|flags| flags.emit != Emit::default())?;
            Some((name.clone(), Arc::new(Emission::new(&flags.emit, set, emit_of(name).as_ref()))))
        });
        told.collect()
    }

    /// A flag follows a service whose traffic can say who is on its candidate.
    fn check_followed(&self, value: Option<&Value<'_>>) {
        let (Some(set), Some(value)) = (&self.flags, value) else { return };
        for flag in set.flags() {
            let Some(service) = flag.follows() else { continue };
            if self.services.get(service).is_none_or(|policy| policy.traffic.is_none()) {
                value.fault(
                    format!("the flag `{}` follows `{service}`, whose traffic nobody says", flag.key()),
                    format!("add [services.{service}.traffic]"),
                );
            }
        }
    }

    /// Whoever is on the new version of one service of a group is so everywhere: same salt, same borders, same roles.
    fn check_groups(&self, services: Option<&Value<'_>>) {
        let mut first: HashMap<&Name, (&ServiceName, &Traffic)> = HashMap::new();
        for (name, policy) in &self.services {
            let Some(traffic) = policy.traffic.as_deref() else { continue };
            let Some(group) = &traffic.group else { continue };
            let Some((other, like)) = first.get(group) else {
                first.insert(group, (name, traffic));
                continue;
            };
            let borders = |traffic: &Traffic| -> Vec<(u32, bool)> {
                let ranges = traffic.table.ranges().iter();
                ranges.map(|range| (range.end, range.version == *traffic.stable_name())).collect()
            };
            let what = if like.salt != traffic.salt {
                format!("the group `{group}` has another salt in `{other}`")
            } else if like.subject != traffic.subject || like.when_no_subject != traffic.when_no_subject {
                format!("the group `{group}` has other subjects in `{other}`")
            } else if borders(like) != borders(traffic) {
                format!("the group `{group}` is split otherwise by `{other}`")
            } else {
                continue;
            };
            let entries =
                services.filter(|value| value.is_table()).and_then(Value::entries).unwrap_or_default();
            let table =
                entries.iter().find(|(key, _)| *key == name.as_str()).and_then(|(_, value)| value.table());
            if let Some(value) = table.and_then(|mut table| table.optional("traffic")) {
                value.fault(what, "services of a group have the same salt, subjects and shares");
            }
        }
    }

    fn check_routes(&self, routes: Option<&Value<'_>>) {
        // What is no list, no table or no text was told when the routes were read.
        let Some(items) = routes.filter(|value| value.is_list()).and_then(Value::items) else { return };
        for item in items.iter().filter(|item| item.is_table()) {
            let Some(service) = item.table().and_then(|mut table| table.optional("service")) else {
                continue;
            };
            self.check_when_flag(item);
            let known = service.is_text().then(|| service.text()).flatten();
            if let Some(name) = known
                && !self.services.contains_key(name)
                && ServiceName::parse(name).is_ok()
            {
                service.fault(format!("there is no service `{name}`"), format!("add [services.{name}]"));
            }
        }
    }

    /// What a route asks of a flag must be something that the flag can be.
    fn check_when_flag(&self, route: &Value<'_>) {
        let Some(value) = route.table().and_then(|mut table| table.optional("when_flag")) else { return };
        let Some(when) = value.is_text().then(|| value.text()).flatten().and_then(WhenFlag::parse) else {
            return;
        };
        match self.flags.as_ref().and_then(|set| set.get(when.flag())) {
            None => value.fault(format!("there is no flag `{}`", shown(when.flag())), "a flag of [flags]"),
            Some(flag) if flag.place_of(when.variant()).is_none() => {
                let names: Vec<&str> = flag.variants().iter().take(NAMED_MAX).map(Variant::name).collect();
                value.fault(
                    format!("`{}` has no variant `{}`", flag.key(), shown(when.variant())),
                    format!("one of: {}", names.join(", ")),
                );
            }
            Some(_) => {}
        }
    }

    /// A fallback may ask another service, which may ask another in turn: all must be there, and none come back.
    fn check_fallbacks(&self, services: Option<&Value<'_>>) {
        let entries = services.filter(|value| value.is_table()).and_then(Value::entries).unwrap_or_default();
        for (name, table) in entries.iter().filter(|(_, value)| value.is_table()) {
            let chain = table.table().and_then(|mut table| table.optional("fallback"));
            let Some(links) = chain.filter(Value::is_list).and_then(|chain| chain.items()) else { continue };
            for link in links.iter().filter(|link| link.is_table()) {
                let other = link.table().and_then(|mut link| link.optional("service"));
                let Some(other) = other.filter(Value::is_text) else { continue };
                let Some(to) = other.text().filter(|to| ServiceName::parse(to).is_ok()) else { continue };
                if !self.services.contains_key(to) {
                    other.fault(format!("there is no service `{to}`"), format!("add [services.{to}]"));
                } else if self.leads_back(to, name) {
                    other
                        .fault(format!("the fallback leads from `{to}` back to `{name}`"), "another service");
                }
            }
        }
    }

    /// Whether the fallbacks of `from` lead to `to`.
    fn leads_back(&self, from: &str, to: &str) -> bool {
        let mut seen = HashSet::from([from]);
        let mut next = vec![from];
        while let Some(name) = next.pop() {
            if name == to {
                return true;
            }
            let links = self.services.get(name).map_or(&[][..], |policy| &policy.fallback);
            for link in links {
                if let Action::Service(other) = &link.action
                    && seen.insert(other.as_str())
                {
                    next.push(other.as_str());
                }
            }
        }
        false
    }
}

/// Shards of a map that no endpoint has, and endpoints of shards that no map has, as far as the document lists any.
fn misplaced(name: &ServiceName, policy: &ServicePolicy) -> Vec<String> {
    let Some(sharding) = policy.sharding.as_deref().filter(|_| !policy.endpoints.is_empty()) else {
        return Vec::new();
    };
    let served: BTreeSet<&str> = policy.endpoints.iter().map(|endpoint| endpoint.shard.as_str()).collect();
    let known: BTreeSet<&str> = sharding.shards().iter().map(Name::as_str).collect();
    let listed = |names: Vec<&str>| {
        let more = if names.len() > NAMED_MAX { " and more" } else { "" };
        format!("`{}`{more}", names[..names.len().min(NAMED_MAX)].join("`, `"))
    };
    let (unserved, unknown): (Vec<&str>, Vec<&str>) =
        (known.difference(&served).copied().collect(), served.difference(&known).copied().collect());
    let mut warnings = Vec::new();
    if !unserved.is_empty() {
        warnings.push(format!(
            "services.{name}.sharding: no endpoint has the shards {}, so their keys are answered with 503",
            listed(unserved)
        ));
    }
    if !unknown.is_empty() {
        warnings.push(format!(
            "services.{name}.endpoints: the rule has no shards {}, so nobody asks their endpoints",
            listed(unknown)
        ));
    }
    warnings
}

/// Every host that a service answers to without a route.
pub(crate) fn own_hosts(name: &ServiceName) -> [String; 3] {
    [name.to_string(), format!("{name}.mesh"), format!("{name}.service.consul")]
}

/// `[flags]`: the set itself. Whoever reads a file puts the set that it names there; see [`crate::body_file`].
fn read_flags(value: &Value<'_>) -> Option<FlagSet> {
    let mut table = value.table()?;
    let (file, set) = (table.optional("file"), table.optional("set"));
    table.finish();
    match (file, set) {
        (None, Some(set)) => FlagSet::read(&set),
        (None, None) => {
            value.fault("neither `file` nor `set`", "file = \"flags.json\", with flagd's JSON in it");
            None
        }
        (Some(file), None) => {
            file.fault(
                "a document that did not come from a file cannot name one",
                "`set`; `gilmok apply` puts the file's flags there",
            );
            None
        }
        (Some(_), Some(_)) => {
            value.fault("only one of `file` and `set`", "");
            None
        }
    }
}

fn read_services(value: &Value<'_>) -> BTreeMap<ServiceName, ServicePolicy> {
    let entries = value.entries().unwrap_or_default();
    if entries.len() > SERVICES_MAX {
        value.fault(format!("{} services", entries.len()), format!("at most {SERVICES_MAX}"));
        return BTreeMap::new();
    }
    let mut services = BTreeMap::new();
    let mut hosts: HashMap<String, ServiceName> = HashMap::new();
    let names: Vec<_> = entries
        .into_iter()
        .filter_map(|(key, table)| match ServiceName::parse(key) {
            Ok(name) => Some((name, table)),
            Err(hint) => {
                table.fault("not a service's name", hint);
                None
            }
        })
        .collect();
    for (name, table) in &names {
        for host in own_hosts(name) {
            if let Some(other) = hosts.insert(host.clone(), name.clone()) {
                table.fault(format!("`{name}` and `{other}` both answer to `{host}`"), "another name");
            }
        }
    }
    let (mut sharded, mut shards, mut by_subject) = (0_usize, 0_usize, 0_usize);
    for (name, table) in names {
        let Some(policy) = ServicePolicy::read(&table, &name) else { continue };
        for host in &policy.hosts {
            if let Some(other) = hosts.insert(host.clone(), name.clone())
                && other != name
            {
                table.fault(format!("the host `{host}` is `{other}`'s already"), "one service to a host");
            }
        }
        if let Some(sharding) = &policy.sharding {
            (sharded, shards) = (sharded + 1, shards + sharding.shards().len());
            if sharded > SHARDED_MAX || shards > SHARDS_MAX {
                table.fault("too many shards", format!("{SHARDS_MAX}, of at most {SHARDED_MAX} services"));
                break;
            }
        }
        by_subject += usize::from(policy.by_subject.is_some());
        if by_subject > BY_SUBJECT_MAX {
            table.fault("too many services balance by their subjects", format!("at most {BY_SUBJECT_MAX}"));
            break;
        }
        services.insert(name, policy);
    }
    services
}
