//! What a vault that is apart may give by itself: numbers of its own range, to keys that were
//! first sent to it in this life, and what becomes of numbers that it gave so. Everything else
//! waits until both are together. Pure; one value lives as long as the process.

use std::collections::{HashMap, HashSet};

use super::book::{Known, SeriesName, Verdict, Wish, amend, draft};
use super::entry::{Act, Life};
use super::standing::Standing;

/// Why a wish must wait until both vaults are together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Waits {
    /// The series is strict.
    #[error("its numbers are given only while both vaults are together")]
    Strict,
    /// It is in the chain, and not known to be final.
    #[error("it is not known yet whether this was recorded; repeat it with the same key")]
    InDoubt,
    /// The key may have been answered by the other vault, or by an earlier life of this one.
    #[error(
        "the key was first sent to the other vault, or before this one was started: whether it has a number, this vault alone cannot tell"
    )]
    Ticket,
    /// Nobody can tell whether another has answered the key.
    #[error(
        "the key carries no ticket, and without one this vault alone cannot tell whether the other has given it a number: send it through edge's gateway or the client library, which write tickets; a key that was never sent anywhere yet may be sent here with Vault-Ticket and the life that GET /v1/life tells (--ticket \"$(vault number life)\")"
    )]
    NoTicket,
    /// No session has stood since this life began or a write failed: nobody knows of this life,
    /// or it lacks what the other has.
    #[error("this vault has not been together with the other since it was started or could not write")]
    Unmet,
    /// No number is left in the range.
    #[error("the numbers set aside for this vault are used up")]
    UsedUp,
    /// The number was not given by this vault alone.
    #[error("the number was given by both vaults, and is changed by both")]
    Elsewhere,
    /// It is a definition.
    #[error("definitions are made by both vaults")]
    Definition,
    /// An earlier wish of the same round touches the same number or key: ask again after it.
    #[error("an earlier request for the same key or number is under way")]
    Round,
}

/// What is known of the number or key that a wish is about.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// In the chain.
    pub chain: Option<Known>,
    /// Among the rows that this vault gave alone and that are not yet in the chain for good.
    pub own: Option<Known>,
}

/// What this vault is and knows when it decides.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its name.
    pub vault: &'a str,
    /// Its life.
    pub life: Life,
    /// Lives and ranges as its chain has them.
    pub standing: &'a Standing,
    /// Entries of the chain up to here are final.
    pub last: u64,
    /// Has a session stood in this life, and has no write failed since?
    pub met: bool,
    /// As `met`; or is it a life that the last session sealed?
    pub known: bool,
}

/// What this life has given alone so far.
#[derive(Debug, Default)]
pub struct Alone {
    last: HashMap<SeriesName, u64>,
    round: HashSet<(SeriesName, String)>,
}

impl Alone {
    /// A new round of wishes, whose rows become durable together.
    pub fn begin(&mut self) {
        self.round.clear();
    }

