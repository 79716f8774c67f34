//! The stock Java client of ActiveMQ, as applications use it: many connections and sessions in one
//! virtual machine, each call answered before a deadline. Knows the commands of `tests/java`, which
//! it compiles once; must not know what a broker should answer. Whatever the client refuses is a
//! [`Refusal`] with the exception's own words.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::jvm::{self, Jvm};
use crate::program::{Program, Recipe};

mod build;
mod letter;
mod load;
mod sample;
mod session;

pub use letter::{Body, Letter, Received, Value};
pub use load::{Kind, Load, Outcome, Run, lines};
pub use sample::{letters, values};
pub use session::{Acknowledge, Browser, Consumer, Delivery, Session};

/// How long any call may take that says nothing else: a broker may just be coming back.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the client did not do, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Refusal {
    /// The exception's class, as `javax.jms.JMSSecurityException`.
    pub class: String,
    /// What it says.
    pub message: String,
    /// The class and the words of its cause.
    #[serde(default)]
    pub cause: Option<String>,
}

impl Refusal {
    /// The refusal that an error of this room is, if it is one.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Option<&Self> {
        error.downcast_ref()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(text, "{}: {}", self.class, self.message)?;
        self.cause.iter().try_for_each(|cause| write!(text, " (because of {cause})"))
    }
}

impl std::error::Error for Refusal {}

/// One virtual machine with the client in it.
#[derive(Debug)]
pub struct JavaClient {
    program: Program,
    talk: Arc<Talk>,
}

/// The two ends of its conversation; sessions and connections share them.
#[derive(Debug)]
struct Talk {
    input: Mutex<ChildStdin>,
    last: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Who waits for an answer; nobody once the client has ended.
type Waiting = Option<HashMap<u64, SyncSender<Answer>>>;

#[derive(Debug, serde::Deserialize)]
struct Answer {
    id: u64,
    #[serde(default)]
    done: Json,
    #[serde(default)]
    refused: Option<Refusal>,
}

impl JavaClient {
    /// Compiles it if need be and starts it quickly, with a small heap; its log lies in `folder`.
    ///
    /// # Errors
    /// Java or ActiveMQ's libraries are not installed.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(folder, Jvm::quick(128))
    }

    /// The same on a machine of another kind.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: &Path, jvm: Jvm) -> anyhow::Result<Self> {
        let mut words = jvm.arguments(folder);
        words.extend(["-cp".into(), build::class_path()?, "Main".into()]);
        let recipe = Recipe::new("java-client", jvm::tool("java"), words, folder);
        let (program, input, output) = Program::converse(recipe)?;
        let talk = Arc::new(Talk {
            input: Mutex::new(input),
            last: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
        });
        let heard = Arc::clone(&talk);
        std::thread::Builder::new().name("java-client".to_owned()).spawn(move || heard.listen(output))?;
        Ok(Self { program, talk })
    }

    /// Connects as `user` with a URI of ActiveMQ's, and starts delivery.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn connect(&self, login: &Login) -> anyhow::Result<Connection> {
        let number = self.talk.ask("connect", login.words())?;
        Ok(Connection { talk: Arc::clone(&self.talk), number })
    }

    /// Begins a load, and returns when all of its connections are there.
    ///
    /// # Errors
    /// The [`Refusal`] of a connection.
    pub fn load(&self, login: &Login, load: &Load) -> anyhow::Result<Run> {
        Run::begin(&self.talk, login, load)
    }

    /// SIGKILL: whatever it has not written is lost, its sockets are closed by the system.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.program.kill()
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.program.freeze()
    }

    /// SIGCONT after [`Self::freeze`].
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.program.thaw()
    }
}

impl Drop for JavaClient {
    fn drop(&mut self) {
        // Nothing of it is to be kept. It may have been killed already.
        let _ = self.program.kill();
    }
}

/// Where to connect and as whom.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// As ActiveMQ's client takes it: `tcp://`, `ssl://`, `failover:(…)` with options such as
    /// `jms.prefetchPolicy.all=1`, `jms.redeliveryPolicy.maximumRedeliveries=2`, `jms.useCompression=true`.
    pub uri: String,
    /// The account; nobody's if empty.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The connection's own name; one is made up if empty.
    pub client_id: String,
    /// Whom to trust, PEM, for `ssl://`.
    pub authority: Option<std::path::PathBuf>,
}

