//! The interface as a document, made from the handlers themselves.

use axum::Json;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi as _};

use super::{
    author, breaker, explain, flagd, flags, identity, membership, mesh, moves, overrides, problem, process,
    proxies, revisions, rollout, sharding, timed, tokens, traffic,
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Gilmok control plane",
        description = "What operators and proxies ask and tell the control plane."
    ),
    paths(
        process::status,
        mesh::read_mesh,
        mesh::put_mesh,
        mesh::list_services,
        mesh::read_service,
        mesh::put_service,
        mesh::patch_service,
        mesh::delete_service,
        breaker::force_breaker,
        flags::read_all,
        flags::put_all,
        flagd::read,
        overrides::sign,
        flags::read,
        flags::put,
        flags::patch,
        flags::delete,
        flags::kill,
        flags::unkill,
        flags::explain_by_query,
        flags::explain_by_body,
        timed::list,
        timed::put,
        timed::delete,
        sharding::read,
        moves::plan,
        moves::list,
        moves::begin,
        moves::read,
        moves::pause,
        moves::resume,
        moves::reverse,
        traffic::read,
        traffic::put,
        traffic::switch,
        traffic::roll_back,
        rollout::list,
        rollout::read,
        rollout::put,
        rollout::forget,
        rollout::pause,
        rollout::resume,
        rollout::promote,
        rollout::abort,
        identity::read,
        identity::certificate,
        identity::roots,
        identity::rotate,
        membership::list,
        membership::read,
        membership::register,
        membership::deregister,
        revisions::list,
        revisions::read,
        revisions::restore,
        revisions::audit,
        revisions::backup,
        tokens::list,
        tokens::create,
        tokens::revoke,
        tokens::audit,
        proxies::list,
        explain::by_query,
        explain::by_body,
        proxies::feed,
        proxies::ack,
        process::alive,
        process::ready,
        process::metrics,
        serve,
    ),
    components(schemas(problem::Problem, author::Done, explain::Asked)),
    modifiers(&Token),
    security((), ("token" = []))
)]
struct Interface;

/// What callers from other machines show.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> OpenApi {
    Interface::openapi()
}

#[utoipa::path(get, path = "/openapi.json", tag = "process", summary = "This document",
    responses((status = 200, body = Object)))]
pub(super) async fn serve() -> Json<OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

    #[test]
    fn the_document_that_is_checked_in_is_current() {
        let made = document().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("GILMOK_REGENERATE").is_some() {
            std::fs::write(CHECKED_IN, &made).unwrap();
        }
        let kept = std::fs::read_to_string(CHECKED_IN).unwrap_or_default();
        assert!(
            kept == made,
            "docs/openapi.json is not what the handlers say; \
             make it anew: GILMOK_REGENERATE=1 cargo test -p gilmok-control-plane openapi"
        );
    }
}
