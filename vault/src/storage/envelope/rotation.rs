//! Both slots of an object → the next write that brings its record to other keys. Pure: is
//! handed the bytes as they lie there now, and never remembers a step, so that a crash, a second
//! vault that does the same, or a torn write is just another state to go on from.
//!
//! The order is what keeps the record: the older slot is sealed anew while the newer one stands;
//! only when the new one is seen whole is the other one made its copy. Of the whole slots the
//! highest generation counts.

use age::x25519::Identity;

use super::record::Record;
use super::slot::{Side, open_slot, parse_slot};

/// What both slots say, and what to do next.
#[derive(Debug)]
pub struct Examined {
    /// The record that counts, if one of the identities opens it.
    pub record: Option<Record>,
    /// The next step.
    pub next: Next,
}

/// The next write to an object's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Both slots hold the same record, sealed to the wanted keys.
    Nothing,
    /// This slot is as it should be: make the other one its copy.
    CopyFrom(Side),
    /// Seal the record anew into this slot, under this generation.
    SealInto(Side, u32),
    /// No generation is left; nothing of ours ever writes the last one.
    Exhausted,
}

/// Examines an object's first bytes: are both slots sealed to the keys that `wanted` names?
pub fn examine(bytes: &[u8], identities: &[Identity], wanted: &str) -> Examined {
    let whole = Side::BOTH.map(|side| parse_slot(side.of(bytes)).ok());
    let newest = match &whole {
        [Some(a), Some(b)] if b.generation > a.generation => Some(Side::B),
        [Some(_), _] => Some(Side::A),
        [None, Some(_)] => Some(Side::B),
        [None, None] => None,
    };
    let Some(newest) = newest else {
        return Examined { record: None, next: Next::SealInto(Side::A, 1) };
    };
    let slot = |side| whole[if side == Side::A { 0 } else { 1 }].as_ref();
    let open = |side| slot(side).and_then(|slot| open_slot(slot, identities).ok());
    let opened = open(newest);
    if let Some((record, to)) = &opened
        && to == wanted
    {
        let same = newest.of(bytes) == newest.other().of(bytes);
        let next = if same { Next::Nothing } else { Next::CopyFrom(newest) };
        return Examined { record: Some(record.clone()), next };
    }
    let generation = slot(newest).and_then(|slot| slot.generation.checked_add(1));
    let next = generation.map_or(Next::Exhausted, |next| Next::SealInto(newest.other(), next));
    let record = opened.or_else(|| open(newest.other())).map(|(record, _)| record);
    Examined { record, next }
}

#[cfg(test)]
mod tests {
    use super::super::{SLOT, read_slots, seal_name, seal_slot};
    use super::*;
    use crate::storage::object::{Metadata, OneOff};

    struct Keys {
        earlier: Identity,
        active: Identity,
        escrow: Identity,
    }

    impl Keys {
        fn new() -> Self {
            Self { earlier: Identity::generate(), active: Identity::generate(), escrow: Identity::generate() }
        }

        fn wanted(&self) -> String {
            seal_name([&self.active.to_public(), &self.escrow.to_public()])
        }

        fn seal(&self, active: &Identity, generation: u32) -> Vec<u8> {
            seal_slot(&record(), [&active.to_public(), &self.escrow.to_public()], generation).unwrap()
        }

        fn fresh(&self) -> Vec<u8> {
            self.seal(&self.earlier, 0).repeat(2)
        }

        fn own(&self) -> Vec<Identity> {
            vec![self.active.clone(), self.earlier.clone()]
        }

        /// One step of a vault that has seen `seen`; true if there was one.
        fn step(&self, slots: &mut [u8], seen: &[u8]) -> bool {
            let examined = examine(seen, &self.own(), &self.wanted());
            let (side, bytes) = match examined.next {
                Next::Nothing => return false,
                Next::CopyFrom(side) => (side.other(), side.of(seen).to_vec()),
                Next::SealInto(side, generation) => {
                    assert_eq!(examined.record.unwrap(), record());
                    (side, self.seal(&self.active, generation))
                }
                Next::Exhausted => panic!("no generation is left"),
            };
            let start = usize::try_from(side.offset()).unwrap();
            slots[start..start + SLOT].copy_from_slice(&bytes);
            true
        }

