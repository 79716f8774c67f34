//! One running program: started with its log in a file, signalled, frozen, killed, started
//! again. Whatever happens it does not outlive its [`Program`]; [`stop_everything`] ends all
//! of them when the driver itself is interrupted.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::wait;

/// How long a program may take from TERM to its end; it drains in that time.
const STOP: Duration = Duration::from_secs(15);
/// How long, in seconds, a command that is run to its end may take.
const ONCE: &str = "60";
/// How much of a log's end is read for a report.
const TAIL: i64 = 64 * 1024;

static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Kills whatever this process has started and still runs. For the driver's signal handler.
pub fn stop_everything() {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    for pid in running.iter().copied().filter_map(Pid::from_raw) {
        // It may just have ended by itself, which is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// What a program that ran to its end said.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// Runs `binary` to its end, with a deadline.
///
/// # Errors
/// The system starts no such program.
pub fn run<A: AsRef<OsStr>>(binary: &Path, arguments: &[A]) -> anyhow::Result<Ran> {
    let output = Command::new("timeout")
        .args(["--kill-after=5", ONCE])
        .arg(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{}", binary.display()))?;
    Ok(Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Ran {
    /// Its standard output if it ended well.
    ///
    /// # Errors
    /// It did not; the text is what it said.
    pub fn well(self) -> anyhow::Result<String> {
        anyhow::ensure!(
            self.code == Some(0),
            "exit {:?}: {} {}",
            self.code,
            self.err.trim(),
            self.out.trim()
        );
        Ok(self.out)
    }
}

/// How to start a program.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What reports call it.
    pub name: String,
    /// A program before the program, as `strace -D -o …`; empty for none. It must keep the
    /// program's own process id.
    pub wrapper: Vec<OsString>,
    /// The executable.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where standard output and standard error go, appended.
    pub log: PathBuf,
}

impl Recipe {
    /// A program without a wrapper, whose log is `folder/name.log`.
    pub fn new<A: Into<OsString>>(
        name: &str,
        binary: PathBuf,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
    ) -> Self {
        Self {
            name: name.to_owned(),
            wrapper: Vec::new(),
            binary,
            arguments: arguments.into_iter().map(Into::into).collect(),
            log: folder.join(format!("{name}.log")),
        }
    }
}

/// A program that runs, or ran.
#[derive(Debug)]
pub struct Program {
    recipe: Recipe,
    child: Option<Child>,
}

impl Program {
    /// Starts it; readiness is the caller's to wait for.
    ///
    /// # Errors
    /// The system starts no such program.
    pub fn start(recipe: Recipe) -> anyhow::Result<Self> {
        let mut program = Self { recipe, child: None };
        program.launch(false)?;
        Ok(program)
    }

    /// Starts one that is talked with: its input and its output are handed out, its log gets
    /// standard error alone. It is not restarted.
    ///
    /// # Errors
    /// The system starts no such program.
    pub fn converse(recipe: Recipe) -> anyhow::Result<(Self, ChildStdin, ChildStdout)> {
        let mut program = Self { recipe, child: None };
        program.launch(true)?;
        let child = program.child.as_mut().context("it was started")?;
        let talk = child.stdin.take().zip(child.stdout.take());
        let (input, output) = talk.context("its ends were asked for")?;
        Ok((program, input, output))
    }

    fn launch(&mut self, talks: bool) -> anyhow::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.recipe.log)
            .with_context(|| format!("{}", self.recipe.log.display()))?;
        let mut words = self.recipe.wrapper.iter();
        let mut command = match words.next() {
            Some(wrapper) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(&self.recipe.binary);
                command
            }
            None => Command::new(&self.recipe.binary),
        };
        command
            .args(&self.recipe.arguments)
            .env("RUST_BACKTRACE", "1")
            .stdin(if talks { Stdio::piped() } else { Stdio::null() })
            .stdout(if talks { Stdio::piped() } else { log.try_clone()?.into() })
            .stderr(log)
            // The terminal's Ctrl-C is for the driver, which stops its programs in order.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("{}", self.recipe.binary.display()))?;
        registry(|running| running.insert(raw_pid(&child)));
        self.child = Some(child);
        Ok(())
    }

    /// What reports call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Does it still run?
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.name()))?;
        let pid = Pid::from_raw(raw_pid(child)).context("a process id is positive")?;
        kill_process(pid, signal).with_context(|| format!("{}: {signal:?}", self.name()))
    }

    /// SIGSTOP: the host is there, the program does nothing.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT after [`Self::freeze`].
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.reap().map(drop)
    }

    /// SIGTERM, and waits for the end; after a deadline SIGKILL and an error.
    ///
    /// # Errors
    /// It did not stop by itself in time.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(STOP)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It still runs after `within`; it has been killed then.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let name = self.name().to_owned();
        let ended = wait::until(&format!("{name} ends"), within, || {
            let child = self.child.as_mut().context("it does not run")?;
            child.try_wait()?.context("still running")
        });
        match ended {
            Ok(_) => self.reap(),
            Err(late) => {
                self.kill()?;
                Err(late)
            }
        }
    }

    /// Starts it again with the same arguments and the same log.
    ///
    /// # Errors
    /// It still runs, or the system starts no such program.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.is_running(), "{} still runs", self.name());
        self.reap()?;
        self.launch(false)
    }

    fn reap(&mut self) -> anyhow::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Ok(ExitStatus::default()) };
        let pid = raw_pid(&child);
        let status = child.wait();
        registry(|running| running.remove(&pid));
        Ok(status?)
    }

    /// Its whole log.
    #[must_use]
    pub fn log(&self) -> String {
        read_from(&self.recipe.log, None)
    }

    /// The last `lines` of its log, for a report.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = read_from(&self.recipe.log, Some(TAIL));
        let all: Vec<_> = text.lines().collect();
        let first = all.len().saturating_sub(lines);
        let mut report = format!("--- end of {}'s log ---\n", self.name());
        for line in all.get(first..).unwrap_or_default() {
            let _ = writeln!(report, "{line}");
        }
        report
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}", self.log_tail(30));
        }
        if self.is_running() {
            // A frozen program cannot hear TERM.
            let _ = self.thaw();
            let _ = self.terminate();
        }
        let _ = self.reap();
    }
}

fn registry<T>(change: impl FnOnce(&mut BTreeSet<i32>) -> T) -> T {
    change(&mut RUNNING.lock().unwrap_or_else(PoisonError::into_inner))
}

fn raw_pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap_or(i32::MAX)
}

fn read_from(file: &Path, tail: Option<i64>) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(file) {
        if let Some(tail) = tail {
            // Shorter than that: the seek is refused and the whole is read.
            let _ = file.seek(SeekFrom::End(-tail));
        }
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
