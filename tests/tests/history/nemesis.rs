//! What befalls the pair: a deck of faults, shuffled by the seed, each held for a while and healed.
//! Decides what happens and when; notes for the checker when a vault had to go on alone, which
//! journals were lost, and how often it may not be known what a life answered.

use std::time::Duration;

use anyhow::Context;
use harness::wait::{self, Deadline};
use serde_json::Value;

use crate::databases::Databases;
use crate::dice::Dice;
use crate::history::{History, Loss, Window};
use crate::network::{Cut, Network};
use crate::vaults::{NAMES, Vaults};
use crate::wounds::deck as wounds_of;

/// How soon two healthy vaults that hear each other must give numbers together.
const TOGETHER: Duration = Duration::from_secs(40);
/// How long ranges may take to be agreed upon after that.
const AGREED: Duration = Duration::from_millis(1_500);
/// How long it takes to wound and mend a database beside all else: none is begun so late.
const TURN: Duration = Duration::from_secs(12);
/// How soon the journal's loss is noticed and may be mended.
const MENDED: Duration = Duration::from_secs(40);

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL of a vault; started again at the end.
    Kill(usize),
    /// SIGTERM of a vault.
    Stop(usize),
    /// A vault's machine goes down: its memory is gone, its disk is not.
    Power(usize),
    /// SIGKILL of both at once, started again at once.
    KillBoth,
    /// SIGSTOP, SIGCONT.
    Freeze(usize),
    /// Packets are dropped.
    Cut(Cut),
    /// The same, again and again for a moment.
    Flap(Cut),
    /// SIGKILL and start while they are apart: a vault that is restarted and alone.
    KillApart(usize),
    /// The same with its machine, after it has given numbers alone.
    PowerApart(usize),
    /// The system's clock of a vault is wrong, and the link is cut meanwhile.
    Clock(usize, &'static str),
    /// The journal is deleted while both are together, and the vault re-seeded.
    LoseJournal(usize),
    /// The journal is deleted after the vault has given numbers alone.
    LoseJournalApart(usize),
    /// An old copy of the journal is put in its place, found out, and the vault re-seeded.
    OldCopy(usize),
    /// The owner dies, and the operator makes the other vault the owner: to go on with records too
    /// if that is to be alone.
    TakeOver { alone: bool },
    /// They are apart, and each is made the owner; one yields when the vaults say so.
    TakeOverBoth,
    /// The owner dies with its journal and its memory; the other takes over and re-seeds it.
    LoseOwner,
}

const DECK: [Fault; 29] = [
    Fault::Kill(0),
    Fault::Kill(1),
    Fault::Stop(0),
    Fault::Power(0),
    Fault::Power(1),
    Fault::KillBoth,
    Fault::Freeze(0),
    Fault::Freeze(1),
    Fault::Cut(Cut::Link),
    Fault::Cut(Cut::Deaf(0)),
    Fault::Cut(Cut::Deaf(1)),
    Fault::Cut(Cut::Callers(0)),
    Fault::Cut(Cut::Mute(1)),
    Fault::Flap(Cut::Link),
    Fault::Flap(Cut::Mute(0)),
    Fault::KillApart(0),
    Fault::KillApart(1),
    Fault::PowerApart(0),
    // The certificates are older: see `vaults`.
    Fault::Clock(0, "-5h"),
    Fault::Clock(1, "+9d"),
    Fault::Clock(0, "+3h"),
    Fault::Clock(1, "-2d"),
    Fault::TakeOver { alone: true },
    Fault::TakeOver { alone: false },
    Fault::TakeOverBoth,
    Fault::LoseJournal(1),
    Fault::LoseJournalApart(0),
    Fault::OldCopy(1),
    Fault::LoseOwner,
];

impl Fault {
    /// Vaults whose ledger is etcd have none: it does not befall them.
    fn needs_owner(self) -> bool {
        matches!(self, Self::TakeOver { .. } | Self::TakeOverBoth | Self::LoseOwner)
    }
}

