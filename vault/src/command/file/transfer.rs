//! `vault file put` and `get`: bytes between this host and the vault, streamed both ways, with a
//! bar on a terminal. What is fetched into a file appears there whole or not at all.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::TryStreamExt;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::{ProgressBar, ProgressStyle};
use shared::api::{FILE_LABEL, File, IDEMPOTENCY_KEY};
use tokio_util::io::ReaderStream;

use super::super::control::{self, Progress};
use super::super::{CommandError, Output};
use super::{Fetched, described, encoded, place};

/// A transfer that makes no progress for so long is given up. After an upload's last byte the
/// file servers still write all of it.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes read from a file at once.
const PIECE: usize = 256 * 1024;
/// A bar that counts bytes.
const BYTES: &str = "{bar:32} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
/// One whose end is not known.
const ENDLESS: &str = "{spinner} {binary_bytes}, {binary_bytes_per_sec}";
/// One that counts files.
pub(super) const COUNT: &str = "{bar:32} {pos} of {len} files, {eta} left";

/// One that counts per cent.
pub(super) const SHARE: &str = "{bar:32} {pos} %, {msg}";

/// `vault file put`
#[derive(Debug, Args)]
pub struct Put {
    /// The file; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Whom it belongs to
    #[arg(long, value_name = "NAME")]
    owner: String,
    /// What its owner calls it, any text up to 4096 bytes; the file's name by default
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Its media type
    #[arg(long = "type", value_name = "TYPE", default_value = "application/octet-stream")]
    media_type: String,
    /// The idempotency key: the same key and bytes give the same file. Random by default
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// `vault file get`
#[derive(Debug, Args)]
pub struct Get {
    /// As `vault file list` shows it
    id: String,
    /// Where it goes instead of standard output; what is there is replaced when all has come. - is
    /// standard output, also where that is a terminal
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only these bytes: 0-99, 100- or -100 (the last hundred)
    #[arg(long, value_name = "FROM-TO", allow_hyphen_values = true)]
    range: Option<String>,
}

impl Put {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let from_file = self.file.as_os_str() != "-";
        let fail = |source| CommandError::Local {
            path: self.file.clone(),
            what: "cannot be read",
            source,
            next: "nothing was stored",
        };
        let input = if from_file {
            std::fs::File::open(&self.file).map_err(fail)?
        } else {
            std::io::stdin().as_fd().try_clone_to_owned().map_err(fail)?.into()
        };
        let known = input.metadata().map_err(fail)?;
        if known.is_dir() {
            return Err(fail(std::io::ErrorKind::IsADirectory.into()));
        }
        // Standard input may stand anywhere in its file.
        let length = (from_file && known.is_file()).then_some(known.len());
        let name =
            self.file.file_name().filter(|_| from_file).map(|name| name.to_string_lossy().into_owned());
        let label = self.label.clone().or(name).unwrap_or_default();
        let key = self.key.clone().map_or_else(random_key, Ok)?;

        let (progress, bar) = (Progress::default(), bar(output, length, BYTES));
        let (moved, shown) = (progress.clone(), bar.clone());
        let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(input), PIECE);
        let body = StreamBody::new(pieces.map_ok(move |piece| {
            moved.note();
            shown.inc(piece.len() as u64);
            Frame::data(piece)
        }));
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/files?owner={}", encoded(&self.owner)))
            .header(header::CONTENT_TYPE, &self.media_type)
            .header(IDEMPOTENCY_KEY, &key);
        if let Some(length) = length {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        if !label.is_empty() {
            request = request.header(FILE_LABEL, encoded(&label));
        }
        let request = request.body(BodyExt::boxed(body)).map_err(|_| {
            CommandError::Usage("--type and --key are visible ASCII: write them without control characters")
        })?;
        let stored = async {
            let answer = control::call(socket, request, PATIENCE, &progress).await?;
            control::json::<File>(socket, answer).await
        };
        let stored = stored.await;
        bar.finish_and_clear();
        // Whoever may repeat it needs to know the key.
        let file = stored.map_err(|error| match self.key {
            None if can_be_repeated(&error) => CommandError::Repeatable { source: Box::new(error), key },
            _ => error,
        })?;
        output.show(&file, &described(&file))
    }
}

/// Could the same upload succeed, or have succeeded already?
pub(in crate::command) fn can_be_repeated(error: &CommandError) -> bool {
    match error {
        CommandError::NotRunning { .. } => false,
        CommandError::Refused(problem) => !(400..500).contains(&problem.status) || problem.status == 408,
        _ => true,
    }
}

