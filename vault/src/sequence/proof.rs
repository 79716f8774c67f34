//! Which former life of a vault has lost nothing that it answered alone. Pure; knows neither where
//! a proof is kept nor what follows from it.

use serde::{Deserialize, Serialize};

use super::entry::{Life, Tail};
use super::protocol::Nonce;

/// What a life left behind outside of its journal: where the rows that it gave alone ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The journal it used.
    pub journal: Nonce,
    /// The life.
    pub life: Life,
    /// Where its rows ended.
    pub rows: Tail,
    /// The life before it of which nothing is missing either.
    #[serde(default)]
    pub former: Option<Life>,
}

impl Proof {
    /// The life of which all that it answered alone stands in this journal, if any.
    /// `last` is the life that used the journal last; `met` tells whether the journal's chain
    /// knows of it. A life that was never in a session gave nothing, and hands on what it knew of
    /// the one before it.
    #[must_use]
    pub fn proven(self, journal: Nonce, last: Option<Life>, rows: Tail, met: bool) -> Option<Life> {
        let fits = self.journal == journal && Some(self.life) == last && self.rows == rows;
        if !fits {
            return None;
        }
        if met { last } else { self.former.or(last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_rows_of_the_last_life_prove_it() {
        let rows = |index| Tail { index, ..Tail::default() };
        let proof = Proof { journal: 1, life: 10, rows: rows(3), former: Some(9) };
        assert_eq!(proof.proven(1, Some(10), rows(3), true), Some(10));
        assert_eq!(proof.proven(1, Some(10), rows(2), true), None, "rolled back");
        assert_eq!(proof.proven(2, Some(10), rows(3), true), None, "another journal");
        assert_eq!(proof.proven(1, Some(11), rows(3), true), None, "another life");
        assert_eq!(proof.proven(1, None, rows(3), true), None, "never used");
    }

    #[test]
    fn a_life_that_nobody_met_hands_on_what_it_knew() {
        let proof = Proof { journal: 1, life: 10, rows: Tail::default(), former: Some(9) };
        assert_eq!(proof.proven(1, Some(10), Tail::default(), false), Some(9));
        let first = Proof { former: None, ..proof };
        assert_eq!(first.proven(1, Some(10), Tail::default(), false), Some(10));
    }
}
