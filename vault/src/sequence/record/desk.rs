//! The coordinator's part about records: wishes that wait for their round, readers who want to
//! know that this vault still is the owner, and when leases were renewed. Decides nothing about
//! the pair: the coordinator tells whether entries may be made and what became of them.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;

use super::lease::{Leases, Tenancy};
use super::{Done, Kind, MAX_VALUE, RecordError, RecordName, Round, Verdict, Wish, draft};
use crate::sequence::coordinator::WAITING;
use crate::sequence::entry::{Act, Draft, Entry};
use crate::sequence::journal::{Journal, JournalError};
use crate::sequence::quorum::{BLOCK_BYTES, NUMBER_BYTES};
use crate::sequence::reason::Told;

/// One round's entries hold no more text than this, and one entry: a message must stay below the
/// link's longest frame.
pub(in crate::sequence) const ROUND_BYTES: usize = 1 << 20;

/// The same where etcd is the ledger: numbers share the block, and the last entry may be the longest.
pub(in crate::sequence) const SHARED_BYTES: usize = BLOCK_BYTES - NUMBER_BYTES - LONGEST;

/// No entry of a record is longer: a control character becomes six bytes in its text, and one more
/// in the block's JSON.
const LONGEST: usize = 7 * MAX_VALUE + (16 << 10);

/// A wish, and who waits for what becomes of it.
pub(in crate::sequence) struct Waiting {
    pub(in crate::sequence) name: RecordName,
    pub(in crate::sequence) wish: Wish,
    pub(in crate::sequence) answer: oneshot::Sender<Result<Done, RecordError>>,
}

/// Waits to hear up to which entry the ledger may be answered from, once this vault is sure to be
/// its owner.
pub(in crate::sequence) type Sure = oneshot::Sender<Result<u64, RecordError>>;

/// What waits at the owner.
#[derive(Default)]
pub(in crate::sequence) struct Desk {
    waiting: VecDeque<Waiting>,
    under_way: Vec<(Waiting, Done)>,
    leases: Leases,
    /// Came since the last question to the other vault was asked.
    readers: Vec<Sure>,
    /// The question under way, and who came before it was asked.
    asked: Option<(u64, Vec<Sure>)>,
    questions: u64,
    /// Does another vault enter records too?
    shared: bool,
}

impl Desk {
    /// Of a ledger that another vault enters in too.
    pub(in crate::sequence) fn shared() -> Self {
        Self { leases: Leases::shared(), shared: true, ..Self::default() }
    }

    /// Of a shared ledger: these were entered, here or by the other vault. Leases run from now on.
    pub(in crate::sequence) fn entered(&mut self, entries: &[Entry], now: Instant) {
        for entry in entries.iter().filter(|entry| entry.series == Kind::Lease.word()) {
            let Act::Put(text) = &entry.act else { continue };
            let Ok(tenancy) = serde_json::from_str::<Tenancy>(text) else { continue };
            let (owner, name) = (entry.owner.clone(), entry.key.clone());
            self.leases.renew(&RecordName { owner, kind: Kind::Lease, name }, tenancy.epoch, now);
        }
    }

    /// What was to be entered never will be: it is decided anew.
    pub(in crate::sequence) fn again(&mut self) {
        for (waiting, _) in self.under_way.drain(..).rev() {
            self.waiting.push_front(waiting);
        }
    }

    /// A wish wants to be entered.
    pub(in crate::sequence) fn take(&mut self, waiting: Waiting) {
        if self.waiting.len() >= WAITING {
            return answer(waiting, Err(RecordError::Busy));
        }
        self.waiting.push_back(waiting);
    }

    /// A reader wants to be sure.
    pub(in crate::sequence) fn take_reader(&mut self, sure: Sure) {
        // Those that have given up make room.
        if self.readers.len() >= WAITING {
            self.readers.retain(|reader| !reader.is_closed());
        }
        if self.readers.len() >= WAITING {
            return tell(sure, Err(RecordError::Busy));
        }
        self.readers.push(sure);
    }

