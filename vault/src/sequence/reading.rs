//! What may be read of the ledger at either vault: numbers, series, entries for an export. Lets
//! out only what both vaults have, or what this one gave alone; puts text and period to each
//! number, as the series' definition says.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use shared::api::{Number, NumberState, Series, SeriesKind};
use shared::shutdown::Shutdown;
use tokio::time::{Instant, timeout};

use super::book::{Known, SeriesName, Wish, given_up};
use super::coordinator::label;
use super::definition::{Counted, Definition, base_of, period_of};
use super::entry::Entry;
use super::journal::{Journal, JournalError, Open, Which};
use super::protocol::Reason;
use super::{COUNT_EXPIRED, Done, Outcome, Sequence, SequenceError};

/// A reader hears "in doubt" after this long.
const FINAL_DEADLINE: Duration = Duration::from_secs(1);
/// Most periods of one series that one answer names.
const MAX_PERIODS: usize = 1000;
/// Most series of one owner that are listed.
const MAX_SERIES: usize = 100_000;

impl Sequence {
    /// The series that counts `period` of `base`.
    ///
    /// # Errors
    /// The period does not fit; the text says what does.
    pub fn series_of(
        &self,
        owner: String,
        base: &str,
        period: Option<&str>,
    ) -> Result<SeriesName, SequenceError> {
        let whole = SeriesName { owner, series: base.to_owned() };
        let series = self.definition(&whole).series(base, period)?;
        Ok(SeriesName { series, ..whole })
    }

    /// What became of a number. `stale`: `None` may mean that this vault alone does not know of it.
    ///
    /// # Errors
    /// [`SequenceError::InDoubt`] where its last entry is not known to be on both vaults.
    pub async fn by_number(
        &self,
        name: SeriesName,
        number: u64,
        stale: bool,
    ) -> Result<Option<Number>, SequenceError> {
        self.newest_unless(stale).await?;
        let (last, asked) = (self.seen().final_index, name.clone());
        let known = self.readers.look(move |journal| {
            let chain = journal.by_number(&asked, number)?;
            own_first(chain, last, || journal.own_by_number(&asked, number))
        });
        self.once_final(&name, known.await?, stale).await
    }

    /// The number that a key got.
    ///
    /// # Errors
    /// As [`Sequence::by_number`].
    pub async fn by_key(
        &self,
        name: SeriesName,
        key: String,
        stale: bool,
    ) -> Result<Option<Number>, SequenceError> {
        self.newest_unless(stale).await?;
        let (last, asked) = (self.seen().final_index, name.clone());
        let known = self.readers.look(move |journal| {
            let chain = journal.by_key(&asked, &key)?;
            own_first(chain, last, || journal.own_by_key(&asked, &key))
        });
        let known = known.await?;
        if let Some(Known { number, .. }) = known.as_ref().filter(|known| known.number.number == 0) {
            return Err(given_up(number.clone()).into());
        }
        self.once_final(&name, known, stale).await
    }

