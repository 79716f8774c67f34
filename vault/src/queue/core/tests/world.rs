//! Senders, consumers, operators, a disk and a process that is killed; and a plain model of what
//! must hold. Knows no seeds.

mod choice;
mod random;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::Disk;
use crate::queue::core::{
    AckKind, Action, ConsumerKey, Core, Done, Effect, Limits, Part, Refusal, Send, Token, Writes,
};
use crate::queue::message::{Destination, Id, Message};
use random::Random;

/// What is taken away from a history to see whether the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    Nothing,
    /// Senders are answered before the disk has it.
    AnswersEarly,
    /// What is deleted is there again after a kill.
    ForgetsDeletions,
    /// What was sent before a kill is not recognised afterwards.
    ForgetsProducers,
    /// Rows that are looked at for those who decline others end too early.
    LooksTooShort,
}

/// What became of a message, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Sent, not answered.
    Asked,
    /// Answered: it must come to an end.
    Kept,
    /// Acknowledged, perhaps not durably.
    Acknowledged,
    /// Acknowledged durably: it must not come again.
    Finished,
    /// Refused, or rolled back.
    Refused,
    /// It died among dead letters.
    Gone,
}

#[derive(Debug, Clone)]
struct Sent {
    name: Box<str>,
    persistent: bool,
    send: Send,
}

/// A message in a consumer's hands.
#[derive(Debug, Clone)]
struct Held {
    turn: u64,
    id: Id,
    name: Box<str>,
}

/// Acknowledged in a transaction: by whom, what, and whether it is a dead letter.
type Taken = (ConsumerKey, Held, bool);

#[derive(Debug, Default)]
struct Hands {
    queue: u16,
    connection: u64,
    /// In the order they were given.
    held: Vec<Held>,
    /// Bytes not passed on.
    under_way: usize,
    prefetch: usize,
    exclusive: bool,
    priority: i8,
    /// Declines what has passed this broker, and so many.
    filter: Option<(&'static str, usize)>,
}

pub(super) struct World {
    random: Random,
    control: Control,
    disk: Disk,
    core: Core,
    pub(super) log: Vec<String>,
    now: u64,
    key: u64,
    token: Token,
    number: u64,
    /// All messages ever sent.
    fates: BTreeMap<Box<str>, Fate>,
    persistent: BTreeSet<Box<str>>,
    /// Who waits for which messages: sends, acknowledgements.
    waiting: HashMap<Token, (Vec<Sent>, Vec<Taken>)>,
    /// What was sent and not answered before the connection broke.
    unanswered: Vec<Sent>,
    consumers: BTreeMap<ConsumerKey, Hands>,
    /// Whose a queue's groups are.
    owners: BTreeMap<(u16, Arc<str>), ConsumerKey>,
    transactions: BTreeMap<u64, (Vec<Sent>, Vec<Taken>)>,
    /// Acknowledged outside of transactions since the last commit.
    owed: Vec<Box<str>>,
    /// What is not on disk yet although it was answered; a control's.
    early: Vec<Writes>,
    /// Persistent messages that are visible and in nobody's hands: the plain model of all queues.
    visible: BTreeSet<Id>,
    turn: u64,
    /// Producers begin anew after a kill, once what was unanswered is sent again.
    life: u64,
}

const CONNECTION: u64 = 1;

impl World {
    pub(super) fn new(seed: u64, control: Control, mut disk: Disk) -> Self {
        let core = Core::new(limits(), disk.open());
        Self {
            random: Random(seed),
            control,
            disk,
            core,
            log: Vec::new(),
            now: 1_000,
            key: 1,
            token: 0,
            number: 0,
            fates: BTreeMap::new(),
            persistent: BTreeSet::new(),
            waiting: HashMap::new(),
            unanswered: Vec::new(),
            consumers: BTreeMap::new(),
            owners: BTreeMap::new(),
            transactions: BTreeMap::new(),
            owed: Vec::new(),
            early: Vec::new(),
            visible: BTreeSet::new(),
            turn: 0,
            life: 0,
        }
    }