    /// Do wishes wait for a round?
    pub(in crate::sequence) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The owner says how things stand: with `Err`, nobody may be answered now.
    pub(in crate::sequence) fn follow(&mut self, sure: Result<(), Told>, now: Instant) {
        self.leases.follow(sure.is_ok(), now);
        if let Err(told) = sure {
            let asked = self.asked.take().map_or_else(Vec::new, |(_, readers)| readers);
            for reader in asked.into_iter().chain(std::mem::take(&mut self.readers)) {
                tell(reader, Err(told.clone().into()));
            }
        }
    }

    /// Nothing can be entered, so nobody can renew a lease; what is there may be read.
    pub(in crate::sequence) fn follow_reading(&mut self, now: Instant) {
        self.leases.follow(false, now);
    }

    /// The question that the other vault has yet to answer.
    pub(in crate::sequence) fn awaits(&self) -> Option<u64> {
        self.asked.as_ref().map(|(question, _)| *question)
    }

    /// The question that the other vault is to be asked now, if there is one. One at a time, for
    /// all readers that have come meanwhile.
    pub(in crate::sequence) fn question(&mut self) -> Option<u64> {
        if self.asked.is_some() || self.readers.is_empty() {
            return None;
        }
        self.questions += 1;
        self.asked = Some((self.questions, std::mem::take(&mut self.readers)));
        Some(self.questions)
    }

    /// The other vault's answer; the ledger may be answered from up to `index`.
    pub(in crate::sequence) fn stands(&mut self, question: u64, index: u64) {
        if let Some((_, readers)) = self.asked.take_if(|(asked, _)| *asked == question) {
            readers.into_iter().for_each(|reader| tell(reader, Ok(index)));
        }
    }

