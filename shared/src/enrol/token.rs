//! The enrolment token's text: `evt1.<secret>.<pin>`, hex throughout, so that a double click
//! selects it whole. Knows its shape, not whether a vault still honours it.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;

/// Bytes of the secret: as many as the hash that the vault keeps of it.
const SECRET_BYTES: usize = 32;

/// SHA-256 over an authority certificate's SubjectPublicKeyInfo (as RFC 7469 pins).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of `certificate`; `None` where it is no X.509.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
        Some(Self(Sha256::digest(parsed.public_key().raw).into()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A single-use token: what the requester proves itself with, and what the vault is proved by.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// 64 hex digits; whoever shows them first gets the certificate.
    pub secret: String,
    /// Which authority the vault must show.
    pub pin: Pin,
}

/// Text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no token: it reads evt1.<64 hex digits>.<64 hex digits>")]
pub struct NoToken;

impl Token {
    /// A token out of 32 random bytes.
    #[must_use]
    pub fn new(secret: &[u8; SECRET_BYTES], pin: Pin) -> Self {
        Self { secret: secret.iter().map(|byte| format!("{byte:02x}")).collect(), pin }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "evt1.{}.{}", self.secret, self.pin)
    }
}

/// The secret stays out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(evt1.….{})", self.pin)
    }
}

impl FromStr for Token {
    type Err = NoToken;
    fn from_str(text: &str) -> Result<Self, NoToken> {
        let (secret, pin) =
            text.strip_prefix("evt1.").and_then(|rest| rest.split_once('.')).ok_or(NoToken)?;
        let secret = bytes_of(secret).ok_or(NoToken)?;
        let pin = bytes_of(pin).ok_or(NoToken)?;
        Ok(Self::new(&secret, Pin(pin)))
    }
}

fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

const fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_token_reads_back(secret: [u8; 32], pin: [u8; 32]) {
            let token = Token::new(&secret, Pin(pin));
            proptest::prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_makes_the_token_reader_panic(text in "(?s)(evt1\\.)?.{0,150}") {
            let _ = text.parse::<Token>();
        }

        #[test]
        fn a_token_with_a_piece_missing_is_none(secret: [u8; 32], pin: [u8; 32], cut in 1_usize..133) {
            let text = Token::new(&secret, Pin(pin)).to_string();
            proptest::prop_assert_eq!(text[..text.len() - cut].parse::<Token>(), Err(NoToken));
            proptest::prop_assert_eq!(text[cut..].parse::<Token>(), Err(NoToken));
        }
    }

    #[test]
    fn a_printed_token_does_not_show_its_secret() {
        let shown = format!("{:?}", Token::new(&[0xab; 32], Pin([1; 32])));
        assert!(!shown.contains("abab"), "{shown}");
    }
}
