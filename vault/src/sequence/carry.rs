//! How rows that a vault gave alone come into the chain: each becomes an entry of its own, as it
//! was; where its key has another number already, the number is spoiled instead. Pure.

use std::collections::HashSet;

use shared::api::NumberState;

use super::book::{Known, SeriesName, given_up_for, successor};
use super::entry::{Act, BATCH, Draft, Entry, Life};
use super::standing::Standing;

/// What must be entered for a first part of some rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The entries, in order.
    pub drafts: Vec<Draft>,
    /// The last row that they, or nothing, stand for.
    pub upto: u64,
    /// What an operator should hear of.
    pub alarms: Vec<Alarm>,
}

/// A row that could not become what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// The key has another number.
    #[error(
        "key {key} of series {series} was answered {kept} and {spoiled}; {kept} stands, {spoiled} is spoiled: tell whoever uses it"
    )]
    TwoNumbers {
        /// The series.
        series: String,
        /// The key.
        key: String,
        /// The number that it has.
        kept: u64,
        /// The number that it had been given alone.
        spoiled: u64,
    },
    /// The number is another key's.
    #[error(
        "number {number} of series {series} was given to keys {has} and {key}: stop using it, and tell both"
    )]
    TwoKeys {
        /// The series.
        series: String,
        /// The number.
        number: u64,
        /// Who has it in the chain.
        has: String,
        /// Who was given it alone.
        key: String,
    },
    /// The key's sender took another one, and somebody uses its number all the same.
    #[error(
        "key {key} of series {series} was given up for key {by}, and its number {number} is confirmed: void one of the two"
    )]
    GivenUp {
        /// The series.
        series: String,
        /// The old key.
        key: String,
        /// The new key.
        by: String,
        /// The old key's number.
        number: u64,
    },
    /// The number changed differently meanwhile.
    #[error(
        "{act} of number {number} of series {series}, done by one vault alone, does not fit what it is now"
    )]
    Late {
        /// The series.
        series: String,
        /// The number.
        number: u64,
        /// What was done alone.
        act: &'static str,
        /// Was the key given up meanwhile?
        given_up: bool,
    },
}

/// What the chain says of a row's key and number.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The number that the row's key has.
    pub by_key: Option<Known>,
    /// What became of the row's number.
    pub by_number: Option<Known>,
}

/// Decides what becomes of `rows`, in order, up to the first that touches a number or key which
/// an earlier one of them touches. Entries of the chain up to `last` may have been answered.
///
/// # Errors
/// Those of `look`.
pub fn carry<E>(
    rows: &[Entry],
    standing: &Standing,
    last: u64,
    mut look: impl FnMut(&SeriesName, &Entry) -> Result<Place, E>,
) -> Result<Carried, E> {
    let mut carried = Carried { drafts: Vec::new(), upto: 0, alarms: Vec::new() };
    let mut touched = HashSet::new();
    for row in rows {
        if row.index > standing.carried(row.life) {
            let name = SeriesName { owner: row.owner.clone(), series: row.series.clone() };
            let fresh_number =
                row.number == 0 || touched.insert((name.clone(), row.number.to_string(), true));
            let fresh_key = touched.insert((name.clone(), row.key.clone(), false));
            if !(fresh_number && fresh_key) {
                break;
            }
            let place = look(&name, row)?;
            if carried.drafts.len() + 3 > BATCH {
                break;
            }
            match entries_for(row, &place, last) {
                Ok(drafts) => carried.drafts.extend(drafts),
                Err((drafts, alarm)) => {
                    // Whatever becomes of a row, an entry stands for it, so that it is done with.
                    let noted = drafts.is_empty().then(|| note(row, alarm.to_string()));
                    carried.drafts.extend(drafts.into_iter().chain(noted));
                    carried.alarms.push(alarm);
                }
            }
        }
        carried.upto = row.index;
    }
    Ok(carried)
}

