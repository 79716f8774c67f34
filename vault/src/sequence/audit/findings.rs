//! What an audit tells: of the chain as a whole, of each series, and what is wrong. Words and
//! counts alone.

use serde::Serialize;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Is there no problem?
    pub proved: bool,
    /// Entries that were read.
    pub entries: u64,
    /// Entries of others, of which only the hashes are there.
    pub skipped: u64,
    /// Index of the last one.
    pub last_index: u64,
    /// Its hash: as `vault status` shows it, if nothing came after.
    pub last_hash: String,
    /// The vaults were apart when it was exported, and so many numbers that the one had given alone
    /// are not in it; how many the other had, it could not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<u64>,
    /// Each series, and each period of one.
    pub series: Vec<SeriesFindings>,
    /// What is wrong, the first hundred.
    pub problems: Vec<String>,
    /// How many more are wrong.
    pub more_problems: u64,
}

/// One series, or one period of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeriesFindings {
    /// Whose.
    pub owner: String,
    /// Its name.
    pub series: String,
    /// Its period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<String>,
    /// Numbers that were given.
    pub given: u64,
    /// The highest.
    pub last: u64,
    /// Of these, used by a document.
    pub confirmed: u64,
    /// Of these, not used yet.
    pub reserved: u64,
    /// Of these, spoiled, with the reason; the first hundred.
    pub void: Vec<VoidNumber>,
    /// How many are void.
    pub voided: u64,
    /// Of these, given to a key that was refused for good.
    pub doubtful: u64,
    /// What is missing up to the highest, and why; the first hundred spans.
    pub missing: Vec<Missing>,
}

/// A number that is spoiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VoidNumber {
    /// Which one.
    pub number: u64,
    /// Why.
    pub reason: String,
}

/// Numbers one after the other that were not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// Why.
    pub why: String,
}
