//! Joins the two vaults' configurations: whether what both files must say alike is alike stands in readiness,
//! status and log. Decides nothing; what must be alike is `config`'s matter.

use std::time::Duration;

use serde_json::Value;
use shared::shutdown::Shutdown;
use tokio::time::{sleep, timeout};

use super::status_of_peer;
use crate::api::admin::{Health, Readiness};
use crate::config::alike::Alike;
use crate::pair::Pair;

/// A file is read at the start alone; but that the link was down may have been too short to be seen.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A peer that has not said what its file says may be starting.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Where the peer's status has it.
pub(super) const KEY: &str = "alike";

/// How the peer's file differs, by its own status; `None` also where it does not say: it is away, or older.
pub(super) fn differs(own: &Alike, peer: &str, its_status: &Value) -> Option<String> {
    own.differs(&said(its_status)?, peer)
}

fn said(its_status: &Value) -> Option<Alike> {
    serde_json::from_value(its_status[KEY].clone()).ok()
}

/// Compares at each connection, until `shutdown`.
pub(super) fn look(own: Alike, pair: &Pair, readiness: Readiness, shutdown: &Shutdown) {
    let (pair, shutdown) = (pair.clone(), shutdown.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = compare(&own, &pair, &readiness) => {}
            () = shutdown.cancelled() => {}
        }
    });
}

async fn compare(own: &Alike, pair: &Pair, readiness: &Readiness) {
    let (mut up, mut told) = (pair.up(), None);
    while up.wait_for(|is_up| *is_up).await.is_ok() {
        let status = status_of_peer(pair).await;
        if said(&status).is_none() {
            sleep(ASK_AGAIN).await;
            continue;
        }
        let found = differs(own, pair.peer(), &status);
        match &found {
            Some(how) => readiness.report("configuration", Health::Degraded, how.clone()),
            None => readiness.report("configuration", Health::Good, format!("as {}'s", pair.peer())),
        }
        if found != told {
            match &found {
                Some(how) => tracing::warn!("pair: {how}"),
                None => tracing::info!("pair: the two vaults' files are alike again"),
            }
        }
        told = found;
        // Gone or looked at for long: either way it is asked again.
        let _elapsed = timeout(LOOK_AGAIN, up.wait_for(|is_up| !*is_up)).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_that_does_not_say_is_not_called_different() {
        let own: Alike = serde_json::from_value(json!({ "[broker]": { "max_message": "1" } })).unwrap();
        assert_eq!(differs(&own, "vault-b", &json!({ "error": "away" })), None);
        assert_eq!(
            differs(&own, "vault-b", &json!({ "alike": { "[broker]": { "max_message": "1" } } })),
            None
        );
        let told = differs(&own, "vault-b", &json!({ "alike": {} })).unwrap();
        assert!(told.contains("[broker] is not in vault-b's"), "{told}");
    }
}
