//! One escaped line a request; clients cannot forge one. Knows the two formats and the file;
//! must not know requests beyond the [`Entry`] it is handed. Never makes traffic wait: when
//! the disk cannot follow, lines are lost and counted.

mod line;
mod writer;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::metrics::Metrics;

/// Most bytes kept of a request target; the rest is cut and marked.
const MAX_TARGET: usize = 8 * 1024;
/// Most bytes kept of any other field that a client fills.
const MAX_FIELD: usize = 1024;
/// What a cut field ends with.
const CUT: &[u8] = b"...";

/// `[access_log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where lines go; `None` writes none.
    pub file: Option<PathBuf>,
    /// How lines look.
    pub format: Format,
    /// Lines that may wait for the disk; further ones are dropped and counted.
    pub queue: usize,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// Apache's and nginx's combined format, as fail2ban, GoAccess and awstats read it.
    #[default]
    Combined,
    /// One JSON object a line, with the Elastic Common Schema's names.
    Json,
}

/// What there is to say about one request, or about a connection that never became one
/// (then `method` and `target` are empty).
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When the request's head was complete.
    pub at: SystemTime,
    /// Who asked.
    pub client: IpAddr,
    /// As received; empty where none was.
    pub method: String,
    /// Path and query, raw as received.
    pub target: Vec<u8>,
    /// `HTTP/1.1`, `HTTP/2.0`; empty where none was agreed.
    pub protocol: &'static str,
    /// As received.
    pub host: String,
    /// What was answered; 0 where nothing was.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// From the head to the end of the answer.
    pub duration: Duration,
    /// The `Referer` header, raw.
    pub referer: Vec<u8>,
    /// The `User-Agent` header, raw.
    pub user_agent: Vec<u8>,
    /// The upstream that was asked.
    pub upstream: Option<String>,
    /// Why edge itself refused.
    pub reason: Option<String>,
    /// The request's id, as the upstream was told.
    pub request_id: String,
}

impl Entry {
    /// Bounds what one waiting line can hold, so that the queue's memory is bounded too.
    fn cut(&mut self) {
        cut(&mut self.target, MAX_TARGET);
        cut(&mut self.referer, MAX_FIELD);
        cut(&mut self.user_agent, MAX_FIELD);
        for text in [&mut self.method, &mut self.host, &mut self.request_id] {
            cut_text(text);
        }
        self.upstream.iter_mut().chain(&mut self.reason).for_each(cut_text);
    }
}

fn cut(field: &mut Vec<u8>, most: usize) {
    if field.len() > most {
        field.truncate(most);
        field.extend_from_slice(CUT);
        field.shrink_to_fit();
    }
}

fn cut_text(text: &mut String) {
    if text.len() > MAX_FIELD {
        let end = (0..=MAX_FIELD).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
        text.shrink_to_fit();
    }
}

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The file.
    #[error("access log: {file}: cannot be opened for appending: {source}; create its folder and let edge's user write there")]
    Open {
        /// Which one.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The writer's thread.
    #[error("access log: its thread cannot be started: {0}; raise the limit of tasks")]
    Thread(#[source] std::io::Error),
}

/// The running log. Cheap to clone; all clones feed one writer.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: Option<writer::Handle>,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// Opens the file and starts the writer's thread; without a file there is neither.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn start(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, AccessLogError> {
        let writer = match &settings.file {
            Some(file) => Some(writer::start(file, settings.format, settings.queue, Arc::clone(&metrics))?),
            None => None,
        };
        Ok(Self { writer, metrics })
    }

    /// Writes one line, soon. Never blocks: a line that finds the queue full is counted as dropped.
    pub fn record(&self, mut entry: Entry) {
        let Some(writer) = &self.writer else { return };
        entry.cut();
        if !writer.send(entry) {
            self.metrics.access_log_dropped.inc();
        }
    }

    /// Opens the file anew, after logrotate has renamed it.
    pub fn reopen(&self) {
        if let Some(writer) = &self.writer {
            writer.reopen();
        }
    }

    /// Writes what waits and stops, within five seconds. Lines recorded later are dropped.
    pub fn close(self) {
        if let Some(writer) = &self.writer {
            writer.close();
        }
    }
}