fn random_key() -> Result<String, CommandError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Get {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let file = self.output.as_deref().filter(|file| file.as_os_str() != "-");
        if output.json && file.is_none() {
            return Err(CommandError::Usage("the file's bytes are no JSON; write --output FILE with --json"));
        }
        if self.output.is_none() && std::io::stdout().is_terminal() {
            return Err(CommandError::Usage(
                "the file's bytes may upset a terminal; write --output FILE, or --output - for the terminal all the same",
            ));
        }
        let mut request = Request::builder().method(Method::GET).uri(place(&self.id)?);
        if let Some(range) = &self.range {
            request = request.header(header::RANGE, format!("bytes={range}"));
        }
        let bad_range = CommandError::Usage("--range is FROM-TO, FROM- or -COUNT in bytes, such as 0-99");
        let Ok(request) = request.body(control::whole(Vec::new())) else { return Err(bad_range) };
        let answer = control::call(socket, request, PATIENCE, &Progress::default()).await?;
        let answer = control::accepted(socket, answer).await?;
        // What is no range is ignored by HTTP, and the whole file sent.
        if self.range.is_some() && answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(bad_range);
        }
        let length = answer.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let bar = bar(output, length, BYTES);
        let mut target = match file {
            Some(file) => Target::File(Partial::create(file)?),
            None => Target::Stream(output.to),
        };
        let mut body = answer.into_body();
        let mut bytes = 0;
        loop {
            let late = |_| CommandError::Late { socket: socket.to_owned(), deadline: PATIENCE };
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(late)?;
            let broken = |source| CommandError::Broken { socket: socket.to_owned(), source };
            let Some(frame) = frame.transpose().map_err(broken)? else { break };
            let Ok(piece) = frame.into_data() else { continue };
            bytes += piece.len() as u64;
            bar.inc(piece.len() as u64);
            if target.write(&piece)?.is_break() {
                return Ok(());
            }
        }
        bar.finish_and_clear();
        match target {
            Target::Stream(stream) => Ok(stream.flush()?),
            Target::File(partial) => {
                let file = partial.publish()?;
                let fetched = Fetched { id: &self.id, file: &file, bytes };
                output.show(&fetched, &format!("{bytes} bytes in {}", file.display()))
            }
        }
    }
}

/// Where fetched bytes go.
enum Target<'o> {
    Stream(&'o mut dyn Write),
    File(Partial),
}

impl Target<'_> {
    /// Break: whoever reads our output has seen enough.
    fn write(&mut self, bytes: &[u8]) -> Result<ControlFlow<()>, CommandError> {
        match self {
            Self::File(partial) => partial.write(bytes).map(ControlFlow::Continue),
            Self::Stream(stream) => match stream.write_all(bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
                written => Ok(ControlFlow::Continue(written?)),
            },
        }
    }
}

/// A file under another name until it is whole; it goes with this value unless published.
struct Partial {
    target: PathBuf,
    path: PathBuf,
    file: std::fs::File,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, CommandError> {
        // Nobody can guess the name, and what has it all the same is not written through.
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", random_key()?));
        Self::create_as(target, target.with_file_name(name))
    }

    fn create_as(target: &Path, path: PathBuf) -> Result<Self, CommandError> {
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|source| {
            let next = "nothing was fetched; write --output with a file in a folder that is there and yours";
            CommandError::Local { path: target.to_owned(), what: "cannot be made", source, next }
        })?;
        Ok(Self { target: target.to_owned(), path, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        self.file.write_all(bytes).map_err(|source| failed(&self.path, "cannot be written", source))
    }

    fn publish(self) -> Result<PathBuf, CommandError> {
        let synced = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, &self.target));
        synced.map_err(|source| failed(&self.target, "cannot be written", source))?;
        Ok(self.target.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already where it was published.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn failed(path: &Path, what: &'static str, source: std::io::Error) -> CommandError {
    let next = "what had come is removed; make room or write elsewhere with --output";
    CommandError::Local { path: path.to_owned(), what, source, next }
}

/// A bar on standard error; hidden where that is no terminal, or where the answer is JSON.
pub(super) fn bar(output: &Output<'_>, length: Option<u64>, style: &str) -> ProgressBar {
    if output.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template(if length.is_some() { style } else { ENDLESS });
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_upload_that_could_succeed_is_told_its_key() {
        let refused = |status, code| {
            let status = StatusCode::from_u16(status).unwrap();
            CommandError::Refused(shared::api::Problem::new(status, code, "why"))
        };
        for (error, expected) in [
            (refused(400, "bad_content_type"), false),
            (refused(413, "too_large"), false),
            (refused(408, "body_idle"), true),
            (refused(503, "not_durable"), true),
            (refused(507, "spool_full"), true),
        ] {
            assert_eq!(can_be_repeated(&error), expected, "{error}");
        }
        let told = CommandError::Repeatable { source: Box::new(refused(503, "busy")), key: "k7".to_owned() };
        let told = told.to_string();
        assert!(told.find("why").unwrap() < told.find("--key k7").unwrap(), "{told}");
    }

    #[test]
    fn a_file_or_link_that_waits_under_the_temporary_name_receives_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [target, path, elsewhere] =
            ["report", "report.part", "elsewhere"].map(|name| folder.path().join(name));
        std::fs::write(&elsewhere, b"other").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(Partial::create_as(&target, path.clone()).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"open to all").unwrap();
        assert!(Partial::create_as(&target, path.clone()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"open to all", "it is not ours to remove");
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"other");
        let mut whole = Partial::create(&target).unwrap();
        whole.write(b"text").unwrap();
        whole.publish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"text");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");
    }
}
