//! The thread that writes lines to the file. Knows the file and the queue in front of it;
//! must not know what a line says.
//!
//! A write that the disk cuts short is continued at the very byte where it stopped, so that
//! a full disk costs whole lines and never leaves a torn one for a reader to misread.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::queue::{self, Receiver, Sender};
use super::{AccessLogError, Entry, Format, line};
use crate::metrics::Metrics;

/// Lines are gathered up to this many bytes before they are written.
const BATCH: usize = 64 * 1024;
/// Most bytes that wait in memory while the file takes none.
const MAX_PENDING: usize = 1024 * 1024;
/// How often a file that took nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the operator is told that the file takes nothing.
const REMIND: Duration = Duration::from_secs(60);
/// How long closing waits for the disk.
const CLOSE: Duration = Duration::from_secs(5);

/// The near end of the queue.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    queue: Sender<Arc<Entry>>,
    word: Arc<Word>,
}

/// What the writer is told beside lines. Flags rather than messages: a full queue cannot lose them.
#[derive(Debug, Default)]
struct Word {
    reopen: AtomicBool,
    close: AtomicBool,
    ended: Mutex<bool>,
    on_end: Condvar,
}

impl Handle {
    /// Queues one line; `false` where there is no room.
    pub(super) fn send(&self, entry: Arc<Entry>) -> bool {
        self.queue.send(entry)
    }

    pub(super) fn reopen(&self) {
        self.word.reopen.store(true, Ordering::SeqCst);
        self.queue.wake();
    }

    pub(super) fn close(&self) {
        self.word.close.store(true, Ordering::SeqCst);
        self.queue.wake();
        let ended = self.word.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.word.on_end.wait_timeout_while(ended, CLOSE, |ended| !*ended);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::error!("access log: not written within {CLOSE:?}; the last lines are lost");
        }
    }
}

/// Opens `file` and starts the thread.
pub(super) fn start(
    file: &Path,
    format: Format,
    queue: usize,
    metrics: Arc<Metrics>,
) -> Result<Handle, AccessLogError> {
    let sink =
        Sink::open(file, metrics).map_err(|source| AccessLogError::Open { file: file.to_owned(), source })?;
    let (sender, receiver) = queue::bounded(queue);
    let word = Arc::new(Word::default());
    let writer = Writer { queue: receiver, format, sink, word: Ended(Arc::clone(&word)) };
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || writer.run())
        .map_err(AccessLogError::Thread)?;
    Ok(Handle { queue: sender, word })
}

/// Tells who waits in `close`, even when the thread ends by a panic.
struct Ended(Arc<Word>);

impl Drop for Ended {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.on_end.notify_all();
    }
}

struct Writer {
    queue: Receiver<Arc<Entry>>,
    format: Format,
    sink: Sink,
    word: Ended,
}

impl Writer {
    fn run(mut self) {
        let mut lines = Vec::new();
        loop {
            let patience = if self.sink.pending.is_empty() { Duration::MAX } else { RETRY };
            let goes_on = self.queue.take(&mut lines, patience);
            self.write(&mut lines);
            if self.word.0.reopen.swap(false, Ordering::SeqCst) {
                // What was recorded before the word belongs into the old file, and is in the queue by now.
                self.queue.take_all(&mut lines);
                self.write(&mut lines);
                self.sink.reopen();
            }
            if !goes_on || self.word.0.close.load(Ordering::SeqCst) {
                break;
            }
        }
        self.queue.end(&mut lines);
        self.write(&mut lines);
    }

    fn write(&mut self, lines: &mut Vec<Arc<Entry>>) {
        for entry in lines.drain(..) {
            if self.sink.pending.len() >= BATCH {
                self.sink.flush();
            }
            self.sink.append(|out| line::append(&entry, self.format, out));
        }
        self.sink.flush();
    }
}

/// The file, and what it has not taken yet.
struct Sink {
    path: PathBuf,
    file: File,
    pending: Vec<u8>,
    /// The last byte the file took ended no line.
    torn: bool,
    trouble: Option<Trouble>,
    metrics: Arc<Metrics>,
}

/// The file takes nothing at present.
struct Trouble {
    told: Instant,
    lost: u64,
}

impl Sink {
    fn open(path: &Path, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let (file, torn) = open(path)?;
        // A crash may have left half a line; ours must not become its end.
        let pending = if torn { vec![b'\n'] } else { Vec::new() };
        Ok(Self { path: path.to_owned(), file, pending, torn, trouble: None, metrics })
    }

    fn append(&mut self, line: impl FnOnce(&mut Vec<u8>)) {
        if self.pending.len() < MAX_PENDING {
            line(&mut self.pending);
            return;
        }
        self.metrics.access_log_dropped.inc();
        if let Some(trouble) = &mut self.trouble {
            trouble.lost += 1;
        }
    }

    /// Writes as much as the file takes.
    fn flush(&mut self) {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(0) => return self.complain(&Error::from(ErrorKind::WriteZero)),
                Ok(count) => {
                    self.torn = self.pending.get(count - 1) != Some(&b'\n');
                    self.pending.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.complain(&error),
            }
        }
        if let Some(trouble) = self.trouble.take() {
            tracing::info!("access log: {}: written again; {} lines lost", self.path.display(), trouble.lost);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this thread is its own corridor: it paces its own complaints"
    )]
    fn complain(&mut self, error: &Error) {
        self.metrics.access_log_errors.inc();
        let now = Instant::now();
        let trouble = match &mut self.trouble {
            Some(trouble) if now.duration_since(trouble.told) < REMIND => return,
            trouble => trouble.get_or_insert(Trouble { told: now, lost: 0 }),
        };
        trouble.told = now;
        tracing::error!(
            "access log: {}: write failed: {error}; traffic goes on, lines wait up to {MAX_PENDING} bytes and are \
             then lost ({} so far); make room or repair the folder",
            self.path.display(),
            trouble.lost
        );
    }

    fn reopen(&mut self) {
        self.flush();
        match open(&self.path) {
            Ok((file, torn)) => {
                if self.torn {
                    // The line's head is in the old file; its tail alone would be a torn line.
                    let end = self.pending.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    self.pending.drain(..end);
                    self.metrics.access_log_dropped.inc();
                }
                if torn {
                    self.pending.insert(0, b'\n');
                }
                (self.file, self.torn) = (file, torn);
                tracing::info!("access log: {}: opened anew", self.path.display());
                self.flush();
            }
            Err(error) => tracing::error!(
                "access log: {}: cannot be opened anew: {error}; lines go on into the old file",
                self.path.display()
            ),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Why `file` cannot be opened; leaves none where there was none.
pub(super) fn fault(file: &Path) -> Option<AccessLogError> {
    let is_new = std::fs::symlink_metadata(file).is_err();
    match open(file) {
        Ok(_) => {
            if is_new && let Err(error) = std::fs::remove_file(file) {
                tracing::debug!("access log: {}: left empty: {error}", file.display());
            }
            None
        }
        Err(source) => Some(AccessLogError::Open { file: file.to_owned(), source }),
    }
}

/// Opens for appending, creating it if need be, and tells whether its last line has no end.
fn open(path: &Path) -> Result<(File, bool), Error> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    let metadata = file.metadata()?;
    let torn = metadata.is_file() && metadata.len() > 0 && !ends_a_line(path).unwrap_or(true);
    Ok((file, torn))
}

fn ends_a_line(path: &Path) -> Result<bool, Error> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == [b'\n'])
}
