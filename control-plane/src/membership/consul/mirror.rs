//! The mirror: one watch for each service that is asked for, and one published view of them all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gilmok_config::endpoint::Endpoint;
use gilmok_config::name::ServiceName;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::client::{Client, Shared};
use super::contact::Contacts;
use super::error::Error;
use super::follow::{Carries, Health, Lane, News, Surroundings, TAGGED_LABEL, Tagged, follow, health_label};
use super::mapping::{Instance, Key};
use super::pace::BackOff;
use super::settings::Settings;
use super::settle::{Stand, Standing};
use super::watch::{Style, WATCHDOG};
use crate::http_client;
use crate::membership::{Member, Source, Status, View};

/// Most services that are watched. Names come from the mesh document and from Consul's catalog, never from requests.
const WATCHES_MAX: usize = 2_000;
/// Most watches that hold a connection to one agent, which resets the 201st from one IP address by default.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 150;
/// The connections that all further watches share, polling the agent's cache.
const SHARED_LANES: usize = 8;
/// How much news may wait for the mirror; a watch that has more waits itself.
const NEWS_MAX: usize = 256;
/// How often the watchdog looks.
const WATCHDOG_EVERY: Duration = Duration::from_secs(1);
/// How long a service is still watched after it has lost the tag, so that its own watch can confirm what happened.
const TAG_LINGER: Duration = Duration::from_secs(10);
/// How often the agent is asked for its access control's default.
const PROBE_EVERY: Duration = Duration::from_secs(300);

/// A running mirror. It ends when every receiver of its view is gone, or the sender of its names is.
#[derive(Clone, Debug)]
pub struct Consul {
    /// Who is alive. Begins with what was known last.
    pub view: watch::Receiver<Arc<View>>,
    /// How long ago each watch heard from Consul.
    pub contacts: Contacts,
}

/// Starts mirroring the services of `names` (and those with the tag of the settings). `last_known` is what an earlier
/// life published: it is served until Consul has said otherwise, and confirmed like anything else.
///
/// A service is absent from the view until there has been an answer for it; then it is there, if only empty.
///
/// # Errors
/// TLS files that cannot be used, or no address. An unreachable Consul is none.
pub fn start(
    settings: Settings,
    last_known: &Arc<View>,
    names: watch::Receiver<BTreeSet<ServiceName>>,
) -> Result<Consul, http_client::Error> {
    let (news, heard) = mpsc::channel(NEWS_MAX);
    let (view, published) = watch::channel(Arc::clone(last_known));
    let mut mirror = Mirror::new(settings, news, view)?;
    mirror.remember(last_known, &names.borrow());
    let contacts = mirror.contacts.clone();
    // Ends when nobody wants the view any more; every watch is aborted with it.
    tokio::spawn(mirror.run(names, heard));
    Ok(Consul { view: published, contacts })
}

struct Mirror {
    shared: Arc<Shared>,
    /// How many watches may have a connection of their own.
    blocking_max: usize,
    lanes: Vec<Lane>,
    /// The number of the watch started last.
    number: u64,
    asked_for: BTreeSet<ServiceName>,
    /// The services with the tag, and since when they have lost it.
    tagged: BTreeMap<ServiceName, Option<Instant>>,
    tag_watch: Option<TagWatch>,
    services: BTreeMap<ServiceName, Watched>,
    /// Whether there is no room for another service.
    full: bool,
    tasks: JoinSet<()>,
    contacts: Contacts,
    default_deny: watch::Receiver<bool>,
    news: mpsc::Sender<News>,
    view: watch::Sender<Arc<View>>,
}

struct TagWatch {
    tag: String,
    running: Option<Running>,
}

/// A service that is mirrored.
#[derive(Default)]
struct Watched {
    running: Option<Running>,
    style: Option<Style>,
    /// Nothing until there has been an answer, in this life or the one before.
    known: Option<Known>,
}

/// What is known of a service, and what follows from it: made once, so that unchanged services cost nothing and keep
/// the very same list in the next view.
struct Known {
    list: BTreeMap<Key, Instance>,
    endpoints: Arc<[Endpoint]>,
    members: Vec<Member>,
}

