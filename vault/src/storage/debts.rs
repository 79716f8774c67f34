//! What is owed, in the operator's words: which replica, to whom, since when, and what it waits
//! for. Tells; pays nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::object::ObjectId;
use super::sessions::Health;
use super::{Storage, StorageError};

/// Reasons kept; with more debts than that failing, the operator has the log.
const REASONS: usize = 1000;

/// One debt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owed {
    /// The object.
    pub id: ObjectId,
    /// The file server it is owed to.
    pub server: String,
    /// Is a removal owed, and not a replica?
    pub removal: bool,
    /// Unix seconds.
    pub since: i64,
    /// How often paying it has failed.
    pub tried: u64,
    /// Does any file server hold a replica, as far as the catalog knows?
    pub somewhere: bool,
    /// What it waits for.
    pub why: String,
}

/// An object and the file server that it is owed to; none where the object was looked for everywhere.
type About = (ObjectId, Option<String>);

impl Owed {
    /// Is no whole replica left to copy from? Then nothing pays it but an operator.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        !self.removal && !self.somewhere
    }
}

/// Why paying last failed; bounded, and forgotten at the end of the process.
#[derive(Default)]
pub(super) struct Reasons(Mutex<HashMap<About, String>>);

impl Reasons {
    /// Paying failed.
    pub(super) fn note(&self, about: About, why: String) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() >= REASONS && !reasons.contains_key(&about) {
            reasons.clear();
        }
        reasons.insert(about, why);
    }

    /// It was paid.
    pub(super) fn settle(&self, about: &About) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(about);
    }

    fn of(&self, id: ObjectId, server: &str) -> Option<String> {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.get(&(id, Some(server.to_owned()))).or_else(|| reasons.get(&(id, None))).cloned()
    }
}

impl Storage {
    /// What is owed, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn owed(&self, limit: usize) -> Result<Vec<Owed>, StorageError> {
        let mut owed = self.0.catalog.owed(limit).await?;
        let health: HashMap<_, _> =
            self.0.servers.iter().map(|server| (server.name().to_owned(), server.health())).collect();
        for debt in &mut owed {
            debt.why = why(debt, health.get(&debt.server), self.0.reasons.of(debt.id, &debt.server));
        }
        Ok(owed)
    }
}

/// What an operator does about a file of which no whole replica is left.
pub(super) const LOST: &str = "no whole replica is left: restore one from quarantine/ on a file server or from \
                               a backup: README, When both replicas are damaged";

fn why(debt: &Owed, server: Option<&Health>, failure: Option<String>) -> String {
    let Some(server) = server else { return "its file server is no longer configured".to_owned() };
    if debt.is_lost() {
        return LOST.to_owned();
    }
    if server.suspended.is_some() {
        return format!("its file server is away: {}", server.cause);
    }
    if !debt.removal && (server.full || server.low) {
        return "its file server has too little space left; make room".to_owned();
    }
    if let Some(failure) = failure.filter(|_| debt.tried > 0) {
        return failure;
    }
    "its turn comes".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_tells_what_it_waits_for() {
        let debt = |removal, tried, somewhere| Owed {
            id: ObjectId::new([1; 32]),
            server: "one".to_owned(),
            removal,
            since: 0,
            tried,
            somewhere,
            why: String::new(),
        };
        let well = Health::default();
        let away = Health {
            suspended: Some("file server one: x: away: no answer".to_owned()),
            cause: "no answer".to_owned(),
            ..Health::default()
        };
        let low = Health { low: true, ..Health::default() };
        assert_eq!(why(&debt(false, 0, true), Some(&well), None), "its turn comes");
        assert_eq!(why(&debt(false, 0, true), Some(&away), None), "its file server is away: no answer");
        assert!(why(&debt(false, 0, true), Some(&low), None).contains("make room"));
        assert_eq!(why(&debt(true, 0, true), Some(&low), None), "its turn comes");
        assert_eq!(why(&debt(false, 2, true), Some(&well), Some("denied".to_owned())), "denied");
        assert!(why(&debt(false, 2, false), Some(&away), Some("denied".to_owned())).contains("quarantine/"));
        assert!(why(&debt(false, 0, true), None, None).contains("no longer configured"));
    }

    #[test]
    fn reasons_are_bounded() {
        let reasons = Reasons::default();
        for number in 0..=REASONS {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            reasons.note((ObjectId::new(hash), None), String::new());
        }
        assert!(reasons.0.lock().unwrap().len() <= REASONS);
    }
}
