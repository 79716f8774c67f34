//! Which vault is asked, in what order and how often, until a call has its answer. Decides;
//! an exchange itself is `vault`'s.
//!
//! The vault that answered last goes first, unless it has failed a moment ago. A failure
//! (no connection, no answer in time, lost connection) goes on at the other vault at once; a
//! refusal that may be this vault's alone is asked once of the other. Two rounds at most.
//!
//! A reserve that needs a ticket gets it for the first vault that a connection leads to, before a
//! byte of it goes out, and keeps it wherever it goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::answer::Answer;
use super::body::Load;
use super::ticket::Stamp;
use super::vault::{Patience, Vault};
use super::{ClientError, Head, Inner, Limits, ServedBy, Transport};

/// Each vault twice.
const TURNS_EACH: usize = 2;
/// The code of a refusal that leaves open whether the call has acted.
const IN_DOUBT: &str = "in_doubt";
/// Before the second round, so that a restarting vault has a moment.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(150);

/// Takes turns until there is an answer, or nobody is left to ask.
pub(super) async fn take(
    inner: &Inner,
    head: &mut Head,
    load: &mut Load,
    mut stamp: Option<Stamp>,
) -> Result<Response<Answer>, ClientError> {
    if load.is_streamed() {
        let total = inner.limits.upload_total;
        return match timeout(total, rounds(inner, head, load, &mut stamp, Instant::now() + total)).await {
            Ok(done) => done,
            Err(_) => Err(broken(inner, Transport::AnswerTimeout(total))),
        };
    }
    let done = rounds(inner, head, load, &mut stamp, Instant::now() + inner.limits.total).await;
    if let (Some(stamp), Ok(response)) = (&stamp, &done) {
        stamp.answered(response.status());
    }
    done
}

async fn rounds(
    inner: &Inner,
    head: &mut Head,
    load: &mut Load,
    stamp: &mut Option<Stamp>,
    until: Instant,
) -> Result<Response<Answer>, ClientError> {
    let order = order(inner);
    let mut failures: Vec<(String, Transport)> = Vec::new();
    let mut refusal: Option<Response<Answer>> = None;
    for turn in 0..order.len() * TURNS_EACH {
        if turn == order.len() {
            sleep(BETWEEN_ROUNDS).await;
        }
        let index = order[turn % order.len()];
        let vault = &inner.vaults[index];
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if turn > 0 && order.len() > 1 {
            inner.failovers.fetch_add(1, Ordering::Relaxed);
        }
        let mut patience = patience(inner, &order, turn, left, head, load);
        let opened = match stamp.as_mut().filter(|stamp| stamp.is_due()) {
            None => Ok(None),
            Some(stamp) => {
                let opened = vault.introduced(patience.first).await;
                if let Ok(connection) = &opened {
                    // The disk's time is not the vault's: only the call's own end bounds both.
                    stamp.put(connection.life(), head, load).await;
                    let left = until.saturating_duration_since(Instant::now());
                    patience.first = patience.first.min(left);
                }
                opened.map(Some)
            }
        };
        let answered = match opened {
            Ok(opened) => vault.exchange(head, load, patience, opened).await,
            Err(why) => Err(why),
        };
        match answered {
            Ok((response, connection)) => {
                vault.answered();
                let other = order.iter().find(|other| **other != index).map(|other| &inner.vaults[*other]);
                let ask_other = may_differ_elsewhere(response.status())
                    && turn == 0
                    && load.can_repeat()
                    && other.is_some_and(|other| !other.is_suspended(Instant::now()));
                let served = ServedBy(vault.name.clone());
                let mut response =
                    response.map(|body| Answer::live(body, connection, Arc::clone(vault), inner.limits.idle));
                response.extensions_mut().insert(served);
                if !ask_other {
                    if !may_differ_elsewhere(response.status()) {
                        inner.preferred.store(index, Ordering::Relaxed);
                        return Ok(response);
                    }
                    // Of two refusals the one counts that says: perhaps it was given.
                    let doubt = refusal.filter(|first| first.body().is_problem(IN_DOUBT));
                    return Ok(doubt.unwrap_or(response));
                }
                refusal = Answer::kept(response, inner.limits.attempt).await;
                if refusal.is_none() {
                    failures.push((vault.name.clone(), Transport::AnswerTimeout(inner.limits.attempt)));
                }
            }
            Err(why) if load.source_broke() => return Err(ClientError::BrokenSource(why)),
            Err(why) if !load.can_repeat() => {
                return Err(half_way(vault, load, why));
            }
            Err(why) => {
                vault.failed(&why);
                failures.retain(|(name, _)| *name != vault.name);
                failures.push((vault.name.clone(), why));
            }
        }
        if turn > 0 && refusal.is_some() {
            break;
        }
    }
    refusal.ok_or(ClientError::Unreachable(failures))
}