impl Known {
    fn new(list: BTreeMap<Key, Instance>) -> Self {
        let alive = list.values().filter(|instance| instance.standing() == Stand::In);
        // Two ids for one address and meaning are one endpoint.
        let endpoints: BTreeSet<Endpoint> = alive.map(|instance| instance.endpoint.clone()).collect();
        let member = |((node, id), instance): (&Key, &Instance)| Member {
            id: id.clone(),
            endpoint: instance.endpoint.clone(),
            status: instance.status,
            node: node.clone(),
            note: instance.note.clone(),
            source: Source::Consul,
        };
        let members = list.iter().map(member).collect();
        Self { endpoints: endpoints.into_iter().collect(), members, list }
    }
}

struct Running {
    number: u64,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mirror {
    fn new(
        settings: Settings,
        news: mpsc::Sender<News>,
        view: watch::Sender<Arc<View>>,
    ) -> Result<Self, http_client::Error> {
        let tag_watch = settings.all_with_tag.clone().map(|tag| TagWatch { tag, running: None });
        let blocking_max = CONNECTIONS_PER_ADDRESS_MAX * settings.addresses.len().saturating_sub(1).max(1);
        let shared = Shared::new(settings);
        let lane = |number| Ok(Arc::new(Mutex::new(Client::new(&shared, number)?)));
        let lanes = (0..SHARED_LANES).map(lane).collect::<Result<Vec<Lane>, http_client::Error>>()?;
        let prober = Client::new(&shared, 0)?;
        let (said, default_deny) = watch::channel(true);
        let mut tasks = JoinSet::new();
        // Ends with the mirror's JoinSet.
        tasks.spawn(probe(prober, said));
        Ok(Self {
            shared,
            blocking_max,
            lanes,
            number: 0,
            asked_for: BTreeSet::new(),
            tagged: BTreeMap::new(),
            tag_watch,
            services: BTreeMap::new(),
            full: false,
            tasks,
            contacts: Contacts::default(),
            default_deny,
            news,
            view,
        })
    }

    async fn run(
        mut self,
        mut names: watch::Receiver<BTreeSet<ServiceName>>,
        mut heard: mpsc::Receiver<News>,
    ) {
        let mut tick = tokio::time::interval(WATCHDOG_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let view = self.view.clone();
        self.asked_for.clone_from(&names.borrow_and_update());
        self.follow_names();
        self.publish();
        loop {
            tokio::select! {
                changed = names.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.asked_for.clone_from(&names.borrow_and_update());
                    self.follow_names();
                    self.publish();
                }
                Some(news) = heard.recv() => {
                    self.hear(news);
                    // What has piled up becomes one view.
                    while let Ok(news) = heard.try_recv() {
                        self.hear(news);
                    }
                    self.publish();
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.bury(ended.map_or_else(|error| error.id(), |(id, ())| id));
                }
                _ = tick.tick() => self.look_after(),
                () = view.closed() => return,
            }
        }
    }

    /// Takes over what an earlier life published, as far as it is still asked for. With a tag, what is not asked for
    /// by name may have been there for its tag: it stays until the catalog has spoken.
    fn remember(&mut self, last_known: &View, names: &BTreeSet<ServiceName>) {
        let with_tag = self.tag_watch.is_some();
        for service in last_known.endpoints.keys().filter(|service| with_tag || names.contains(*service)) {
            let known = Known::new(instances_of(last_known, service));
            if !names.contains(service) {
                self.tagged.insert(service.clone(), None);
            }
            self.services.insert(service.clone(), Watched { known: Some(known), ..Watched::default() });
        }
    }

    /// Starts the watches that are missing and ends those that nobody asks for.
    fn follow_names(&mut self) {
        if let Some(tag_watch) = &self.tag_watch
            && tag_watch.running.is_none()
        {
            let question = Tagged { tag: tag_watch.tag.clone() };
            let last_known: BTreeMap<_, _> = self.tagged.keys().map(|name| (name.clone(), Carries)).collect();
            let lane = self.lane(0);
            let running = lane.map(|lane| {
                self.contacts.begin(TAGGED_LABEL);
                let around = self.surroundings(Style::Blocking, lane);
                Running { number: self.number, task: self.tasks.spawn(follow(question, last_known, around)) }
            });
            if let Some(tag_watch) = &mut self.tag_watch {
                tag_watch.running = running;
            }
        }
        let tagged = self.tagged.keys().filter(|service| !self.asked_for.contains(*service));
        let wanted: BTreeSet<ServiceName> =
            self.asked_for.iter().chain(tagged).take(WATCHES_MAX).cloned().collect();
        let full = wanted.len() == WATCHES_MAX;
        if full && !self.full {
            tracing::error!("{WATCHES_MAX} services are mirrored, which is the most; any more are not");
        }
        self.full = full;
        let contacts = &self.contacts;
        self.services.retain(|service, _| {
            let wanted = wanted.contains(service);
            if !wanted {
                contacts.end(&health_label(service));
            }
            wanted
        });
        for service in wanted {
            if self.services.get(&service).is_none_or(|watched| watched.running.is_none()) {
                self.begin(service);
            }
        }
    }

    /// Starts the watch of one service with what is known of it.
    fn begin(&mut self, service: ServiceName) {
        let blocking = |watched: &&Watched| watched.style == Some(Style::Blocking);
        let style = match self.services.get(&service).and_then(|watched| watched.style) {
            Some(style) => style,
            None if self.services.values().filter(blocking).count() < self.blocking_max => Style::Blocking,
            None => Style::Polling,
        };
        let lane = match style {
            Style::Blocking => self.lane(usize::try_from(self.number).unwrap_or(0)),
            Style::Polling => Some(Arc::clone(&self.lanes[self.services.len() % SHARED_LANES])),
        };
        let Some(lane) = lane else { return };
        self.contacts.begin(&health_label(&service));
        let around = self.surroundings(style, lane);
        let watched = self.services.entry(service.clone()).or_default();
        watched.style = Some(style);
        let last_known = watched.known.as_ref().map(|known| known.list.clone()).unwrap_or_default();
        let question = Health { service, faults: std::sync::Mutex::default() };
        let task = self.tasks.spawn(follow(question, last_known, around));
        watched.running = Some(Running { number: self.number, task });
    }

    /// A connection of its own, to one address after the other.
    fn lane(&self, number: usize) -> Option<Lane> {
        match Client::new(&self.shared, number) {
            Ok(client) => Some(Arc::new(Mutex::new(client))),
            Err(error) => {
                tracing::error!("consul: {error}; trying again");
                None
            }
        }
    }

    fn surroundings(&mut self, style: Style, lane: Lane) -> Surroundings {
        self.number += 1;
        Surroundings {
            number: self.number,
            style,
            lane,
            contacts: self.contacts.clone(),
            default_deny: self.default_deny.clone(),
            news: self.news.clone(),
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Health { service, watch, list } => {
                // News of a watch that has ended meanwhile says nothing any more.
                if let Some(watched) = self.services.get_mut(&service)
                    && watched.running.as_ref().is_some_and(|running| running.number == watch)
                {
                    watched.known = Some(Known::new(list));
                }
            }
            News::Tagged { watch, services } => {
                let running = self.tag_watch.as_ref().and_then(|tag_watch| tag_watch.running.as_ref());
                if running.is_some_and(|running| running.number == watch) {
                    self.tag(services);
                }
            }
        }
    }

    fn tag(&mut self, services: BTreeSet<ServiceName>) {
        let now = Instant::now();
        for (service, lost) in &mut self.tagged {
            *lost = if services.contains(service) { None } else { Some(lost.unwrap_or(now)) };
        }
        for service in services {
            self.tagged.entry(service).or_insert(None);
        }
        self.follow_names();
    }

    /// Restarts what hangs, and lets go of what has lost its tag for good.
    fn look_after(&mut self) {
        for label in self.contacts.stuck(WATCHDOG) {
            tracing::warn!("consul watch {label} gives no sign of life; starting it anew");
            let stopped = self.services.iter_mut().find(|(service, _)| health_label(service) == label);
            if let Some((_, watched)) = stopped {
                watched.running = None;
            } else if let Some(tag_watch) = &mut self.tag_watch {
                tag_watch.running = None;
            }
        }
        let now = Instant::now();
        let tagged = self.tagged.len();
        self.tagged.retain(|_, lost| lost.is_none_or(|at| now.saturating_duration_since(at) < TAG_LINGER));
        let forgotten = tagged != self.tagged.len();
        self.follow_names();
        if forgotten {
            self.publish();
        }
    }

    /// Notes a task that has ended, which watches do not do by themselves: the next look starts it anew.
    fn bury(&mut self, task: Id) {
        let ended =
            |running: &Option<Running>| running.as_ref().is_some_and(|running| running.task.id() == task);
        for (service, watched) in &mut self.services {
            if ended(&watched.running) {
                tracing::error!("the consul watch of `{service}` ended; starting it anew");
                watched.running = None;
            }
        }
        if let Some(tag_watch) = &mut self.tag_watch
            && ended(&tag_watch.running)
        {
            tracing::error!("the consul watch of tagged services ended; starting it anew");
            tag_watch.running = None;
        }
    }

    fn publish(&self) {
        let mut view = View::default();
        for (service, watched) in &self.services {
            if let Some(known) = &watched.known {
                view.endpoints.insert(service.clone(), Arc::clone(&known.endpoints));
                view.members.insert(service.clone(), known.members.clone());
            }
        }
        self.view.send_if_modified(|current| {
            let changed = **current != view;
            if changed {
                *current = Arc::new(view);
            }
            changed
        });
    }
}

/// The instances of a service as a view has them. Where it has only endpoints, they stand for themselves: Consul's
/// first answer brings the instances, and they leave as confirmed as anything else.
fn instances_of(view: &View, service: &ServiceName) -> BTreeMap<Key, Instance> {
    let members = view.members.get(service).into_iter().flatten();
    let members = members.filter(|member| member.source == Source::Consul).map(|member| {
        let Member { endpoint, status, note, .. } = member.clone();
        ((member.node.clone(), member.id.clone()), Instance { endpoint, status, note })
    });
    let list: BTreeMap<Key, Instance> = members.collect();
    if !list.is_empty() {
        return list;
    }
    let endpoints = view.endpoints.get(service).into_iter().flat_map(|list| list.iter().enumerate());
    let nameless = endpoints.map(|(number, endpoint)| {
        let note = "known from before the start".to_owned();
        let instance = Instance { endpoint: endpoint.clone(), status: Status::Passing, note };
        ((String::new(), number.to_string()), instance)
    });
    nameless.collect()
}

/// Asks the agent again and again whether it denies what no rule names.
async fn probe(client: Client, default_deny: watch::Sender<bool>) {
    let mut back_off = BackOff::default();
    loop {
        let pause = match client.agent().await {
            Ok(agent) => {
                default_deny.send_replace(agent.default_deny().unwrap_or(true));
                back_off.reset();
                PROBE_EVERY
            }
            // Where the agent's own page is denied, so may be anything else.
            Err(Error::Forbidden { .. }) => {
                default_deny.send_replace(true);
                PROBE_EVERY
            }
            Err(_) => back_off.next(fastrand::f64()),
        };
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_hangs_is_started_anew() {
        let settings = Settings::at("unix:///nobody/is/there".parse().unwrap());
        let (news, _heard) = mpsc::channel(NEWS_MAX);
        let mut mirror = Mirror::new(settings, news, watch::channel(Arc::default()).0).unwrap();
        let ads = ServiceName::parse("ads").unwrap();
        mirror.asked_for.insert(ads.clone());
        let task = mirror.tasks.spawn(std::future::pending());
        let hanging = Watched { running: Some(Running { number: 0, task }), ..Watched::default() };
        mirror.services.insert(ads.clone(), hanging);
        mirror.contacts.begin(&health_label(&ads));
        let number = |mirror: &Mirror| mirror.services[&ads].running.as_ref().unwrap().number;

        tokio::time::advance(WATCHDOG).await;
        mirror.look_after();
        assert_eq!(number(&mirror), 0, "not yet");
        tokio::time::advance(WATCHDOG_EVERY).await;
        mirror.look_after();
        assert_eq!(number(&mirror), 1);
        assert!(mirror.contacts.stuck(WATCHDOG).is_empty());
        // Failing is a sign of life: the new one goes on and on without being restarted.
        for _ in 0..300 {
            tokio::time::sleep(WATCHDOG_EVERY).await;
            mirror.look_after();
        }
        assert_eq!(number(&mirror), 1);
        let ended = mirror.tasks.join_next().await.unwrap();
        assert!(ended.unwrap_err().is_cancelled(), "the hanging one was ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_panics_is_started_anew() {
        let settings = Settings::at("unix:///nobody/is/there".parse().unwrap());
        let (news, _heard) = mpsc::channel(NEWS_MAX);
        let mut mirror = Mirror::new(settings, news, watch::channel(Arc::default()).0).unwrap();
        let ads = ServiceName::parse("ads").unwrap();
        mirror.asked_for.insert(ads.clone());
        let task = mirror.tasks.spawn(async { panic!("a bug") });
        let running = Some(Running { number: 0, task });
        mirror.services.insert(ads.clone(), Watched { running, ..Watched::default() });
        let ended = mirror.tasks.join_next_with_id().await.unwrap().unwrap_err();
        mirror.bury(ended.id());
        mirror.look_after();
        assert_eq!(mirror.services[&ads].running.as_ref().unwrap().number, 1);
    }
}
