//! Free TCP ports on loopback, which stay whose they are until the process ends: also while the
//! program on them is down, and with other test processes beside it. Knows how they are kept apart, not
//! who listens on them. Every server that is started, or started again, on a port that others are told
//! of has it from here; the unit tests of other packages take this file in as theirs.
//!
//! They lie outside the kernel's ephemeral range, so that no outgoing connection gets one, and in blocks
//! that a process locks in `/tmp`: a port on which nothing listens may still be somebody's.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// Between these, as far as they are no ephemeral ones.
const ALL: Range<u16> = 11_000..61_000;
/// So many are locked at once.
const BLOCK: u16 = 50;

/// The blocks of this process.
static OURS: Mutex<Ours> = Mutex::new(Ours { locks: Vec::new(), next: 0, end: 0 });

struct Ours {
    /// Held until the process ends; its children do not get them.
    locks: Vec<File>,
    next: u16,
    end: u16,
}

/// A port of 127.0.0.1 on which nothing listens, and which nobody else gets while this process lives.
///
/// # Errors
/// Everything is taken.
pub fn free() -> anyhow::Result<SocketAddr> {
    free_on(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// As [`free`], on another of this host's addresses.
///
/// # Errors
/// Everything is taken, or the host has no such address.
pub fn free_on(address: IpAddr) -> anyhow::Result<SocketAddr> {
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if ours.next == ours.end {
            ours.take_block().with_context(|| format!("{address}: no free port"))?;
        }
        let candidate = SocketAddr::new(address, ours.next);
        ours.next += 1;
        // It may be somebody's who does not ask here.
        if TcpListener::bind(candidate).is_ok() {
            return Ok(candidate);
        }
    }
}

impl Ours {
    /// Locks one more block.
    fn take_block(&mut self) -> anyhow::Result<()> {
        let ephemeral = ephemeral()?;
        let blocks = ALL.step_by(usize::from(BLOCK)).map(|first| first..first + BLOCK);
        let mut fit = blocks.filter(|block| block.end <= ephemeral.start || ephemeral.end <= block.start);
        let (block, lock) = fit
            .find_map(|block| Some((block.clone(), locked(block.start)?)))
            .context("all blocks of ports are other processes', or ephemeral")?;
        self.locks.push(lock);
        (self.next, self.end) = (block.start, block.end);
        Ok(())
    }
}

/// The lock on a block, unless it is somebody's, perhaps another user's.
fn locked(first: u16) -> Option<File> {
    let file = format!("/tmp/test-ports-{first}.lock");
    let file = File::options().append(true).create(true).open(file).ok()?;
    // The lock is the open file's: another descriptor of this process does not get it either.
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// The ports that the kernel gives to outgoing connections.
fn ephemeral() -> anyhow::Result<Range<u16>> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(FILE).context(FILE)?;
    let mut bounds = text.split_ascii_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..last.saturating_add(1)),
        _ => anyhow::bail!("{FILE}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_ephemeral_or_given_twice_nor_any_of_its_block_to_another_process() {
        let ephemeral = ephemeral().unwrap();
        let mut given = std::collections::BTreeSet::new();
        for _ in 0..3 * BLOCK {
            let port = free().unwrap().port();
            assert!(!ephemeral.contains(&port), "{port}");
            assert!(given.insert(port), "{port}");
            // Another process opens the file anew, as this does.
            assert!(locked(port - (port - ALL.start) % BLOCK).is_none(), "{port}");
        }
    }
}
