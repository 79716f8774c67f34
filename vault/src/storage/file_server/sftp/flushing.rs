//! Flushing a large file while it is still being written, so that the disk works beside the line
//! and the last flush is short. Knows neither sessions nor files.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};
use std::thread::{Builder, scope};

/// So many bytes are written between two flushes.
const EVERY: u64 = 32 << 20;

/// Calls `write` for a file of about `length` bytes with a function that is told how many bytes
/// the server has, and answers how many of them are on its disk as far as is known. Beside it
/// `flush` is called now and then; `false`: it could not flush just now.
pub(super) fn flushing_beside<T>(
    length: u64,
    flush: impl Fn() -> bool + Send,
    write: impl FnOnce(&mut dyn FnMut(u64) -> u64) -> T,
) -> T {
    if length < 2 * EVERY {
        return write(&mut |_| 0);
    }
    let (there, flushed) = (AtomicU64::new(0), AtomicU64::new(0));
    scope(|scope| {
        let (due, wait) = sync_channel(1);
        let (there, flushed) = (&there, &flushed);
        let beside = move || flush_when_due(&wait, flush, there, flushed);
        // Without the thread the writer flushes by itself.
        let thread = Builder::new().name("sftp-flush".to_owned()).spawn_scoped(scope, beside);
        let mut last = 0;
        write(&mut |written| {
            if thread.is_ok() && written - last >= EVERY {
                there.store(written, Ordering::Relaxed);
                // One that still flushes will not be hurried.
                if !matches!(due.try_send(()), Err(TrySendError::Full(()))) {
                    last = written;
                }
            }
            flushed.load(Ordering::Relaxed)
        })
    })
}

/// Until the writer is done.
fn flush_when_due(wait: &Receiver<()>, flush: impl Fn() -> bool, there: &AtomicU64, flushed: &AtomicU64) {
    while wait.recv().is_ok() {
        let before = there.load(Ordering::Relaxed);
        if flush() {
            flushed.store(before, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_flushed_was_there_before_the_flush_began() {
        let (seen, flushes) = (AtomicU64::new(0), AtomicU64::new(0));
        let flush = || {
            flushes.fetch_add(1, Ordering::SeqCst);
            seen.load(Ordering::SeqCst) > 0
        };
        let most = flushing_beside(u64::MAX, flush, |tell| {
            let mut most = 0;
            for written in (0..=64).map(|piece| piece * (EVERY / 4)) {
                seen.store(written, Ordering::SeqCst);
                let known = tell(written);
                assert!(known <= written && known % (EVERY / 4) == 0);
                most = known.max(most);
                std::thread::yield_now();
            }
            // The last one that was due ends some time.
            while most == 0 {
                most = tell(16 * EVERY);
            }
            most
        });
        assert!(most >= EVERY && flushes.load(Ordering::SeqCst) >= 1);
    }

    #[test]
    fn a_flush_that_fails_counts_nothing_and_short_files_have_none() {
        let flushes = AtomicU64::new(0);
        let failing = || {
            flushes.fetch_add(1, Ordering::SeqCst);
            false
        };
        let known = flushing_beside(u64::MAX, failing, |tell| {
            tell(EVERY);
            while flushes.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            tell(EVERY)
        });
        assert_eq!(known, 0);
        let short = flushing_beside(EVERY, || panic!("too short"), |tell| tell(EVERY));
        assert_eq!(short, 0);
    }
}
