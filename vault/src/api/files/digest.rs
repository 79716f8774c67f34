//! `Content-Digest` (RFC 9530): what the sender says of its body, checked while it streams.
//! A body that is something else ends in an error before its end, so nothing of it is stored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, try_unfold};
use http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256, Sha512};
use shared::api::CONTENT_DIGEST;

use crate::api::refusal::Refusal;
use crate::storage::BodyError;

/// What a body must hash to. Empty where nothing was said.
#[derive(Debug, Clone, Default)]
pub struct Digests {
    sha256: Option<(Sha256, Vec<u8>)>,
    sha512: Option<(Sha512, Vec<u8>)>,
}

/// Reads `Content-Digest`, a structured dictionary (RFC 8941) such as `sha-256=:…:, sha-512=:…:`.
/// Algorithms that are unknown, or too weak to prove anything, are ignored, as the RFC says; of
/// one named twice the last counts.
///
/// # Errors
/// 422 where the field is no such dictionary, or a digest has not its algorithm's length.
pub fn digests_of(headers: &HeaderMap) -> Result<Digests, Refusal> {
    let refused = || {
        let detail = "Content-Digest cannot be read; write sha-256=:BASE64: or sha-512=:BASE64:, or both";
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_digest", detail)
    };
    let mut digests = Digests::default();
    for field in headers.get_all(CONTENT_DIGEST) {
        let field = field.to_str().map_err(|_| refused())?;
        // Base64 has no comma, and byte sequences are the only values with a meaning here.
        for member in field.split(',').map(|member| member.trim_matches([' ', '\t'])) {
            let (algorithm, value) = member.split_once('=').unwrap_or((member, ""));
            let length = match algorithm {
                "sha-256" => Sha256::output_size(),
                "sha-512" => Sha512::output_size(),
                other if is_key(other) => continue,
                _ => return Err(refused()),
            };
            let digest = byte_sequence(value).filter(|digest| digest.len() == length).ok_or_else(refused)?;
            match algorithm {
                "sha-256" => digests.sha256 = Some((Sha256::new(), digest)),
                _ => digests.sha512 = Some((Sha512::new(), digest)),
            }
        }
    }
    Ok(digests)
}

/// A key of a dictionary, RFC 8941, 3.1.2.
fn is_key(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_lowercase() || first == '*') && text.bytes().all(fits)
}

/// `:BASE64:`, and parameters that nobody reads.
fn byte_sequence(value: &str) -> Option<Vec<u8>> {
    let (encoded, parameters) = value.strip_prefix(':')?.split_once(':')?;
    if !(parameters.is_empty() || parameters.trim_start().starts_with(';')) {
        return None;
    }
    STANDARD.decode(encoded).ok()
}

impl Digests {
    /// Passes `body` on, and ends it with [`BodyError::Digest`] where it is not what was said.
    pub fn check(
        self,
        body: BoxStream<'static, Result<Bytes, BodyError>>,
    ) -> BoxStream<'static, Result<Bytes, BodyError>> {
        if self.sha256.is_none() && self.sha512.is_none() {
            return body;
        }
        try_unfold((body, self), |(mut body, mut digests)| async move {
            let Some(bytes) = body.next().await.transpose()? else {
                return digests.verdict().map(|()| None);
            };
            digests.update(&bytes);
            Ok(Some((bytes, (body, digests))))
        })
        .boxed()
    }

    /// Checks a body that has come whole.
    ///
    /// # Errors
    /// [`BodyError::Digest`] where it is not what was said.
    pub fn check_whole(mut self, body: &[u8]) -> Result<(), BodyError> {
        self.update(body);
        self.verdict()
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some((hasher, _)) = &mut self.sha256 {
            hasher.update(bytes);
        }
        if let Some((hasher, _)) = &mut self.sha512 {
            hasher.update(bytes);
        }
    }

    fn verdict(self) -> Result<(), BodyError> {
        if self.sha256.is_some_and(|(hasher, said)| hasher.finalize().as_slice() != said) {
            return Err(BodyError::Digest("sha-256"));
        }
        if self.sha512.is_some_and(|(hasher, said)| hasher.finalize().as_slice() != said) {
            return Err(BodyError::Digest("sha-512"));
        }
        Ok(())
    }
}

/// The reader fed with any bytes: it must not panic, and what it takes has the right length.
pub fn fuzz_digests(data: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(data) else { return };
    let headers = std::iter::once((http::HeaderName::from_static(CONTENT_DIGEST), value)).collect();
    let Ok(Digests { sha256, sha512 }) = digests_of(&headers) else { return };
    assert!(
        sha256.is_none_or(|(_, said)| said.len() == 32) && sha512.is_none_or(|(_, said)| said.len() == 64)
    );
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::{prop_assert, proptest};

    use super::*;

    fn read(values: &[&str]) -> Result<Digests, Refusal> {
        let name = HeaderName::from_static(CONTENT_DIGEST);
        digests_of(
            &values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect(),
        )
    }

    async fn passes(values: &[&str], pieces: &[&'static str]) -> Result<usize, BodyError> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        let mut body = read(values).unwrap().check(futures_util::stream::iter(pieces).boxed());
        let mut length = 0;
        while let Some(piece) = body.next().await {
            length += piece?.len();
        }
        Ok(length)
    }

    /// RFC 9530, B.1: the digest of `{"hello": "world"}` and a line feed.
    const HELLO: &str = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
    const HELLO_512: &str = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCs\
        yRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:";

    #[tokio::test]
    async fn a_body_passes_whole_or_ends_in_an_error_before_its_end() {
        let body = &["{\"hello\": ", "", "\"world\"}\n"];
        let both = format!("{HELLO}, {HELLO_512}");
        let fine: [&[&str]; 7] = [
            &[],
            &[HELLO],
            &[HELLO_512],
            &[&both],
            &[HELLO, HELLO_512],
            &["md5=:AAAA:, crc32c=5", HELLO],
            &["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", &format!("{HELLO};a=1")],
        ];
        for values in fine {
            assert_eq!(passes(values, body).await, Ok(19), "{values:?}");
        }
        for values in [&[HELLO][..], &[&both]] {
            let other = passes(values, &["{\"hello\": \"World\"}\n"]).await;
            assert_eq!(other, Err(BodyError::Digest("sha-256")), "{values:?}");
        }
        assert_eq!(passes(&[HELLO_512], &[""]).await, Err(BodyError::Digest("sha-512")));
        let empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        assert_eq!(passes(&[empty], &[]).await, Ok(0));
    }

    #[test]
    fn what_is_no_dictionary_of_digests_is_refused() {
        for bad in [
            "sha-256",
            "sha-256=",
            "sha-256=::",
            "sha-256=:AAAA:",
            "sha-256=RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=",
            "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg:",
            "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:x",
            "SHA-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:",
            ",",
        ] {
            let refused = read(&[bad]).err().unwrap_or_else(|| panic!("{bad} was taken"));
            assert_eq!((refused.problem.status, refused.problem.code.as_str()), (422, "bad_digest"));
        }
    }

    proptest! {
        #[test]
        fn no_field_makes_the_reader_panic(value in "(sha-(256|512)=:?)?[ -~]{0,90}") {
            prop_assert!(read(&[&value]).map_or_else(|refused| refused.problem.status == 422, |_| true));
        }
    }
}
