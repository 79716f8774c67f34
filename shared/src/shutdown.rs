//! Stopping: one word that every task hears, and the signals that speak it.
//! TERM and INT drain; a second one ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled when the program shall stop. Cheap to clone; every loop selects on it.
pub type Shutdown = CancellationToken;

/// Starts listening for TERM and INT; call inside a runtime.
///
/// # Errors
/// The process may not install signal handlers.
pub fn on_signals() -> std::io::Result<Shutdown> {
    let shutdown = Shutdown::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let word = shutdown.clone();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping: finishing what is under way; a second signal ends at once");
        word.cancel();
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("ended at once by a second signal");
        std::process::exit(1);
    });
    Ok(shutdown)
}

async fn either(left: &mut Signal, right: &mut Signal) {
    tokio::select! {
        _ = left.recv() => {}
        _ = right.recv() => {}
    }
}