    /// A page of the series' numbers above `after`: whole, or refused. `state`: only those of it.
    ///
    /// # Errors
    /// As [`Sequence::by_number`].
    pub async fn list(
        &self,
        name: SeriesName,
        state: Option<NumberState>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Number>, SequenceError> {
        self.page(name, state.map_or(Which::All, Which::State), after, limit).await
    }

    /// A page of the series' reservations above `after` that are older than its `expires_after`.
    ///
    /// # Errors
    /// As [`Sequence::by_number`].
    pub async fn list_expired(
        &self,
        name: SeriesName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Number>, SequenceError> {
        match expiry(&self.definition(&name)) {
            Some(before) => self.page(name, Which::ReservedBefore(before), after, limit).await,
            None => Ok(Vec::new()),
        }
    }

    /// May an answer be old: does its reader allow it, and are the two apart?
    #[must_use]
    pub fn stale(&self, allowed: bool) -> Option<Stale> {
        let seen = self.seen();
        (allowed && seen.refusal.is_some()).then_some(Stale { final_entries: seen.final_index })
    }

    /// A page of what this vault has of the series' numbers above `after`, though the other may have
    /// more. Marked are those whose last entry is not among the first `upto`, and those that this vault
    /// gave alone. `state`: only those of it; `expired`: only reservations older than its `expires_after`.
    ///
    /// # Errors
    /// The journal; [`SequenceError::NoSeries`] where there surely is none.
    pub async fn list_stale(
        &self,
        name: SeriesName,
        (state, expired): (Option<NumberState>, bool),
        (after, limit): (u64, usize),
        upto: Stale,
    ) -> Result<Vec<Number>, SequenceError> {
        let definition = self.definition(&name);
        let before = expiry(&definition);
        let which = match (expired, before, state) {
            (true, Some(before), _) => Which::ReservedBefore(before),
            (true, None, _) => return Ok(Vec::new()),
            (false, _, Some(state)) => Which::State(state),
            (false, _, None) => Which::All,
        };
        let (asked, last) = (name.clone(), upto.final_entries);
        let known = self.readers.walk(move |journal| {
            let chain = journal.numbers(&asked, which, after, limit)?;
            let mut known = Vec::with_capacity(chain.len());
            for one in chain {
                let one = flagged(journal, one, before)?;
                known.push(Number { in_doubt: one.index > last, ..one.number });
            }
            let given = journal.numbers_given_alone(&asked, which, after, limit, before)?;
            Ok((known, given))
        });
        let (mut numbers, alone) = known.await?;
        numbers.extend(alone);
        numbers.sort_by_key(|number| number.number);
        numbers.truncate(limit);
        // A vault whose journal may be an old copy denies nothing.
        if numbers.is_empty() && self.seen().complete {
            self.must_exist(&name).await?;
        }
        Ok(numbers.into_iter().map(|number| dressed(&definition, &name, number)).collect())
    }

    async fn page(
        &self,
        name: SeriesName,
        which: Which,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Number>, SequenceError> {
        self.newest().await?;
        let (definition, asked) = (self.definition(&name), name.clone());
        let before = expiry(&definition);
        let known = self.readers.walk(move |journal| {
            let known = journal.numbers(&asked, which, after, limit)?;
            known.into_iter().map(|known| flagged(journal, known, before)).collect::<Result<Vec<_>, _>>()
        });
        let known = known.await?;
        // A short page says that there is no more.
        self.knows_all_of(&name)?;
        if known.is_empty() {
            self.must_exist(&name).await?;
        }
        self.wait_final(known.iter().map(|known| known.index).max().unwrap_or(0)).await?;
        Ok(known.into_iter().map(|known| dressed(&definition, &name, known.number)).collect())
    }

    /// What is said of a series, and how far it is counted; `None` for one that nobody has used or
    /// defined. `stale`: as this vault has it.
    ///
    /// # Errors
    /// The journal, or the pair has never been together in this life.
    pub async fn survey(&self, name: SeriesName, stale: bool) -> Result<Option<Series>, SequenceError> {
        self.newest_unless(stale).await?;
        let defined = self.seen().definitions.get(&name).cloned();
        let definition = defined.clone().unwrap_or_default();
        let before = expiry(&definition);
        let (asked, through) = (name.clone(), definition.counted() == Counted::Through);
        let names = self.readers.walk(move |journal| periods(journal, &asked, through));
        let mut counts = Vec::new();
        for series in names.await? {
            let asked = SeriesName { series, ..name.clone() };
            let open = self.open(&asked, before).await?;
            counts.push(self.readers.walk(move |journal| journal.count(&asked, open)).await?);
        }
        if !stale {
            self.complete()?;
        }
        if defined.is_none() && counts.iter().all(|count| count.last == 0) {
            return Ok(None);
        }
        let kind = if definition.range > 0 { SeriesKind::Available } else { SeriesKind::Strict };
        let SeriesName { owner, series } = name;
        let Definition { range, pattern, expires_after } = definition;
        Ok(Some(Series { owner, series, kind, range, pattern, expires_after, counts }))
    }

    /// The names of an owner's series, those of its periods not among them: at most `limit` after
    /// `after`.
    ///
    /// # Errors
    /// As [`Sequence::survey`].
    pub async fn series_names(
        &self,
        owner: String,
        after: String,
        limit: usize,
        stale: bool,
    ) -> Result<Vec<String>, SequenceError> {
        self.newest_unless(stale).await?;
        let definitions = Arc::clone(&self.seen().definitions);
        let asked = owner.clone();
        let used = self.readers.walk(move |journal| {
            let (mut names, mut after) = (Vec::new(), String::new());
            while names.len() < MAX_SERIES {
                let Some(next) = journal.counted(&asked, &after, 1)?.pop() else { break };
                let base = base_of(&next).to_owned();
                // All periods of a series are passed over at once; none begins with `~`.
                after = if next == base { next } else { format!("{base}/~") };
                names.push(base);
            }
            Ok(names)
        });
        let mut names = used.await?;
        names.extend(definitions.keys().filter(|name| name.owner == owner).map(|name| name.series.clone()));
        names.retain(|name| *name > after);
        names.sort();
        names.dedup();
        names.truncate(limit);
        if !stale {
            self.complete()?;
        }
        Ok(names)
    }

    /// How far entries are final, and so may be exported; and while the two are apart, how many
    /// numbers of this series this vault gave alone, which are not among them. Of a strict series
    /// nobody gives any alone. Where etcd is the ledger, all that it holds now.
    ///
    /// # Errors
    /// The journal; that etcd is not reached.
    pub async fn exportable(
        &self,
        base: &SeriesName,
        stale: bool,
    ) -> Result<(u64, Option<u64>), SequenceError> {
        self.newest_unless(stale).await?;
        match self.must_exist(base).await {
            // A vault whose journal may be an old copy denies nothing, and exports nothing for a whole.
            Err(SequenceError::NoSeries { .. }) if stale => {}
            Err(missing @ SequenceError::NoSeries { .. }) => {
                return Err(self.complete().err().unwrap_or(missing));
            }
            known => known?,
        }
        let seen = self.seen();
        if seen.refusal.is_none() || self.ready.is_some() || self.definition(base).range == 0 {
            return Ok((seen.final_index, None));
        }
        let asked = base.clone();
        let alone = self.readers.look(move |journal| journal.given_alone(&asked)).await?;
        Ok((seen.final_index, Some(alone)))
    }

    /// The next entries after `after`, as far as they are final; empty when there are no more.
    ///
    /// # Errors
    /// The journal.
    pub async fn entries(&self, after: u64) -> Result<Vec<Entry>, SequenceError> {
        let last = self.seen().final_index;
        let mut entries = self.readers.walk(move |journal| journal.entries(after)).await?;
        entries.retain(|entry| entry.index <= last);
        Ok(entries)
    }

    /// What both vaults have already of these wishes' keys.
    pub(super) async fn held(
        &self,
        name: &SeriesName,
        wishes: &[Wish],
        last: u64,
    ) -> Result<Vec<Option<Result<Outcome, SequenceError>>>, SequenceError> {
        let key = |wish: &Wish| match wish {
            Wish::Reserve { key, .. } => Some(key.clone()),
            _ => None,
        };
        let keys: Vec<Option<String>> = wishes.iter().map(key).collect();
        let asked = name.clone();
        let known = self.readers.look(move |journal| {
            let find = |key: Option<String>| match key {
                Some(key) => journal.by_key(&asked, &key),
                None => Ok(None),
            };
            keys.into_iter().map(find).collect::<Result<Vec<_>, _>>()
        });
        // A key that was given up has no number; what that means the owner says.
        let is_settled = |known: &Known| {
            let is_number = known.number.number > 0 && known.number.state != NumberState::Doubtful;
            is_number && known.index <= last
        };
        let held = |known: Known| Outcome::Number(Done { number: known.number, fresh: false });
        let known = known.await?.into_iter();
        Ok(known
            .map(|known| known.filter(is_settled).map(|known| Ok(self.dressed_outcome(name, held(known)))))
            .collect())
    }

    /// Flags a reservation that is older than the series' `expires_after`.
    pub(super) async fn flag(&self, name: &SeriesName, number: &mut Number) -> Result<(), SequenceError> {
        let before = expiry(&self.definition(name));
        if number.state != NumberState::Reserved || before.is_none() {
            return Ok(());
        }
        let (asked, which) = (name.clone(), number.number);
        let known = self.readers.look(move |journal| match journal.by_number(&asked, which)? {
            Some(known) => flagged(journal, known, before).map(Some),
            None => Ok(None),
        });
        number.expired = known.await?.is_some_and(|known| known.number.expired);
        Ok(())
    }

    pub(super) fn dressed_outcome(&self, name: &SeriesName, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Number(done) => {
                let number = dressed(&self.definition(name), name, done.number);
                Outcome::Number(Done { number, ..done })
            }
            defined @ Outcome::Defined(_) => defined,
        }
    }

    /// Keeps the gauge of forgotten reservations, and reads a small part of the time.
    pub(super) async fn count_expired(self, gauge: IntGauge, shutdown: Shutdown) {
        loop {
            let began = Instant::now();
            // The journal's trouble was said where it was met; what was counted last stays.
            if let Ok(count) = self.expired().await {
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            let pause = COUNT_EXPIRED.max(began.elapsed() * 20);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How many reservations are older than their series' `expires_after`.
    async fn expired(&self) -> Result<u64, SequenceError> {
        let definitions = Arc::clone(&self.seen().definitions);
        let mut count = 0;
        for (base, definition) in definitions.iter() {
            let before = expiry(definition);
            if before.is_none() {
                continue;
            }
            let asked = base.clone();
            for series in self.readers.walk(move |journal| periods(journal, &asked, true)).await? {
                let name = SeriesName { series, ..base.clone() };
                count += self.open(&name, before).await?.expired;
            }
        }
        Ok(count)
    }

    /// How many reservations of a series are open, and how many of them are older than `before`;
    /// counted a part at a time, so that others have their turn.
    async fn open(&self, name: &SeriesName, before: Option<i64>) -> Result<Open, SequenceError> {
        let mut open = Open::default();
        loop {
            let asked = name.clone();
            let more = self.readers.walk(move |journal| journal.count_open(&asked, before, open)).await?;
            open = more;
            if open.after.is_none() {
                return Ok(open);
            }
        }
    }

    /// Is there such a series, or one whose period it is?
    ///
    /// # Errors
    /// [`SequenceError::NoSeries`].
    pub(super) async fn must_exist(&self, name: &SeriesName) -> Result<(), SequenceError> {
        let base = SeriesName { owner: name.owner.clone(), series: base_of(&name.series).to_owned() };
        let asked = base.clone();
        let is_there = self.seen().definitions.contains_key(&base)
            || self.readers.look(move |journal| journal.has_numbers(&asked)).await?;
        let SeriesName { owner, series } = base;
        if is_there { Ok(()) } else { Err(SequenceError::NoSeries { owner, series }) }
    }

    /// What is said of a series, or of the one whose period it is.
    fn definition(&self, name: &SeriesName) -> Definition {
        let definitions = Arc::clone(&self.seen.borrow().definitions);
        if definitions.is_empty() {
            return Definition::default();
        }
        let base = SeriesName { owner: name.owner.clone(), series: base_of(&name.series).to_owned() };
        definitions.get(&base).cloned().unwrap_or_default()
    }

    /// Lets out what is final. Whatever was answered anywhere is durable in both journals, so
    /// this journal has it, unless the journal itself is not the one it was.
    async fn once_final(
        &self,
        name: &SeriesName,
        known: Option<Known>,
        stale: bool,
    ) -> Result<Option<Number>, SequenceError> {
        let Some(known) = known else {
            return if stale { Ok(None) } else { self.knows_all_of(name).map(|()| None) };
        };
        self.wait_final(known.index).await?;
        let mut number = dressed(&self.definition(name), name, known.number);
        self.flag(name, &mut number).await?;
        Ok(Some(number))
    }

    /// While both are together an entry becomes final in the time that a message takes: this
    /// vault hears of it after whoever asked for it, and the two may be one caller.
    async fn wait_final(&self, index: u64) -> Result<(), SequenceError> {
        let mut seen = self.seen.clone();
        let settled = seen.wait_for(|seen| seen.final_index >= index || seen.refusal.is_some());
        match timeout(FINAL_DEADLINE, settled).await {
            Ok(Ok(seen)) if seen.final_index >= index => Ok(()),
            _ => Err(SequenceError::InDoubt),
        }
    }

    /// May it be said that something of this series is not there? While they are apart, not of one
    /// that the other vault may give from alone.
    fn knows_all_of(&self, name: &SeriesName) -> Result<(), SequenceError> {
        match self.seen().refusal {
            // Where etcd is the ledger nobody gives any alone.
            Some(reason) if self.ready.is_none() && self.definition(name).range > 0 => {
                Err(SequenceError::of_a_look(reason.into()))
            }
            _ => self.complete(),
        }
    }

    /// This vault has what anybody was answered before; asked for unless the reader does without.
    async fn newest_unless(&self, stale: bool) -> Result<(), SequenceError> {
        if stale { Ok(()) } else { self.newest().await }
    }

    /// May it be said that something is not there?
    fn complete(&self) -> Result<(), SequenceError> {
        let seen = self.seen();
        let why = || SequenceError::of_a_look(seen.told().unwrap_or(Reason::Syncing.into()));
        if seen.complete { Ok(()) } else { Err(why()) }
    }
}

/// What is older than that answer may be: it says up to where it is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    /// Entries up to here are known to be in both journals.
    pub final_entries: u64,
}

/// What this vault gave alone it may answer until the chain says it for good.
fn own_first(
    chain: Option<Known>,
    last: u64,
    own: impl FnOnce() -> Result<Option<Known>, JournalError>,
) -> Result<Option<Known>, JournalError> {
    if chain.as_ref().is_some_and(|known| known.index <= last) {
        return Ok(chain);
    }
    // Index 0: there is nothing to wait for.
    Ok(own()?.map(|known| Known { index: 0, ..known }).or(chain))
}

/// Reservations made before this (milliseconds since 1970) are forgotten ones. The clock labels
/// alone: nothing becomes of them by it.
fn expiry(definition: &Definition) -> Option<i64> {
    let seconds = i64::try_from(definition.expires_after?).unwrap_or(i64::MAX);
    Some(label().saturating_sub(seconds.saturating_mul(1000)))
}

fn flagged(journal: &Journal, mut known: Known, before: Option<i64>) -> Result<Known, JournalError> {
    if let Some(before) = before.filter(|_| known.number.state == NumberState::Reserved) {
        known.number.expired = journal.label(known.index)?.is_some_and(|at| at < before);
    }
    Ok(known)
}

/// The number as callers see it.
fn dressed(definition: &Definition, name: &SeriesName, number: Number) -> Number {
    Number {
        series: base_of(&name.series).to_owned(),
        period: period_of(&name.series).map(str::to_owned),
        text: definition.text(&name.series, number.number),
        ..number
    }
}

/// The series' periods that have numbers; with `through` also the series itself.
fn periods(journal: &Journal, base: &SeriesName, through: bool) -> Result<Vec<String>, JournalError> {
    let mut names = journal.counted(&base.owner, &format!("{}/", base.series), MAX_PERIODS)?;
    names.retain(|series| base_of(series) == base.series);
    if through {
        names.insert(0, base.series.clone());
    }
    Ok(names)
}
