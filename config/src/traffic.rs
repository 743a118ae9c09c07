//! How a service's requests spread over its versions: stable and weights, whose subject is kept where, and who is an exception.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;

use crate::assignment::{PLACES, RANGES_MAX, Salt, Table, TableFault};
use crate::fallback::read_method;
use crate::grammar::Value;
use crate::name::{Name, ServiceName};
use crate::subject::{Asker, Decisive, Input, Inputs};
use crate::unit::Ppm;

/// Most versions of one service's traffic.
pub const VERSIONS_MAX: usize = 32;
/// Most exceptions of one service.
const PINS_MAX: usize = 100;
/// How long what is in flight to a version that is asked no more may go on, unless the document says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest value of a pin and longest salt, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// `[services.s.traffic]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Every version that it names, in the order of their names; splits name them by their place in this list.
    versions: Vec<Name>,
    stable: usize,
    /// What the document says; sums to a whole.
    pub weights: BTreeMap<Name, Ppm>,
    pub subject: Inputs,
    pub salt: Salt,
    /// Services of one group share salt and table.
    pub group: Option<Name>,
    pub when_no_subject: WhenNoSubject,
    pub when_unhealthy: WhenUnhealthy,
    pub pins: Vec<Pin>,
    pub mirror: Option<Mirror>,
    /// How long what is in flight to a version that is asked no more may go on; `None` is for ever.
    pub drain_timeout: Option<Duration>,
    pub table: Table,
    /// Whether the document wrote the table; else it follows from the weights.
    pub has_table: bool,
    /// For each range of the table whose it is, as a place in `versions`.
    owners: Vec<usize>,
}

/// What becomes of a request without a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenNoSubject {
    /// Edge listeners give the visitor a signed cookie and go by that; elsewhere as `Stable`.
    Cookie,
    /// By chance and weight, each request anew.
    Random,
    #[default]
    Stable,
}

/// What becomes of a request whose version has no endpoint that membership and health checks call healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnhealthy {
    /// It fails as if the service had no endpoint: nobody ever sees another version.
    Fail,
    /// The stable version takes it. A breach of isolation, counted as one.
    #[default]
    Stable,
}

/// An exception: whoever shows this gets that version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub by: PinnedBy,
    pub equals: Box<[u8]>,
    pub version: Name,
    /// Place in [`Traffic::versions`].
    pub(crate) at: usize,
}

/// What a pin looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinnedBy {
    Input(Inputs),
    Subject,
}

/// A copy of some requests goes to a version whose answers nobody sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub version: Name,
    pub percent: Ppm,
    pub methods: Vec<Method>,
    /// Place in [`Traffic::versions`].
    pub(crate) at: usize,
}

const WHEN_NO_SUBJECT: [(&str, WhenNoSubject); 3] =
    [("stable", WhenNoSubject::Stable), ("random", WhenNoSubject::Random), ("cookie", WhenNoSubject::Cookie)];
const WHEN_UNHEALTHY: [(&str, WhenUnhealthy); 2] =
    [("stable", WhenUnhealthy::Stable), ("fail", WhenUnhealthy::Fail)];

