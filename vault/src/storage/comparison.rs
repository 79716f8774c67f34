//! What the catalog knows and what the file servers list → what differs. Pure: is handed both
//! and returns findings; reaches nothing and decides nothing about how a finding is answered.
//!
//! The catalog must have been read before the listing began. Then a replica that it calls
//! stored was there when the listing began, and one that is not listed has gone since: an
//! upload that ends in between is at most unknown, never missing.

use std::collections::BTreeSet;

use super::object::{ObjectId, ReplicaState, State};

/// An object as the catalog has it, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The object.
    pub id: ObjectId,
    /// What became of it.
    pub state: State,
    /// What is known of its replica on each file server, in the order of the settings.
    pub replicas: Vec<Option<ReplicaState>>,
}

/// One difference. Servers are numbered in the order of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Should be there and is not.
    Missing {
        /// The object.
        id: ObjectId,
        /// Where.
        server: usize,
    },
    /// Is there, and the catalog does not count it: to be verified.
    Present {
        /// The object.
        id: ObjectId,
        /// Where.
        server: usize,
    },
    /// Purged and removed before, and there again: to be removed again.
    Risen {
        /// The object.
        id: ObjectId,
        /// Where.
        server: usize,
    },
    /// Listed somewhere, and the catalog knows nothing of it, or that it came to nothing.
    Unknown {
        /// The object.
        id: ObjectId,
    },
}

/// Compares one part of the objects. `listings` holds each file server's sorted ids of that
/// part; nothing is concluded about one that could not be listed (`None`).
#[must_use]
pub fn compare(known: &[Known], listings: &[Option<Vec<ObjectId>>]) -> Vec<Finding> {
    debug_assert!(known.is_sorted_by(|left, right| left.id < right.id), "the catalog reads in order");
    let mut findings = Vec::new();
    for object in known {
        for (server, listing) in listings.iter().enumerate() {
            let Some(listing) = listing else { continue };
            let listed = listing.binary_search(&object.id).is_ok();
            let replica = object.replicas.get(server).copied().flatten();
            findings.extend(difference(object, replica, listed, server));
        }
    }
    let unknown: BTreeSet<_> = listings
        .iter()
        .flatten()
        .flatten()
        .filter(|id| match known.binary_search_by_key(*id, |object| object.id) {
            Ok(at) => known[at].state == State::Dropped,
            Err(_) => true,
        })
        .collect();
    findings.extend(unknown.into_iter().map(|id| Finding::Unknown { id: *id }));
    findings
}

fn difference(object: &Known, replica: Option<ReplicaState>, listed: bool, server: usize) -> Option<Finding> {
    let id = object.id;
    match (object.state, replica, listed) {
        // A deleted one may still be undeleted.
        (State::Stored | State::Deleted, None | Some(ReplicaState::Stored), false) => {
            Some(Finding::Missing { id, server })
        }
        (State::Stored | State::Deleted, Some(ReplicaState::Stored), true) => None,
        (State::Stored | State::Deleted, _, true) => Some(Finding::Present { id, server }),
        // With a removal on record, it is only not due yet.
        (State::Purged, None, true) => Some(Finding::Risen { id, server }),
        // An intent is settled by whoever made it.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn id(number: u8) -> ObjectId {
        ObjectId::new([number; 32])
    }

    fn known(number: u8, state: State, replicas: [Option<ReplicaState>; 2]) -> Known {
        Known { id: id(number), state, replicas: replicas.to_vec() }
    }

    #[test]
    fn each_difference_has_its_name_and_agreement_none() {
        use ReplicaState::{Owed, RemovalOwed, Stored};
        let catalog = [
            known(1, State::Stored, [Some(Stored), Some(Stored)]),
            known(2, State::Stored, [Some(Stored), Some(Owed)]),
            known(3, State::Purged, [None, Some(RemovalOwed)]),
            known(4, State::Pending, [None, None]),
            known(5, State::Dropped, [None, None]),
        ];
        let listed = |numbers: &[u8]| Some(numbers.iter().map(|number| id(*number)).collect());
        let findings = compare(&catalog, &[listed(&[1, 3, 4, 9]), listed(&[1, 2, 3, 5])]);
        assert_eq!(
            findings,
            [
                Finding::Missing { id: id(2), server: 0 },
                Finding::Present { id: id(2), server: 1 },
                Finding::Risen { id: id(3), server: 0 },
                Finding::Unknown { id: id(5) },
                Finding::Unknown { id: id(9) },
            ]
        );
    }

    #[test]
    fn nothing_is_concluded_about_a_server_that_could_not_be_listed() {
        let catalog = [known(1, State::Stored, [Some(ReplicaState::Stored), None])];
        assert_eq!(compare(&catalog, &[None, None]), []);
    }

    fn any_known() -> impl Strategy<Value = Vec<Known>> {
        let replica = |kind: u8| match kind {
            0 => Some(ReplicaState::Stored),
            1 => Some(ReplicaState::Owed),
            2 => Some(ReplicaState::Damaged),
            3 => Some(ReplicaState::RemovalOwed),
            _ => None,
        };
        let state = |kind: u8| match kind {
            0 => State::Pending,
            1 => State::Dropped,
            2 => State::Stored,
            _ => State::Purged,
        };
        proptest::collection::btree_map(any::<u8>(), (0_u8..4, 0_u8..5, 0_u8..5), 0..40).prop_map(
            move |objects| {
                let object =
                    |(number, (kind, one, two))| known(number, state(kind), [replica(one), replica(two)]);
                objects.into_iter().map(object).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn every_listed_object_is_accounted_for_and_nothing_else_is_found(
            catalog in any_known(),
            lists in proptest::array::uniform2(proptest::collection::btree_set(any::<u8>(), 0..40)),
        ) {
            let listings = lists.clone().map(|list| Some(list.into_iter().map(id).collect::<Vec<_>>()));
            let findings = compare(&catalog, &listings);
            for finding in &findings {
                let (about, server) = match finding {
                    Finding::Missing { id, server } | Finding::Present { id, server } | Finding::Risen { id, server } => (*id, Some(*server)),
                    Finding::Unknown { id } => (*id, None),
                };
                let listed = |server: usize| listings[server].as_ref().unwrap().contains(&about);
                let state = catalog.iter().find(|object| object.id == about).map(|object| object.state);
                match (finding, server) {
                    (Finding::Missing { .. }, Some(server)) => prop_assert!(!listed(server) && state == Some(State::Stored)),
                    (Finding::Present { .. }, Some(server)) => prop_assert!(listed(server) && state == Some(State::Stored)),
                    (Finding::Risen { .. }, Some(server)) => prop_assert!(listed(server) && state == Some(State::Purged)),
                    _ => prop_assert!((listed(0) || listed(1)) && state.is_none_or(|state| state == State::Dropped)),
                }
            }
            // What is noted as found is not found again: the catalog agrees with the listings.
            let agreed: Vec<_> = catalog.iter().map(|object| {
                let mut object = object.clone();
                for (server, listing) in listings.iter().enumerate() {
                    let listed = listing.as_ref().unwrap().contains(&object.id);
                    object.replicas[server] = match (object.state, listed) {
                        (State::Stored, true) => Some(ReplicaState::Stored),
                        (State::Stored, false) => Some(ReplicaState::Owed),
                        (State::Purged, true) => Some(ReplicaState::RemovalOwed),
                        _ => None,
                    };
                }
                object
            }).collect();
            let left: Vec<_> = compare(&agreed, &listings).into_iter().filter(|finding| !matches!(finding, Finding::Unknown { .. })).collect();
            prop_assert_eq!(left, vec![]);
        }
    }
}
