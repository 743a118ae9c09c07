//! What the app does with one request: follow an order, misbehave if it was told to, or answer.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;

use crate::arguments::Arguments;
use crate::behaviour::{Behaviour, Mode, Order};
use crate::copies::Copies;
use crate::features;
use crate::identity::{introduce, wants_html};
use crate::page::page;
use crate::shop;
use crate::visits::{self, Visits};

/// Longest that a hanging request is held: whoever still waits then has no limit of its own.
const HANG_MAX: Duration = Duration::from_mins(30);

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// Most of a request's body that is read, where one is.
const BODY_BYTES_MAX: usize = 4 << 20;

/// One running app.
#[derive(Debug)]
pub(crate) struct App {
    arguments: Arguments,
    /// What `profile` remembers. A mutex: held for a look-up, never while something is waited for.
    visits: Mutex<Visits>,
    copies: Copies,
    /// A watch, so that what hangs goes on when the app is told to be well again.
    behaviour: watch::Sender<Behaviour>,
    dying: watch::Sender<bool>,
}

/// The house's own picture, shown where there is no advertisement.
const HOUSE_AD: &str = "/house-ad.svg";
const HOUSE_AD_SVG: &str = concat!(
    "<svg xmlns='http://www.w3.org/2000/svg' width='320' height='60'><rect width='320' height='60' rx='8' fill='#246'/>",
    "<text x='160' y='37' fill='#fff' font-family='sans-serif' font-size='18' text-anchor='middle'>",
    "Our own shop, since ever</text></svg>\n"
);

impl App {
    pub(crate) fn new(arguments: Arguments) -> Arc<Self> {
        let copies = Copies::new(arguments.copy_to.clone());
        Arc::new(Self {
            arguments,
            visits: Mutex::default(),
            copies,
            behaviour: watch::Sender::default(),
            dying: watch::Sender::new(false),
        })
    }

