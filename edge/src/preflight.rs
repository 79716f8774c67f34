//! What would fail if edge started now. Knows the settings of every room; opens what they would
//! open and gives it back at once.

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::listen::socket;
use crate::log_watch::ban_store::BanStore;
use crate::tls::Certificates;
use crate::{admin, gateway, log_watch};

/// One sentence for each fault; empty where edge would start.
#[must_use]
pub fn check(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(error) = Certificates::load(&config.certificates) {
        faults.push(error.to_string());
    }
    for address in config.listen.https.iter().chain(&config.listen.http) {
        if let Err(error) = socket::probe(*address) {
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
        let patterns = log_watch::faults(&config.bans);
        faults.extend(patterns.iter().flat_map(|found| &found.0).map(ToString::to_string));
        faults.extend(BanStore::fault(&config.bans.store).map(|error| error.to_string()));
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
