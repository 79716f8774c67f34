//! What would fail if edge started now. Knows the settings of every room; opens what they would
//! open and gives it back at once.

use std::path::Path;

use shared::config::Fault;

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::listen::socket;
use crate::log_watch::ban_store::BanStore;
use crate::tls::Certificates;
use crate::{admin, gateway, log_watch};

/// Each fault with its place; those of the host are `file`'s as a whole. Empty where edge would start.
#[must_use]
pub fn check(file: &Path, config: &Config) -> Vec<Fault> {
    let of_the_file = |what| Fault { file: file.to_owned(), line: 0, column: 0, what };
    let patterns = if config.bans.enabled { log_watch::faults(&config.bans) } else { None };
    let patterns = patterns.into_iter().flat_map(|found| found.0);
    patterns.chain(of_the_host(config).into_iter().map(of_the_file)).collect()
}

/// One sentence for each fault.
fn of_the_host(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(error) = Certificates::load(&config.certificates) {
        faults.push(error.to_string());
    }
    for listener in &config.listen.listeners {
        if let Err(error) = socket::probe(listener.address) {
            faults.push(error.to_string());
        }
    }
    for route in &config.routes {
        if !config.upstreams.iter().any(|upstream| upstream.name == route.upstream) {
            faults.push(format!(
                "route {}: upstream {:?} is not there; write an [[upstream]] of that name",
                route.path_prefix, route.upstream
            ));
        }
    }
    if config.bans.enabled {
        faults.extend(BanStore::fault(&config.bans.store).map(|error| error.to_string()));
        faults.extend(config.bans.firewall.fault());
    }
    faults.extend(AccessLog::fault(&config.access_log).map(|error| error.to_string()));
    if let Some(gateway) = &config.gateway
        && let Err(error) = shared::tls::client(&gateway.tls, &[b"http/1.1"])
    {
        faults.push(format!("gateway: {error}; enrol this edge with a token of `vault pki token`"));
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => faults.extend(runtime.block_on(doors(config))),
        Err(error) => {
            faults.push(format!("the runtime cannot be started: {error}; raise the limits of this user"));
        }
    }
    faults
}

/// The sockets of operators and handlers.
async fn doors(config: &Config) -> Vec<String> {
    let admin = admin::faults(config.admin, &config.control_socket).await;
    let mut faults: Vec<String> = admin.iter().map(ToString::to_string).collect();
    if let Some(settings) = &config.gateway {
        faults.extend(gateway::faults(settings).await.iter().map(ToString::to_string));
    }
    faults
}
