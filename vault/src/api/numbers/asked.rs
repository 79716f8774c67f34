//! Whose numbers a call is about, and which: checked out of path, query and headers, the same for
//! every call. Knows who may touch what; not what is done.

use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Query};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shared::api::record::VAULT_STALE;
use shared::api::{MAX_NUMBER_KEY, VAULT_FINAL, VAULT_SUPERSEDES, VAULT_TICKET};
use shared::tls::{Role, is_name};

use crate::api::caller::Caller;
use crate::api::key::IdempotencyKey;
use crate::api::refusal::Refusal;
use crate::sequence::book::{Refused, SeriesName};
use crate::sequence::entry::Life;
use crate::sequence::reading::Stale;
use crate::sequence::{Sequence, SequenceError};

/// A series by the name that its owner has given it, and whatever else the query says.
#[derive(Debug)]
pub(super) struct Asked<T> {
    /// Without its period.
    pub(super) base: SeriesName,
    pub(super) period: Option<String>,
    /// May the answer be old?
    pub(super) stale: bool,
    pub(super) more: T,
}

/// The query of every call: operators say for whom they act.
#[derive(Debug, Deserialize)]
struct Whose {
    owner: Option<String>,
    period: Option<String>,
    #[serde(default)]
    stale: bool,
}

impl<T: DeserializeOwned, S: Sync + Send> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let unread = |error: &dyn std::fmt::Display| {
            Refusal::new(StatusCode::BAD_REQUEST, "bad_request", error.to_string())
        };
        let Path(path) = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| unread(&error))?;
        let Query(Whose { owner, period, stale }) =
            Query::from_request_parts(parts, state).await.map_err(|error| unread(&error))?;
        let Query(more) =
            Query::<T>::from_request_parts(parts, state).await.map_err(|error| unread(&error))?;
        let series = path.into_iter().find(|(name, _)| name == "series").map(|(_, series)| series);
        let owner = owner_of(&caller, owner)?;
        let series = series.filter(|series| is_name(series)).ok_or_else(|| {
            invalid("a series is named by 1 to 64 letters, digits, dots, dashes, underscores")
        })?;
        Ok(Self { base: SeriesName { owner, series }, period, stale, more })
    }
}

impl<T> Asked<T> {
    /// The series that counts the period asked for.
    pub(super) fn counted(&self, sequence: &Sequence) -> Result<SeriesName, Refusal> {
        let SeriesName { owner, series } = &self.base;
        sequence.series_of(owner.clone(), series, self.period.as_deref()).map_err(refusal)
    }
}

/// One number of a series.
#[derive(Debug)]
pub(super) struct AskedNumber {
    pub(super) name: SeriesName,
    pub(super) number: u64,
    pub(super) stale: bool,
}

impl FromRequestParts<Sequence> for AskedNumber {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, sequence: &Sequence) -> Result<Self, Refusal> {
        let asked = Asked::<NoMore>::from_request_parts(parts, sequence).await?;
        let (name, stale) = (asked.counted(sequence)?, asked.stale);
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, sequence).await;
        let path = path.map(|Path(path)| path).unwrap_or_default();
        let number = path.into_iter().find(|(name, _)| name == "number");
        // SQLite's integers end where i64 does.
        let number = number
            .and_then(|(_, number)| number.parse::<u64>().ok())
            .filter(|number| (1..=i64::MAX as u64).contains(number))
            .ok_or_else(|| invalid("a number is a whole number from 1 upwards"))?;
        Ok(Self { name, number, stale })
    }
}

/// The query says nothing else.
#[derive(Debug, Deserialize)]
pub(super) struct NoMore {}

/// The life that the key was first sent to, if the caller says it.
#[derive(Debug)]
pub(in crate::api) struct Ticket(pub(in crate::api) Option<Life>);

impl<S: Sync> FromRequestParts<S> for Ticket {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let mut values = parts.headers.get_all(VAULT_TICKET).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(Self(None)),
            (Some(value), None) => value
                .to_str()
                .ok()
                .and_then(ticket)
                .map(|life| Self(Some(life)))
                .ok_or_else(|| invalid(TICKET_FORM)),
            (Some(_), Some(_)) => Err(invalid("there are several Vault-Ticket headers; send one")),
        }
    }
}

/// The key in whose place this one is taken, if the caller says so.
#[derive(Debug)]
pub(super) struct Supersedes(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for Supersedes {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let mut values = parts.headers.get_all(VAULT_SUPERSEDES).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(Self(None)),
            (Some(value), None) => IdempotencyKey::read(value.as_bytes())
                .map(|IdempotencyKey(key)| Self(Some(key)))
                .ok_or_else(|| {
                    invalid(format!(
                        "Vault-Supersedes names a key: 1 to {MAX_NUMBER_KEY} visible ASCII characters"
                    ))
                }),
            (Some(_), Some(_)) => Err(invalid("there are several Vault-Supersedes headers; send one")),
        }
    }
}

/// What may be old says so, and up to where it is final.
pub(super) fn marked(answer: impl IntoResponse, stale: Option<Stale>) -> Response {
    let mut answer = answer.into_response();
    if let Some(Stale { final_entries }) = stale {
        let headers = answer.headers_mut();
        headers.insert(HeaderName::from_static(VAULT_STALE), HeaderValue::from_static("true"));
        headers.insert(HeaderName::from_static(VAULT_FINAL), HeaderValue::from(final_entries));
    }
    answer
}

