//! The auditor: reads a whole series back and holds it against what the callers were told.
//! Decides nothing about how to go on; every discrepancy is a sentence.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use harness::curl::Curl;
use shared::api::{Number, NumberState, Page};

use crate::load::{Book, Fate};

/// How many rows one page is asked for: small, so that paging is used for real.
const PAGE: usize = 100;
/// More pages than any run can fill.
const MOST_PAGES: usize = 10_000;

/// Every row of a series, in its order.
pub(crate) fn read_series(series: &str, call: impl Fn(&str) -> Curl) -> anyhow::Result<Vec<Number>> {
    let mut rows = Vec::new();
    let mut after = "0".to_owned();
    for _ in 0..MOST_PAGES {
        let path = format!("/v1/series/{series}/numbers?after={after}&limit={PAGE}");
        let answer = call(&path).send()?.expect(&[200])?;
        let page: Page<Number> = serde_json::from_slice(&answer.body).context("a page of numbers")?;
        rows.extend(page.items);
        match page.next {
            Some(next) => after = next,
            None => return Ok(rows),
        }
    }
    anyhow::bail!("series {series}: pages without end")
}

/// What a series comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) confirmed: usize,
    pub(crate) void: usize,
    pub(crate) reserved: usize,
}

/// Counts the rows by what became of them.
pub(crate) fn totals(rows: &[Number]) -> Totals {
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    Totals {
        confirmed: count(NumberState::Confirmed),
        void: count(NumberState::Void),
        reserved: count(NumberState::Reserved),
    }
}

/// Are these the numbers 1 to n, each once, each with a key of its own?
pub(crate) fn is_unbroken(rows: &[Number]) -> anyhow::Result<()> {
    for (expected, row) in (1_u64..).zip(rows) {
        anyhow::ensure!(
            row.number == expected,
            "number {expected} is missing or twice: {} stands there",
            row.number
        );
    }
    let keys: BTreeSet<_> = rows.iter().map(|row| row.key.as_str()).collect();
    anyhow::ensure!(keys.len() == rows.len(), "{} keys for {} numbers", keys.len(), rows.len());
    Ok(())
}

/// Does every number that a caller was given stand in the series, with its key and its fate?
/// Returns how many rows belong to calls that were never answered.
pub(crate) fn agrees_with(rows: &[Number], book: &Book) -> anyhow::Result<usize> {
    let by_key: BTreeMap<_, _> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
    for (key, given) in &book.numbers {
        let row = by_key
            .get(key.as_str())
            .with_context(|| format!("{key} was given {}, which is lost", given.number))?;
        anyhow::ensure!(
            row.number == given.number,
            "{key} was given {}, the series says {}",
            given.number,
            row.number
        );
        let fits = match (&given.fate, row.state) {
            (Fate::Reserved, NumberState::Reserved) => true,
            (Fate::Confirmed(hash), NumberState::Confirmed) => row.document_hash.as_ref() == Some(hash),
            (Fate::Void(reason), NumberState::Void) => row.reason.as_ref() == Some(reason),
            (_, NumberState::Reserved) => !given.settled,
            _ => false,
        };
        anyhow::ensure!(
            fits,
            "number {}: acknowledged as {:?}, the series says {row:?}",
            given.number,
            given.fate
        );
    }
    let unanswered: Vec<_> = rows.iter().filter(|row| !book.numbers.contains_key(&row.key)).collect();
    for row in &unanswered {
        anyhow::ensure!(
            book.asked.contains(&row.key),
            "number {}: nobody asked with the key {}",
            row.number,
            row.key
        );
    }
    Ok(unanswered.len())
}
