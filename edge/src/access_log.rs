//! One escaped line a request; clients cannot forge one. Knows the two formats and the file;
//! must not know requests beyond the [`Entry`] it is handed. Never makes traffic wait: when
//! the disk cannot follow, lines are lost and counted.

mod line;
pub(crate) mod queue;
mod writer;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use line::event_line;

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
    /// `https` or `http`, as the client asked; empty where it asked nothing.
    pub scheme: &'static str,
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
    /// A page of another origin made a browser send it, or could have: then its sender meant no
    /// harm, perhaps. In no line: it is for the tap.
    pub cross_site: bool,
    /// edge refused it for being a visitor's, who is throttled for what such pages may have asked. In no
    /// line either.
    pub spared: bool,
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
    #[error(
        "access log: {file}: cannot be opened for appending: {source}; create its folder and let edge's user write there"
    )]
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

/// Hears of every entry before it is written, also where no file is: the ban engine's ear. Called on
/// the thread that served the request, so it must neither wait nor panic. It hears of what edge
/// refuses, too, and of requests whose client is banned already: who counts offences knows whom it
/// has banned.
pub type Tap = Arc<dyn Fn(&Arc<Entry>) + Send + Sync>;

/// The running log. Cheap to clone; all clones feed one writer.
#[derive(Clone)]
pub struct AccessLog {
    writer: Option<writer::Handle>,
    tap: Option<Tap>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (writer, tap) = (&self.writer, self.tap.is_some());
        f.debug_struct("AccessLog").field("writer", writer).field("tap", &tap).finish_non_exhaustive()
    }
}

