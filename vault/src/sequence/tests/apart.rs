//! What a vault tells of itself and of its numbers while it is apart from the other.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn apart_a_vault_tells_what_goes_on_and_lists_what_it_has_if_that_may_be_old() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { range: 20, ..Definition::default() }).await.unwrap();
    let reserve = async |key: &str, ticket| a.reserve(invoices(), key.to_owned(), ticket).await;
    let first = reserve("k1", None).await.unwrap().number.number;
    for room in [a, b] {
        set_aside(room).await;
    }
    assert_eq!((a.status_in_full().await.apart, a.stale(true)), (None, None), "together nothing is old");
    two.cut().await;

    let mut alone = Vec::new();
    for key in ["k2", "k3"] {
        alone.push(reserve(key, Some(a.life())).await.unwrap().number.number);
    }
    a.confirm(invoices(), alone[0], "h".to_owned()).await.unwrap();
    let apart = a.status_in_full().await.apart.unwrap();
    assert!(apart.gives && !apart.by_token && !apart.records && !apart.more, "{apart:?}");
    let left: Vec<_> = apart.series.iter().map(|one| (one.series.as_str(), one.left, one.of)).collect();
    assert_eq!(left, [("INV", 18, 20)]);

    let refused = reserve("k4", None).await.unwrap_err().to_string();
    assert!(refused.contains("carries no ticket"), "{refused}");
    for refused in [
        define(a, Definition::default()).await.map(drop).unwrap_err(),
        a.confirm(invoices(), first, "h".to_owned()).await.map(drop).unwrap_err(),
        a.void(SeriesName { series: "STRICT".to_owned(), ..invoices() }, 1, "x".to_owned())
            .await
            .unwrap_err(),
    ] {
        let told = refused.to_string();
        assert!(told.contains("the other vault is away") && !told.contains("key"), "{told}");
    }

    let refused = a.list(invoices(), None, 0, 10).await.unwrap_err().to_string();
    assert!(refused.contains("--stale"), "{refused}");
    let upto = a.stale(true).unwrap();
    assert_eq!((a.stale(false), upto.final_entries), (None, a.status().final_entries));
    let list = async |state, page| {
        let numbers = a.list_stale(invoices(), (state, false), page, upto).await.unwrap();
        numbers.iter().map(|number| (number.number, number.alone)).collect::<Vec<_>>()
    };
    let all = [(first, false), (alone[0], true), (alone[1], true)];
    assert_eq!(list(None, (0, 10)).await, all);
    assert_eq!(list(None, (0, 2)).await, all[..2]);
    assert_eq!(list(None, (first, 10)).await, all[1..]);
    assert_eq!(list(Some(NumberState::Confirmed), (0, 10)).await, [(alone[0], true)]);
    assert_eq!(list(Some(NumberState::Reserved), (0, 10)).await, [all[0], all[2]]);
    let survey = a.survey(invoices(), true).await.unwrap().unwrap();
    assert_eq!((survey.counts[0].last, survey.counts[0].alone), (first, 2));
    assert_eq!(a.by_number(invoices(), 999, true).await, Ok(None), "as far as it knows");
    assert!(a.by_number(invoices(), 999, false).await.is_err());
    let unknown = SeriesName { series: "NONE".to_owned(), ..invoices() };
    let refused = a.list_stale(unknown.clone(), (None, false), (0, 10), upto).await.unwrap_err();
    assert!(matches!(refused, SequenceError::NoSeries { .. }), "{refused:?}");

    two.connect().await;
    let listed = b.list(invoices(), None, 0, 10).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|number| (number.number, number.alone)).collect();
    assert_eq!(listed, [(first, false), (alone[0], false), (alone[1], false)]);
    for refused in
        [b.list(unknown.clone(), None, 0, 10).await.map(drop), b.exportable(&unknown, false).await.map(drop)]
    {
        assert!(matches!(refused, Err(SequenceError::NoSeries { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_was_started_anew_and_alone_says_why_it_gives_nothing_and_lists_all_the_same() {
    let two = two();
    two.connect().await;
    define(&two.rooms[0], Definition { range: 20, ..Definition::default() }).await.unwrap();
    two.rooms[0].reserve(invoices(), "k1".to_owned(), None).await.unwrap();
    set_aside(&two.rooms[1]).await;
    let two = two_in(two.stop().await);
    let b = &two.rooms[1];
    let apart = b.status_in_full().await.apart.unwrap();
    assert!(!apart.gives && apart.series.is_empty(), "{apart:?}");
    assert!(apart.why.unwrap().contains("has not been together with the other"));
    let refused = b.series_names("erp".to_owned(), String::new(), 10, false).await.unwrap_err();
    assert!(refused.to_string().contains("--stale"), "{refused}");
    assert_eq!(b.series_names("erp".to_owned(), String::new(), 10, true).await.unwrap(), ["INV"]);
    let numbers = b.list_stale(invoices(), (None, false), (0, 10), b.stale(true).unwrap()).await.unwrap();
    assert_eq!(numbers.len(), 1);
    let unknown = SeriesName { series: "NONE".to_owned(), ..invoices() };
    let refused = b.exportable(&unknown, false).await.unwrap_err();
    assert!(matches!(refused, SequenceError::Unsure(_)), "not an export of nothing: {refused:?}");
    assert!(b.exportable(&unknown, true).await.is_ok() && b.exportable(&invoices(), false).await.is_ok());
    let numbers = b.list_stale(unknown, (None, false), (0, 10), b.stale(true).unwrap()).await;
    assert_eq!(numbers, Ok(Vec::new()), "it denies nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_goes_on_alone_says_so_as_soon_as_it_is_started_again() {
    let two = two();
    two.connect().await;
    two.cut().await;
    two.rooms[0].take_over(true).await.unwrap();
    let two = two_in(two.stop().await);
    let apart = two.rooms[0].status_in_full().await.apart.unwrap();
    assert!(apart.records, "{apart:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_a_token_only_where_there_is_one_that_would_be_taken() {
    let two = two();
    two.connect().await;
    assert_eq!(two.rooms[0].status_in_full().await.unproven, None, "nothing is set aside");
    define(&two.rooms[0], Definition { range: 20, ..Definition::default() }).await.unwrap();
    let unproven = two.rooms[0].status_in_full().await.unproven.unwrap();
    assert!(unproven.contains("not on a tmpfs") && unproven.contains("below /run"), "{unproven}");
    let next = async |two: &Two| {
        let apart = two.rooms[0].status_in_full().await.apart.unwrap();
        assert!(!apart.gives && apart.why.is_some(), "{apart:?}");
        apart.next
    };
    let two = two_in(two.stop().await);
    assert_eq!(next(&two).await, None, "no token was made");
    two.connect().await;
    two.rooms[0].seal("a".to_owned()).await.unwrap();
    let two = two_in(two.stop().await);
    assert!(next(&two).await.unwrap().contains("vault number open TOKEN"));

    let folder = two.stop().await;
    let file = witness::beside(&folder.path().join("a.db"));
    let seen = witness::read(&file).unwrap().unwrap();
    witness::write(&file, witness::Witness { index: seen.index + 1000, ..seen }).unwrap();
    let two = two_in(folder);
    assert_eq!(next(&two).await, None, "it would be refused");
    let apart = two.rooms[0].status_in_full().await.apart.unwrap();
    assert!(apart.why.unwrap().contains("it is an old copy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_told_of_every_series_that_this_life_holds_and_not_of_old_periods() {
    let two = two();
    two.connect().await;
    let a = &two.rooms[0];
    let yearly = Definition { range: 1, pattern: Some("{year}-{n}".to_owned()), ..Definition::default() };
    define(a, yearly).await.unwrap();
    for year in 2020..2025 {
        let period = SeriesName { series: format!("INV/{year}"), ..invoices() };
        a.reserve(period, "k".to_owned(), None).await.unwrap();
    }
    while a.survey(invoices(), false).await.unwrap().unwrap().counts.iter().any(|one| one.ranges.len() < 2) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    two.cut().await;
    let told = async || {
        let apart = a.status_in_full().await.apart.unwrap();
        assert!(apart.series.len() == 3 && apart.more && !apart.unread, "{apart:?}");
        apart.left
    };
    for year in 2020..2025 {
        assert!(told().await, "before {year}");
        let period = SeriesName { series: format!("INV/{year}"), ..invoices() };
        a.reserve(period, "alone".to_owned(), Some(a.life())).await.unwrap();
    }
    assert!(!told().await, "all is used up");
}
