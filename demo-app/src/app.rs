//! What the app does with one request: follow an order, misbehave if it was told to, or answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;

use crate::arguments::Arguments;
use crate::behaviour::{Behaviour, Mode, Order};
use crate::identity::{introduce, wants_html};
use crate::page::page;
use crate::shop;

/// Longest that a hanging request is held: whoever still waits then has no limit of its own.
const HANG_MAX: Duration = Duration::from_mins(30);

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// One running app.
#[derive(Debug)]
pub(crate) struct App {
    arguments: Arguments,
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
        Arc::new(Self { arguments, behaviour: watch::Sender::default(), dying: watch::Sender::new(false) })
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
        if let Some(status) = self.misbehave(is_health).await {
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
    async fn misbehave(&self, is_health: bool) -> Option<StatusCode> {
        let behaviour = *self.behaviour.borrow();
        if is_health && !behaviour.health_follows {
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

    async fn show(&self, request: Request<Incoming>) -> Response<Body> {
        // The body belongs to nobody; it is dropped, and hyper closes the connection if much of it is left.
        let (head, _) = request.into_parts();
        let mut said = introduce(&self.arguments, &head);
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
