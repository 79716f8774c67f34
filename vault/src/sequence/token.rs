//! What an operator keeps outside of both vaults, to let one of them give numbers that was started
//! anew and finds itself alone. The ledger holds a digest of it only: the life that begins with it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::entry::Life;

/// 128 random bits, written as eight groups of four hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub(super) u128);

/// That is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is 32 hex digits, in groups or not")]
pub struct NoToken;

impl Token {
    /// The life that it begins.
    #[must_use]
    pub fn life(self) -> Life {
        let digest = Sha256::new().chain_update(b"vault token").chain_update(self.0.to_be_bytes()).finalize();
        digest.iter().take(16).fold(0, |life, byte| life << 8 | Life::from(*byte))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = (0..8).rev().map(|group| format!("{:04x}", (self.0 >> (16 * group)) & 0xffff));
        f.write_str(&groups.collect::<Vec<_>>().join("-"))
    }
}

/// Its digits are for the operator alone.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let digits: String = text.chars().filter(|digit| *digit != '-').collect();
        let is_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| is_hex);
        number.map(Self).ok_or(NoToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_is_written_and_nothing_else_does() {
        let token = Token(0x00ff_0000_0000_0000_0000_0000_dead_beef);
        let text = token.to_string();
        assert_eq!(text, "00ff-0000-0000-0000-0000-0000-dead-beef");
        assert_eq!((text.parse(), text.replace('-', "").parse()), (Ok(token), Ok(token)));
        for bad in
            ["", "+0ff0000000000000000000000000000", &text[1..], "00ff-0000-0000-0000-0000-0000-dead-beeg"]
        {
            assert_eq!(bad.parse::<Token>(), Err(NoToken), "{bad}");
        }
    }

    #[test]
    fn the_life_does_not_tell_the_token() {
        assert_ne!(Token(1).life(), Token(2).life());
        assert_ne!(Token(1).life(), 1);
        assert_eq!(format!("{:?}", Token(1)), "Token(…)");
    }
}
