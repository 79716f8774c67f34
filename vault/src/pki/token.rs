//! Secrets of enrolment tokens: made here, kept only as a hash. The secret has 256 random
//! bits, so a plain SHA-256 protects it as well as any slow hash would.

use sha2::{Digest, Sha256};
use shared::enrol::{Pin, Token};

/// A fresh token for the authority with this pin.
pub(super) fn random(pin: Pin) -> Token {
    Token::new(&random_bytes(), pin)
}

/// What the register keeps of a secret. Any text may come in: a wrong one is just unknown.
pub(super) fn hash(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Random bytes of the TLS library's own generator.
pub(super) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = shared::tls::provider().secure_random.fill(&mut bytes);
    assert!(filled.is_ok(), "the kernel gives random bytes");
    bytes
}