impl Traffic {
    pub(crate) fn read(value: &Value<'_>, service: &ServiceName) -> Option<Self> {
        let mut table = value.table()?;
        let stable = table.required("stable").and_then(|v| read_version(&v));
        let weights = table.required("weights").and_then(|v| read_weights(&v));
        let subject = table.optional("subject").map_or_else(|| Some(Inputs::default()), |v| Inputs::read(&v));
        let group = table.optional("group").map(|v| read_version(&v));
        let salt = table.optional("salt").map(|v| read_text(&v));
        let when_no_subject = table.optional("when_no_subject").and_then(|v| v.choice(&WHEN_NO_SUBJECT));
        let when_unhealthy = table.optional("when_unhealthy").and_then(|v| v.choice(&WHEN_UNHEALTHY));
        let pins = table.optional("pins").map_or_else(|| Some(Vec::new()), |v| read_pins(&v));
        let mirror = table.optional("mirror").map(|v| read_mirror(&v));
        let drain_timeout = table.optional("drain_timeout").and_then(|v| {
            // A fault leaves the default, and the document is refused.
            v.duration_or_none(Duration::ZERO, Duration::from_hours(24))
        });
        let written = table.optional("table");
        table.finish();
        let (stable, weights) = (stable?, weights?);
        let ranges = match &written {
            None => Table::of_weights(&stable, &weights),
            Some(value) => read_table(value, &weights)?,
        };
        let (group, mirror) = (transposed(group)?, transposed(mirror)?);
        let default = group.as_ref().map_or_else(|| service.as_str(), Name::as_str);
        let salt = match salt {
            None => Salt::new(default),
            Some(salt) => Salt::new(salt?),
        };
        let traffic = Self {
            versions: Vec::new(),
            stable: 0,
            weights,
            subject: subject?,
            salt,
            group,
            when_no_subject: when_no_subject.unwrap_or_default(),
            when_unhealthy: when_unhealthy.unwrap_or_default(),
            pins: pins?,
            mirror,
            drain_timeout: drain_timeout.unwrap_or(Some(DRAIN_TIMEOUT)),
            table: ranges,
            has_table: written.is_some(),
            owners: Vec::new(),
        };
        Some(traffic.indexed(&stable))
    }

    /// With every version at its place.
    fn indexed(mut self, stable: &Name) -> Self {
        let mut versions: Vec<Name> = self.weights.keys().cloned().collect();
        versions.push(stable.clone());
        versions.extend(self.pins.iter().map(|pin| pin.version.clone()));
        versions.extend(self.mirror.iter().map(|mirror| mirror.version.clone()));
        versions.sort_unstable();
        versions.dedup();
        let at = |version: &Name| versions.binary_search(version).unwrap_or_default();
        self.stable = at(stable);
        for pin in &mut self.pins {
            pin.at = at(&pin.version);
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.at = at(&mirror.version);
        }
        self.owners = self.table.ranges().iter().map(|range| at(&range.version)).collect();
        self.versions = versions;
        self
    }

    /// Every version that it names, in the order of their names.
    #[must_use]
    pub fn versions(&self) -> &[Name] {
        &self.versions
    }

    /// The stable version's place in [`Traffic::versions`].
    #[must_use]
    pub fn stable(&self) -> usize {
        self.stable
    }

    #[must_use]
    pub fn stable_name(&self) -> &Name {
        &self.versions[self.stable]
    }

    /// Whether two versions or more have a share.
    #[must_use]
    pub fn is_split(&self) -> bool {
        self.table.ranges().len() > 1
    }

    /// Whose a place of the table is, as a place in [`Traffic::versions`].
    #[must_use]
    pub fn owner(&self, place: u32) -> usize {
        let at = self.table.ranges().partition_point(|range| range.end <= place);
        self.owners[at.min(self.owners.len() - 1)]
    }

    /// Whether requests may go to a version: it has a share, stands in for others as the stable one, or is named by a pin or
    /// the mirror.
    #[must_use]
    pub fn asks(&self, version: &Name) -> bool {
        self.weights.get(version).is_some_and(|share| share.get() > 0)
            || self.stable_name() == version
            || self.pins.iter().any(|pin| pin.version == *version)
            || self.mirror.as_ref().is_some_and(|mirror| mirror.version == *version)
    }

    /// The place of a version in [`Traffic::versions`].
    #[must_use]
    pub fn place_of(&self, version: &Name) -> Option<usize> {
        self.versions.binary_search(version).ok()
    }
}

impl Pin {
    /// Where it looks, if not at the subject.
    pub(crate) fn input(&self) -> Option<&Inputs> {
        match &self.by {
            PinnedBy::Input(input) => Some(input),
            PinnedBy::Subject => None,
        }
    }