    pub(super) fn finished(&self) -> usize {
        self.fates.values().filter(|fate| **fate == Fate::Finished).count()
    }

    pub(super) fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..30 => self.send(),
            30..36 => self.subscribe(),
            36..40 => self.unsubscribe(),
            40..62 => self.acknowledge()?,
            62..72 => self.transaction()?,
            72..76 => self.pass_on(),
            76..79 => self.operate()?,
            79..81 => {
                self.now += self.random.below(50);
                let rows = self.disk.expired(self.now);
                self.note(|| format!("expire {}", rows.len()));
                self.core.expire(self.now, &rows);
                self.core.expire_volatile(self.now);
                self.look_again();
            }
            81..83 => self.kill(),
            83..86 => self.resend(),
            86..89 => self.repeat(),
            _ => {
                let fails = self.random.chance(15);
                self.commit(fails)?;
                if self.random.chance(10) {
                    // Durable, and nobody was told.
                    self.kill();
                }
            }
        }
        self.perform()
    }

    /// All trouble ends, and everything is consumed.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        if self.random.chance(50) {
            self.kill();
        }
        let open: Vec<u64> = self.transactions.keys().copied().collect();
        open.into_iter().for_each(|key| self.roll_back(key));
        self.resend();
        self.perform()?;
        self.commit(false)?;
        self.perform()?;
        self.consume()?;
        self.nothing_eligible_waits()?;
        // What those who are choosy have left is everybody's; what dies on the way is consumed among dead
        // letters.
        let keys: Vec<ConsumerKey> = self.consumers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.end(key));
        for queue in self.core.list() {
            let hands = Hands { queue: queue.number, prefetch: 1_000, ..Hands::default() };
            self.new_consumer(queue.destination.clone(), hands);
        }
        self.perform()?;
        self.consume()?;
        let early = std::mem::take(&mut self.early);
        early.iter().for_each(|writes| self.disk.write(writes));
        if let Some((id, _)) = self.disk.rows().next() {
            return Err(format!("{id:?} is left over"));
        }
        let lost =
            self.fates.iter().find(|(name, fate)| **fate == Fate::Kept && self.persistent.contains(*name));
        match lost {
            Some((name, _)) => Err(format!("{name} was answered and is lost")),
            None if self.core.stored_bytes() != 0 || self.core.memory_bytes() != 0 => {
                Err(format!("bytes left over: {} {}", self.core.stored_bytes(), self.core.memory_bytes()))
            }
            None => Ok(()),
        }
    }

    /// All consumers acknowledge whatever they get, until there is nothing more for them.
    fn consume(&mut self) -> Result<(), String> {
        let mut idle = 0;
        while idle < 3 {
            idle += 1;
            let keys: Vec<ConsumerKey> = self.consumers.keys().copied().collect();
            for key in keys {
                let hands = self.consumers.get_mut(&key).unwrap();
                let (held, under_way) =
                    (std::mem::take(&mut hands.held), std::mem::take(&mut hands.under_way));
                self.core.passed_on(key, under_way, under_way);
                if let Some(last) = held.last() {
                    idle = 0;
                    self.core.acknowledge(key, (None, last.id), AckKind::Standard, None).unwrap();
                    self.acknowledged(held);
                }
            }
            self.commit(false)?;
            self.perform()?;
        }
        Ok(())
    }

    fn send(&mut self) {
        let open: Vec<u64> = self.transactions.keys().copied().collect();
        let transaction = self.random.pick(&open).filter(|_| self.random.chance(50));
        let sent = self.message(transaction);
        self.token += 1;
        let (token, send) = (self.token, sent.send.clone());
        self.note(|| format!("send {} to {} in {transaction:?}", sent.name, send.destination));
        self.fates.insert(sent.name.clone(), Fate::Asked);
        match transaction {
            None => {
                self.waiting.insert(token, (vec![sent], Vec::new()));
            }
            Some(key) => self.transactions.get_mut(&key).unwrap().0.push(sent),
        }
        self.core.send(token, CONNECTION, send, transaction);
    }

    fn message(&mut self, transaction: Option<u64>) -> Sent {
        self.number += 1;
        let persistent = self.random.chance(80);
        let name: Box<str> = format!("m{}", self.number).into();
        let expiration = if self.random.chance(10) { self.now + self.random.below(100) } else { 0 };
        let body = Bytes::from(vec![b'x'; usize::try_from(self.random.below(40)).unwrap()]);
        let message =
            Message { name: name.clone(), at: self.now, expiration, marks: self.marks(), origin: None, body };
        let queue = ["a", "b"][usize::try_from(self.random.below(2)).unwrap()];
        // A session is in a transaction or is not, and its producer's numbers only grow.
        let producer = format!("p{} {} {transaction:?}", self.number % 2, self.life);
        let send = Send {
            destination: Destination::queue(queue).unwrap(),
            persistent,
            priority: [4, 4, 4, 9][usize::try_from(self.random.below(4)).unwrap()],
            producer: Some((producer.into(), self.number)),
            again: false,
            message: Arc::new(message),
        };
        if persistent {
            self.persistent.insert(name.clone());
        }
        Sent { name, persistent, send }
    }

    /// What was not answered before a kill is sent again, as the failover transport does.
    fn resend(&mut self) {
        for sent in std::mem::take(&mut self.unanswered) {
            self.token += 1;
            self.note(|| format!("again {}", sent.name));
            let send = Send { again: true, ..sent.send.clone() };
            self.waiting.insert(self.token, (vec![sent], Vec::new()));
            self.core.send(self.token, CONNECTION, send, None);
        }
    }

    /// A client whose connection broke sends again what the disk does not have yet.
    fn repeat(&mut self) {
        let lone = |(token, (sends, acks)): (&Token, &(Vec<Sent>, Vec<Taken>))| {
            (sends.len() == 1 && sends[0].persistent && acks.is_empty()).then_some(*token)
        };
        let mut tokens: Vec<Token> = self.waiting.iter().filter_map(lone).collect();
        tokens.sort_unstable();
        let Some(token) = self.random.pick(&tokens) else { return };
        self.unanswered.push(self.waiting[&token].0[0].clone());
        self.resend();
    }

    fn put_back(&mut self, held: Vec<Held>) {
        let persistent = held.into_iter().filter(|held| self.persistent.contains(&held.name));
        self.visible.extend(persistent.map(|held| held.id));
    }

    /// A transaction that did not come to its end gives back what it took.
    fn untake(&mut self, taken: Vec<Taken>) {
        for (key, held, _) in taken {
            match self.consumers.get_mut(&key) {
                Some(hands) => {
                    self.visible.remove(&held.id);
                    hands.held.push(held);
                    hands.held.sort_by_key(|held| held.turn);
                }
                None => self.put_back(vec![held]),
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), String> {
        let busy = self.consumers.iter().filter(|(_, hands)| !hands.held.is_empty());
        let busy: Vec<ConsumerKey> = busy.map(|(key, _)| *key).collect();
        let Some(key) = self.random.pick(&busy) else { return Ok(()) };
        let open: Vec<u64> = self.transactions.keys().copied().collect();
        let transaction = self.random.pick(&open).filter(|_| self.random.chance(40));
        let hands = self.consumers.get_mut(&key).unwrap();
        let to = usize::try_from(self.random.below(hands.held.len() as u64)).unwrap();
        let from = if self.random.chance(50) { to } else { 0 };
        let (first, last) = (hands.held[from].id, hands.held[to].id);
        let kind = match self.random.below(10) {
            0 => AckKind::Poison(None),
            1 => AckKind::Delivered,
            _ => AckKind::Standard,
        };
        self.log.push(format!("{key} says {kind:?} of {first:?}..{last:?} in {transaction:?}"));
        let (dead, seen) = (kind == AckKind::Poison(None), kind == AckKind::Delivered);
        let done = self.core.acknowledge(key, (Some(first), last), kind, transaction);
        done.map_err(|refusal| format!("refused: {refusal}"))?;
        if seen {
            return Ok(());
        }
        let taken: Vec<_> = self.consumers.get_mut(&key).unwrap().held.drain(from..=to).collect();
        match transaction {
            Some(transaction) => {
                let open = self.transactions.get_mut(&transaction).unwrap();
                open.1.extend(taken.into_iter().map(|held| (key, held, dead)));
            }
            None if dead => self.buried(&taken),
            None => self.acknowledged(taken),
        }
        Ok(())
    }

    fn acknowledged(&mut self, held: Vec<Held>) {
        for Held { name, .. } in held {
            self.fates.insert(name.clone(), Fate::Acknowledged);
            self.owed.push(name);
        }
    }

    /// Among dead letters they are gone, anywhere else they come again as such.
    fn buried(&mut self, held: &[Held]) {
        for held in held.iter().filter(|held| held.id.level().queue() == 0) {
            self.fates.insert(held.name.clone(), Fate::Gone);
        }
    }

    fn transaction(&mut self) -> Result<(), String> {
        let open: Vec<u64> = self.transactions.keys().copied().collect();
        match self.random.pick(&open).filter(|_| self.random.chance(60)) {
            None if open.len() < 3 => {
                self.key += 1;
                self.core.begin(CONNECTION, self.key).unwrap();
                self.transactions.insert(self.key, (Vec::new(), Vec::new()));
            }
            None => {}
            Some(key) if self.random.chance(70) => {
                let (sends, acks) = self.transactions.remove(&key).unwrap();
                self.token += 1;
                self.note(|| format!("commit {key}"));
                self.waiting.insert(self.token, (sends, acks));
                self.core.commit(self.token, CONNECTION, key);
                // Nothing else happens to what is staged before its commit, in the model.
                let fails = self.random.chance(15);
                self.commit(fails)?;
            }
            Some(key) => self.roll_back(key),
        }
        Ok(())
    }

    fn roll_back(&mut self, key: u64) {
        let (sends, acks) = self.transactions.remove(&key).unwrap();
        self.note(|| format!("roll back {key}"));
        for sent in sends {
            self.fates.insert(sent.name, Fate::Refused);
        }
        self.core.rollback(CONNECTION, key).unwrap();
        self.untake(acks);
    }

    fn pass_on(&mut self) {
        for (key, hands) in &mut self.consumers {
            let bytes = std::mem::take(&mut hands.under_way);
            self.core.passed_on(*key, bytes, bytes);
        }
    }

    fn operate(&mut self) -> Result<(), String> {
        let from = Destination::queue(["a", "b"][usize::try_from(self.random.below(2)).unwrap()]).unwrap();
        let Some(queue) = self.core.find(&from) else { return Ok(()) };
        let rows = self.disk.rows_of(queue, Id::default(), 3);
        let to = Destination::queue(["b", "a"][usize::from(queue % 2 == 0)]).unwrap();
        self.token += 1;
        self.note(|| format!("move {} of {from} to {to}", rows.len()));
        self.core.act(self.token, &rows, &[], &Action::Move(to));
        // Nothing else happens to what is staged before its commit, in the model.
        let fails = self.random.chance(15);
        self.commit(fails)
    }

    /// The process is killed: what is on disk is what there is.
    fn kill(&mut self) {
        self.note(|| "kill".to_owned());
        self.early.clear();
        for (sends, _) in std::mem::take(&mut self.waiting).into_values() {
            self.unanswered.extend(sends.into_iter().filter(|sent| sent.persistent));
        }
        for (sends, _) in std::mem::take(&mut self.transactions).into_values() {
            for sent in sends {
                self.fates.insert(sent.name, Fate::Refused);
            }
        }
        // Sent again in their order.
        self.unanswered.sort_by_key(|sent| sent.send.producer.clone().map(|(_, number)| number));
        let owed = std::mem::take(&mut self.owed);
        self.undo(owed);
        self.consumers.clear();
        self.owners.clear();
        if self.control == Control::ForgetsProducers {
            self.disk.forget_producers();
        }
        self.core = Core::new(limits(), self.disk.open());
        self.visible = self.disk.rows().map(|(id, _)| *id).collect();
        self.life += 1;
    }

    /// Nobody was told that it is durable, so it may come again.
    fn undo(&mut self, names: Vec<Box<str>>) {
        for name in names {
            if self.fates.get(&name) == Some(&Fate::Acknowledged) {
                self.fates.insert(name, Fate::Kept);
            }
        }
    }

    fn commit(&mut self, fails: bool) -> Result<(), String> {
        if self.core.is_clean() {
            return Ok(());
        }
        if fails && self.control != Control::AnswersEarly && self.random.chance(50) {
            return self.commit_singly();
        }
        let mut writes = self.core.writes(Part::All);
        if fails {
            self.note(|| "the disk is full".to_owned());
            self.core.failed(Part::All, "disk full");
            self.look_again();
            return Ok(());
        }
        self.note(|| format!("commit: {writes:?}"));
        if self.control == Control::AnswersEarly {
            self.core.committed(Part::All);
            let before = std::mem::replace(&mut self.early, vec![writes]);
            before.iter().for_each(|writes| self.disk.write(writes));
            return Ok(());
        }
        if self.control == Control::ForgetsDeletions {
            writes.deletes.clear();
        }
        self.disk.write(&writes);
        self.core.committed(Part::All);
        for name in std::mem::take(&mut self.owed) {
            self.fates.insert(name, Fate::Finished);
        }
        self.look_again();
        self.once()
    }

    /// What cannot be written fails alone.
    fn commit_singly(&mut self) -> Result<(), String> {
        self.note(|| "one by one".to_owned());
        if self.random.chance(70) {
            self.write(Part::Owed);
            for name in std::mem::take(&mut self.owed) {
                self.fates.insert(name, Fate::Finished);
            }
        }
        while self.core.is_awaited() {
            if self.random.chance(30) {
                self.core.failed(Part::First, "it is too large");
            } else {
                self.write(Part::First);
            }
        }
        self.look_again();
        self.once()
    }

    fn write(&mut self, part: Part) {
        let mut writes = self.core.writes(part);
        self.note(|| format!("{part:?}: {writes:?}"));
        if self.control == Control::ForgetsDeletions {
            writes.deletes.clear();
        }
        self.disk.write(&writes);
        self.core.committed(part);
    }

    /// What is on disk and in nobody's hands.
    fn look_again(&mut self) {
        let held = self.consumers.values().flat_map(|hands| &hands.held);
        let taken = self.transactions.values().flat_map(|(_, taken)| taken).map(|(_, held, _)| held);
        let mut hidden: BTreeSet<Id> = held.chain(taken).map(|held| held.id).collect();
        // What is owed is on disk still, and not visible: nothing but a commit takes it away.
        let writes = self.core.writes(Part::All);
        hidden.extend(writes.deletes.iter().map(|(id, _)| *id));
        hidden.extend(writes.moves.iter().map(|step| step.from));
        self.visible = self.disk.rows().map(|(id, _)| *id).filter(|id| !hidden.contains(id)).collect();
    }

    /// No message is in two places.
    fn once(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (_, message) in self.disk.rows() {
            if !seen.insert(message.name.clone()) {
                return Err(format!("{} is kept twice", message.name));
            }
        }
        Ok(())
    }

    fn perform(&mut self) -> Result<(), String> {
        loop {
            self.core.dispatch(self.now);
            let effects = self.core.effects();
            if effects.is_empty() {
                return Ok(());
            }
            for effect in effects {
                match effect {
                    Effect::Answer(token, answer) => self.answered(token, answer),
                    Effect::Load { level, after, messages, .. } => {
                        let page = self.disk.page(level, after, messages.min(3));
                        let unread = self.random.chance(5);
                        self.core.loaded(level, (!unread).then_some(page));
                        if unread {
                            self.core.retry();
                        }
                    }
                    Effect::Scan { level, after, rows } => {
                        let mut rows = self.disk.scan(level, after, rows);
                        if self.control == Control::LooksTooShort {
                            rows.truncate(1);
                        }
                        let unread = self.random.chance(5);
                        self.core.scanned(level, after, (!unread).then_some(&rows[..]));
                        if unread {
                            self.core.retry();
                        }
                    }
                    Effect::Deliver { consumer, id, size, message, .. } => {
                        let early = self.control == Control::AnswersEarly;
                        let missing = message.is_none() && early;
                        let message = message.or_else(|| (!missing).then(|| self.disk.read(id)));
                        if let Some(message) = message {
                            self.delivered(consumer, id, size, &message)?;
                        }
                    }
                }
            }
        }
    }

    fn delivered(&mut self, key: ConsumerKey, id: Id, size: usize, message: &Message) -> Result<(), String> {
        let name = &message.name;
        self.note(|| format!("{name} ({id:?}) to {key}"));
        if size != message.size() {
            return Err(format!("{name} counts {} and is given away as {size}", message.size()));
        }
        if self.fates.get(name) == Some(&Fate::Finished) {
            return Err(format!("{name} was acknowledged durably and comes again"));
        }
        let queue = id.level().queue();
        if self.control != Control::Nothing {
            // The controls' worlds are checked for what they break, not for their order.
        } else {
            if self.only(queue).is_some_and(|only| only != key) {
                return Err(format!("{name} goes to {key} beside an exclusive consumer"));
            }
            if !self.may_have(key, queue, message.marks.as_deref()) {
                return Err(format!("{name} goes to {key}, who must not have it: {:?}", self.owners));
            }
            if self.persistent.contains(name) {
                let first = self.first_for(key, queue, Some(id));
                if first != Some(id) {
                    return Err(format!("{id:?} is given away before {first:?}"));
                }
                self.visible.remove(&id);
            }
        }
        self.own(key, queue, message.marks.as_deref());
        if message.expiration != 0 && message.expiration <= self.now {
            return Err(format!("{name} is given away although its time is over"));
        }
        let twice = self.consumers.values().flat_map(|hands| &hands.held).any(|held| held.id == id);
        if twice {
            return Err(format!("{name} is in two hands"));
        }
        let Some(hands) = self.consumers.get_mut(&key) else {
            return Err(format!("{name} goes to {key}, who is gone"));
        };
        if hands.queue != id.level().queue() || hands.connection != CONNECTION {
            return Err(format!("{name} goes to another queue's consumer"));
        }
        self.turn += 1;
        hands.held.push(Held { turn: self.turn, id, name: name.clone() });
        hands.under_way += size;
        if hands.held.len() > hands.prefetch + 100 {
            return Err(format!("{key} holds more than it wants"));
        }
        Ok(())
    }

    fn answered(&mut self, token: Token, answer: Result<Done, Refusal>) {
        let Some((sends, acks)) = self.waiting.remove(&token) else { return };
        for sent in sends {
            // Sent again, it may be finished already.
            let known = self.fates.get(&sent.name).copied();
            if known == Some(Fate::Asked) || (known == Some(Fate::Refused) && answer.is_ok()) {
                let fate = if answer.is_ok() && sent.persistent { Fate::Kept } else { Fate::Refused };
                self.fates.insert(sent.name, fate);
            }
        }
        if answer.is_err() {
            return self.untake(acks);
        }
        for (_, held, dead) in acks {
            if dead {
                self.buried(&[held]);
            } else {
                self.fates.insert(held.name, Fate::Finished);
            }
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.log.len() >= 60 {
            self.log.drain(..30);
        }
        let text = text();
        self.log.push(text);
    }
}

/// So small that everything is met.
fn limits() -> Limits {
    Limits {
        window_messages: 3,
        window_bytes: 2 * 300,
        cached_bytes: 3 * 300,
        outgoing_bytes: 1 << 20,
        scanned_rows: 4,
        ..Limits::default()
    }
}
