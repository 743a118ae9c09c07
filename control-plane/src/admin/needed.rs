//! What each request needs: the one table from paths to scopes. A path that is not in it is for administrators.

use axum::http::Method;

use crate::tokens::Scope;

/// What a request to this path, as the router names it, needs. `None`: to be let in at all, whatever for.
pub(super) fn needed(method: &Method, path: &str) -> Option<Scope> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    Some(match path {
        "/livez" | "/readyz" | "/openapi.json" => return None,
        // Whose certificate it is stands in the body: it is decided there. Roots are no secret.
        "/v1/identity/certificates" | "/v1/identity/roots" => return None,
        // The keys of visitors' cookies are in both.
        "/v1/backup" => Scope::Admin,
        "/v1/feed" | "/v1/feed/acks" => Scope::Proxy,
        "/v1/tokens" | "/v1/tokens/audit" | "/v1/tokens/{id}" => Scope::Admin,
        "/v1/membership/{service}/{id}" => Scope::Proxy,
        // They change nothing; the body is too long for a query.
        "/v1/explain" | "/v1/flags/{key}/explain" | "/v1/services/{service}/sharding/plan" => Scope::Read,
        "/metrics"
        | "/v1/audit"
        | "/v1/flags"
        | "/v1/flags/flagd.json"
        | "/v1/flags/{key}"
        | "/v1/flags/{key}/schedule"
        | "/v1/identity"
        | "/v1/membership"
        | "/v1/membership/{service}"
        | "/v1/mesh"
        | "/v1/proxies"
        | "/v1/revisions"
        | "/v1/revisions/{number}"
        | "/v1/rollouts"
        | "/v1/services"
        | "/v1/services/{service}"
        | "/v1/services/{service}/rollout"
        | "/v1/services/{service}/sharding"
        | "/v1/services/{service}/sharding/moves"
        | "/v1/services/{service}/sharding/moves/{id}"
        | "/v1/services/{service}/traffic"
        | "/v1/status"
            if reads =>
        {
            Scope::Read
        }
        "/v1/flag-overrides"
        | "/v1/flags"
        | "/v1/flags/{key}"
        | "/v1/flags/{key}/kill"
        | "/v1/flags/{key}/schedule"
        | "/v1/flags/{key}/schedule/{id}"
        | "/v1/flags/{key}/unkill" => Scope::Flags,
        "/v1/services/{service}/breaker"
        | "/v1/services/{service}/rollback"
        | "/v1/services/{service}/rollout"
        | "/v1/services/{service}/rollout/abort"
        | "/v1/services/{service}/rollout/pause"
        | "/v1/services/{service}/rollout/promote"
        | "/v1/services/{service}/rollout/resume"
        | "/v1/services/{service}/sharding/moves"
        | "/v1/services/{service}/sharding/moves/{id}/pause"
        | "/v1/services/{service}/sharding/moves/{id}/resume"
        | "/v1/services/{service}/sharding/moves/{id}/reverse"
        | "/v1/services/{service}/switch"
        | "/v1/services/{service}/traffic" => Scope::Traffic,
        _ => Scope::Admin,
    })
}
