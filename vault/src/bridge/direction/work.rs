//! The loop of a direction: what its connections and its journal tell goes to the rules, what the
//! rules say goes to them. Knows the order of things; decides nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::source::{self, Link, Ways};
use super::stand::Stand;
use super::status::{self, Full, LastError, State, Status};
use super::{Asked, Ears, STEADY, Settings, Wish, fresh, now, panic_words, target};
use crate::bridge::core::{Badge, Core, Found, Input, Load, Needed, Refusal, Step};
use crate::bridge::journal::{Errand, Figures, Journal, JournalError, Told};
use crate::openwire::client::Held;
use crate::openwire::{Message, MessageId};

/// How often times are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Events of a connection that wait for the rules.
const MOST_EVENTS: usize = 64;
/// With less room on the journal's disk and in its file nothing more is taken: what is there needs
/// some to leave.
const LEAST_ROOM: u64 = 64 << 20;
/// A vault that is to stand back first sends on what it has, for so long at most.
const HANDOVER: Duration = Duration::from_secs(30);

/// What a connection's task tells.
#[derive(Debug)]
pub(super) enum Event {
    /// The lock is held; here is the connection.
    Holding(Link),
    /// What of ours lies at a source whose lock we do not hold.
    Receipts(Found),
    /// The source is connected no more, or not yet.
    SourceLost(String),
    /// The other vault holds the lock, or is to have it.
    Standby(String),
    /// A target is connected, and takes what to send; who it is.
    TargetUp(mpsc::Sender<target::Order>, BTreeSet<Badge>),
    /// It is not, or not any more.
    TargetLost(String),
    /// Another one answered, which the rules refuse.
    TargetStrange(String),
    /// This message was at the target before: it was acknowledged, and goes no further.
    Circled(MessageId),
    /// Something for the rules.
    Told(Input<Arc<Message>>),
}

/// Why the loop ended.
#[derive(Debug)]
pub(super) enum End {
    /// The journal failed.
    Failed(JournalError),
    /// A task of its own has ended, which none does by itself.
    Fell(String),
    /// It must be left alone for this.
    Asked(Asked),
}

pub(super) struct Direction<'a> {
    core: Core<Arc<Message>>,
    name: String,
    folder: PathBuf,
    status: &'a watch::Sender<Status>,
    stand: Stand,
    figures: Figures,
    errands: mpsc::Sender<Errand>,
    told: mpsc::UnboundedReceiver<Told>,
    events: mpsc::Receiver<Event>,
    link: Option<Link>,
    target: Option<mpsc::Sender<target::Order>>,
    /// Since when it is not connected; none before its first answer.
    target_lost: Option<Instant>,
    /// Has the source let this vault in since the journal was opened?
    has_carried: bool,
    /// Is the source to be looked for at every address?
    search: watch::Sender<bool>,
    /// Which receipts tell something yet?
    needed: watch::Sender<Needed>,
    /// The disk has too little room.
    is_low: bool,
    /// Since when the other vault is to carry.
    standing_back: Option<Instant>,
    /// End with it.
    connections: JoinSet<()>,
}

