//! Who is where in the demo's mesh: machines, proxies, apps and their ports, all on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::bail;

/// One machine of the demo: a proxy and the apps beside it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Also the proxy's `node`.
    pub(crate) name: &'static str,
    /// The one service beside it, whose identity it has, where the mesh is encrypted.
    pub(crate) identity: Option<&'static str>,
    pub(crate) outbound: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Where its apps ask for flags.
    pub(crate) ofrep: SocketAddr,
}

/// One app.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) name: &'static str,
    pub(crate) service: &'static str,
    pub(crate) version: &'static str,
    pub(crate) shard: &'static str,
    /// Place of its machine in [`Layout::machines`].
    pub(crate) machine: usize,
    /// Where the app itself listens.
    pub(crate) address: SocketAddr,
    /// Where callers reach it, through the proxy beside it.
    pub(crate) inbound: SocketAddr,
    /// Whether the mesh begins without it.
    pub(crate) later: bool,
}

/// The whole mesh.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) control_plane: SocketAddr,
    pub(crate) machines: Vec<Machine>,
    pub(crate) apps: Vec<App>,
    /// How far the ports lie above the usual ones.
    pub(crate) shift: u16,
    /// Tells other demos that these ports are taken, also while their own listeners come and go.
    _claim: TcpListener,
}

pub(crate) const CONTROL_PLANE: &str = "control-plane";
const MACHINES: [&str; 3] = ["web-1", "app-1", "app-2"];
/// name, service. A sidecar has one identity, so each service has sidecars of its own, in containers beside its apps:
/// each stands for the parts of the machines above that have apps of its service.
const SIDECARS: [(&str, &str); 7] = [
    ("web-1", "shop"),
    ("app-1-ads", "ads"),
    ("app-2-ads", "ads"),
    ("app-1-checkout", "checkout"),
    ("app-2-checkout", "checkout"),
    ("app-1-profile", "profile"),
    ("app-2-profile", "profile"),
];
/// name, service, version, shard, machine
const APPS: [(&str, &str, &str, &str, usize); 14] = [
    ("shop", "shop", "v1", "", 0),
    ("ads-1", "ads", "v1", "", 1),
    ("ads-2", "ads", "v1", "", 2),
    ("checkout-v1", "checkout", "v1", "", 1),
    ("checkout-v2", "checkout", "v2", "", 2),
    ("profile-0", "profile", "v1", "0", 1),
    ("profile-1", "profile", "v1", "1", 2),
    ("checkout-v3", "checkout", "v3", "", 1),
    ("profile-2", "profile", "v1", "2", 1),
    ("profile-3", "profile", "v1", "3", 2),
    ("profile-4", "profile", "v1", "4", 1),
    ("profile-5", "profile", "v1", "5", 2),
    ("profile-6", "profile", "v1", "6", 1),
    ("profile-7", "profile", "v1", "7", 2),
];
/// Those that start when `profile` grows.
const LATER: [&str; 4] = ["profile-4", "profile-5", "profile-6", "profile-7"];

const CLAIM_PORT: u16 = 7069;
const CONTROL_PLANE_PORT: u16 = 7070;
/// Of the first machine; each further one lies 100 higher.
const PROXY_PORT: u16 = 15_000;
const APP_PORT: u16 = 9_101;
/// Where ports are in use, all of them are tried so much higher, up to so often. Below the range from which
/// systems give out free ports, so that no connection is in the way when a child is started again.
const SHIFT: u16 = 700;
const SHIFTS_MAX: u16 = 8;