    /// Decides waiting wishes for a round of at most `most` entries, which the coordinator
    /// proposes now.
    pub(in crate::sequence) fn round(
        &mut self,
        journal: &Journal,
        most: usize,
        now: Instant,
        at: i64,
    ) -> Vec<Draft> {
        let (mut round, mut drafts, mut bytes) = (Round::default(), Vec::new(), 0);
        let mut later = VecDeque::new();
        let most_bytes = if self.shared { SHARED_BYTES } else { ROUND_BYTES };
        while drafts.len() < most
            && bytes < most_bytes
            && let Some(waiting) = self.waiting.pop_front()
        {
            if waiting.answer.is_closed() {
                continue;
            }
            // Of many that write one record at once, one is looked up a round.
            if round.touches(&waiting.name) {
                later.push_back(waiting);
                continue;
            }
            let context = match journal.record_context(&waiting.name, &waiting.wish) {
                Ok(context) => context,
                Err(error) => {
                    unreadable(waiting, &error);
                    continue;
                }
            };
            match round.decide(&waiting.name, &waiting.wish, &context, &mut self.leases, now) {
                Verdict::Answer(done) => answer(waiting, Ok(done)),
                Verdict::Refuse(refused) => answer(waiting, Err(refused.into())),
                Verdict::Make(done, text) => {
                    let draft = draft(&waiting.name, &done, text, at);
                    bytes += draft.bytes();
                    drafts.push(draft);
                    self.under_way.push((waiting, done));
                }
                Verdict::Wait => later.push_back(waiting),
            }
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        drafts
    }

    /// Nothing can be entered now.
    pub(in crate::sequence) fn refuse(&mut self, told: &Told) {
        self.waiting.drain(..).for_each(|waiting| answer(waiting, Err(told.clone().into())));
    }

    /// The round is final. Tells how many versions were put, and how many records removed.
    pub(in crate::sequence) fn conclude(&mut self, now: Instant) -> [u64; 2] {
        let mut counts = [0; 2];
        for (waiting, done) in std::mem::take(&mut self.under_way) {
            if let Some(lease) = &done.lease {
                self.leases.renew(&waiting.name, lease.epoch, now);
            }
            let removed = done.lease.is_none() && !matches!(waiting.wish, Wish::Put { .. });
            counts[usize::from(removed)] += 1;
            answer(waiting, Ok(done));
        }
        counts
    }

    /// The round may or may not become final.
    pub(in crate::sequence) fn doubt(&mut self) {
        self.under_way.drain(..).for_each(|(waiting, _)| answer(waiting, Err(RecordError::InDoubt)));
    }
}

fn unreadable(waiting: Waiting, error: &JournalError) {
    tracing::error!("sequence: {error}");
    answer(waiting, Err(RecordError::Unreadable));
}

fn answer(waiting: Waiting, outcome: Result<Done, RecordError>) {
    // A caller that has gone repeats its key and hears the same.
    let _gone = waiting.answer.send(outcome);
}

fn tell(reader: Sure, outcome: Result<u64, RecordError>) {
    // A reader that has gone needs no answer.
    let _gone = reader.send(outcome);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::reason::Reason;

    #[test]
    fn a_shared_ledgers_round_leaves_room_for_numbers_in_one_block_whatever_the_values_are() {
        use crate::sequence::entry::Tail;
        use crate::sequence::record::{Content, Expect, Written};
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        for (text, least) in [("\u{1}", 1), ("x", 4)] {
            let mut desk = Desk::shared();
            for number in 0..20 {
                let (answer, answered) = oneshot::channel();
                // Nobody listens to one that has gone.
                std::mem::forget(answered);
                let content = Content { value: text.repeat(MAX_VALUE), json: false };
                let written = Written { content, by: "www1".to_owned(), key: format!("k{number}") };
                let name = format!("lots/{number}");
                let name = RecordName { owner: "erp".to_owned(), kind: Kind::Record, name };
                desk.take(Waiting { name, wish: Wish::Put { written, expect: Expect::Absent }, answer });
            }
            let drafts = desk.round(&journal, 100, tokio::time::Instant::now().into_std(), 0);
            assert!(drafts.len() >= least, "{}", drafts.len());
            let mut tail = Tail::default();
            let entries = drafts.into_iter().map(|draft| {
                let entry = Entry::append(tail, u64::MAX, u128::MAX, draft);
                tail = entry.tail();
                entry
            });
            let block = serde_json::to_vec(&entries.collect::<Vec<_>>()).unwrap();
            assert!(block.len() <= BLOCK_BYTES - NUMBER_BYTES, "{}", block.len());
        }
    }

    #[test]
    fn of_many_that_write_one_record_at_once_one_is_looked_up_a_round() {
        use crate::sequence::record::{Content, Expect, Kind, Written};
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let (mut desk, mut answers) = (Desk::default(), Vec::new());
        for number in 0..500 {
            let (answer, answered) = oneshot::channel();
            let content = Content { value: "100".to_owned(), json: false };
            let written = Written { content, by: "www1".to_owned(), key: format!("k{number}") };
            let lot = if number == 499 { "lots/8" } else { "lots/7" };
            let name = RecordName { owner: "erp".to_owned(), kind: Kind::Record, name: lot.to_owned() };
            desk.take(Waiting { name, wish: Wish::Put { written, expect: Expect::Absent }, answer });
            answers.push(answered);
        }
        let now = tokio::time::Instant::now().into_std();
        let drafts = desk.round(&journal, 100, now, 0);
        let names: Vec<_> = drafts.iter().map(|draft| draft.key.as_str()).collect();
        assert_eq!(names, ["lots/7", "lots/8"], "nobody waits behind those");
        assert_eq!((desk.waiting.len(), journal.records_looked_up()), (498, 2));
    }

    #[test]
    fn one_question_serves_all_readers_that_came_before_it() {
        let mut desk = Desk::default();
        let (sure, mut first) = oneshot::channel();
        desk.take_reader(sure);
        let (sure, mut second) = oneshot::channel();
        desk.take_reader(sure);
        assert_eq!(desk.question(), Some(1));
        let (sure, mut late) = oneshot::channel();
        desk.take_reader(sure);
        assert_eq!(desk.question(), None, "one at a time");
        desk.stands(1, 9);
        assert_eq!([first.try_recv(), second.try_recv()], [Ok(Ok(9)), Ok(Ok(9))]);
        assert!(late.try_recv().is_err(), "it came after the question");
        assert_eq!(desk.question(), Some(2));
        desk.stands(1, 9);
        assert!(late.try_recv().is_err(), "the answer to another question");
        desk.follow(Err(Reason::Away.into()), tokio::time::Instant::now().into_std());
        assert_eq!(late.try_recv(), Ok(Err(Reason::Away.into())));
    }
}
