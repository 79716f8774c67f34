//! What callers send, and what a vault does with it: together, alone, and by itself.

use vault::sequence::alone::{self, Sight};
use vault::sequence::book::{Refused, Round, SeriesName, Verdict, Wish};
use vault::sequence::definition::Definition;
use vault::sequence::entry::{Act, Draft};
use vault::sequence::protocol::Input;
use vault::sequence::standing::Present;

use crate::disk::given;
use crate::world::{AVAILABLE, Checked, Control, STRICT, Vault, World, series};

impl World {
    /// What the owner must enter before callers' wishes are, or when the cursor is near a range.
    pub(crate) fn chores(&mut self, who: usize) -> Vec<Draft> {
        let vault = &self.vaults[who];
        let Some(core) = &vault.core else { return Vec::new() };
        let Some(peer) = core.peer() else { return Vec::new() };
        let other = self.vaults[1 - who].name;
        let own = Present { name: vault.name.to_owned(), life: core.life(), proven: core.proven() };
        let peer = Present { name: other.to_owned(), life: peer.life, proven: peer.proven };
        let (first, last) = (core.refusal().is_some(), core.final_index());
        let disk = vault.seen().into_owned();
        let standing = &disk.standing;
        let births = standing.births([&own, &peer], 0);
        if !births.is_empty() {
            return births;
        }
        let chores = &mut self.vaults[who].chores;
        if first {
            chores.begin(standing, last);
            let fresh = disk.entries.partition_point(|entry| entry.index <= chores.looked_at());
            chores.look_at(&disk.entries[fresh..], disk.tail().index, standing, 0);
            let doubtful = chores.doubtful(3);
            if !doubtful.is_empty() && self.control != Control::KeepsWhatIsDoubtful {
                return doubtful;
            }
        }
        let opens = AVAILABLE.iter().find(|(name, _)| standing.series(&series(name)).is_none());
        if let Some((name, size)) = opens {
            let SeriesName { owner, series } = series(name);
            let key = String::new();
            return vec![Draft {
                owner,
                series,
                number: 0,
                key,
                act: Act::Define(Definition { range: *size, ..Definition::default() }),
                at: 0,
                carried: None,
            }];
        }
        self.vaults[who].chores.ranges(standing, &[own, peer], 0, 3)
    }

    /// The callers of the round hear their numbers.
    pub(crate) fn answer_round(&mut self, who: usize, alone: bool) -> Checked {
        let wishes = std::mem::take(&mut self.vaults[who].under_way);
        let disk = self.vaults[who].seen();
        for (name, wish) in wishes {
            let known = if alone { disk.own(&name, &wish) } else { disk.context(&name, &wish).known };
            if let Wish::Supersede { key, .. } = &wish {
                let by = alone.then_some(disk.life).flatten();
                let told = self.told.gave_up.entry((name, key.clone())).or_insert(by);
                *told = told.and(by);
                continue;
            }
            let known = known.ok_or_else(|| format!("{wish:?} is final and not in the journal"))?;
            let by = alone.then_some(disk.life).flatten();
            self.log.push(format!(
                "{} tells {} = {}",
                self.vaults[who].name, known.number.key, known.number.number
            ));
            self.told.tell(&name, &known.number.key, known.number.number, by)?;
        }
        Ok(())
    }

    /// Any vault may answer what is final, at any time, together or alone; and deny what it
    /// does not know, once it may.
    pub(crate) fn look_up(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        let mut last = core.final_index();
        let disk = self.vaults[who].seen();
        if self.control == Control::ReadsAhead {
            last = disk.tail().index;
        }
        if core.is_complete() || self.control == Control::DeniesBlindly {
            let denies = |why| format!("{} denies that {why}", self.vaults[who].name);
            self.told.recorded(&disk.entries, |_| true).map_err(denies)?;
        }
        if self.vaults.iter().all(|vault| !vault.damaged) {
            let other = &self.vaults[1 - who].seen().entries;
            let mut seen = disk.entries.iter().take_while(|entry| entry.index <= last);
            if let Some(alone) = seen.find(|entry| other.get(crate::disk::place(entry.index)) != Some(*entry))
            {
                return Err(format!("entry {} may be read and is on one disk only", alone.index));
            }
        }
        let untold = |act: &Act| matches!(act, Act::Displace(_) | Act::Doubt | Act::Supersede(_));
        for entry in given(&disk.entries, untold).filter(|entry| entry.index <= last) {
            let name = SeriesName { owner: entry.owner.clone(), series: entry.series.clone() };
            self.told.tell(&name, &entry.key, entry.number, None)?;
        }
        Ok(())
    }