impl AccessLog {
    /// Opens the file and starts the writer's thread; without a file there is neither. `tap` hears
    /// of everything in any case.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn start(
        settings: &Settings,
        metrics: Arc<Metrics>,
        tap: Option<Tap>,
    ) -> Result<Self, AccessLogError> {
        let writer = match &settings.file {
            Some(file) => Some(writer::start(file, settings.format, settings.queue, Arc::clone(&metrics))?),
            None => None,
        };
        Ok(Self { writer, tap, metrics })
    }

    /// Why [`AccessLog::start`] would fail now. Leaves no file where there was none.
    #[must_use]
    pub fn fault(settings: &Settings) -> Option<AccessLogError> {
        writer::fault(settings.file.as_deref()?)
    }

    /// Tells the tap, and writes one line, soon. Never blocks: a line that finds the queue full is
    /// counted as dropped. Tap and writer share the entry, whose fields are cut to size.
    pub fn record(&self, mut entry: Entry) {
        if self.writer.is_none() && self.tap.is_none() {
            return;
        }
        entry.cut();
        let entry = Arc::new(entry);
        if let Some(tap) = &self.tap {
            tap(&entry);
        }
        if let Some(writer) = &self.writer
            && !writer.send(entry)
        {
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;

    fn entry(target: &str) -> Entry {
        Entry {
            at: SystemTime::UNIX_EPOCH,
            client: IpAddr::from([192, 0, 2, 1]),
            method: "GET".to_owned(),
            target: target.as_bytes().to_vec(),
            protocol: "HTTP/1.1",
            scheme: "https",
            host: "www.example.org".to_owned(),
            status: 200,
            bytes: 0,
            duration: Duration::ZERO,
            referer: Vec::new(),
            user_agent: Vec::new(),
            upstream: None,
            reason: None,
            request_id: String::new(),
            cross_site: false,
            spared: false,
        }
    }

    fn start(file: &Path, queue: usize) -> (AccessLog, Arc<Metrics>) {
        let metrics = Metrics::new();
        let settings = Settings { file: Some(file.to_owned()), format: Format::Combined, queue };
        (AccessLog::start(&settings, Arc::clone(&metrics), None).unwrap(), metrics)
    }

    fn lines(file: &Path) -> Vec<String> {
        std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_recorded_line_is_written_before_close_returns() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.log");
        let (log, metrics) = start(&file, 1000);
        for number in 0..1000 {
            log.record(entry(&format!("/{number}")));
        }
        let other = log.clone();
        log.close();
        let written = lines(&file);
        assert_eq!(written.len() + usize::try_from(metrics.access_log_dropped.get()).unwrap(), 1000);
        assert!(written[0].contains("GET /0 HTTP/1.1"), "{}", written[0]);
        let dropped = metrics.access_log_dropped.get();
        other.record(entry("/late"));
        assert_eq!(metrics.access_log_dropped.get(), dropped + 1, "a line after the end is counted");
    }

    #[test]
    fn a_flood_is_written_or_counted_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.log");
        let (log, metrics) = start(&file, 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2_000).for_each(|_| log.record(entry("/"))));
            }
        });
        log.close();
        let dropped = usize::try_from(metrics.access_log_dropped.get()).unwrap();
        assert_eq!(lines(&file).len() + dropped, 8_000);
    }

    #[test]
    fn reopening_follows_logrotate() {
        let folder = tempfile::tempdir().unwrap();
        let (file, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let (log, _) = start(&file, 10);
        log.record(entry("/old"));
        std::fs::rename(&file, &rotated).unwrap();
        log.reopen();
        let created = (0..10_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            file.exists()
        });
        assert!(created, "the file is made anew");
        log.record(entry("/new"));
        log.close();
        let targets = |file: &Path| {
            lines(file).iter().map(|line| line.split(' ').nth(6).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!((targets(&rotated), targets(&file)), (vec!["/old".to_owned()], vec!["/new".to_owned()]));
    }

    #[test]
    fn what_was_recorded_before_the_word_stands_in_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let (log, metrics) = start(&file, 10_000);
        for _ in 0..3_000 {
            log.record(entry("/old"));
        }
        std::fs::rename(&file, &rotated).unwrap();
        log.reopen();
        log.close();
        assert_eq!((lines(&rotated).len(), metrics.access_log_dropped.get()), (3_000, 0));
    }

    #[test]
    fn a_full_disk_is_counted_and_stops_nobody() {
        let (log, metrics) = start(Path::new("/dev/full"), 20_000);
        let long = "/".repeat(500);
        for _ in 0..10_000 {
            log.record(entry(&long));
        }
        log.close();
        assert!(metrics.access_log_errors.get() > 0);
        assert!(metrics.access_log_dropped.get() > 0, "memory stays bounded");
    }

    #[test]
    fn half_a_line_left_by_a_crash_gets_its_own_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.log");
        std::fs::write(&file, "whole\n192.0.2.9 - - [torn").unwrap();
        let (log, _) = start(&file, 10);
        log.record(entry("/next"));
        log.close();
        let written = lines(&file);
        assert_eq!(written[..2], ["whole", "192.0.2.9 - - [torn"]);
        assert!(written[2].starts_with("192.0.2.1 - - "), "{}", written[2]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_said_with_what_to_do() {
        let settings =
            Settings { file: Some(PathBuf::from("/nowhere/access.log")), format: Format::Json, queue: 1 };
        assert_eq!(
            AccessLog::start(&settings, Metrics::new(), None).unwrap_err().to_string(),
            "access log: /nowhere/access.log: cannot be opened for appending: No such file or directory (os error 2); \
             create its folder and let edge's user write there"
        );
    }

    #[test]
    fn the_tap_hears_everything_even_where_no_file_is() {
        let folder = tempfile::tempdir().unwrap();
        for file in [None, Some(folder.path().join("access.log"))] {
            let heard = Arc::new(Mutex::new(Vec::new()));
            let ear = Arc::clone(&heard);
            let tap: Tap = Arc::new(move |entry| ear.lock().unwrap().push(Arc::clone(entry)));
            let settings = Settings { file: file.clone(), format: Format::Combined, queue: 10 };
            let log = AccessLog::start(&settings, Metrics::new(), Some(tap)).unwrap();
            log.record(Entry { user_agent: vec![b'a'; 1_000_000], ..entry("/1") });
            log.clone().record(entry("/2"));
            log.close();
            let heard = heard.lock().unwrap();
            let targets: Vec<&[u8]> = heard.iter().map(|entry| entry.target.as_slice()).collect();
            assert_eq!(targets, [b"/1", b"/2"]);
            let mut line = Vec::new();
            event_line(&heard[0], &mut line);
            assert!(line.len() < 2 * MAX_FIELD, "a megabyte is cut: {}", line.len());
            assert_eq!(file.map_or(2, |file| lines(&file).len()), 2);
        }
    }

    #[test]
    fn an_endless_field_is_cut_and_marked() {
        let mut entry = entry(&"a".repeat(MAX_TARGET * 2));
        entry.reason = Some("\u{e9}".repeat(MAX_FIELD));
        entry.cut();
        assert_eq!(entry.target.len(), MAX_TARGET + CUT.len());
        assert!(entry.target.ends_with(CUT));
        let reason = entry.reason.unwrap();
        assert!(reason.len() <= MAX_FIELD + CUT.len() && reason.ends_with("\u{e9}..."));
    }
}