/// A streamed body has gone out in part. Whose fault was it?
fn half_way(vault: &Vault, load: &Load, why: Transport) -> ClientError {
    if let (Transport::Stalled(_), Load::Streamed(lent)) = (&why, load)
        && lent.waits_for_source()
    {
        return ClientError::BrokenSource(why);
    }
    vault.failed(&why);
    ClientError::BrokenUpload { vault: vault.name.clone(), source: why }
}

fn broken(inner: &Inner, source: Transport) -> ClientError {
    let names: Vec<_> = inner.vaults.iter().map(|vault| vault.name.as_str()).collect();
    ClientError::BrokenUpload { vault: names.join(", "), source }
}

/// The preferred vault first, unless it failed a moment ago; of two that did, the one whose
/// failure is older.
fn order(inner: &Inner) -> Vec<usize> {
    let now = Instant::now();
    let preferred = inner.preferred.load(Ordering::Relaxed);
    let mut order: Vec<usize> = (0..inner.vaults.len()).collect();
    order.sort_by_key(|index| (inner.vaults[*index].suspended_since(now), *index != preferred));
    order
}

fn patience(
    inner: &Inner,
    order: &[usize],
    turn: usize,
    left: Duration,
    head: &Head,
    load: &Load,
) -> Patience {
    let now = Instant::now();
    let other_left = order.get(turn + 1).is_some_and(|next| !inner.vaults[*next].is_suspended(now));
    let last = turn + 1 == order.len() * TURNS_EACH;
    let small_upload =
        head.method == Method::POST && head.path.path().starts_with("/v1/files") && !load.is_empty();
    allowance(&inner.limits, turn, order.len() == 1 || last, other_left, small_upload, left)
}

/// How long one turn may take, out of what is left of the call.
fn allowance(
    limits: &Limits,
    turn: usize,
    nobody_after: bool,
    other_left: bool,
    small_upload: bool,
    left: Duration,
) -> Patience {
    let first = match (turn, other_left) {
        _ if nobody_after => left,
        (0, true) => limits.attempt,
        _ => limits.attempt * 3,
    };
    let first = first.min(left);
    let alive =
        if small_upload { limits.upload_attempt.min(left).saturating_sub(first) } else { Duration::ZERO };
    Patience { first, alive }
}

/// Refusals that may be this vault's alone: it is stopping, its disk is full, its peer away.
fn may_differ_elsewhere(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::INSUFFICIENT_STORAGE
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_first_attempt_leaves_the_other_vault_its_second() {
        let limits = Limits::default();
        let patience = allowance(&limits, 0, false, true, false, limits.total);
        assert!(patience.first < Duration::from_secs(1));
        assert!(patience.alive.is_zero());
    }

    #[test]
    fn a_small_upload_waits_longer_only_for_a_vault_that_is_alive() {
        let limits = Limits::default();
        let patience = allowance(&limits, 0, false, true, true, limits.total);
        assert_eq!(patience.first, limits.attempt);
        assert_eq!(patience.first + patience.alive, limits.upload_attempt);
    }

    proptest! {
        #[test]
        fn no_turn_outlasts_its_call(
            turn in 0_usize..4,
            nobody_after: bool,
            other_left: bool,
            small_upload: bool,
            left in 0_u64..20_000,
        ) {
            let left = Duration::from_millis(left);
            let patience = allowance(&Limits::default(), turn, nobody_after, other_left, small_upload, left);
            prop_assert!(patience.first + patience.alive <= left);
        }
    }
}