    /// Whether a request shows what the pin asks for.
    #[must_use]
    pub fn matches(&self, asker: &Asker<'_>, subject: Option<&Decisive<'_>>) -> bool {
        match &self.by {
            PinnedBy::Subject => subject.is_some_and(|subject| subject.is(&self.equals, asker.baggage.key)),
            PinnedBy::Input(input) => input.find(asker).is_some_and(|found| *found == *self.equals),
        }
    }
}

impl Mirror {
    /// Whether it asks for a copy of a request with this method; `dice` is a number by chance, from 0 up to [`PLACES`].
    #[must_use]
    pub fn takes(&self, method: &Method, dice: u32) -> bool {
        dice < self.percent.get() && self.methods.contains(method)
    }

    /// The mirrored version's place in [`Traffic::versions`].
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }
}

/// What may be absent and, if it is there, must be sound.
#[expect(clippy::option_option, reason = "absent, faulty and sound are three")]
fn transposed<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(None) => None,
        Some(Some(value)) => Some(Some(value)),
    }
}

fn read_version(value: &Value<'_>) -> Option<Name> {
    value.named(Name::parse_given)
}

fn read_text<'d>(value: &Value<'d>) -> Option<&'d str> {
    let text = value.text()?;
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        value.fault(format!("{} bytes", text.len()), format!("1 to {TEXT_BYTES_MAX}"));
        return None;
    }
    Some(text)
}

fn read_weights(value: &Value<'_>) -> Option<BTreeMap<Name, Ppm>> {
    let entries = value.entries()?;
    if entries.is_empty() || entries.len() > VERSIONS_MAX {
        value.fault(format!("{} versions", entries.len()), format!("1 to {VERSIONS_MAX}"));
        return None;
    }
    let mut weights = BTreeMap::new();
    let mut is_whole = true;
    for (key, entry) in &entries {
        match (Name::parse(key).ok().filter(|_| !key.is_empty()), entry.percent()) {
            (Some(version), Some(weight)) => drop(weights.insert(version, weight)),
            (None, _) => {
                entry.fault("not a version's name", "at most 63 of a-z, A-Z, 0-9, '-', '_', '.'");
                is_whole = false;
            }
            (Some(_), None) => is_whole = false,
        }
    }
    let sum: u32 = weights.values().map(|weight| weight.get()).sum();
    if is_whole && sum != PLACES {
        value.fault(format!("the weights sum to {}", f64::from(sum) / 10_000.0), "they sum to 100");
        return None;
    }
    is_whole.then_some(weights)
}

fn read_table(value: &Value<'_>, weights: &BTreeMap<Name, Ppm>) -> Option<Table> {
    const SHAPE: &str = "[[\"v2\", 0, 10000], [\"v1\", 10000, 1000000]]";
    let items = value.items()?;
    let mut ranges = Vec::with_capacity(items.len().min(RANGES_MAX));
    for item in items.iter().take(RANGES_MAX + 1) {
        let parts = item.items()?;
        let [version, start, end] = parts.as_slice() else {
            item.fault(
                format!("{} values", parts.len()),
                format!("a version, its first place and its end: {SHAPE}"),
            );
            return None;
        };
        let name = read_version(version)?;
        if !weights.contains_key(&name) {
            version.fault(format!("the version `{name}` has no weight"), "one of the weights");
            return None;
        }
        ranges.push((name, start.integer(0, PLACES)?, end.integer(0, PLACES)?));
    }
    let table = match Table::new(ranges) {
        Ok(table) => table,
        Err(fault) => {
            let (at, what, hint) = match fault {
                TableFault::TooMany => (None, "too many ranges".to_owned(), format!("at most {RANGES_MAX}")),
                TableFault::Gap { at, expected } => (
                    Some(at),
                    "the range is empty, or leaves a hole or an overlap".to_owned(),
                    format!("it begins at {expected} and ends behind that, at most at {PLACES}"),
                ),
                TableFault::Short { end } => {
                    (None, format!("the table ends at {end}"), format!("it ends at {PLACES}, e.g. {SHAPE}"))
                }
            };
            at.and_then(|at| items.get(at)).unwrap_or(value).fault(what, hint);
            return None;
        }
    };
    for (version, weight) in weights {
        let share = table.share(version);
        if share != weight.get() {
            value.fault(
                format!(
                    "`{version}` has {share} places of {PLACES}, and a weight of {} %",
                    f64::from(weight.get()) / 10_000.0
                ),
                format!("{} places", weight.get()),
            );
            return None;
        }
    }
    Some(table)
}