/// What the row becomes, and what is wrong with it.
fn entries_for(row: &Entry, place: &Place, last: u64) -> Result<Vec<Draft>, (Vec<Draft>, Alarm)> {
    let Entry { series, number, key, act, .. } = row;
    let (series, key, number) = (series.clone(), key.clone(), *number);
    let origin = Some((row.life, row.index));
    match (act, &place.by_number, &place.by_key) {
        (Act::Life(_), ..) => Ok(vec![draft(row, number, key, act.clone(), origin)]),
        (Act::Reserve(_), Some(known), _) => {
            let has = known.number.key.clone();
            Err((Vec::new(), Alarm::TwoKeys { series, number, has, key }))
        }
        (Act::Supersede(by), _, known) => match known {
            None => Ok(vec![draft(row, 0, key, act.clone(), origin)]),
            Some(Known { number: of, .. }) => match of.state {
                NumberState::Reserved | NumberState::Doubtful => {
                    Ok(vec![draft(row, of.number, key, act.clone(), origin)])
                }
                NumberState::Void => {
                    Ok(vec![note(row, format!("number {} of key {key} was void already", of.number))])
                }
                NumberState::Confirmed => {
                    let (by, number) = (by.clone(), of.number);
                    Err((Vec::new(), Alarm::GivenUp { series, key, by, number }))
                }
            },
        },
        (Act::Reserve(_), None, Some(burnt)) if burnt.number.number == 0 => {
            let given = draft(row, number, key.clone(), act.clone(), origin);
            let spoiled = successor(&burnt.number).map(|by| void(row, number, key, by));
            Ok([given].into_iter().chain(spoiled).collect())
        }
        (Act::Reserve(_), None, None) => Ok(vec![draft(row, number, key, act.clone(), origin)]),
        // The vault that gave the row did not have this entry, so nobody was ever told of it.
        (Act::Reserve(_), None, Some(pending)) if pending.index > last => {
            let reason = format!("never answered: key {key} was given number {number}");
            let displaced = draft(row, pending.number.number, key.clone(), Act::Displace(reason), None);
            let given = draft(row, number, key.clone(), act.clone(), origin);
            let spoiled = successor(&pending.number).map(|by| void(row, number, key, by));
            Ok([displaced, given].into_iter().chain(spoiled).collect())
        }
        (Act::Reserve(_), None, Some(kept)) => {
            let (kept, spoiled) = (kept.number.number, number);
            let act = Act::Spoil(format!("key {key} has number {kept}"));
            let spoil = draft(row, number, unused(&key, number), act, origin);
            Err((vec![spoil], Alarm::TwoNumbers { series, key, kept, spoiled }))
        }
        (act, Some(known), _)
            if known.number.key == key
                && matches!(
                    (act, known.number.state),
                    (Act::Confirm(_), NumberState::Reserved)
                        | (Act::Void(_), NumberState::Reserved | NumberState::Confirmed)
                ) =>
        {
            Ok(vec![draft(row, number, key, act.clone(), origin)])
        }
        (act, known, _) => {
            let given_up = known.as_ref().is_some_and(|known| successor(&known.number).is_some());
            Err((Vec::new(), Alarm::Late { series, number, act: act.parts().0, given_up }))
        }
    }
}

/// The key under which a spoiled number stands: no caller's has a space in it.
#[must_use]
pub fn unused(key: &str, number: u64) -> String {
    format!("{key} {number}")
}

/// Nothing changes by the row.
fn note(row: &Entry, reason: String) -> Draft {
    draft(row, row.number, row.key.clone(), Act::Note(reason), Some((row.life, row.index)))
}

/// The number is spoiled, since its key was given up.
fn void(row: &Entry, number: u64, key: String, by: &str) -> Draft {
    draft(row, number, key, Act::Void(given_up_for(by)), None)
}

fn draft(row: &Entry, number: u64, key: String, act: Act, carried: Option<(Life, u64)>) -> Draft {
    let (owner, series) = (row.owner.clone(), row.series.clone());
    Draft { owner, series, number, key, act, at: row.at, carried }
}
