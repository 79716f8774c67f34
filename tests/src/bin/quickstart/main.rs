//! The driver behind `conf/quickstart`: starts the whole cluster on loopback and says what to
//! try, or (`--check`) tries it all itself and says whether it holds. Knows nothing of how
//! programs are started: that is the harness's.
#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

mod accounts;
mod check;
mod content;
mod load;
mod show;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;
use harness::cluster::{Cluster, remove_folders};
use harness::program::stop_everything;
use harness::wait::Deadline;

const USAGE: &str = "usage: conf/quickstart [--check]\n\n\
  without arguments: two vaults, one edge and a sample application on loopback,\n\
  until Ctrl-C; --check: drives them itself and exits 0 or 1";

/// How long a vault that was killed stays away.
const AWAY: Duration = Duration::from_secs(20);

/// Is the cluster up and the main thread ready to stop it in order?
static IN_ORDER: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [] => interrupts().and_then(|interrupted| run_until(&interrupted)),
        ["--check"] => interrupts().and_then(|_abrupt| check::run()),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("quickstart: {}: no such argument\n{USAGE}", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_until(interrupted: &Receiver<()>) -> anyhow::Result<bool> {
    println!("starting two vaults, one edge and the invoice application …");
    let mut cluster = Cluster::start()?;
    show::try_this(&cluster)?;
    IN_ORDER.store(true, Ordering::SeqCst);
    let mut away = Away::default();
    while let Err(RecvTimeoutError::Timeout) = interrupted.recv_timeout(Duration::from_millis(500)) {
        keep_running(&mut cluster, &mut away)?;
    }
    println!("\nstopping …");
    let folder = cluster.folder().to_owned();
    cluster.stop()?;
    println!("stopped; nothing is left running, and {} is removed", folder.display());
    Ok(true)
}

/// Since when a vault is missing, and until when the demonstration leaves it so.
type Away = [Option<Deadline>; 2];

/// A vault may be killed to see what happens: it comes back after a while, as a supervisor
/// would bring it back. Anything else that ends by itself is a failure.
fn keep_running(cluster: &mut Cluster, away: &mut Away) -> anyhow::Result<()> {
    for (vault, away) in cluster.pair.vaults.iter_mut().zip(away) {
        let name = vault.name;
        let program = vault.program()?;
        match away {
            None if !program.is_running() => {
                println!("{name} has ended: uploads go on, numbers wait; it is started again in {AWAY:?}");
                *away = Some(Deadline::after(AWAY));
            }
            Some(until) if until.passed() => {
                program.restart()?;
                println!("{name} is started again");
                *away = None;
            }
            _ => {}
        }
    }
    for program in [&mut cluster.invoices, &mut cluster.edge.program] {
        anyhow::ensure!(
            program.is_running(),
            "{} has ended by itself\n{}",
            program.name(),
            program.log_tail(30)
        );
    }
    Ok(())
}

/// Listens for INT and TERM. The first is passed on once the cluster is up; before that, in
/// `--check`, or the second time, everything is killed and removed at once.
fn interrupts() -> anyhow::Result<Receiver<()>> {
    let (sender, receiver) = sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(hear(sender)))
        .context("the signals' thread")?;
    Ok(receiver)
}

async fn hear(sender: SyncSender<()>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("quickstart: signals cannot be heard: Ctrl-C will leave the programs running");
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if IN_ORDER.swap(false, Ordering::SeqCst) && sender.try_send(()).is_ok() {
            continue;
        }
        stop_everything();
        remove_folders();
        eprintln!("\nquickstart: interrupted; everything is stopped and removed");
        std::process::exit(130);
    }
}