impl Login {
    /// As nobody.
    #[must_use]
    pub fn to(uri: &str) -> Self {
        Self { uri: uri.to_owned(), ..Self::default() }
    }

    /// With an account.
    #[must_use]
    pub fn account(mut self, user: &str, password: &str) -> Self {
        (self.user, self.password) = (user.to_owned(), password.to_owned());
        self
    }

    fn words(&self) -> Json {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        json!({
            "uri": self.uri,
            "user": given(&self.user),
            "password": given(&self.password),
            "client_id": given(&self.client_id),
            "authority": self.authority,
        })
    }
}

/// One connection. It is not closed when it is dropped: say [`Self::close`], or end the client.
#[derive(Debug)]
pub struct Connection {
    talk: Arc<Talk>,
    number: u32,
}

impl Connection {
    /// Opens a session, with a thread of its own.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn session(&self, mode: Acknowledge) -> anyhow::Result<Session> {
        let number = self.ask("session", json!({ "mode": mode.word() }))?;
        Ok(Session::new(&self.talk, number))
    }

    /// What it was told without having asked: exceptions, and `interrupted` and `resumed` of the
    /// failover transport, the oldest first.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn told(&self) -> anyhow::Result<Vec<Refusal>> {
        self.ask("told", json!({}))
    }

    /// The name of the broker that it is connected to.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn broker(&self) -> anyhow::Result<String> {
        self.ask("broker", json!({}))
    }

    /// Has nothing delivered until [`Self::resume`].
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn pause(&self) -> anyhow::Result<()> {
        self.ask("stop", json!({}))
    }

    /// Has messages delivered again.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn resume(&self) -> anyhow::Result<()> {
        self.ask("start", json!({}))
    }

    /// Closes it and all its sessions.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn close(self) -> anyhow::Result<()> {
        self.ask("disconnect", json!({}))
    }

    fn ask<T: DeserializeOwned>(&self, op: &str, mut words: Json) -> anyhow::Result<T> {
        words["connection"] = self.number.into();
        self.talk.ask(op, words)
    }
}

impl Talk {
    fn ask<T: DeserializeOwned>(&self, op: &str, words: Json) -> anyhow::Result<T> {
        self.ask_within(op, words, PATIENCE)
    }

    /// Says a command and waits for its answer.
    fn ask_within<T: DeserializeOwned>(&self, op: &str, words: Json, within: Duration) -> anyhow::Result<T> {
        let answer = self.tell(op, words)?;
        let answer = answer.recv_timeout(within).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow::anyhow!("no answer within {within:?}"),
            RecvTimeoutError::Disconnected => anyhow::anyhow!("the client has ended"),
        });
        let answer = answer.with_context(|| format!("java client: {op}"))?;
        if let Some(refused) = answer.refused {
            return Err(refused.into());
        }
        serde_json::from_value(answer.done).with_context(|| format!("java client: {op}: its answer"))
    }

    /// Says a command; its answer will come there.
    fn tell(&self, op: &str, mut words: Json) -> anyhow::Result<Receiver<Answer>> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        words["id"] = id.into();
        words["op"] = op.into();
        let (sender, receiver) = sync_channel(1);
        locked(&self.waiting).as_mut().context("the java client has ended")?.insert(id, sender);
        let mut input = locked(&self.input);
        writeln!(input, "{words}").and_then(|()| input.flush()).context("the java client does not listen")?;
        Ok(receiver)
    }

    fn listen(&self, output: ChildStdout) {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let Ok(answer) = serde_json::from_str::<Answer>(&line) else { continue };
            let sender = locked(&self.waiting).as_mut().and_then(|waiting| waiting.remove(&answer.id));
            if let Some(sender) = sender {
                // Whoever asked may have given up.
                let _ = sender.try_send(answer);
            }
        }
        // Those who still wait hear that nothing comes.
        *locked(&self.waiting) = None;
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
