//! REST for operators and proxies: one file a subject, one list of routes, one place for errors.

mod problem;

mod failures;

mod needed;

mod access;

mod named;

mod told;

mod author;

mod breaker;

mod mesh;

mod traffic;

mod rollout;

mod revisions;

mod membership;

mod ack_bounds;

mod proxies;

mod flags;

mod timed;

mod flagd;

mod explain;

mod tokens;

mod identity;

mod process;

mod openapi;

mod overrides;

mod patience;

mod serve;

mod sharding;

mod moves;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{delete, get, post, put};
use gilmok_config::wire::ACK_BYTES_MAX;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::authority::Authority;
use crate::conductor::{Conductor, Guardian, Mover};
use crate::membership::consul::Contacts;
use crate::state::State;

pub use access::Access;
pub use failures::Failures;
pub use openapi::document as openapi_document;
pub use serve::{Patience, serve};

/// Largest body of a request that is no document, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest that `?wait=` waits.
const WAIT_MAX: Duration = Duration::from_mins(5);

/// What the handlers share.
#[derive(Debug)]
pub struct Admin {
    pub state: Arc<State>,
    pub conductor: Arc<Conductor>,
    pub mover: Arc<Mover>,
    pub guardian: Arc<Guardian>,
    pub access: Access,
    /// Absent without `[identity]`.
    pub authority: Option<Arc<Authority>>,
    /// True when the process ends: feeds are ended then.
    pub stop: watch::Receiver<bool>,
    /// Absent without a Consul mirror.
    pub contacts: Option<Contacts>,
    pub metrics: PrometheusHandle,
}

/// Every path of the control plane.
pub fn router(admin: Arc<Admin>) -> Router {
    let documents = Router::new()
        .route("/v1/mesh", get(mesh::read_mesh).put(mesh::put_mesh))
        .route(
            "/v1/services/{service}",
            get(mesh::read_service)
                .put(mesh::put_service)
                .patch(mesh::patch_service)
                .delete(mesh::delete_service),
        )
        .route("/v1/services/{service}/traffic", get(traffic::read).put(traffic::put))
        .route("/v1/flags", get(flags::read_all).put(flags::put_all))
        .route("/v1/flags/{key}", get(flags::read).put(flags::put).patch(flags::patch).delete(flags::delete))
        // What is wanted may be a map.
        .route("/v1/services/{service}/sharding/plan", post(moves::plan))
        .route("/v1/services/{service}/sharding/moves", get(moves::list).post(moves::begin))
        .layer(DefaultBodyLimit::max(gilmok_config::node::DOCUMENT_BYTES_MAX));
    let rest = Router::new()
        .route("/v1/status", get(process::status))
        .route("/v1/services", get(mesh::list_services))
        .route("/v1/services/{service}/sharding", get(sharding::read))
        .route("/v1/services/{service}/sharding/moves/{id}", get(moves::read))
        .route("/v1/services/{service}/sharding/moves/{id}/pause", post(moves::pause))
        .route("/v1/services/{service}/sharding/moves/{id}/resume", post(moves::resume))
        .route("/v1/services/{service}/sharding/moves/{id}/reverse", post(moves::reverse))
        .route("/v1/services/{service}/breaker", put(breaker::force_breaker))
        .route("/v1/services/{service}/switch", post(traffic::switch))
        .route("/v1/services/{service}/rollback", post(traffic::roll_back))
        .route("/v1/rollouts", get(rollout::list))
        .route("/v1/services/{service}/rollout", get(rollout::read).put(rollout::put).delete(rollout::forget))
        .route("/v1/services/{service}/rollout/pause", post(rollout::pause))
        .route("/v1/services/{service}/rollout/resume", post(rollout::resume))
        .route("/v1/services/{service}/rollout/promote", post(rollout::promote))
        .route("/v1/services/{service}/rollout/abort", post(rollout::abort))
        .route("/v1/flags/flagd.json", get(flagd::read))
        .route("/v1/flag-overrides", post(overrides::sign))
        .route("/v1/flags/{key}/kill", post(flags::kill))
        .route("/v1/flags/{key}/unkill", post(flags::unkill))
        .route("/v1/flags/{key}/schedule", get(timed::list).post(timed::put))
        .route("/v1/flags/{key}/schedule/{id}", delete(timed::delete))
        .route("/v1/flags/{key}/explain", get(flags::explain_by_query).post(flags::explain_by_body))
        .route("/v1/identity", get(identity::read))
        .route("/v1/identity/certificates", post(identity::certificate))
        .route("/v1/identity/roots", get(identity::roots))
        .route("/v1/identity/roots/rotate", post(identity::rotate))
        .route("/v1/membership", get(membership::list))
        .route("/v1/membership/{service}", get(membership::read))
        .route("/v1/membership/{service}/{id}", put(membership::register).delete(membership::deregister))
        .route("/v1/revisions", get(revisions::list))
        .route("/v1/revisions/{number}", get(revisions::read))
        .route("/v1/revisions/{number}/restore", post(revisions::restore))
        .route("/v1/audit", get(revisions::audit))
        .route("/v1/backup", get(revisions::backup))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/audit", get(tokens::audit))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/v1/proxies", get(proxies::list))
        .route("/v1/explain", get(explain::by_query).post(explain::by_body))
        .route("/v1/feed", get(proxies::feed))
        .route("/v1/feed/acks", post(proxies::ack).layer(DefaultBodyLimit::max(ACK_BYTES_MAX)))
        .route("/livez", get(process::alive))
        .route("/readyz", get(process::ready))
        .route("/metrics", get(process::metrics))
        .route("/openapi.json", get(openapi::serve))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    documents
        .merge(rest)
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), access::check))
        .with_state(admin)
}

#[cfg(test)]
mod tests;