impl<'a> Direction<'a> {
    pub(super) async fn open(
        settings: &Arc<Settings>,
        status: &'a watch::Sender<Status>,
        ears: &Ears,
    ) -> Result<Self, JournalError> {
        let (file, ends) = (settings.file.clone(), settings.ends());
        let opened = tokio::task::spawn_blocking(move || {
            let journal = Journal::open(&file, fresh(), &ends)?;
            Ok::<_, JournalError>((journal.kept(now())?, journal.figures()?, journal.birth(), journal.run()?))
        });
        let (kept, figures, birth, (errands, told)) = match opened.await {
            Ok(opened) => opened?,
            // It is never cancelled.
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let (tell, events) = mpsc::channel(MOST_EVENTS);
        let mut connections = JoinSet::new();
        let stand_back = ears.stand_back.clone();
        let (search, wanted) = watch::channel(false);
        let core = Core::new(settings.limits.clone(), kept);
        let (needed, shown) = watch::channel(core.needed());
        let (connected, _) = watch::channel(BTreeSet::new());
        let ways = Ways { settings: settings.clone(), birth, events: tell.clone(), needed: shown, connected };
        if settings.from.uri.brokers.len() > 1 {
            connections.spawn(source::search(ways.clone(), wanted));
        }
        connections.spawn(source::run(ways, stand_back));
        connections.spawn(target::run(settings.clone(), birth, tell));
        status.send_modify(|status| {
            status.turn(State::Away, Instant::now());
            status.journal = None;
        });
        let folder = settings.file.parent().map(PathBuf::from).unwrap_or_default();
        Ok(Self {
            name: settings.name.clone(),
            folder,
            core,
            status,
            stand: Stand::default(),
            figures,
            errands,
            told,
            events,
            link: None,
            target: None,
            target_lost: None,
            has_carried: false,
            search,
            needed,
            is_low: false,
            standing_back: None,
            connections,
        })
    }

    pub(super) async fn work(&mut self, ears: &mut Ears) -> End {
        let begun = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let wants = self.core.wants_messages();
            let inputs = tokio::select! {
                biased;
                told = self.told.recv() => match told {
                    Some(Told::Written(figures)) => {
                        self.figures = figures;
                        vec![Input::Written]
                    }
                    Some(Told::Damaged(load, figures)) => {
                        self.figures = figures;
                        vec![Input::Damaged(load)]
                    }
                    Some(Told::Loaded(rows)) => vec![Input::Loaded(rows)],
                    Some(Told::Failed(error)) => return End::Failed(error),
                    None => return End::Failed(JournalError::Ended),
                },
                Some(event) = self.events.recv() => self.heard(event).into_iter().collect(),
                Some(asked) = ears.asked.recv() => match self.asked(asked) {
                    Ok(input) => vec![input],
                    Err(asked) => return End::Asked(asked),
                },
                Some((message, _held)) = next(self.link.as_mut()), if wants => {
                    let bytes = weight(&message);
                    vec![Input::Received(message, bytes)]
                }
                Some(ended) = self.connections.join_next() => {
                    return End::Fell(ended.err().map_or_else(|| "a connection's task ended".to_owned(), |error| match error.try_into_panic() {
                        Ok(panic) => panic_words(&*panic),
                        Err(error) => error.to_string(),
                    }));
                }
                now = ticks.tick() => self.tick(begun, now, *ears.stand_back.borrow()),
            };
            for input in inputs {
                for step in self.core.apply(input) {
                    self.go(step).await;
                }
            }
            self.show();
        }
    }

    /// Waits for the journal's thread: it finishes what it was asked.
    pub(super) async fn close(self) {
        let Self { errands, mut told, mut connections, .. } = self;
        connections.shutdown().await;
        drop(errands);
        while told.recv().await.is_some() {}
    }

    fn heard(&mut self, event: Event) -> Option<Input<Arc<Message>>> {
        match event {
            Event::Holding(link) => {
                self.say_turn(State::Carrying, "carried by this vault: the source lets it in");
                self.tell(State::Carrying, None);
                self.has_carried = true;
                let found = link.found.clone();
                self.link = Some(link);
                Some(Input::Holding(found))
            }
            Event::Receipts(found) => Some(Input::Receipts(found)),
            Event::Standby(why) => {
                self.say_turn(State::Standby, &why);
                self.tell(State::Standby, Some(why));
                self.link.take().map(|_| Input::Released)
            }
            Event::SourceLost(why) => {
                self.fail(why.clone());
                self.tell(State::Away, Some(why));
                self.link.take().map(|_| Input::Released)
            }
            Event::TargetUp(target, badges) => {
                if self.target_lost.take().is_none_or(|at| at.elapsed() >= STEADY) {
                    let name = &self.name;
                    tracing::info!(bridge = %name, "bridge {name}: the target answers, {} messages wait", self.core.waiting().rows);
                }
                self.target = Some(target);
                Some(Input::TargetUp(badges))
            }
            Event::TargetLost(why) => {
                self.fail(why.clone());
                self.target_lost.get_or_insert_with(Instant::now);
                self.status.send_modify(|status| status.target = Some(why));
                self.target.take().map(|_| Input::TargetLost)
            }
            Event::TargetStrange(why) => {
                self.fail(why.clone());
                self.target_lost.get_or_insert_with(Instant::now);
                self.status.send_modify(|status| status.strange = Some(why));
                None
            }
            Event::Circled(id) => {
                tracing::debug!(bridge = %self.name, "bridge {}: {id} was at the target before", self.name);
                self.status.send_modify(|status| status.circled += 1);
                None
            }
            Event::Told(input) => {
                self.note_refusal(&input);
                Some(input)
            }
        }
    }