    /// What becomes of `wish` while this vault is apart. A [`Verdict::Make`] is a row to be given.
    ///
    /// # Errors
    /// Why it must wait.
    pub fn decide(
        &mut self,
        place: Place<'_>,
        name: &SeriesName,
        wish: &Wish,
        sight: Sight,
        at: i64,
    ) -> Result<Verdict, Waits> {
        // What this vault gave by itself it may answer until the chain's entry is final; and a key
        // in doubt is what is given up.
        let pends = |known: &Known| known.index > place.last;
        let counts = sight.own.is_none() && !matches!(wish, Wish::Supersede { .. });
        if let Some(known) = sight.chain.filter(|known| counts || !pends(known)) {
            return match wish {
                _ if pends(&known) => Err(Waits::InDoubt),
                _ => match amend(name, wish, known, at) {
                    Verdict::Make(_) => Err(Waits::Elsewhere),
                    answered => Ok(answered),
                },
            };
        }
        let key = match (wish, &sight.own) {
            (Wish::Define(_), _) => return Err(Waits::Definition),
            (_, Some(known)) => known.number.key.clone(),
            (Wish::Reserve { key, .. } | Wish::Supersede { key, .. }, None) => key.clone(),
            (Wish::Confirm { .. } | Wish::Void { .. }, None) => return Err(Waits::Elsewhere),
        };
        if self.round.contains(&(name.clone(), key.clone())) {
            return Err(Waits::Round);
        }
        let verdict = match (wish, sight.own) {
            (_, Some(known)) => amend(name, wish, known, at),
            (Wish::Reserve { key, ticket }, None) => {
                let series = place.standing.series(name).ok_or(Waits::Strict)?;
                if !place.known {
                    return Err(Waits::Unmet);
                }
                match ticket {
                    Some(life) if *life == place.life => {}
                    Some(_) => return Err(Waits::Ticket),
                    None => return Err(Waits::NoTicket),
                }
                let after = self.last.get(name).copied();
                let number = series.own(place.vault, place.life, place.last, after).ok_or(Waits::UsedUp)?;
                self.last.insert(name.clone(), number);
                Verdict::Make(draft(name, number, key, Act::Reserve(*ticket), at))
            }
            // Whether or not it has a number elsewhere: both agree on it when they are together.
            (Wish::Supersede { key, by }, None) => {
                place.standing.series(name).ok_or(Waits::Strict)?;
                if !place.met {
                    return Err(Waits::Unmet);
                }
                Verdict::Make(draft(name, 0, key, Act::Supersede(by.clone()), at))
            }
            (Wish::Confirm { .. } | Wish::Void { .. } | Wish::Define(_), None) => {
                return Err(Waits::Elsewhere);
            }
        };
        if matches!(verdict, Verdict::Make(_)) {
            self.round.insert((name.clone(), key));
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::definition::Definition;
    use crate::sequence::entry::{Draft, Entry, Grant, Tail};
    use crate::sequence::standing::Present;

    fn name() -> SeriesName {
        SeriesName { owner: "erp".to_owned(), series: "POS".to_owned() }
    }

    /// What the ledger says after these acts on numbers.
    fn standing(acts: Vec<(u64, Act)>) -> Standing {
        let (mut standing, mut tail) = (Standing::default(), Tail::default());
        for (number, act) in acts {
            let SeriesName { owner, series } = name();
            let draft = Draft { owner, series, number, key: "a".to_owned(), act, at: 0, carried: None };
            let entry = Entry::append(tail, 1, 7, draft);
            tail = entry.tail();
            let _touched = standing.apply(&entry, || 0);
        }
        standing
    }

    #[test]
    fn a_vault_with_two_ranges_gives_each_number_once() {
        let grant = |to| Act::Grant(Grant { to, life: 9 });
        let definition = Definition { range: 3, ..Definition::default() };
        let standing = standing(vec![(0, Act::Define(definition)), (4, grant(6)), (7, grant(9))]);
        let place = Place { vault: "a", life: 9, standing: &standing, last: 3, met: true, known: true };
        let mut alone = Alone::default();
        let mut given = Vec::new();
        for count in 0..7 {
            alone.begin();
            let wish = Wish::Reserve { key: format!("k{count}"), ticket: Some(9) };
            match alone.decide(place, &name(), &wish, Sight::default(), 0) {
                Ok(Verdict::Make(draft)) => given.push(draft.number),
                other => assert_eq!(other, Err(Waits::UsedUp), "after {given:?}"),
            }
        }
        assert_eq!(given, [4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_key_without_a_ticket_is_told_so_and_not_that_it_was_sent_elsewhere() {
        let definition = Definition { range: 3, ..Definition::default() };
        let grant = Act::Grant(Grant { to: 6, life: 9 });
        let standing = standing(vec![(0, Act::Define(definition)), (4, grant)]);
        let place = Place { vault: "a", life: 9, standing: &standing, last: 3, met: true, known: true };
        for (ticket, why) in [(None, Waits::NoTicket), (Some(8), Waits::Ticket)] {
            let wish = Wish::Reserve { key: "k".to_owned(), ticket };
            let refused = Alone::default().decide(place, &name(), &wish, Sight::default(), 0);
            assert_eq!(refused, Err(why));
        }
        assert!(Waits::NoTicket.to_string().contains("--ticket"));
    }

    #[test]
    fn the_life_of_a_vault_that_another_has_replaced_is_lost_and_ended_once() {
        let present = |name: &str, life| Present { name: name.to_owned(), life, proven: None };
        let mut standing = Standing::default();
        let meet = |standing: &mut Standing, others: [&Present; 2]| {
            let births = standing.births(others, 0);
            for draft in &births {
                let _touched = standing.apply(&Entry::append(Tail::default(), 1, 1, draft.clone()), || 0);
            }
            births.len()
        };
        let (a, b, c) = (present("a", 1), present("b", 2), present("c", 3));
        assert_eq!(meet(&mut standing, [&a, &b]), 2);
        assert_eq!(meet(&mut standing, [&a, &c]), 2);
        assert_eq!(meet(&mut standing, [&a, &c]), 0);
        let lives = [1, 2, 3, 0].map(|life| standing.life(life));
        use crate::sequence::standing::LifeState::{Lost, Present as There};
        assert_eq!(lives, [Some(There), Some(Lost), Some(There), None]);
        assert_eq!(meet(&mut standing, [&a, &present("b", 4)]), 2, "it is back, and c gone");
    }
}
