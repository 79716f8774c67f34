//! Callers of numbers for the benchmark (`tests/bench/numbers`), many at once, each with one wish
//! after the other. They sit in a vault's own process and skip HTTP alone; or they come over
//! HTTP with the client that edge uses. Measures; compares with nothing.
//!
//! `numbers inside CONFIG` serves as `vault serve` does, and reads `CALLERS SECONDS` from its
//! input, a turn a line; `numbers http NAME=ADDRESS CERTIFICATE KEY AUTHORITY CALLERS SECONDS` is
//! one turn. Each turn prints numbers a second, and the median and 99th percentile of the answers'
//! times in milliseconds.

use std::future::Future;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use shared::api::client::{Client, Limits, VaultAddress};
use shared::shutdown::Shutdown;
use shared::tls::Files;
use tokio::sync::Notify;
use tokio::time::Instant;
use vault::Vault;
use vault::config::Config;
use vault::sequence::Sequence;
use vault::sequence::book::SeriesName;
use vault::sequence::database::copy::Phase;

/// As in the vault itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const OWNER: &str = "erp";
const SERIES: &str = "BENCH";
/// The other vault may still be starting, and so may a database.
const TOGETHER: Duration = Duration::from_secs(60);
/// So often a turn looks whether its answers wait for the database.
const LOOK: Duration = Duration::from_millis(5);

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &words[..] {
        ["inside", config] => runtime.block_on(inside(Path::new(config))),
        ["http", vault, certificate, key, authority, callers, seconds] => {
            let [certificate, key, authority] = [certificate, key, authority].map(PathBuf::from);
            let files = Files { certificate, key, authority };
            runtime.block_on(over_http(vault, files, callers.parse()?, seconds.parse()?))
        }
        _ => bail!(
            "write: numbers inside CONFIG | http NAME=ADDRESS CERTIFICATE KEY AUTHORITY CALLERS SECONDS"
        ),
    }
}

async fn inside(config: &Path) -> anyhow::Result<()> {
    let vault = Vault::open(Config::read(config)?).await?;
    let (numbers, shutdown) = (vault.numbers(), Shutdown::new());
    let serving = tokio::spawn(vault.run(shutdown.clone(), Arc::new(Notify::new())));
    let due = Instant::now() + TOGETHER;
    while !(numbers.status().together && copied(&numbers)) {
        anyhow::ensure!(Instant::now() < due, "the ledger does not come together: {:?}", numbers.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    writeln!(std::io::stdout(), "ready")?;
    loop {
        let line = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next()).await?;
        let Some(line) = line.transpose()? else { break };
        let (callers, seconds) = line.split_once(' ').context("write: CALLERS SECONDS")?;
        let reserve = |numbers: Sequence, key| async move {
            let name = SeriesName { owner: OWNER.to_owned(), series: SERIES.to_owned() };
            let ticket = Some(numbers.life());
            numbers.reserve(name, key, ticket).await.map(drop).map_err(anyhow::Error::from)
        };
        let watched = async {
            while copied(&numbers) {
                tokio::time::sleep(LOOK).await;
            }
            anyhow::bail!("answers did not wait for the database: {:?}", numbers.status().database)
        };
        tokio::select! {
            turned = turn(callers.parse()?, seconds.parse()?, &numbers, reserve) => turned?,
            missed = watched => missed?,
        }
    }
    shutdown.cancel();
    serving.await?;
    Ok(())
}

/// Does every answer wait for the copy of the ledger, if there is one?
fn copied(numbers: &Sequence) -> bool {
    numbers.status().database.is_none_or(|copy| copy.state.phase == Phase::Current)
}

async fn over_http(vault: &str, files: Files, callers: usize, seconds: u64) -> anyhow::Result<()> {
    let (name, address) = vault.split_once('=').context("write NAME=ADDRESS")?;
    let vault = VaultAddress { name: name.to_owned(), address: address.parse()? };
    let client = Client::with_limits(vec![vault], files, Limits { pooled: callers, ..Limits::default() })?;
    let reserve = |client: Client, key: String| async move {
        client.reserve(SERIES, &key).await.map(drop).map_err(anyhow::Error::from)
    };
    turn(callers, seconds, &client, reserve).await
}

/// One turn: every caller asks with a fresh key as soon as it has its answer.
async fn turn<D, F>(
    callers: usize,
    seconds: u64,
    door: &D,
    reserve: impl Fn(D, String) -> F + Send + Copy + 'static,
) -> anyhow::Result<()>
where
    D: Clone + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let door = door.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    let mut key = [0; 16];
                    getrandom::fill(&mut key)?;
                    let asked = Instant::now();
                    reserve(door.clone(), format!("{:032x}", u128::from_be_bytes(key))).await?;
                    times.push(asked.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for call in calls {
        times.extend(call.await??);
    }
    let took = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    let [median, late] = [50, 99].map(|share| at(share).map_or(0.0, |time| time.as_secs_f64() * 1e3));
    let rate = times.len() as f64 / took;
    writeln!(std::io::stdout(), "{rate:.0}\t{median:.3}\t{late:.3}")?;
    Ok(())
}
