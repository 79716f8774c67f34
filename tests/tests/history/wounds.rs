//! What befalls the ledger's database: a deck of wounds for each kind, struck while the vaults are
//! together, held through whatever befalls the pair next, and then mended by an operator who does
//! what the vaults tell him. Decides what happens; checks at once that two primaries raise the
//! alarm, and that a server which lost rows or is fenced is not written to.

use std::time::Duration;

use harness::wait;
use serde_json::Value;

use crate::databases::Ledger;
use crate::dice::Dice;
use crate::history::Outage;
use crate::nemesis::Nemesis;
use crate::network::Cut;
use crate::vaults::NAMES;

/// How soon the copy must have everything again once the database can be reached.
const CURRENT: Duration = Duration::from_secs(60);
/// How soon the alarm must be raised.
const ALARMED: Duration = Duration::from_secs(40);
/// How long an operator tries to be heard.
const HEARD: Duration = Duration::from_secs(60);
/// How long a standby is left behind, so that the vault has written down what it lacks: it does so
/// every few seconds.
const BEHIND: Duration = Duration::from_secs(7);
/// How long the members take to agree upon another leader, and the vaults to find it.
const ELECTED: Duration = Duration::from_secs(6);

/// A wound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wound {
    /// SIGKILL of the one that is written to, with all its children.
    KillPrimary,
    /// The same of the one that is fed.
    KillStandby,
    /// SIGSTOP of all its processes.
    FreezePrimary,
    /// The standby falls behind: its receiver stands still.
    Starve,
    /// The vaults do not hear the one that is written to.
    CutOff,
    /// The servers do not hear each other.
    CutFeed,
    /// Somebody removes the tables.
    Wipe,
    /// The primary dies, and the operator promotes the standby, which may lack rows.
    TakeOver { behind: bool },
    /// The operator promotes the standby while the primary takes writes.
    TakeOverAlive,
    /// The primary dies, and somebody else promotes the standby.
    Promoted { behind: bool },
    /// Somebody promotes the standby while the primary takes writes.
    TwoPrimaries,
    /// So many members of etcd die.
    KillMembers(usize),
}

const SWAPS: [Wound; 12] = [
    Wound::TakeOver { behind: true },
    Wound::KillPrimary,
    Wound::TwoPrimaries,
    Wound::FreezePrimary,
    Wound::Promoted { behind: true },
    Wound::Starve,
    Wound::TakeOverAlive,
    Wound::Wipe,
    Wound::CutOff,
    Wound::TakeOver { behind: false },
    Wound::KillStandby,
    Wound::Promoted { behind: false },
];

const MEMBERS: [Wound; 7] = [
    Wound::KillMembers(1),
    Wound::KillMembers(2),
    Wound::FreezePrimary,
    Wound::CutOff,
    Wound::CutFeed,
    Wound::KillMembers(3),
    Wound::Wipe,
];

/// The wounds of a run, without end. The first seeds begin at other places of the deck as it stands,
/// so that few short runs see all of it.
pub(crate) fn deck(ledger: Ledger, seed: u64) -> impl Iterator<Item = Wound> {
    let mut deck = match ledger {
        Ledger::Journals => Vec::new(),
        Ledger::Etcd => MEMBERS.to_vec(),
        // Without what it holds nobody goes on, and nobody should.
        Ledger::EtcdTruth => MEMBERS.iter().copied().filter(|wound| *wound != Wound::Wipe).collect(),
        _ => SWAPS.to_vec(),
    };
    if seed >= 5 {
        Dice::new(seed, 2_000).shuffle(&mut deck);
    }
    let first = match ledger {
        Ledger::PostgresSync => 4,
        Ledger::Mariadb => 8,
        _ => 0,
    };
    deck.into_iter().cycle().skip(first)
}

impl Wound {
    /// Are fewer than two of three members left?
    pub(crate) fn takes_quorum(self) -> bool {
        matches!(self, Self::KillMembers(2..))
    }
}

