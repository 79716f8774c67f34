//! What is looked up with `--stale`: the answer, and what it says of its age.

use std::path::Path;

use http::{HeaderMap, Method, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::VAULT_FINAL;

use super::SOON;
use crate::command::control::{self, Progress, whole};
use crate::command::{CommandError, Output};

/// The entry up to which the answer is final, where it may be old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note(Option<u64>);

/// An answer, and its age beside its own fields.
#[derive(Serialize)]
struct Aged<'a, T> {
    #[serde(flatten)]
    answer: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_after_entry: Option<u64>,
}

/// Asks for what `path` names, whose query goes on.
pub(super) async fn look<A: DeserializeOwned>(
    socket: &Path,
    path: &str,
    stale: bool,
) -> Result<(A, Note), CommandError> {
    let request = Request::builder().method(Method::GET).uri(format!("{path}&stale={stale}"));
    let request = request.body(whole(Vec::new())).map_err(std::io::Error::other)?;
    let answer = control::call(socket, request, SOON, &Progress::default()).await?;
    let note = Note::of(answer.headers());
    Ok((control::json(socket, answer).await?, note))
}

impl Note {
    fn of(headers: &HeaderMap) -> Self {
        Self(headers.get(VAULT_FINAL).and_then(|entry| entry.to_str().ok()?.parse().ok()))
    }

    /// Shows the answer, and how old it may be.
    pub(super) fn show<T: Serialize>(
        self,
        answer: &T,
        text: &str,
        output: &mut Output<'_>,
    ) -> Result<(), CommandError> {
        let note = self.0.map_or_else(String::new, |entry| {
            format!(
                "this is what this vault has, and may be old: up to entry {entry} of the ledger it is certain, what rests on later ones is marked IN DOUBT; what this vault gave alone is marked ALONE, what the other gave alone is not here\n"
            )
        });
        output.show(&Aged { answer, stale_after_entry: self.0 }, &format!("{text}{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_old_says_so() {
        let said = |json: bool, note: Note| {
            let mut to = Vec::new();
            let answer = serde_json::json!({ "items": [] });
            note.show(&answer, "none\n", &mut Output { to: &mut to, json }).unwrap();
            String::from_utf8(to).unwrap()
        };
        let mut headers = HeaderMap::new();
        assert_eq!(said(false, Note::of(&headers)), "none\n");
        assert!(!said(true, Note::of(&headers)).contains("stale"));
        headers.insert(VAULT_FINAL, http::HeaderValue::from_static("21"));
        assert!(said(false, Note::of(&headers)).contains("up to entry 21 of the ledger it is certain"));
        assert!(said(true, Note::of(&headers)).contains("\"stale_after_entry\": 21"));
    }
}
