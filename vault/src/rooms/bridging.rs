//! Joins the bridge with readiness, status and the other vault: which of the two is to carry a direction
//! that prefers one, or that has no room on one. Decides by what the other one says of itself; by
//! nothing, if it says nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use shared::shutdown::Shutdown;
use tokio::time::Instant;

use super::{LOOK, status_of_peer};
use crate::api::admin::{Health, Readiness};
use crate::api::bridge::AskPeer;
use crate::bridge::Bridge;
use crate::pair::Pair;
use crate::worker;

/// How often the other vault is asked whether it carries what it should.
const ASK: Duration = Duration::from_secs(2);
/// So long after its own start this vault waits for the other one's first words.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// A preferred vault that has not reached the source for so many seconds is not waited for.
const LONGEST_AWAY: u64 = 60;
/// A vault that takes nothing for so many seconds, as its journal or disk is full, lets the other one carry.
const LONGEST_FULL: u64 = 60;

/// The bridge's part of the status document.
pub(super) fn told(bridge: &Bridge) -> Value {
    let overview = bridge.overview();
    let troubles = overview.troubles();
    let mut told = json!(overview);
    if let Some(document) = told.as_object_mut() {
        document.insert("troubles".to_owned(), json!(troubles));
    }
    told
}

/// Asks the other vault for its part of the same.
pub(super) fn ask_peer(pair: &Pair) -> AskPeer {
    let pair = pair.clone();
    Arc::new(move || {
        let pair = pair.clone();
        Box::pin(async move { (pair.peer().to_owned(), status_of_peer(&pair).await["bridge"].take()) })
    })
}

/// Readiness and metrics follow the directions.
pub(super) fn look(bridge: &Bridge, readiness: Readiness, shutdown: &Shutdown) {
    if bridge.is_empty() {
        return;
    }
    let bridge = bridge.clone();
    let look = move || -> BoxFuture<'static, ()> {
        let overview = bridge.overview();
        match overview.troubles().as_slice() {
            [] => {
                readiness.report("bridge", Health::Good, format!("{} directions", overview.directions.len()))
            }
            troubles => readiness.report("bridge", Health::Degraded, troubles.join("; ")),
        }
        Box::pin(std::future::ready(()))
    };
    worker::every(LOOK, look, shutdown.clone());
}

/// This vault stands back from what the other one should carry, as long as that one can.
pub(super) fn prefer(bridge: &Bridge, pair: &Pair, shutdown: &Shutdown) {
    if bridge.is_empty() {
        return;
    }
    let (bridge, pair, begun) = (bridge.clone(), pair.clone(), Instant::now());
    let ask = move || -> BoxFuture<'static, ()> {
        let (bridge, pair) = (bridge.clone(), pair.clone());
        Box::pin(async move {
            let status = status_of_peer(&pair).await;
            if status["bridge"].is_null() && begun.elapsed() < FIRST_WORDS {
                return;
            }
            let its = &status["bridge"]["directions"];
            bridge.stand_back(|name, is_second, own| {
                is_to_stand_back(is_second, own.full.map(|_| own.full_seconds), &its[name])
            });
        })
    };
    worker::every(ASK, ask, shutdown.clone());
}

/// Is the other vault to carry it? `full` are the seconds for which nothing was taken here, if it is so.
fn is_to_stand_back(is_second: bool, full: Option<u64>, its: &Value) -> bool {
    let its_full =
        Some(its).filter(|its| !its["full"].is_null()).and_then(|its| its["full_seconds"].as_u64());
    can_carry(its)
        && match (full, its_full) {
            (Some(seconds), None) => is_second || seconds >= LONGEST_FULL,
            (None, Some(seconds)) => is_second && seconds < LONGEST_FULL,
            (Some(_), Some(_)) | (None, None) => is_second,
        }
}

/// Does the other vault carry it, or will it soon?
fn can_carry(direction: &Value) -> bool {
    let seconds = direction["state_seconds"].as_u64().unwrap_or_default();
    match direction["state"].as_str() {
        Some("carrying" | "standby") => true,
        Some("away") => seconds < LONGEST_AWAY,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(state: &str, seconds: u64) -> Value {
        json!({ "state": state, "state_seconds": seconds, "full": null, "full_seconds": 0 })
    }

    #[test]
    fn a_vault_that_is_away_has_stopped_or_says_nothing_is_not_waited_for() {
        let is_waited_for = |its: &Value| is_to_stand_back(true, None, its);
        assert!(is_waited_for(&direction("carrying", 900)) && is_waited_for(&direction("standby", 900)));
        assert!(is_waited_for(&direction("away", 59)) && !is_waited_for(&direction("away", 60)));
        assert!(!is_waited_for(&direction("stopped", 1)) && !is_waited_for(&Value::Null));
        assert!(!is_to_stand_back(false, None, &direction("carrying", 900)));
    }

    #[test]
    fn a_vault_that_is_full_for_long_lets_the_other_one_carry_if_that_one_is_not() {
        let full = |seconds: u64| json!({ "state": "carrying", "full": "disk", "full_seconds": seconds });
        let free = direction("standby", 9);
        for is_second in [false, true] {
            assert!(is_to_stand_back(is_second, Some(60), &free));
            assert_eq!(is_to_stand_back(is_second, Some(59), &free), is_second, "not at once");
            assert_eq!(is_to_stand_back(is_second, Some(60), &full(60)), is_second, "neither has room");
            assert!(!is_to_stand_back(is_second, Some(60), &direction("stopped", 9)));
            assert!(!is_to_stand_back(is_second, None, &full(60)));
        }
        assert!(is_to_stand_back(true, None, &full(59)) && !is_to_stand_back(false, None, &full(59)));
    }
}
