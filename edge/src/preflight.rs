//! What would fail if edge started now. Knows the settings of every room; opens what they would
//! open and gives it back at once.

use std::path::Path;

use crate::config::Config;
use crate::gateway;
use crate::listen::socket;
use crate::tls::Certificates;

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
    if let Err(error) = std::net::TcpListener::bind(config.admin) {
        faults.push(format!(
            "admin: {}: cannot be bound: {error}; free the port or change admin.listen",
            config.admin
        ));
    }
    for route in &config.routes {
        if !config.upstreams.iter().any(|upstream| upstream.name == route.upstream) {
            faults.push(format!(
                "route {}: upstream {:?} is not there; write an [[upstream]] of that name",
                route.path_prefix, route.upstream
            ));
        }
    }
    folder(&mut faults, "admin.control_socket", &config.control_socket);
    if let Some(file) = &config.access_log.file {
        folder(&mut faults, "access_log.file", file);
    }
    if let Some(gateway) = &config.gateway {
        check_gateway(&mut faults, gateway);
    }
    faults
}

fn check_gateway(faults: &mut Vec<String>, settings: &gateway::Settings) {
    if let Err(error) = shared::tls::client(&settings.tls, &[b"http/1.1"]) {
        faults.push(format!("gateway: {error}; enrol this edge with a token of `vault pki token`"));
    }
    if let gateway::Address::Unix(path) = &settings.listen {
        folder(faults, "gateway.listen", path);
    }
    if let Some(file) = &settings.tokens_file
        && let Err(error) = std::fs::File::open(file)
    {
        faults.push(format!("gateway.tokens_file: {}: {error}; write one name:token a line", file.display()));
    }
}

fn folder(faults: &mut Vec<String>, key: &str, file: &Path) {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        faults.push(format!(
            "{key}: the folder {} is not there; create it, writable for edge's user",
            parent.display()
        ));
    }
}
