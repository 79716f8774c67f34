//! Tells slow from stuck: how far an operation has got, and whether that is enough. Knows
//! neither threads nor what is moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::super::file_server::{FileServerError, Replica};

/// Bytes a second. Who is slower for two deadlines in a row is as good as away: at this rate
/// 1 GiB takes a day and a half.
const LEAST_RATE: f64 = 8192.0;
/// A step that is not counted in bytes is worth more than any deadline asks for.
const STEP: u64 = 1 << 40;

/// Moves whenever anything on a file server does.
#[derive(Clone, Default)]
pub(super) struct Gauge(Arc<AtomicU64>);

impl Gauge {
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn seen(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One operation's way.
#[derive(Clone)]
pub(in super::super) struct Progress {
    way: Arc<Way>,
    gauge: Gauge,
}

struct Way {
    server: String,
    object: String,
    /// Bytes and steps.
    moved: AtomicU64,
    /// Nobody waits for it any more.
    given_up: AtomicBool,
}

impl Progress {
    pub(super) fn new(server: &str, object: &str, gauge: &Gauge) -> Self {
        let way = Way {
            server: server.to_owned(),
            object: object.to_owned(),
            moved: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
        };
        Self { way: Arc::new(way), gauge: gauge.clone() }
    }

    /// A step is done that is not counted in bytes; an operation has a bounded number of them.
    pub(in super::super) fn note(&self) {
        self.add(STEP);
    }

    /// So many bytes were read or written.
    pub(in super::super) fn moved(&self, bytes: usize) {
        self.add(bytes as u64);
    }

    /// Follows what is read of `replica`, and refuses it once nobody waits for the operation.
    pub(in super::super) fn watch(&self, mut replica: Replica) -> Replica {
        let (progress, length) = (self.clone(), replica.length());
        let read_at = move |buffer: &mut [u8], at: u64| {
            progress.check()?;
            let count = replica.read_at(buffer, at)?;
            progress.moved(count);
            Ok(count)
        };
        Replica::new(length, Box::new(read_at))
    }

    /// Its next read fails, so that it leaves its session.
    pub(super) fn give_up(&self) {
        self.way.given_up.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), FileServerError> {
        if !self.way.given_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        let source = std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "too slow, given up");
        let (server, object) = (self.way.server.clone(), self.way.object.clone());
        Err(FileServerError::Away { server, object, source })
    }

    fn add(&self, moved: u64) {
        self.way.moved.fetch_add(moved, Ordering::Relaxed);
        self.gauge.note();
    }

    fn seen(&self) -> u64 {
        self.way.moved.load(Ordering::Relaxed)
    }
}

/// Judges an operation's progress from deadline to deadline.
pub(super) struct Pulse {
    progress: Progress,
    deadline: Duration,
    before: u64,
    /// Was it too slow last time?
    slow: bool,
}

impl Pulse {
    pub(super) const fn new(progress: Progress, deadline: Duration) -> Self {
        Self { progress, deadline, before: 0, slow: false }
    }

    /// Another deadline has passed: is it alive? If not, why. Being slow is forgiven once, for
    /// the end of a file and its flush may share a deadline.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let seen = self.progress.seen();
        let moved = seen.wrapping_sub(std::mem::replace(&mut self.before, seen));
        let seconds = self.deadline.as_secs_f64();
        if moved == 0 {
            return Err(format!("no answer within {seconds} s"));
        }
        #[expect(clippy::cast_precision_loss, reason = "compared with a rough measure")]
        let slow = (moved as f64) < LEAST_RATE * seconds;
        if slow && std::mem::replace(&mut self.slow, slow) {
            return Err(format!("slower than {LEAST_RATE} bytes a second for {} s", 2.0 * seconds));
        }
        self.slow = slow;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_forgiven_once_and_silence_never() {
        let progress = Progress::new("one", "x", &Gauge::default());
        let mut pulse = Pulse::new(progress.clone(), Duration::from_secs(30));
        for _ in 0..3 {
            progress.moved(1);
            assert!(pulse.check().is_ok());
            progress.moved(30 * 8192);
            assert!(pulse.check().is_ok());
        }
        progress.note();
        assert!(pulse.check().is_ok(), "a step is as good as bytes");
        progress.moved(1);
        assert!(pulse.check().is_ok());
        progress.moved(1);
        assert!(pulse.check().is_err(), "a byte every half minute is nothing");
        assert!(Pulse::new(progress.clone(), Duration::from_secs(1)).check().is_ok());
        let mut silent = Pulse::new(progress, Duration::from_secs(1));
        assert!(silent.check().is_ok());
        assert!(silent.check().is_err());
    }
}
