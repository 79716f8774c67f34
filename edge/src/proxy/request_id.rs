//! Names for requests. Knows randomness; must not know requests. A name must tell nothing about the
//! host or its load, and nobody who has seen any number of them may guess another: they stand in answers
//! and logs, and some application will take one for a secret. The system is asked once for a thread's
//! seed, and not in a call for each request.

use rustls::crypto::ring::default_provider;

/// Bytes of one id.
const ID: usize = 16;
/// Ids that are made at a time: one call of the generator that uses the processor's width.
const STORE: usize = 64;

/// One thread's ids: 128 bits each of BLAKE3's output without end, keyed with 256 bits of the system's
/// (the BLAKE3 paper, section 2.6: it cannot be told from chance by who has not the key).
pub(crate) struct Ids {
    endless: blake3::OutputReader,
    made: [u8; ID * STORE],
    used: usize,
}

impl Ids {
    /// Ids that no other thread or host gives.
    pub(crate) fn new() -> Self {
        let mut key = [0; blake3::KEY_LEN];
        if default_provider().secure_random.fill(&mut key).is_err() {
            tracing::error!(
                "request id: the system gives no random bytes; ids can be guessed until a restart"
            );
        }
        Self {
            endless: blake3::Hasher::new_keyed(&key).finalize_xof(),
            made: [0; ID * STORE],
            used: ID * STORE,
        }
    }

    /// The next one, as 32 hexadecimal digits.
    pub(crate) fn next(&mut self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if self.used >= self.made.len() {
            self.endless.fill(&mut self.made);
            self.used = 0;
        }
        let bytes = self.made.get(self.used..self.used + ID).unwrap_or_default();
        self.used += ID;
        let mut id = String::with_capacity(2 * ID);
        for byte in bytes {
            for half in [byte >> 4, byte & 0xf] {
                id.push(char::from(DIGITS[usize::from(half)]));
            }
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_hex_and_none_comes_twice_of_any_thread() {
        let mut seen = HashSet::new();
        for _ in 0..4 {
            let mut ids = Ids::new();
            for _ in 0..10 * STORE {
                let id = ids.next();
                assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
                assert!(seen.insert(id));
            }
        }
    }
}
