//! Signatures by which a handler knows that an event is from this vault, and untouched. Knows the
//! scheme; not what is sent nor where to.
//!
//! Source: Standard Webhooks 1.0.0, "Signature scheme", symmetric: HMAC-SHA256 over
//! `id.timestamp.body`, as `v1,` and base64. With two secrets each event carries both signatures,
//! so that a handler may change over in its own time.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// How a secret begins.
const PREFIX: &str = "whsec_";
/// How long a secret is, in bytes, as the specification says.
const LENGTH: std::ops::RangeInclusive<usize> = 24..=64;
/// The new one, and the one before.
const MOST_SECRETS: usize = 2;

/// One or two secrets that handlers share with this vault; never shown.
#[derive(Clone)]
pub struct Secrets(Vec<Vec<u8>>);

/// What is wrong with a file of secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// None, or more than a rotation needs.
    #[error("{}: holds {count} secrets; write one a line: the new one, and below it the one before while both are in use", file.display())]
    Count {
        /// The file.
        file: PathBuf,
        /// So many.
        count: usize,
    },
    /// A line is no secret. The line itself is not repeated.
    #[error("{}:{line}: is no secret; write whsec_ and base64 of {} to {} random bytes, as `echo whsec_$(openssl rand -base64 32)` prints it", file.display(), LENGTH.start(), LENGTH.end())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// 1-based.
        line: usize,
    },
}

impl Secrets {
    /// Reads a file of one or two lines.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn read(file: &Path) -> Result<Self, SecretError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| SecretError::Unreadable { file: file.to_owned(), source })?;
        let mut secrets = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let malformed = || SecretError::Malformed { file: file.to_owned(), line: index + 1 };
            secrets.push(secret(line.trim()).ok_or_else(malformed)?);
        }
        if !(1..=MOST_SECRETS).contains(&secrets.len()) {
            return Err(SecretError::Count { file: file.to_owned(), count: secrets.len() });
        }
        Ok(Self(secrets))
    }

    /// The header `webhook-signature`. `timestamp` in seconds since 1970.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signed = self.0.iter().filter_map(|secret| {
            // HMAC takes keys of any length.
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
        });
        signed.collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Secrets({})", self.0.len())
    }
}

fn secret(text: &str) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?;
    LENGTH.contains(&bytes.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<Secrets, SecretError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secrets");
        std::fs::write(&file, text).unwrap();
        Secrets::read(&file)
    }

    #[test]
    fn the_specifications_own_example_has_its_signature() {
        let secrets = written("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signed = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn while_a_secret_is_changed_every_event_carries_both_signatures() {
        let (new, old) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX");
        let both = written(&format!("{new}\n\n{old}\n")).unwrap().sign("a", 1, b"x");
        let each = [new, old].map(|one| written(one).unwrap().sign("a", 1, b"x"));
        assert_eq!(both, each.join(" "));
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused_without_showing_it() {
        for (text, said) in [
            ("", "holds 0 secrets"),
            ("whsec_c2hvcnQ=", ":1: is no secret"),
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", ":1: is no secret"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_!", ":2: is no secret"),
        ] {
            let error = written(text).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("MfKQ"), "{error}");
        }
        let shown = format!("{:?}", written("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap());
        assert_eq!(shown, "Secrets(1)");
    }
}
