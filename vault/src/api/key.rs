//! The `Idempotency-Key` header: every write carries one, so that repeating it never acts
//! twice. Knows its shape, not what it once did.

use axum::extract::FromRequestParts;
use http::StatusCode;
use http::request::Parts;
use shared::api::{IDEMPOTENCY_KEY, MAX_NUMBER_KEY};

use super::refusal::Refusal;

/// A key of 1 to [`MAX_NUMBER_KEY`] visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub String);

impl IdempotencyKey {
    /// Reads a header's raw value, or a key out of a query.
    #[must_use]
    pub fn read(raw: &[u8]) -> Option<Self> {
        let fits = (1..=MAX_NUMBER_KEY).contains(&raw.len()) && raw.iter().all(u8::is_ascii_graphic);
        let text = std::str::from_utf8(raw).ok()?;
        fits.then(|| Self(text.to_owned()))
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let refuse = |code, what: &str| {
            let detail = format!(
                "{what}; send one Idempotency-Key of 1 to {MAX_NUMBER_KEY} visible ASCII characters, the same again when you repeat the request"
            );
            Refusal::new(StatusCode::BAD_REQUEST, code, detail)
        };
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        match (values.next(), values.next()) {
            (None, _) => Err(refuse("key_missing", "a write needs an idempotency key")),
            (Some(_), Some(_)) => Err(refuse("key_invalid", "there are several idempotency keys")),
            (Some(value), None) => Self::read(value.as_bytes())
                .ok_or_else(|| refuse("key_invalid", "the idempotency key cannot be used")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_visible_ascii_is_a_key() {
        for bad in ["", " ", "a b", "ä", "a\n", &"x".repeat(257)] {
            assert_eq!(IdempotencyKey::read(bad.as_bytes()), None, "{bad:?}");
        }
        assert!(IdempotencyKey::read("x".repeat(256).as_bytes()).is_some());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_key_reader_panic(raw: Vec<u8>) {
            let _ = IdempotencyKey::read(&raw);
        }
    }
}