        fn check(&self, slots: &[u8]) {
            assert_eq!(read_slots(slots, std::slice::from_ref(&self.escrow)).unwrap(), record());
            assert_eq!(read_slots(slots, &self.own()).unwrap(), record());
        }

        fn finish(&self, slots: &mut [u8]) {
            for _ in 0..3 {
                let seen = slots.to_vec();
                self.step(slots, &seen);
            }
            assert_eq!(examine(slots, &self.own(), &self.wanted()).next, Next::Nothing);
            assert_eq!(read_slots(slots, std::slice::from_ref(&self.active)).unwrap(), record());
            assert!(
                read_slots(slots, std::slice::from_ref(&self.earlier)).is_err(),
                "the earlier key is out"
            );
        }
    }

    fn record() -> Record {
        let metadata = Metadata {
            owner: "erp".to_owned(),
            key: "k".to_owned(),
            label: "l".to_owned(),
            media_type: "text/plain".to_owned(),
            size: 1,
            created: String::new(),
            digest: "d".repeat(64),
        };
        use age::secrecy::ExposeSecret;
        // The same one-off identity every time.
        static ONE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let secret = ONE.get_or_init(|| Identity::generate().to_string().expose_secret().to_owned());
        Record { metadata, identity: OneOff(secret.clone()) }
    }

    #[test]
    fn a_write_torn_at_any_sector_leaves_the_record_and_is_finished_later() {
        let keys = Keys::new();
        // The state before each of the two writes, and after them.
        let mut states = vec![keys.fresh()];
        for _ in 0..2 {
            let mut slots = states.last().unwrap().clone();
            let seen = slots.clone();
            assert!(keys.step(&mut slots, &seen));
            states.push(slots);
        }
        assert_eq!(examine(&states[2], &keys.own(), &keys.wanted()).next, Next::Nothing);
        for pair in states.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            for cut in (0..=2 * SLOT).step_by(512) {
                // A prefix arrived, or everything but a prefix: sectors come in no order.
                for (first, second) in [(after, before), (before, after)] {
                    let mut torn = [&first[..cut], &second[cut..]].concat();
                    keys.check(&torn);
                    keys.finish(&mut torn);
                }
            }
        }
    }

    #[test]
    fn two_vaults_that_rewrap_at_once_never_lose_the_record_in_any_interleaving() {
        let keys = Keys::new();
        // Each vault looks, then writes by what it saw, twice; then the power fails.
        const ROUNDS: u32 = 4;
        for order in 0_u32..1 << (2 * ROUNDS) {
            // Only orders in which each vault moves exactly as often: 70 of them.
            if order.count_ones() != ROUNDS {
                continue;
            }
            let mut slots = keys.fresh();
            let mut seen: [Option<Vec<u8>>; 2] = [None, None];
            for turn in 0..2 * ROUNDS {
                let who = usize::from(order >> turn & 1 == 1);
                match seen[who].take() {
                    None => seen[who] = Some(slots.clone()),
                    Some(known) => {
                        keys.step(&mut slots, &known);
                        keys.check(&slots);
                    }
                }
            }
            keys.finish(&mut slots);
        }
    }

    #[test]
    fn a_slot_that_is_lost_or_sealed_to_strangers_is_made_anew() {
        let keys = Keys::new();
        let stranger = Identity::generate();
        let mut slots = [keys.seal(&keys.earlier, 4), vec![0; SLOT]].concat();
        assert_eq!(examine(&slots, &keys.own(), &keys.wanted()).next, Next::SealInto(Side::B, 5));
        keys.finish(&mut slots);
        let foreign = [keys.seal(&stranger, 9), keys.seal(&stranger, 8)].concat();
        let examined = examine(&foreign, &keys.own(), &keys.wanted());
        assert!(examined.record.is_none(), "then the catalog's record is sealed");
        assert_eq!(examined.next, Next::SealInto(Side::B, 10));
        assert_eq!(examine(&[0; 10], &keys.own(), "").next, Next::SealInto(Side::A, 1));
        let last = [keys.seal(&keys.earlier, u32::MAX), vec![0; SLOT]].concat();
        assert_eq!(examine(&last, &keys.own(), &keys.wanted()).next, Next::Exhausted);
    }
}