fn read_pins(value: &Value<'_>) -> Option<Vec<Pin>> {
    let items = value.items()?;
    if items.len() > PINS_MAX {
        value.fault(format!("{} pins", items.len()), format!("at most {PINS_MAX}"));
        return None;
    }
    let pins: Vec<Pin> = items.iter().filter_map(read_pin).collect();
    (pins.len() == items.len()).then_some(pins)
}

fn read_pin(value: &Value<'_>) -> Option<Pin> {
    let mut table = value.table()?;
    let named = |kind: &'static str, value: Option<Value<'_>>| {
        let value = value?;
        let text = value.text()?;
        match Input::parse(&format!("{kind}:{text}")) {
            Ok(input) => Some(Inputs::one(input)),
            Err(_) => {
                value.fault(format!("not the name of a {kind}"), "");
                None
            }
        }
    };
    let inputs = [
        ("header", table.optional("header")),
        ("cookie", table.optional("cookie")),
        ("query", table.optional("query")),
    ];
    let subject = table.optional("subject");
    let equals = table.optional("equals");
    let version = table.required("version").and_then(|v| read_version(&v));
    table.finish();
    let mut given = inputs.into_iter().filter(|(_, value)| value.is_some());
    let (first, more) = (given.next(), given.next());
    let (by, equals) = match (first, more, subject, equals) {
        (Some((kind, input)), None, None, Some(equals)) => {
            (PinnedBy::Input(named(kind, input)?), read_text(&equals)?)
        }
        (None, None, Some(subject), None) => (PinnedBy::Subject, read_text(&subject)?),
        _ => {
            value.fault(
                "a pin looks at one thing",
                "{ header = \"x-version\", equals = \"v2\", version = \"v2\" }, with cookie or query in place of header, or { subject = \"user-42\", version = \"v2\" }",
            );
            return None;
        }
    };
    Some(Pin { by, equals: equals.as_bytes().into(), version: version?, at: 0 })
}

