//! Promises of the scrub as a whole: it does not say that it has read what it has not, and an
//! operator's new round is never lost.

use super::*;

async fn scrubbed(storage: &Storage) -> Round {
    while storage.scrub_turn().await.unwrap() {}
    storage.scrub_round().await.unwrap()
}

#[tokio::test]
async fn a_scrub_with_a_server_away_is_not_finished_and_reads_that_server_when_it_is_back() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    for key in ["first", "second", "third"] {
        put(&storage, key, key.as_bytes()).await.unwrap();
    }
    patrol::spoil(&place.replicas("two")[0], 0);
    std::fs::rename(place.path("two"), place.path("away")).unwrap();
    storage.scrub().await.unwrap();
    let round = scrubbed(&storage).await;
    assert_eq!((round.running, round.finished, round.checked, round.skipped), (false, None, 3, 3));
    assert_eq!(round.left_out, ["two"]);
    assert_eq!(scrubbed(&storage).await, round, "nothing is read again while it is away");
    // Also after a restart.
    drop(storage);
    let storage = place.open("vault-a").await;
    assert_eq!(scrubbed(&storage).await, round);
    std::fs::rename(place.path("away"), place.path("two")).unwrap();
    storage.repair_turn().await.unwrap();
    let round = scrubbed(&storage).await;
    assert_eq!((round.checked, round.damaged, round.skipped), (6, 1, 0), "and the other one not twice");
    assert!(round.finished.is_some() && round.left_out.is_empty());
}

#[tokio::test]
async fn a_turn_that_is_under_way_does_not_overwrite_the_operators_new_round() {
    let place = Place::new();
    let storage = place.open("vault-a").await;
    let kept = |round: Round| storage.0.catalog.keep_round("scrub", round);
    let was = Round { checked: 7, ..Round::default().at_work(1) };
    kept(was.clone()).await.unwrap();
    let anew = Round { begun: 5, ..Round::default().at_work(5) };
    kept(anew.clone()).await.unwrap();
    let turns = was.clone().ended(9);
    assert!(!storage.0.catalog.keep_round_if("scrub", was, turns.clone()).await.unwrap());
    assert_eq!(storage.scrub_round().await.unwrap(), anew);
    assert!(storage.0.catalog.keep_round_if("scrub", anew, turns.clone()).await.unwrap());
    assert_eq!(storage.scrub_round().await.unwrap(), turns);
}
