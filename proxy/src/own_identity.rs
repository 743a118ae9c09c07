//! Who this process is in the mesh: from files that are followed, or from a control plane.

use std::sync::Arc;

use gilmok_config::name::ServiceName;
use gilmok_config::wire::IdentityReport;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::current::InForce;
use crate::enrolment::{self, Enrolment};
use crate::settings::{Settings, Source};
use crate::tls::{Follower, IdentitySettings, Mesh};

/// Finds out who this process is and keeps it so: from files, or from a control plane. Answers the service that it is, and how
/// it stands with what a control plane gives.
pub(crate) fn start(
    settings: &Settings,
    follower: Follower,
    mesh: Option<Arc<Mesh>>,
    in_force: &Arc<InForce>,
    reports: &watch::Sender<Option<IdentityReport>>,
    tasks: &mut JoinSet<()>,
) -> (Option<ServiceName>, Option<Arc<enrolment::Status>>) {
    let tls = Arc::clone(follower.tls());
    let mut own = mesh.as_ref().map(|mesh| mesh.identity.service.clone());
    if let Some(mesh) = mesh {
        in_force.put_identity(mesh);
    }
    let renewing = Arc::clone(in_force);
    tasks.spawn(follower.follow(move |mesh| renewing.put_identity(mesh)));
    let Some(IdentitySettings::Issued(issued)) = &settings.tls.identity else { return (own, None) };
    let Source::ControlPlanes { servers, token_file } = &settings.source else { return (own, None) };
    let around = enrolment::Around {
        servers: servers.clone(),
        token_file: token_file.clone(),
        state_dir: settings.state_dir.clone(),
        node: settings.node.clone(),
        calls: settings.tls.outbound_mode,
        tls,
        in_force: Arc::clone(in_force),
        reports: reports.clone(),
    };
    let enrolment = Enrolment::start(issued, around);
    let status = enrolment.status();
    tasks.spawn(enrolment.keep());
    own = Some(issued.service.clone());
    (own, Some(status))
}