impl Layout {
    /// The usual ports, or the next ones where all are free. Where the mesh is `encrypted`, each proxy has an identity.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn choose(encrypted: bool) -> anyhow::Result<Self> {
        for shift in (0..SHIFTS_MAX).map(|times| times * SHIFT) {
            let Ok(claim) = TcpListener::bind(local(CLAIM_PORT + shift)) else { continue };
            let layout = Self::shifted(shift, encrypted, claim);
            // A listener that accepted nothing is gone at once when it is closed.
            if layout.addresses().all(|address| TcpListener::bind(address).is_ok()) {
                return Ok(layout);
            }
        }
        let first = local(CLAIM_PORT);
        bail!("found no free ports from {first} upwards; are many demos running?")
    }

    fn shifted(shift: u16, encrypted: bool, claim: TcpListener) -> Self {
        let port = |machine: usize, port: u16| {
            let hundreds = u16::try_from(machine * 100).unwrap_or_default();
            local(PROXY_PORT + hundreds + port + shift)
        };
        let names: Vec<_> = if encrypted {
            SIDECARS.iter().map(|(name, service)| (*name, Some(*service))).collect()
        } else {
            MACHINES.iter().map(|name| (*name, None)).collect()
        };
        let place = |service: &str, machine: usize| {
            let of_service = |(name, own): &(&str, Option<&str>)| {
                name.starts_with(MACHINES[machine]) && own.is_none_or(|own| own == service)
            };
            names.iter().position(of_service).unwrap_or(machine)
        };
        let machines = names.iter().enumerate().map(|(index, (name, identity))| Machine {
            name,
            identity: *identity,
            outbound: port(index, 1),
            admin: port(index, 0),
            ofrep: port(index, 2),
        });
        let apps = (0_u16..).zip(APPS).map(|(index, (name, service, version, shard, machine))| {
            let machine = place(service, machine);
            App {
                name,
                service,
                version,
                shard,
                machine,
                address: local(APP_PORT + index + shift),
                inbound: port(machine, 6 + index),
                later: LATER.contains(&name),
            }
        });
        Self {
            control_plane: local(CONTROL_PLANE_PORT + shift),
            machines: machines.collect(),
            apps: apps.collect(),
            shift,
            _claim: claim,
        }
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let machines =
            self.machines.iter().flat_map(|machine| [machine.outbound, machine.admin, machine.ofrep]);
        let apps = self.apps.iter().flat_map(|app| [app.address, app.inbound]);
        std::iter::once(self.control_plane).chain(machines).chain(apps)
    }

    /// Whether every proxy has an identity.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.machines.iter().all(|machine| machine.identity.is_some())
    }

    /// The apps beside one proxy.
    pub(crate) fn apps_on(&self, machine: usize) -> impl Iterator<Item = &App> {
        self.apps.iter().filter(move |app| app.machine == machine)
    }

    /// The app of this name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn app(&self, name: &str) -> anyhow::Result<&App> {
        let app = self.apps.iter().find(|app| app.name == name);
        app.ok_or_else(|| anyhow::anyhow!("there is no app `{name}` in the demo"))
    }
}

/// What the process of a machine's proxy is called.
pub(crate) fn proxy_of(machine: &Machine) -> String {
    format!("proxy-{}", machine.name)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn shifted(shift: u16, encrypted: bool) -> Layout {
        Layout::shifted(shift, encrypted, TcpListener::bind(local(0)).unwrap())
    }

    #[test]
    fn every_port_is_used_once_however_far_it_is_shifted() {
        for encrypted in [false, true] {
            let mut seen = BTreeSet::new();
            for shift in (0..SHIFTS_MAX).map(|times| times * SHIFT) {
                let layout = shifted(shift, encrypted);
                for address in layout.addresses().chain([local(CLAIM_PORT + shift)]) {
                    assert!(seen.insert(address.port()), "{address} twice, the second time with {shift}");
                    assert!(address.port() < 32_768);
                }
            }
        }
    }

    #[test]
    fn an_encrypted_mesh_has_one_service_beside_each_proxy() {
        let layout = shifted(0, true);
        for (index, machine) in layout.machines.iter().enumerate() {
            let services: BTreeSet<_> = layout.apps_on(index).map(|app| Some(app.service)).collect();
            assert_eq!(services, BTreeSet::from([machine.identity]), "{}", machine.name);
        }
        for (app, (name, .., machine)) in layout.apps.iter().zip(APPS) {
            assert_eq!(app.name, name);
            assert!(layout.machines[app.machine].name.starts_with(MACHINES[machine]), "{name}");
        }
    }
}
