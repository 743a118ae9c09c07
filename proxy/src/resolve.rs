//! Resolving the names of endpoints again and again; a failure keeps what was known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};

use crate::current::{InForce, Resolved};

/// How often names are resolved again. The system's resolver keeps times to live; this only asks it.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long one name may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most addresses of one name.
const ADDRESSES_MAX: usize = 256;

/// Keeps the addresses of every endpoint's name up to date. Runs on the support runtime and ends with it.
pub(crate) async fn run(in_force: Arc<InForce>) {
    let mut generations = in_force.generations();
    let mut known = Resolved::new();
    loop {
        generations.mark_unchanged();
        let names = in_force.names();
        // What nobody names any more is forgotten.
        known.retain(|name, _| names.binary_search(name).is_ok());
        for name in names {
            if let Some(addresses) = resolve(&name.0, name.1).await {
                known.insert(name, addresses);
            }
        }
        in_force.put_resolved(known.clone());
        tokio::select! {
            () = sleep(INTERVAL) => {}
            // New names are resolved at once.
            changed = generations.changed() => if changed.is_err() { return },
        }
    }
}

async fn resolve(host: &Arc<str>, port: u16) -> Option<Arc<[SocketAddr]>> {
    let found = timeout(TIMEOUT, lookup_host((&**host, port))).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!("cannot resolve {host}: {error}; keeping what is known");
            return None;
        }
        Err(_) => {
            tracing::warn!("cannot resolve {host} within {TIMEOUT:?}; keeping what is known");
            return None;
        }
    };
    let mut addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() { None } else { Some(addresses.into()) }
}
