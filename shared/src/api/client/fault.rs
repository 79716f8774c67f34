//! What can go wrong between a caller and the vault pair, and who acts on it. Words only.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::api::Problem;
use crate::tls::TlsError;

/// Why one vault gave no answer. The other is asked.
#[derive(Debug, thiserror::Error)]
pub enum Transport {
    /// Refused, no route, reset.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    /// The handshake failed: another authority, another name, a revoked certificate.
    #[error("TLS: {0}")]
    Handshake(#[source] std::io::Error),
    /// Neither connection nor refusal in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// Connected, but the answer's head did not come in time.
    #[error("no answer within {0:?}")]
    AnswerTimeout(Duration),
    /// Nothing moved in a body.
    #[error("no progress within {0:?}")]
    Stalled(Duration),
    /// The connection ended in the middle.
    #[error("connection lost: {}", Chain(.0))]
    Lost(#[source] hyper::Error),
    /// The body ended before its announced length.
    #[error("the answer ended {0} bytes early")]
    Short(u64),
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Configuration: the pair has one or two vaults.
    #[error("vault client: {0} vaults named; name one or two")]
    VaultCount(usize),
    /// Configuration: a vault's name is what its certificate carries as DNS name.
    #[error("vault client: {0:?} is no host name; write the name the vault enrolled with")]
    VaultName(String),
    /// Configuration: the caller's certificate, key or authority.
    #[error("vault client: {0}")]
    Files(#[from] TlsError),
    /// Nobody answered. Repeating the same call with the same key is safe.
    #[error("vault pair: no vault answered: {}; repeat with the same Idempotency-Key", Failures(.0))]
    Unreachable(Vec<(String, Transport)>),
    /// A streamed body broke half-way. Repeating it whole with the same key is safe.
    #[error("{vault}: upload broke half-way: {source}; repeat it with the same Idempotency-Key")]
    BrokenUpload {
        /// The vault that was receiving it.
        vault: String,
        /// What happened to the connection.
        #[source]
        source: Transport,
    },
    /// The body's own source failed or stalled; no vault is to blame.
    #[error("upload: its source stopped half-way: {0}; nothing was stored")]
    BrokenSource(#[source] Transport),
    /// A body in the answer broke and could not be continued; what came so far is not whole.
    #[error("{vault}: answer broke half-way: {source}; repeat the call")]
    BrokenAnswer {
        /// The vault that was sending it.
        vault: String,
        /// What happened to the connection.
        #[source]
        source: Transport,
    },
    /// A continued download met something else than the first half came from.
    #[error("download: cannot be continued: {0}; repeat the call")]
    NotTheSame(&'static str),
    /// The vault's refusal, for the typed calls.
    #[error("vault: {problem}")]
    Refused {
        /// The vault's own words.
        problem: Problem,
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// An answer that is not what the API promises.
    #[error("vault: unreadable answer to {what}: {source}; the versions of caller and vault may not fit")]
    Unreadable {
        /// The call.
        what: &'static str,
        /// The reader's reason.
        #[source]
        source: serde_json::Error,
    },
    /// An answer beyond what the caller takes into memory.
    #[error("vault: the answer exceeds {0} bytes; stream it instead")]
    TooLarge(usize),
    /// An argument that no request can carry.
    #[error("vault client: {0}")]
    Argument(&'static str),
    /// A ticket in a call whose tickets the client keeps.
    #[error(
        "vault client: the call brings a ticket of its own; leave it out, the client keeps tickets itself"
    )]
    ForeignTicket,
    /// The system's random source failed.
    #[error("vault client: the system gives no randomness; the call was not made")]
    NoRandomness,
}

/// An error with all its causes, since hyper's own text names none.
struct Chain<'e>(&'e dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

struct Failures<'e>(&'e [(String, Transport)]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (vault, why)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{vault}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_pair_names_each_vault_and_what_to_do() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = ClientError::Unreachable(vec![
            ("vault-a".to_owned(), Transport::Connect(refused)),
            ("vault-b".to_owned(), Transport::AnswerTimeout(Duration::from_millis(900))),
        ]);
        assert_eq!(
            error.to_string(),
            "vault pair: no vault answered: vault-a: cannot connect: connection refused, \
             vault-b: no answer within 900ms; repeat with the same Idempotency-Key"
        );
    }
}