const TICKET_FORM: &str = "a ticket is a life of 32 hex digits, as GET /v1/life tells it";

/// A life as it stands on the wire.
pub(super) fn ticket(text: &str) -> Option<Life> {
    let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| Life::from_str_radix(text, 16).ok()).flatten()
}

/// For whom the caller acts: an edge for its own owner, an operator for whomever it names.
pub(super) fn owner_of(caller: &Caller, owner: Option<String>) -> Result<String, Refusal> {
    caller.must_be(&[Role::Edge, Role::Admin])?;
    let owner = match (caller.0.role, owner) {
        (Role::Admin, None) => {
            return Err(invalid("an operator must say whose series is meant; add ?owner=NAME"));
        }
        (_, Some(owner)) => owner,
        (_, None) => caller.0.owner.clone(),
    };
    if !caller.may_touch(&owner) {
        let detail = format!("this certificate acts for {}, not for {owner}", caller.0.owner);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "owner_refused", detail));
    }
    if !is_name(&owner) {
        return Err(invalid("an owner is named by 1 to 64 letters, digits, dots, dashes, underscores"));
    }
    Ok(owner)
}

pub(super) fn checked_text(text: String, what: &str, most: usize) -> Result<String, Refusal> {
    if (1..=most).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(text);
    }
    Err(invalid(format!("{what} is 1 to {most} bytes of text without control characters")))
}

pub(super) fn invalid(detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid", detail)
}

pub(super) fn refusal(error: SequenceError) -> Refusal {
    let text = error.to_string();
    match error {
        SequenceError::Definition(_) | SequenceError::Refused(Refused::Period { .. }) => invalid(text),
        SequenceError::Refused(Refused::TooMany) => {
            Refusal::new(StatusCode::CONFLICT, "too_many_available", text)
        }
        SequenceError::Refused(Refused::InUse { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "series_in_use", text)
        }
        SequenceError::Refused(Refused::Unknown { .. }) => Refusal::not_found(text),
        SequenceError::Refused(Refused::Confirmed { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "already_confirmed", text)
        }
        SequenceError::Refused(Refused::Void { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "already_void", text)
        }
        SequenceError::Refused(Refused::KeyLost) => Refusal::new(StatusCode::GONE, "key_lost", text),
        SequenceError::Refused(Refused::Superseded { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "key_superseded", text)
        }
        SequenceError::Refused(Refused::HasNumber { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "key_has_number", text)
        }
        SequenceError::Refused(Refused::Exhausted { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "series_exhausted", text)
        }
        SequenceError::NoSeries { .. } => Refusal::not_found(text),
        SequenceError::Apart(_)
        | SequenceError::Waits { .. }
        | SequenceError::Unchanged(_)
        | SequenceError::Unsure(_) => Refusal::later("peer_away", text, Duration::from_secs(2)),
        SequenceError::NoLedger { .. } => Refusal::later("ledger_away", text, Duration::from_secs(2)),
        SequenceError::Closed(_) => Refusal::later("numbering_closed", text, Duration::from_secs(60)),
        SequenceError::NoPair => Refusal::new(StatusCode::CONFLICT, "no_pair", text),
        SequenceError::NotRefilled(_) => Refusal::new(StatusCode::CONFLICT, "not_refilled", text),
        SequenceError::NothingToReseed => Refusal::new(StatusCode::CONFLICT, "nothing_to_reseed", text),
        SequenceError::MayNotTakeOver => Refusal::new(StatusCode::CONFLICT, "may_not_take_over", text),
        SequenceError::CannotWrite => Refusal::later("cannot_write", text, Duration::from_secs(10)),
        SequenceError::OwnerAlready(_) => Refusal::new(StatusCode::CONFLICT, "already_owner", text),
        SequenceError::NothingToYield(_) => Refusal::new(StatusCode::CONFLICT, "nothing_to_yield", text),
        SequenceError::MayNotSeal(_) => Refusal::new(StatusCode::CONFLICT, "may_not_seal", text),
        SequenceError::SealInDoubt => Refusal::later("in_doubt", text, Duration::from_secs(1)),
        SequenceError::NeedsNoToken => Refusal::new(StatusCode::CONFLICT, "needs_no_token", text),
        SequenceError::NotThatToken => Refusal::new(StatusCode::CONFLICT, "not_that_token", text),
        SequenceError::InDoubt | SequenceError::DefinitionInDoubt | SequenceError::Unheard => {
            Refusal::later("in_doubt", text, Duration::from_secs(1))
        }
        SequenceError::Busy | SequenceError::TooLong => Refusal::later("busy", text, Duration::from_secs(1)),
        SequenceError::Unreadable => Refusal::internal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_32_hex_digits_and_nothing_else() {
        assert_eq!(ticket("000000000000000000000000000000ff"), Some(255));
        for bad in [
            "",
            "ff",
            "+00000000000000000000000000000ff",
            "00000000000000000000000000000 ff",
            "äääääääääääääääää",
        ] {
            assert_eq!(ticket(bad), None, "{bad}");
        }
        assert_eq!(ticket(&"f".repeat(33)), None);
    }
}