/// The nemesis of one run.
pub(crate) struct Nemesis<'a> {
    pub(crate) vaults: &'a mut Vaults,
    pub(crate) databases: &'a mut Databases,
    pub(crate) network: &'a Network,
    pub(crate) history: &'a History,
    pub(crate) dice: Dice,
    /// What happened, for the report.
    pub(crate) log: Vec<String>,
    /// Every fault and every wound.
    pub(crate) struck: Vec<String>,
}

impl Nemesis<'_> {
    /// Troubles them for so long, then heals everything. Each seed begins at another place of one
    /// shuffled deck, so that few short runs see all of it. Whatever befalls the pair befalls it while
    /// its database is in trouble too, if it has one.
    ///
    /// # Errors
    /// Two healthy vaults do not come together, or a command fails.
    pub(crate) fn trouble(&mut self, seed: u64, seconds: u64) -> anyhow::Result<()> {
        let mut deck = DECK;
        Dice::new(seed / 5, 0).shuffle(&mut deck);
        let first = usize::try_from(seed % 5).unwrap_or(0) * deck.len() / 5;
        let mut wounds = wounds_of(self.databases.ledger, seed);
        let over = Deadline::after(Duration::from_secs(seconds));
        let truth = self.databases.ledger.is_truth();
        for fault in deck.iter().cycle().skip(first).filter(|fault| !(truth && fault.needs_owner())) {
            let turn = if self.databases.servers.is_empty() { Duration::ZERO } else { TURN };
            if over.left() <= turn {
                break;
            }
            self.come_together()?;
            let pause = self.dice.between(Duration::from_millis(200), Duration::from_secs(2));
            std::thread::sleep(pause);
            let mut wound = wounds.next();
            if let Some(wound) = wound {
                self.struck.push(format!("{wound:?}"));
                self.strike_database(wound).with_context(|| format!("{wound:?}"))?;
            }
            // While nobody can be answered there is nothing to see.
            if let Some(wound) = wound.take_if(|wound| truth && wound.takes_quorum()) {
                self.mend_database(wound).with_context(|| format!("mending {wound:?}"))?;
            }
            self.tell(&format!("{fault:?}"));
            self.struck.push(format!("{fault:?}"));
            self.strike(*fault).with_context(|| format!("{fault:?}"))?;
            if let Some(wound) = wound {
                self.come_together()?;
                self.tell("the database is mended");
                self.mend_database(wound).with_context(|| format!("mending {wound:?}"))?;
            }
        }
        self.come_together()?;
        self.wait_current()
    }

    /// A line for the report.
    pub(crate) fn tell(&mut self, words: &str) {
        self.log.push(format!("{:>7.2} s {words}", self.history.now().as_secs_f64()));
    }

    /// Waits until both are together and each has what it may give alone.
    pub(crate) fn come_together(&mut self) -> anyhow::Result<()> {
        self.vaults.wait_together(TOGETHER)?;
        self.tell("together");
        std::thread::sleep(AGREED);
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> anyhow::Result<()> {
        let what = format!("{fault:?}");
        match fault {
            Fault::Kill(vault) => {
                self.vaults.each[vault].kill()?;
                self.alone(&what, &[1 - vault]);
                self.vaults.each[vault].restart()
            }
            Fault::Stop(vault) => {
                self.vaults.each[vault].stop()?;
                self.alone(&what, &[1 - vault]);
                self.vaults.each[vault].restart()
            }
            Fault::Power(vault) => {
                self.vaults.each[vault].kill()?;
                self.vaults.each[vault].forget_memory()?;
                self.end_unknown();
                self.alone(&what, &[1 - vault]);
                self.vaults.each[vault].restart()
            }
            Fault::KillBoth => {
                self.vaults.each.iter_mut().try_for_each(|vault| vault.kill())?;
                self.vaults.each.iter_mut().try_for_each(|vault| vault.restart())
            }
            Fault::Freeze(vault) => {
                self.vaults.each[vault].freeze(true)?;
                self.alone(&what, &[1 - vault]);
                self.vaults.each[vault].freeze(false)
            }
            Fault::Cut(cut) => {
                self.network.cut(cut)?;
                let living: &[usize] = if matches!(cut, Cut::Link | Cut::Deaf(_)) { &[0, 1] } else { &[] };
                self.alone(&what, living);
                self.network.heal()
            }
            Fault::Flap(cut) => {
                for _ in 0..4 {
                    self.network.cut(cut)?;
                    self.hold(300, 1_800);
                    self.network.heal()?;
                    self.hold(100, 1_500);
                }
                Ok(())
            }
            Fault::KillApart(vault) | Fault::PowerApart(vault) => {
                self.network.cut(Cut::Link)?;
                self.alone(&what, &[0, 1]);
                self.vaults.each[vault].kill()?;
                // The proof is promised to whoever is started again on the same boot; but it is noted
                // just after the row that it is about is durable and before that is answered. Killed
                // in between, a vault that gives numbers alone cannot prove what it answered, and its
                // range is lost as after a power cut. Killed while both are together it can: then no
                // rows are given.
                self.end_unknown();
                if matches!(fault, Fault::PowerApart(_)) {
                    self.vaults.each[vault].forget_memory()?;
                }
                self.vaults.each[vault].restart()?;
                self.hold(2_000, 4_000);
                self.network.heal()
            }
            Fault::Clock(vault, offset) => {
                self.vaults.each[vault].set_clock(offset)?;
                self.hold(500, 1_500);
                self.network.cut(Cut::Link)?;
                self.alone(&what, &[0, 1]);
                self.network.heal()?;
                self.vaults.wait_together(TOGETHER)?;
                self.vaults.each[vault].set_clock("+0")
            }
            Fault::LoseJournal(vault) => {
                let since = self.history.now();
                self.lose_journal(vault, since)?;
                self.reseed(vault)
            }
            Fault::LoseJournalApart(vault) => {
                let since = self.history.now();
                self.network.cut(Cut::Link)?;
                self.alone(&what, &[0, 1]);
                self.lose_journal(vault, since)?;
                self.network.heal()?;
                self.reseed(vault)
            }
            Fault::OldCopy(vault) => self.bring_old_copy(vault),
            Fault::TakeOver { alone } => {
                let owner = self.owner()?.0;
                self.vaults.each[owner].kill()?;
                self.make_owner(1 - owner, alone)?;
                self.apart(&what, &[1 - owner], alone.then_some(1 - owner));
                self.vaults.each[owner].restart()
            }
            Fault::TakeOverBoth => {
                self.network.cut(Cut::Link)?;
                // Each must have noticed.
                self.hold(1_500, 2_500);
                self.make_owner(0, false)?;
                self.make_owner(1, false)?;
                self.alone(&what, &[0, 1]);
                self.network.heal()?;
                self.yield_one()
            }
            Fault::LoseOwner => {
                let owner = self.owner()?.0;
                let since = self.history.now();
                self.vaults.each[owner].kill()?;
                self.make_owner(1 - owner, true)?;
                self.apart(&what, &[1 - owner], Some(1 - owner));
                self.forget(owner, since)?;
                self.reseed(owner)
            }
        }
    }

    /// The vault that owns the ledger, and what it says of its numbers.
    pub(crate) fn owner(&self) -> anyhow::Result<(usize, Value)> {
        for (place, vault) in self.vaults.each.iter().enumerate() {
            let status = vault.status()?;
            if status.pointer("/owner") == Some(&Value::from(NAMES[place])) {
                return Ok((place, status));
            }
        }
        anyhow::bail!("nobody owns the ledger")
    }

    /// The operator makes this vault the owner, as soon as it lets him.
    fn make_owner(&mut self, vault: usize, alone: bool) -> anyhow::Result<()> {
        let words: &[&str] =
            if alone { &["number", "take-over", "--alone"] } else { &["number", "take-over"] };
        let said = wait::until("it takes over", MENDED, || self.vaults.each[vault].command(words))?;
        self.tell(&format!("{}: {}", NAMES[vault], said.trim()));
        Ok(())
    }

    /// Both are owners; the vaults say so, and what is to be written.
    fn yield_one(&mut self) -> anyhow::Result<()> {
        let loser = self.dice.below(2);
        let said = wait::until("two owners are found out, and one yields", MENDED, || {
            let status = self.vaults.each[loser].status()?;
            let reason = status.pointer("/reason").and_then(Value::as_str).unwrap_or_default();
            anyhow::ensure!(reason.contains("run vault number yield"), "{status}");
            self.vaults.each[loser].command(&["number", "yield"])
        })?;
        self.tell(&format!("{}: {}", NAMES[loser], said.trim()));
        Ok(())
    }

    /// What an operator must not do, and what the vaults tell them to do then.
    fn bring_old_copy(&mut self, vault: usize) -> anyhow::Result<()> {
        self.vaults.each[vault].stop()?;
        self.vaults.each[vault].copy_journal()?;
        self.vaults.each[vault].restart()?;
        self.vaults.wait_together(TOGETHER)?;
        self.hold(2_000, 3_000);
        self.vaults.each[vault].stop()?;
        self.vaults.each[vault].bring_copy()?;
        self.vaults.each[vault].restart()?;
        if self.databases.ledger.is_truth() {
            // It is an index, and reads on.
            return Ok(());
        }
        let restored = &self.vaults.each[vault];
        wait::until("the old copy is found out", MENDED, || {
            let status = restored.status()?;
            anyhow::ensure!(status.pointer("/needs_operator") == Some(&Value::Bool(true)), "{status}");
            Ok(())
        })?;
        let since = self.history.now();
        self.lose_journal(vault, since)?;
        self.reseed(vault)
    }

    /// Holds a fault during which these vaults must answer.
    fn alone(&mut self, what: &str, living: &[usize]) {
        self.apart(what, living, None);
    }

    /// The same, where one of them goes on with records too.
    fn apart(&mut self, what: &str, living: &[usize], records: Option<usize>) {
        let from = self.history.now();
        self.hold(7_500, 9_500);
        let to = self.history.now();
        let window = Window { what: what.to_owned(), living: living.to_vec(), from, to, records };
        self.history.change(|story| story.windows.push(window));
    }

    pub(crate) fn hold(&mut self, least: u64, most: u64) {
        let time = self.dice.between(Duration::from_millis(least), Duration::from_millis(most));
        std::thread::sleep(time);
    }

    fn lose_journal(&mut self, vault: usize, since: Duration) -> anyhow::Result<()> {
        self.vaults.each[vault].kill()?;
        self.forget(vault, since)
    }

    /// The same of one that does not run.
    fn forget(&mut self, vault: usize, since: Duration) -> anyhow::Result<()> {
        self.end_unknown();
        let lost = &mut self.vaults.each[vault];
        lost.forget_memory()?;
        lost.lose_journal()?;
        let at = self.history.now();
        // An index is no loss: it is made anew.
        if !self.databases.ledger.is_truth() {
            self.history.change(|story| story.losses.push(Loss { vault, since, at }));
        }
        lost.restart()
    }

    /// A vault's life is over, and what it answered alone may not be known.
    fn end_unknown(&self) {
        // Where etcd is the ledger nothing is answered alone, and nothing set aside.
        if !self.databases.ledger.is_truth() {
            self.history.change(|story| story.unknown_ends += 1);
        }
    }

    /// The operator's part: as soon as the other vault says that it is needed.
    fn reseed(&mut self, lost: usize) -> anyhow::Result<()> {
        if self.databases.ledger.is_truth() {
            return Ok(());
        }
        let intact = &self.vaults.each[1 - lost];
        let said =
            wait::until("the lost journal is re-seeded", MENDED, || intact.command(&["number", "re-seed"]))?;
        self.tell(said.trim());
        Ok(())
    }
}