    /// Whether it was told to die.
    pub(crate) fn dying(&self) -> watch::Receiver<bool> {
        self.dying.subscribe()
    }

    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        if let Some(word) = path.strip_prefix("/control/") {
            return Ok(self.follow(request.method(), word, request.uri().query().unwrap_or_default()));
        }
        let is_health = path == "/healthz";
        if let Some(status) = self.misbehave(is_health, request.headers()).await {
            let Arguments { service, version, .. } = &self.arguments;
            let said = json!({"service": service, "version": version, "failed": "it was told to fail"});
            return Ok(respond(status, "application/json", format!("{said}\n")));
        }
        if is_health {
            let Arguments { service, version, .. } = &self.arguments;
            return Ok(respond(StatusCode::OK, "text/plain", format!("{service} {version} is well\n")));
        }
        if path == HOUSE_AD {
            return Ok(respond(StatusCode::OK, "image/svg+xml", HOUSE_AD_SVG));
        }
        if path == "/echo" {
            return Ok(echo(request));
        }
        if self.arguments.service == visits::SERVICE {
            match path {
                "/visits" => return Ok(self.hand_over(request).await),
                "/moves" => return Ok(self.copy(request).await),
                _ => {}
            }
        }
        Ok(self.show(request).await)
    }

    fn follow(&self, method: &Method, word: &str, query: &str) -> Response<Body> {
        if method != Method::POST {
            return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "orders are given by POST\n");
        }
        match Order::read(word, query) {
            Ok(Order::Behave(behaviour)) => {
                self.behaviour.send_replace(behaviour);
                let said = json!({"service": self.arguments.service, "told": word});
                respond(StatusCode::OK, "application/json", format!("{said}\n"))
            }
            Ok(Order::Die) => {
                self.dying.send_replace(true);
                let said = json!({"service": self.arguments.service, "told": word});
                respond(StatusCode::ACCEPTED, "application/json", format!("{said}\n"))
            }
            Err(misunderstood) => {
                respond(StatusCode::BAD_REQUEST, "text/plain", format!("{}\n", misunderstood.0))
            }
        }
    }

    /// Is slow, hangs or fails as told; the status to fail with.
    async fn misbehave(&self, is_health: bool, headers: &HeaderMap) -> Option<StatusCode> {
        let behaviour = self.behaviour.borrow().clone();
        let is_meant = behaviour.flag.is_none_or(|flag| features::is_on(headers, &flag));
        if !is_meant || is_health && !behaviour.health_follows {
            return None;
        }
        match behaviour.mode {
            Mode::Ok => None,
            Mode::Slow(time) => {
                tokio::time::sleep(time).await;
                None
            }
            Mode::Fail { percent, status } => (fastrand::u8(0..100) < percent).then_some(status),
            Mode::Hang => {
                let mut told = self.behaviour.subscribe();
                let released = told.wait_for(|behaviour| behaviour.mode != Mode::Hang);
                drop(tokio::time::timeout(HANG_MAX, released).await);
                None
            }
        }
    }

    /// Copies what moves, as the message in the body says.
    async fn copy(&self, request: Request<Incoming>) -> Response<Body> {
        let message = match body_of(request).await {
            Ok(message) => message,
            Err(refused) => return refused,
        };
        match self.copies.follow(&message).await {
            Ok(()) => respond(StatusCode::OK, "text/plain", "done\n"),
            Err(error) => respond(StatusCode::BAD_GATEWAY, "text/plain", format!("{error:#}\n")),
        }
    }

    /// Gives what is known of the users of a part, or takes it.
    async fn hand_over(&self, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let body = match body_of(request).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let misunderstood =
            |error: serde_json::Error| respond(StatusCode::BAD_REQUEST, "text/plain", format!("{error}\n"));
        match method {
            Method::POST => match serde_json::from_slice(&body) {
                Ok(part) => {
                    let held = json!(self.visits().within(&part));
                    respond(StatusCode::OK, "application/json", format!("{held}\n"))
                }
                Err(error) => misunderstood(error),
            },
            Method::PUT => match serde_json::from_slice(&body).map(|given| self.visits().replace(given)) {
                Ok(Ok(())) => respond(StatusCode::OK, "text/plain", "done\n"),
                Ok(Err(visits::Full)) => full(),
                Err(error) => misunderstood(error),
            },
            _ => respond(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain",
                "POST a part, or PUT one with its visits\n",
            ),
        }
    }

    fn visits(&self) -> MutexGuard<'_, Visits> {
        // Whoever panicked left it whole: each change is one step.
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn show(&self, request: Request<Incoming>) -> Response<Body> {
        // The body belongs to nobody; it is dropped, and hyper closes the connection if much of it is left.
        let (head, _) = request.into_parts();
        let mut said = introduce(&self.arguments, &head);
        let user = visits::user_of(head.uri.path()).filter(|_| self.arguments.service == visits::SERVICE);
        if let Some(user) = user {
            let counted = if head.method == Method::POST {
                self.visits().add(user)
            } else {
                Ok(self.visits().of(user))
            };
            match counted {
                Ok(visits) => said.insert("visits".to_owned(), json!(visits)),
                Err(visits::Full) => return full(),
            };
        }
        if self.arguments.service == shop::SERVICE
            && let Some(ofrep) = &self.arguments.flags
        {
            said.insert("features".to_owned(), features::ask(ofrep, shop::user(&head.headers)).await);
        }
        if self.arguments.service == shop::SERVICE && head.uri.path() == "/" {
            shop::add_parts(&mut said, &self.arguments.mesh, &head).await;
        }
        if wants_html(&head) {
            return respond(StatusCode::OK, "text/html; charset=utf-8", page(&said));
        }
        let text = serde_json::to_string_pretty(&said).unwrap_or_default();
        respond(StatusCode::OK, "application/json", format!("{text}\n"))
    }
}

async fn body_of(request: Request<Incoming>) -> Result<Bytes, Response<Body>> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let refused = |_| respond(StatusCode::BAD_REQUEST, "text/plain", "the body is too long or broken\n");
    body.map(http_body_util::Collected::to_bytes).map_err(refused)
}

fn full() -> Response<Body> {
    respond(StatusCode::INSUFFICIENT_STORAGE, "text/plain", "it remembers no more users\n")
}

/// Gives back what comes, as it comes.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(body.boxed());
    if let Some(kind) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