    /// A caller sends a wish to one of the vaults.
    pub(crate) fn wish(&mut self) {
        let who = self.random.place(2);
        let Some(core) = &self.vaults[who].core else { return };
        let life = core.life();
        let (name, wish) = match self.random.below(10) {
            0..=5 => {
                let name = match self.random.below(4) {
                    0 => STRICT[0],
                    1 => STRICT[1],
                    2 => AVAILABLE[0].0,
                    _ => AVAILABLE[1].0,
                };
                let ticket = self.random.chance(85).then_some(life);
                self.keys.push((series(name), ticket));
                (series(name), Wish::Reserve { key: format!("k{}", self.keys.len()), ticket })
            }
            6 if !self.keys.is_empty() && self.random.chance(25) => {
                // Its sender never heard the number, and takes another key.
                let pick = self.random.place(self.keys.len());
                let name = self.keys[pick].0.clone();
                self.keys.push((name.clone(), Some(life)));
                let by = format!("k{}", self.keys.len());
                (name, Wish::Supersede { key: format!("k{}", pick + 1), by })
            }
            6 | 7 if !self.keys.is_empty() => {
                // Sent again, perhaps to the other vault, and mostly soon.
                let recent = if self.random.chance(60) { 4 } else { self.keys.len() };
                let pick = self.keys.len() - 1 - self.random.place(recent.min(self.keys.len()));
                let (name, ticket) = self.keys[pick].clone();
                (name, Wish::Reserve { key: format!("k{}", pick + 1), ticket })
            }
            of => {
                let all = [STRICT[0], STRICT[1], AVAILABLE[0].0, AVAILABLE[1].0];
                let (name, number) = (series(all[self.random.place(4)]), 1 + self.random.below(9));
                let document_hash = format!("h{}", self.random.below(2));
                let reason = "torn".to_owned();
                (
                    name,
                    if of == 8 {
                        Wish::Confirm { number, document_hash }
                    } else {
                        Wish::Void { number, reason }
                    },
                )
            }
        };
        // The follower of a session sends it on.
        let leads =
            |vault: &Vault| vault.core.as_ref().is_some_and(|core| core.refusal().is_none() && core.leads());
        let together =
            self.connected && core.refusal().is_none() && !core.leads() && leads(&self.vaults[1 - who]);
        let to = if together { 1 - who } else { who };
        if self.vaults[to].waiting.len() < 12 {
            self.vaults[to].waiting.push((name, wish));
        }
    }

    /// Each vault does with its waiting wishes what its state allows.
    pub(crate) fn propose(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        if core.may_propose() && core.refusal().is_none() {
            let chores = self.chores(who);
            if chores.is_empty() && self.vaults[who].waiting.is_empty() {
                Ok(())
            } else if chores.is_empty() {
                self.propose_together(who)
            } else {
                self.input(who, Input::Propose(chores))
            }
        } else if core.may_give_alone() && !self.vaults[who].waiting.is_empty() {
            self.give_alone(who)
        } else {
            Ok(())
        }
    }

    pub(crate) fn propose_together(&mut self, who: usize) -> Checked {
        let vault = &mut self.vaults[who];
        let seen = vault.seen().into_owned();
        let mut round = Round::default();
        let mut drafts = Vec::new();
        let mut answers = Vec::new();
        for (name, mut wish) in std::mem::take(&mut vault.waiting) {
            if self.control == Control::LostKeysLive
                && let Wish::Reserve { ticket, .. } = &mut wish
            {
                *ticket = None;
            }
            match round.decide(&name, &wish, seen.context(&name, &wish), &seen.standing, 0) {
                Verdict::Answer(known) => answers.push((name, known)),
                Verdict::Refuse(Refused::KeyLost) => {
                    let (Wish::Reserve { key, .. } | Wish::Supersede { key, .. }) = &wish else { continue };
                    self.told.refuse_for_good(&name, key)?;
                }
                Verdict::Refuse(_) => {}
                Verdict::Make(draft) => {
                    drafts.push(draft);
                    vault.under_way.push((name, wish));
                }
                Verdict::Wait => vault.waiting.push((name, wish)),
            }
        }
        for (name, known) in answers.into_iter().filter(|(_, known)| known.number.number > 0) {
            self.told.tell(&name, &known.number.key, known.number.number, None)?;
        }
        if drafts.is_empty() { Ok(()) } else { self.input(who, Input::Propose(drafts)) }
    }

    pub(crate) fn give_alone(&mut self, who: usize) -> Checked {
        let vault = &mut self.vaults[who];
        let Some(core) = &vault.core else { return Ok(()) };
        let seen = vault.seen().into_owned();
        let unsure = self.control == Control::OwnJournalOnly;
        let last = if unsure { seen.tail().index } else { core.final_index() };
        let place = alone::Place { vault: vault.name, life: core.life(), standing: &seen.standing, last };
        let mut drafts = Vec::new();
        let mut answers = Vec::new();
        vault.alone.begin();
        for (name, mut wish) in std::mem::take(&mut vault.waiting) {
            if self.control == Control::AnyTicket
                && let Wish::Reserve { ticket, .. } = &mut wish
            {
                *ticket = Some(place.life);
            }
            let sight = Sight { chain: seen.context(&name, &wish).known, own: seen.own(&name, &wish) };
            match vault.alone.decide(place, &name, &wish, sight, 0) {
                Ok(Verdict::Answer(known)) => answers.push((name, known)),
                Ok(Verdict::Make(draft)) => {
                    drafts.push(draft);
                    vault.under_way.push((name, wish));
                }
                Ok(Verdict::Refuse(_) | Verdict::Wait) | Err(_) => {}
            }
        }
        let life = place.life;
        for (name, known) in answers.into_iter().filter(|(_, known)| known.number.number > 0) {
            let by = seen.own_number(&name, known.number.number).then_some(life);
            self.told.tell(&name, &known.number.key, known.number.number, by)?;
        }
        if drafts.is_empty() { Ok(()) } else { self.input(who, Input::Give(drafts)) }
    }

    /// Who goes on alone enters a record.
    pub(crate) fn record(&mut self, who: usize) -> Checked {
        let Some(core) = &self.vaults[who].core else { return Ok(()) };
        if !core.goes_on_alone() || !core.may_propose() {
            return Ok(());
        }
        let owner = "erp".to_owned();
        let number = 1 + self.random.below(9);
        let act = Act::Put(format!("v{}", self.random.below(9)));
        let draft =
            Draft { owner, series: String::new(), number, key: "r".to_owned(), act, at: 0, carried: None };
        self.input(who, Input::Propose(vec![draft]))
    }
}
