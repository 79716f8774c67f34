//! What goes wrong in a history, and what an operator does about it.

use std::collections::VecDeque;

use vault::sequence::proof::Proof;
use vault::sequence::protocol::{Core, Input, Memory, Reason};

use crate::disk::Disk;
use crate::world::{Checked, Control, Vault, World};

impl World {
    pub(crate) fn cut(&mut self) -> Checked {
        if !self.connected {
            return Ok(());
        }
        self.connected = false;
        self.network = [VecDeque::new(), VecDeque::new()];
        self.input(0, Input::Disconnected)?;
        self.input(1, Input::Disconnected)
    }

    /// Something said long ago arrives now. (A greeting cannot: it opens its own connection.)
    pub(crate) fn repeat(&mut self) -> Checked {
        if self.old.is_empty() {
            return Ok(());
        }
        let pick = self.random.place(self.old.len());
        let (who, message) = self.old[pick].clone();
        // Within one connection the transport neither repeats nor reorders.
        let last = self.old.iter().rev().find_map(|(_, old)| old.session());
        if message.session().is_none() || message.session() == last {
            return Ok(());
        }
        self.input(who, Input::Received(message))
    }

    pub(crate) fn disk_fails(&mut self, who: usize) -> Checked {
        match self.vaults[who].writing.take() {
            Some(failed) => {
                self.vaults[who].remains = Some(failed);
                self.input(who, Input::WriteFailed)
            }
            None => Ok(()),
        }
    }

    /// The shell sees whether a disk that failed takes writes again.
    pub(crate) fn try_disk(&mut self, who: usize) -> Checked {
        match &self.vaults[who].core {
            Some(core) if core.cannot_write() => self.input(who, Input::TryAgain),
            _ => Ok(()),
        }
    }

    pub(crate) fn crash(&mut self, who: usize) -> Checked {
        let linger = self.control == Control::RemainsLinger && self.vaults[who].remains.is_some();
        let hit_the_disk = self.random.chance(50) || linger;
        let power_fails = self.random.chance(30);
        let vault = &mut self.vaults[who];
        if let Some(write) = vault.writing.take().or_else(|| vault.remains.take())
            && hit_the_disk
            && vault.disk.fits(&write)
        {
            vault.disk.apply(&write);
        }
        if power_fails {
            vault.mirror = None;
        }
        vault.remains = None;
        vault.cache.clear();
        vault.waiting.clear();
        vault.under_way.clear();
        vault.core = None;
        self.forget();
        self.cut()
    }

    /// Of what was told last nobody knows any more that it was: should its ticket's life be lost
    /// as well, the key is refused.
    fn forget(&mut self) {
        let knows =
            |vault: &Vault| vault.core.as_ref().map_or(0, Core::final_index).max(vault.disk.memory.settled);
        let known = self.vaults.iter().map(knows).max().unwrap_or(0);
        for vault in &self.vaults {
            self.told.forget(vault.disk.entries.iter().filter(|entry| entry.index > known));
        }
    }

    /// A vault ends in order; then, perhaps, its machine goes down.
    pub(crate) fn stop(&mut self, who: usize) -> Checked {
        let vault = &mut self.vaults[who];
        if let (Some(core), None) = (&vault.core, &vault.writing) {
            let Memory { journal, solo: rows, .. } = vault.disk.memory;
            let former = vault.mirror.and_then(|mirror| mirror.former);
            vault.disk.ended = Some(Proof { journal, life: core.life(), rows, former });
        }
        self.crash(who)
    }

    /// One vault's disk is lost, or an old copy of it is put back. Never both before they have
    /// been together again: that no pair survives.
    pub(crate) fn damage(&mut self, who: usize) -> Checked {
        let unseen = self.control == Control::LossPassesUnseen;
        let other_is_whole = self.vaults[1 - who].disk.memory.whole;
        if !unseen && (self.vaults.iter().any(|vault| vault.damaged) || !other_is_whole) {
            return Ok(());
        }
        self.crash(who)?;
        let fresh = Disk::new(&mut self.random, who == 0);
        let other_machine = self.random.chance(30);
        let put_back = if self.random.chance(50) { self.vaults[who].copy.clone() } else { None };
        let vault = &mut self.vaults[who];
        vault.damaged = true;
        if put_back.is_none() && other_machine {
            (vault.witness, vault.mirror) = (None, None);
        }
        vault.disk = put_back.filter(|_| !unseen).unwrap_or(fresh);
        if unseen {
            for vault in &mut self.vaults {
                vault.disk.memory.peer_journal = None;
                vault.disk.memory.peer_durable = 0;
            }
        }
        Ok(())
    }

    /// An operator makes one vault the owner; at times he takes it for alone, rightly or not.
    pub(crate) fn take_over(&mut self, who: usize) -> Checked {
        let alone = self.random.chance(40);
        match &self.vaults[who].core {
            Some(core) if core.may_take_over() => {
                self.log.push(format!("{} takes over, alone: {alone}", self.vaults[who].name));
                self.input(who, Input::TakeOver(alone))
            }
            _ => Ok(()),
        }
    }

    /// Does what the refusals tell an operator to do.
    pub(crate) fn operator(&mut self) -> Checked {
        if let Some(who) = self.vaults.iter().position(|v| v.core.as_ref().is_some_and(Core::may_yield)) {
            let who = if self.random.chance(50) { 1 - who } else { who };
            return match &self.vaults[who].core {
                Some(core) if core.may_yield() => self.input(who, Input::Yield),
                _ => Ok(()),
            };
        }
        let refusal = |vault: &Vault| vault.core.as_ref().and_then(Core::refusal);
        if self.vaults.iter().all(|vault| refusal(vault) == Some(Reason::NoOwner)) {
            let able = |vault: &Vault| vault.core.as_ref().is_some_and(Core::may_take_over);
            return self.take_over(self.vaults.iter().position(able).unwrap_or(0));
        }
        let Some(mut lost) = self.vaults.iter().position(|vault| vault.damaged) else { return Ok(()) };
        if self.control == Control::ReseedsFromTheWrongSide {
            lost = 1 - lost;
        }
        let old = |who: usize| {
            let is_old = [Reason::PeerRolledBack, Reason::OwnRolledBack, Reason::Forked];
            refusal(&self.vaults[who]).filter(|reason| is_old.contains(reason))
        };
        let intact = refusal(&self.vaults[1 - lost]).filter(|reason| reason.needs_operator());
        match old(0).or_else(|| old(1)).or(intact).or_else(|| refusal(&self.vaults[lost])) {
            Some(Reason::PeerRolledBack | Reason::OwnRolledBack | Reason::Forked) => self.empty(lost),
            Some(Reason::PeerJournalLost | Reason::OwnJournalLost) => {
                let may = self.vaults[1 - lost].core.as_ref().is_some_and(Core::may_reseed);
                if may {
                    return self.input(1 - lost, Input::Reseed);
                }
                let disk = &self.vaults[lost].disk;
                if disk.tail().index > 0 || disk.memory.peer_journal.is_some() {
                    self.empty(lost)
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    /// Its journal is moved away, and it starts with none.
    pub(crate) fn empty(&mut self, who: usize) -> Checked {
        self.crash(who)?;
        self.vaults[who].disk = Disk::new(&mut self.random, who == 0);
        self.start(who);
        Ok(())
    }
}