impl Nemesis<'_> {
    /// Strikes, and holds it for a while in which nothing else happens: the vaults must go on.
    ///
    /// # Errors
    /// A command fails, no alarm is raised, or a server is written to that must not be.
    pub(crate) fn strike_database(&mut self, wound: Wound) -> anyhow::Result<()> {
        self.wait_current()?;
        self.tell(&format!("{wound:?}, {} is primary", self.databases.host(self.databases.primary)));
        let standby = self.databases.standby();
        match wound {
            Wound::KillPrimary => self.databases.servers[self.databases.primary].kill()?,
            Wound::KillStandby => self.databases.servers[standby].kill()?,
            Wound::FreezePrimary => self.databases.servers[self.databases.primary].freeze()?,
            Wound::Starve => self.databases.starve_standby(self.network)?,
            Wound::CutOff => self.network.cut(Cut::Database(self.databases.primary))?,
            Wound::CutFeed => self.network.cut(Cut::Feed(self.databases.primary))?,
            Wound::Wipe => self.databases.wipe()?,
            Wound::TakeOver { behind } | Wound::Promoted { behind } => {
                if behind {
                    self.databases.starve_standby(self.network)?;
                    std::thread::sleep(BEHIND);
                }
                self.databases.kill_primary()?;
                self.network.heal_databases()?;
                if matches!(wound, Wound::Promoted { .. }) {
                    self.promote_by_hand()?;
                }
            }
            Wound::TakeOverAlive => self.take_over()?,
            Wound::TwoPrimaries => {
                self.promote_by_hand()?;
                self.wait_alarm()?;
                self.fence(standby)?;
                // What was on its way to it may arrive.
                self.hold(500, 500);
            }
            Wound::KillMembers(count) => {
                self.databases.servers.iter_mut().take(count).try_for_each(|member| member.kill())?;
            }
        }
        if wound == (Wound::Promoted { behind: true }) && self.databases.ledger == Ledger::Postgres {
            self.wait_refused(standby)?;
        }
        // Whom nobody may write to any more.
        let shut = match wound {
            Wound::TakeOverAlive => Some(1 - self.databases.primary),
            Wound::TwoPrimaries => Some(standby),
            _ => None,
        };
        let truth = self.databases.ledger.is_truth();
        if truth {
            std::thread::sleep(ELECTED);
        }
        let from = self.history.now();
        let before = shut.map(|server| self.databases.held(server)).transpose()?;
        self.hold(3_500, 4_500);
        let after = shut.map(|server| self.databases.held(server)).transpose()?;
        anyhow::ensure!(before == after, "{wound:?}: {shut:?} is written to: {before:?}, then {after:?}");
        let (what, to) = (format!("{wound:?}"), self.history.now());
        if !(truth && wound.takes_quorum()) {
            self.history.change(|story| story.outages.push(Outage { what, from, to }));
        }
        Ok(())
    }

    /// Mends it. The vaults are together.
    ///
    /// # Errors
    /// A command fails, or the copy does not come to hold everything.
    pub(crate) fn mend_database(&mut self, wound: Wound) -> anyhow::Result<()> {
        let (primary, standby) = (self.databases.primary, self.databases.standby());
        match wound {
            Wound::KillPrimary => self.databases.servers[primary].restart()?,
            Wound::KillStandby => self.databases.servers[standby].restart()?,
            Wound::FreezePrimary => self.databases.servers[primary].thaw()?,
            Wound::Starve if self.databases.ledger == Ledger::Mariadb => self.network.heal_databases()?,
            Wound::Starve => self.databases.servers[standby].thaw()?,
            Wound::CutOff | Wound::CutFeed => self.network.heal_databases()?,
            Wound::Wipe => {}
            Wound::TakeOver { .. } => {
                self.take_over()?;
                self.bring_back(primary)?;
            }
            // It is the primary already.
            Wound::TakeOverAlive => self.bring_back(standby)?,
            Wound::Promoted { .. } => {
                self.wait_current()?;
                self.databases.primary = standby;
                self.bring_back(primary)?;
            }
            Wound::TwoPrimaries => self.bring_back(standby)?,
            Wound::KillMembers(count) => {
                let members = || 0..count;
                members().try_for_each(|member| self.databases.servers[member].launch())?;
                members().try_for_each(|member| self.databases.servers[member].wait_ready())?;
            }
        }
        self.wait_current()
    }

    /// Waits until the copy has everything; whatever the vault that writes it tells an operator to
    /// do meanwhile is done.
    ///
    /// # Errors
    /// It does not come to that.
    pub(crate) fn wait_current(&mut self) -> anyhow::Result<()> {
        if self.databases.servers.is_empty() {
            return Ok(());
        }
        if self.databases.ledger.is_truth() {
            return self.come_together();
        }
        let log = std::cell::RefCell::new(Vec::new());
        let current = wait::until("the copy is current", CURRENT, || {
            let (owner, status) = self.owner()?;
            let copy = status.pointer("/database").unwrap_or(&Value::Null);
            if copy.pointer("/phase") == Some(&Value::from("refused"))
                && let Some(words) = told(copy.pointer("/why").and_then(Value::as_str).unwrap_or_default())
            {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                let said = self.vaults.each[owner].command(&words);
                log.borrow_mut().push(format!("told by {}: {words:?}: {said:?}", NAMES[owner]));
            }
            anyhow::ensure!(copy.pointer("/phase") == Some(&Value::from("current")), "{status}");
            Ok(())
        });
        log.into_inner().iter().for_each(|words| self.tell(words));
        current
    }

    /// Promotes the standby at the operator's word, and does what is told to be done on the other
    /// vault.
    fn take_over(&mut self) -> anyhow::Result<()> {
        let (old, new) = (self.databases.primary, self.databases.standby());
        let alive = self.databases.servers[old].is_running();
        let host = self.databases.host(new);
        if self.databases.ledger == Ledger::Mariadb {
            let owner = self.owner()?.0;
            let refused = self.vaults.each[owner].command(&["database", "take-over", "--host", &host]);
            let words = refused.unwrap_or_else(|error| format!("{error:#}"));
            anyhow::ensure!(words.contains("promote it there"), "{words}");
            self.databases.servers[new].promote()?;
        }
        let said = wait::until("the standby is taken", HEARD, || {
            let said = self.vaults.each[self.owner()?.0].command(&["database", "take-over", "--host", &host]);
            match said {
                // It goes on by itself.
                Err(error) if format!("{error:#}").contains("does not have every entry yet") => {
                    Ok(format!("{error:#}"))
                }
                said => said,
            }
        })?;
        self.tell(said.trim());
        self.databases.primary = new;
        self.fence(old)?;
        if alive {
            self.wait_alarm()?;
        }
        Ok(())
    }

    /// Both vaults are told never to write to this server.
    fn fence(&mut self, server: usize) -> anyhow::Result<()> {
        let host = self.databases.host(server);
        for vault in &self.vaults.each {
            wait::until("it is fenced", HEARD, || vault.command(&["database", "fence", "--host", &host]))?;
        }
        Ok(())
    }

    /// Makes this server a standby of the other, and takes it back at both vaults.
    fn bring_back(&mut self, server: usize) -> anyhow::Result<()> {
        self.databases.follow(1 - server)?;
        let host = self.databases.host(server);
        for vault in &self.vaults.each {
            let words = ["database", "rejoin", "--host", host.as_str()];
            wait::until("it is taken back", HEARD, || vault.command(&words))?;
        }
        Ok(())
    }

    fn promote_by_hand(&mut self) -> anyhow::Result<()> {
        let standby = &self.databases.servers[self.databases.standby()];
        wait::until("the standby is promoted", HEARD, || standby.promote())
    }

    /// Two servers take writes: the operator must be told, by whichever vault writes the copy.
    fn wait_alarm(&mut self) -> anyhow::Result<()> {
        wait::until("two primaries raise the alarm", ALARMED, || {
            let (owner, status) = self.owner()?;
            let writable = status.pointer("/database/writable").and_then(Value::as_array).map_or(0, Vec::len);
            let report = self.vaults.each[owner].control("/v1/database").send()?.expect(&[200])?.text();
            anyhow::ensure!(writable == 2 && report.contains("each without the other"), "{status}");
            Ok(())
        })
    }

    /// A server that lost rows must wait for the operator, as it is.
    fn wait_refused(&mut self, server: usize) -> anyhow::Result<()> {
        let held = self.databases.held(server)?;
        wait::until("the server that lost rows is refused", ALARMED, || {
            let (_, status) = self.owner()?;
            let phase = status.pointer("/database/phase");
            anyhow::ensure!(phase == Some(&Value::from("refused")), "{status}");
            Ok(())
        })?;
        self.hold(2_000, 3_000);
        let after = self.databases.held(server)?;
        anyhow::ensure!(held == after, "a server that lost rows is written to: {held} entries, then {after}");
        Ok(())
    }
}

/// The command that a text tells the operator to write, if it names one for this vault's database.
fn told(text: &str) -> Option<Vec<String>> {
    let at = text.find("vault database take-over").or_else(|| text.find("vault database rejoin"))?;
    let words: Vec<_> = text[at..].split_whitespace().skip(1).collect();
    let command = match words.as_slice() {
        ["database", "take-over", "--host", host, ..] => vec!["database", "take-over", "--host", *host],
        ["database", rejoin, ..] if rejoin.starts_with("rejoin") => vec!["database", "rejoin"],
        _ => return None,
    };
    Some(command.into_iter().map(|word| word.trim_end_matches([',', ';']).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_reads_what_he_is_to_write() {
        let words = |text: &str| told(text).map(|words| words.join(" "));
        assert_eq!(
            words(
                "it lost rows; see vault database status, then write vault database take-over --host 10.79.0.12:5432 or vault database fence --host 10.79.0.12:5432"
            ),
            Some("database take-over --host 10.79.0.12:5432".to_owned())
        );
        assert_eq!(
            words("put it right, then write vault database rejoin"),
            Some("database rejoin".to_owned())
        );
        assert_eq!(words("will connect again by itself; see vault database status"), None);
    }
}
