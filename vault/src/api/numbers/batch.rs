//! Many keys in one call: each gets what it would have got alone, a number or a problem of its
//! own. Knows the two lists of the body; the ledger's rounds are the room's.

use axum::Json;
use axum::extract::State;
use shared::api::{Batch, BatchAnswer, BatchItem, MAX_BATCH, MAX_NUMBER_KEY};

use super::asked::{Asked, NoMore, invalid, refusal, ticket};
use crate::api::body::JsonBody;
use crate::api::key::IdempotencyKey;
use crate::api::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::entry::Life;

/// Longest body: every key and ticket as long as can be, every character escaped once.
const MAX_BATCH_JSON: usize = 8 << 20;

pub(super) async fn reserve(
    State(sequence): State<Sequence>,
    asked: Asked<NoMore>,
    JsonBody(body): JsonBody<Batch, MAX_BATCH_JSON>,
) -> Result<Json<BatchAnswer>, Refusal> {
    let name = asked.counted(&sequence)?;
    let keys = checked(body)?;
    let names: Vec<String> = keys.iter().map(|(key, _)| key.clone()).collect();
    let outcomes = sequence.reserve_all(&name, keys).await;
    let item = |(key, outcome): (String, Result<_, _>)| match outcome {
        Ok(crate::sequence::Done { number, .. }) => BatchItem { key, number: Some(number), problem: None },
        Err(error) => BatchItem { key, number: None, problem: Some(refusal(error).problem) },
    };
    Ok(Json(BatchAnswer { items: names.into_iter().zip(outcomes).map(item).collect() }))
}

/// The keys, each with its ticket.
fn checked(body: Batch) -> Result<Vec<(String, Option<Life>)>, Refusal> {
    let Batch { keys, tickets } = body;
    let count = keys.len();
    if !(1..=MAX_BATCH).contains(&count) {
        return Err(invalid(format!("keys: {count} of them; send 1 to {MAX_BATCH}")));
    }
    let tickets = tickets.unwrap_or_else(|| vec![None; count]);
    if tickets.len() != count {
        let detail =
            format!("tickets: {} of them for {count} keys; send one, or null, for each", tickets.len());
        return Err(invalid(detail));
    }
    let pair = |(place, (key, life)): (usize, (String, Option<String>))| {
        if IdempotencyKey::read(key.as_bytes()).is_none() {
            let detail = format!("keys[{place}]: a key is 1 to {MAX_NUMBER_KEY} visible ASCII characters");
            return Err(invalid(detail));
        }
        let wrong = || invalid(format!("tickets[{place}]: a ticket is 32 hex digits, or null"));
        Ok((key, life.map(|life| ticket(&life).ok_or_else(wrong)).transpose()?))
    };
    keys.into_iter().zip(tickets).enumerate().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lists_of_a_batch_belong_together() {
        let batch = |keys: &[&str], tickets: Option<&[Option<&str>]>| {
            let owned = |text: &&str| (*text).to_owned();
            let tickets = tickets.map(|all| all.iter().map(|one| one.as_ref().map(owned)).collect());
            checked(Batch { keys: keys.iter().map(owned).collect(), tickets })
        };
        let life = "0".repeat(31) + "7";
        let checked = batch(&["a", "b"], Some(&[None, Some(&life)])).unwrap();
        assert_eq!(checked, [("a".to_owned(), None), ("b".to_owned(), Some(7))]);
        let long = "k".repeat(MAX_NUMBER_KEY + 1);
        for (keys, tickets, told) in [
            (&[][..], None, "keys: 0 of them; send 1 to 10000"),
            (&["a"; MAX_BATCH + 1], None, "keys: 10001 of them; send 1 to 10000"),
            (&["a", "b c"], None, "keys[1]: a key is 1 to 256 visible ASCII characters"),
            (&[&long], None, "keys[0]: a key is 1 to 256 visible ASCII characters"),
            (&["a"], Some(&[][..]), "tickets: 0 of them for 1 keys; send one, or null, for each"),
            (&["a"], Some(&[Some("7")][..]), "tickets[0]: a ticket is 32 hex digits, or null"),
        ] {
            assert_eq!(batch(keys, tickets).unwrap_err().problem.detail, told);
        }
        assert!(batch(&["k"; MAX_BATCH], None).is_ok());
    }
}
