//! What the limit of requests in flight costs: a million clients have one request each in flight,
//! and for every one that ends another client's begins. Knows the limit alone; must not know what
//! figure is made of its times.
//!
//! Clients come in random order and none twice before all have come, so that each step finds its
//! client's count in memory and not in a processor's cache. Prints one line a round,
//! `nanoseconds<TAB>VALUE`: of processor time for one request, admitted and ended; and
//! `bytes<TAB>VALUE`: what one client in flight holds.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::Context;
use clap::Parser;
use edge::admission::{InFlight, Permit};
use edge::client::{Client, ClientKey};

/// As in edge itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times the limit of requests in flight.
#[derive(Parser)]
struct Arguments {
    /// Clients with a request in flight.
    #[arg(long, default_value_t = 1_000_000)]
    clients: u32,
    /// Rounds, each of as many requests as there are clients.
    #[arg(long, default_value_t = 9)]
    rounds: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let all = shuffled(arguments.clients.checked_mul(2).context("at most 2147483647 clients")?);
    let mut coming = all.iter().copied().cycle();
    let limit = InFlight::new(50);
    let mut held: VecDeque<Permit> = VecDeque::with_capacity(all.len());
    let before = resident()?;
    for _ in 0..arguments.clients {
        held.push_back(limit.admit(coming.next().context("no client")?)?);
    }
    let grown = resident()?.saturating_sub(before);
    writeln!(out, "bytes\t{:.0}", ratio(grown, arguments.clients.into()))?;
    for _ in 0..arguments.rounds {
        let began = worked()?;
        for _ in 0..arguments.clients {
            held.pop_front();
            held.push_back(limit.admit(coming.next().context("no client")?)?);
        }
        let spent = worked()? - began;
        writeln!(out, "nanoseconds\t{:.1}", ratio(spent, arguments.clients.into()))?;
    }
    Ok(())
}

/// So many different clients, half of them IPv6, in random order (Fisher and Yates; a fixed seed).
fn shuffled(number: u32) -> Vec<ClientKey> {
    let mut keys: Vec<ClientKey> = (0..number)
        .map(|number| {
            let address = if number % 2 == 0 {
                IpAddr::from((0x0a00_0000 | number).to_be_bytes())
            } else {
                // One /64 each.
                IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number) << 64 | 1))
            };
            Client::new(address).key()
        })
        .collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..keys.len()).rev() {
        // Xorshift64.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let other = usize::try_from(seed % (last as u64 + 1)).unwrap_or(0);
        keys.swap(last, other);
    }
    keys
}

/// Nanoseconds that this thread has had a processor, as the scheduler counts them: right to one of its
/// ticks, and untouched by whatever else works on the machine.
fn worked() -> anyhow::Result<u64> {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(times.split(' ').next().context("/proc/thread-self/schedstat is empty")?.parse()?)
}

/// Bytes of memory that this process holds now.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds and bytes of a measurement")]
fn ratio(whole: u64, parts: u64) -> f64 {
    whole as f64 / parts as f64
}