    /// A target that says no is not away.
    fn note_refusal(&self, input: &Input<Arc<Message>>) {
        let refusal = match input {
            Input::Refused { why, how: Refusal::ForEver | Refusal::Answered } => Some(why.clone()),
            Input::Refused { how: Refusal::HungUp, .. } | Input::Sent => None,
            _ => return,
        };
        self.status.send_if_modified(|status| {
            let is_new = status.refusal != refusal;
            status.refusal = refusal;
            is_new
        });
    }

    /// What an operator wants: of the rules, or of the journal when it is left alone.
    fn asked(&self, asked: Asked) -> Result<Input<Arc<Message>>, Asked> {
        let (load, input) = match asked.wish {
            Wish::Settle { taken } => (self.core.elsewhere(), Input::Settle { taken }),
            Wish::Accept if self.core.refuses() => (self.core.waiting(), Input::Accept),
            Wish::Accept => (Load::default(), Input::Accept),
            Wish::Revive | Wish::Purge(_) | Wish::Bury { .. } => return Err(asked),
        };
        let (name, wish) = (&self.name, asked.wish);
        tracing::info!(bridge = %name, "bridge {name}: {wish}, as an operator asked: {} messages", load.rows);
        // Whoever asked may be gone.
        let _gone = asked.answer.send(Ok(load.rows));
        Ok(input)
    }

    /// A line for what has changed, but not for each connection that is lost and soon there again.
    fn say_turn(&self, state: State, why: &str) {
        let (before, lasted) = {
            let status = self.status.borrow();
            (status.state, status.since.elapsed())
        };
        let is_brief = before == State::Away && lasted < STEADY && self.has_carried;
        if before != state && !is_brief {
            tracing::info!(bridge = %self.name, "bridge {}: {why}", self.name);
        }
    }

    fn tell(&self, state: State, source: Option<String>) {
        self.status.send_modify(|status| {
            status.turn(state, Instant::now());
            status.source = source;
        });
    }

    fn fail(&self, what: String) {
        self.status.send_modify(|status| status.last_error = Some(LastError { at: now() / 1000, what }));
    }

    /// Looks at what changes by itself: time, the disk, whose turn it is.
    fn tick(&mut self, begun: Instant, now: Instant, stand_back: bool) -> Vec<Input<Arc<Message>>> {
        let time = now.saturating_duration_since(begun);
        let due = self.stand.look(time, &self.status.borrow());
        if let Some(warning) = due {
            tracing::warn!(bridge = %self.name, "bridge {}: {warning}", self.name);
        }
        self.is_low =
            room(&self.folder).is_some_and(|room| room.saturating_add(self.figures.free) < LEAST_ROOM);
        // While the target is away nothing could be sent on first; but what is full takes nothing either.
        let is_full = self.is_low || self.core.is_full();
        let may_begin = self.standing_back.is_some() || self.target.is_some() || is_full;
        self.standing_back = match stand_back && may_begin {
            true => Some(self.standing_back.unwrap_or(now)),
            false => None,
        };
        let mut inputs = vec![Input::Tick(time), Input::Hold(self.is_low || self.standing_back.is_some())];
        if let Some(since) = self.standing_back
            && (self.core.is_idle() || now.saturating_duration_since(since) >= HANDOVER)
            && self.link.take().is_some()
        {
            // Its connection ends with it.
            self.tell(State::Standby, Some(source::STANDS_BACK.to_owned()));
            inputs.push(Input::Released);
        }
        if self.core.should_read() && self.link.take().is_some() {
            inputs.push(Input::Released);
        }
        inputs
    }