fn read_mirror(value: &Value<'_>) -> Option<Mirror> {
    let mut table = value.table()?;
    let version = table.required("version").and_then(|v| read_version(&v));
    let percent = table.required("percent").and_then(|v| v.percent());
    let methods = table.optional("methods").map(|v| v.list(read_method));
    table.finish();
    let methods = transposed(methods)?.unwrap_or_else(|| vec![Method::GET, Method::HEAD]);
    Some(Mirror { version: version?, percent: percent?, methods, at: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Traffic, String> {
        let text = format!("[services.checkout.traffic]\n{text}\n");
        let document = Document::parse_toml(&text).map_err(|told| told.to_string())?;
        let policy = document.services.into_values().next().ok_or("no service")?;
        policy.traffic.map(std::sync::Arc::unwrap_or_clone).ok_or_else(|| "no traffic".to_owned())
    }

    const SPLIT: &str = "stable = \"v1\"\nweights = { v1 = 99, v2 = 1 }";

    #[test]
    fn what_is_left_out_has_its_default() {
        let traffic = read(SPLIT).unwrap();
        assert_eq!(traffic.salt.as_str(), "checkout");
        assert_eq!((traffic.when_no_subject, traffic.when_unhealthy), Default::default());
        assert_eq!(traffic.subject, Inputs::default());
        assert_eq!(traffic.drain_timeout, Some(Duration::from_secs(30)));
        assert_eq!(traffic.versions()[traffic.owner(9_999)].as_str(), "v2");
        assert_eq!(traffic.versions()[traffic.owner(10_000)].as_str(), "v1");
        let grouped = read(&format!("{SPLIT}\ngroup = \"storefront\"")).unwrap();
        assert_eq!(grouped.salt.as_str(), "storefront");
    }

    #[test]
    fn every_fault_says_where() {
        for (text, expected) in [
            ("stable = \"v1\"\nweights = { v1 = 99, v2 = 2 }", "the weights sum to 101 (they sum to 100)"),
            ("weights = { v1 = 100 }", "`stable` is missing"),
            ("stable = \"v1\"", "`weights` is missing"),
            ("stable = \"v1\"\nweights = {}", "0 versions"),
            ("stable = \"v1\"\nweights = { v1 = 100, v2 = 0.00001 }", "0.00001 is no percentage"),
            (&format!("{SPLIT}\ndrain_timeout = \"25h\""), "drain_timeout: 25h is out of range"),
            (&format!("{SPLIT}\nsalts = \"x\""), "unknown key (did you mean `salt`?)"),
            (&format!("{SPLIT}\nsalt = \"\""), "salt: 0 bytes"),
            (&format!("{SPLIT}\nsubject = [\"ip\"]"), "subject[0]: \"ip\" is not understood"),
            (&format!("{SPLIT}\ntable = [[\"v2\", 0, 10000]]"), "the table ends at 10000"),
            (&format!("{SPLIT}\ntable = [[\"v3\", 0, 1000000]]"), "the version `v3` has no weight"),
            (
                &format!("{SPLIT}\ntable = [[\"v2\", 0, 5], [\"v1\", 6, 1000000]]"),
                "table[1]: the range is empty",
            ),
            (&format!("{SPLIT}\ntable = [[\"v2\", 0, 5], [\"v1\", 5, 1000000]]"), "`v1` has 999995 places"),
            (&format!("{SPLIT}\npins = [{{ version = \"v2\" }}]"), "a pin looks at one thing"),
            (
                &format!("{SPLIT}\npins = [{{ header = \"a b\", equals = \"1\", version = \"v2\" }}]"),
                "not the name of a header",
            ),
            (&format!("{SPLIT}\nmirror = {{ version = \"v2\" }}"), "`percent` is missing"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(expected), "{text}\n{told}");
        }
    }

    #[test]
    fn whoever_a_request_may_go_to_is_asked() {
        let traffic = read(
            "stable = \"v1\"\nweights = { v1 = 0, v2 = 100, v3 = 0, v4 = 0, v5 = 0 }\ndrain_timeout = \"none\"\n\
             pins = [{ subject = \"me\", version = \"v3\" }]\nmirror = { version = \"v4\", percent = 1 }",
        )
        .unwrap();
        let asked: Vec<&str> =
            traffic.versions().iter().filter(|version| traffic.asks(version)).map(Name::as_str).collect();
        assert_eq!(asked, ["v1", "v2", "v3", "v4"]);
        assert!(!traffic.asks(&Name::parse("v9").unwrap()));
        assert_eq!(traffic.drain_timeout, None);
    }

    #[test]
    fn a_version_that_no_listed_endpoint_has_is_unknown() {
        let text =
            format!("{SPLIT}\n[[services.checkout.endpoints]]\naddress = \"127.0.0.1:1\"\nversion = \"v1\"");
        let told = read(&text).unwrap_err();
        assert!(told.contains("weights.v2: no endpoint has the version `v2`"), "{told}");
    }

    #[test]
    fn services_of_a_group_share_who_is_where() {
        let of = |other: &str| {
            let text = format!(
                "[services.a.traffic]\n{SPLIT}\ngroup = \"g\"\n[services.b.traffic]\nstable = \"w1\"\ngroup = \"g\"\n{other}"
            );
            Document::parse_toml(&text).map(drop).map_err(|told| told.to_string())
        };
        assert_eq!(of("weights = { w1 = 99, w2 = 1 }"), Ok(()));
        let told = of("weights = { w1 = 98, w2 = 2 }").unwrap_err();
        assert!(told.contains("services.b.traffic: the group `g` is split otherwise by `a`"), "{told}");
        let told = of("weights = { w1 = 99, w2 = 1 }\nsalt = \"other\"").unwrap_err();
        assert!(told.contains("another salt"), "{told}");
    }
}
