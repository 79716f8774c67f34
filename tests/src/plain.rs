//! The smallest HTTP call in clear: `GET` to an admin listener, for readiness and metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

/// Longest wait for a connection, and for each read.
const PATIENCE: Duration = Duration::from_secs(3);

/// `GET path`: the status and the body.
///
/// # Errors
/// Nobody listens, nothing comes, or it is no HTTP.
pub fn fetch(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// As [`fetch`], but anything else than 200 is an error that carries the body.
///
/// # Errors
/// As [`fetch`], or another status.
pub fn expect_ok(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let (status, body) = fetch(address, path)?;
    anyhow::ensure!(status == 200, "{address}{path}: {status}: {}", body.trim());
    Ok(body)
}

/// The sum of all samples of one Prometheus metric, whatever its labels; 0 where there are none.
///
/// # Errors
/// As [`expect_ok`].
pub fn metric(address: SocketAddr, name: &str) -> anyhow::Result<f64> {
    let text = expect_ok(address, "/metrics")?;
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    Ok(samples.sum())
}