    async fn go(&mut self, step: Step<Arc<Message>>) {
        // Whoever does not listen any more has ended, and its end is told.
        match step {
            Step::Write(write) => drop(self.errands.send(Errand::Write(write, now())).await),
            Step::Load { after, rows, bytes, but } => {
                drop(self.errands.send(Errand::Load { after, rows, bytes, but, now: now() }).await);
            }
            Step::Consume => self.ask_source(source::Ask::Consume).await,
            Step::Take { batch, first, last, count, spent } => {
                let (first, last) = (first.message_id.clone(), last.message_id.clone());
                self.ask_source(source::Ask::Take(Box::new(source::Take {
                    batch,
                    first,
                    last,
                    count,
                    spent,
                })))
                .await;
            }
            Step::Send { rows, is_careful } => {
                if let Some(target) = &self.target {
                    drop(target.send(target::Order::Send { rows, is_careful }).await);
                }
            }
            Step::Refuse => {
                // It tells why it ends.
                if let Some(target) = self.target.take() {
                    drop(target.send(target::Order::Leave).await);
                }
            }
        }
    }

    async fn ask_source(&self, ask: source::Ask) {
        if let Some(link) = &self.link {
            drop(link.asks.send(ask).await);
        }
    }

    fn show(&self) {
        let full = match (self.core.is_full(), self.is_low) {
            (true, _) => Some(Full::Journal),
            (false, true) => Some(Full::Disk),
            (false, false) => None,
        };
        let core = &self.core;
        let shown = (full, self.figures, core.waiting(), core.uncertain(), core.returned(), core.dead());
        self.status.send_if_modified(|status| {
            let Status { full: before, figures, waiting, uncertain, returned, dead, .. } = *status;
            let before = (before, figures, waiting, uncertain, returned, dead);
            status.fill(full, Instant::now());
            (_, status.figures, status.waiting, status.uncertain, status.returned, status.dead) = shown;
            let is_up = self.target.is_some() && status.target.take().is_some();
            let is_over = core.waiting().rows == 0 && status.refusal.take().is_some();
            let is_one_of_ours = !core.refuses() && status.strange.take().is_some();
            before != shown || is_up || is_over || is_one_of_ours
        });
        self.show_elsewhere();
        let searches = self.core.searches();
        self.search.send_if_modified(|it| std::mem::replace(it, searches) != searches);
        self.needed.send_replace(self.core.needed());
    }

    fn show_elsewhere(&self) {
        let elsewhere = self.core.elsewhere();
        let before = self.status.borrow().elsewhere;
        if before == elsewhere {
            return;
        }
        if before.rows == 0 {
            let name = &self.name;
            tracing::warn!(bridge = %name, "bridge {name}: {}", status::elsewhere(elsewhere.rows));
        }
        self.status.send_modify(|status| status.elsewhere = elsewhere);
    }
}

/// Bytes that may still be written there; none where the disk does not tell.
fn room(folder: &std::path::Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The next message of the connection, if there is one.
async fn next(link: Option<&mut Link>) -> Option<(Arc<Message>, Held)> {
    match link {
        Some(link) => link.messages.recv().await,
        None => None,
    }
}

/// What a message counts against the bounds of a batch, in bytes.
fn weight(message: &Message) -> u64 {
    let length = |bytes: Option<&bytes::Bytes>| bytes.map_or(0, |bytes| bytes.len() as u64);
    512 + length(message.content.as_ref()) + length(message.properties.as_ref())
}
