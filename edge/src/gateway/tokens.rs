//! Who a handler on TCP is: `name:token` lines, compared in constant time. Knows no HTTP
//! beyond the Bearer scheme (RFC 6750, section 2.1).

use std::fmt;
use std::hint::black_box;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::GatewayError;

/// Shorter ones are guessed.
const MIN_TOKEN: usize = 16;
/// Longer ones are a wrong file.
const MAX_TOKEN: usize = 256;

/// Handlers and their tokens.
pub(super) struct Tokens(Vec<(String, String)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Tokens {
    /// Blocking; for the start.
    pub(super) fn read(file: &Path) -> Result<Self, GatewayError> {
        let unreadable = |source| GatewayError::TokensUnreadable { file: file.to_owned(), source };
        let mode = std::fs::metadata(file).map_err(unreadable)?.permissions().mode();
        if mode & 0o004 != 0 {
            return Err(GatewayError::TokensOpen(file.to_owned()));
        }
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        Self::parse(&text).map_err(|(line, why)| GatewayError::Tokens { file: file.to_owned(), line, why })
    }

    /// Empty lines and lines starting with `#` count for nothing.
    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut tokens: Vec<(String, String)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fault = |why| Err((index + 1, why));
            let Some((name, token)) = line.split_once(':') else {
                return fault("no colon; write name:token");
            };
            if !shared::tls::is_name(name) {
                return fault("the name is not 1 to 64 of a-z A-Z 0-9 . _ -");
            }
            if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len()) {
                return fault("the token has not 16 to 256 characters; `openssl rand -hex 32` makes one");
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return fault("the token has characters beside visible ASCII");
            }
            if tokens.iter().any(|(other, _)| other == name) {
                return fault("the name stands there twice; one token a handler");
            }
            if tokens.iter().any(|(_, other)| other == token) {
                return fault("the token stands there twice; one token a handler");
            }
            tokens.push((name.to_owned(), token.to_owned()));
        }
        if tokens.is_empty() {
            Err((0, "holds no token; write one name:token a line"))
        } else {
            Ok(Self(tokens))
        }
    }

    /// The handler that an `Authorization` field names. Every token is compared, whole, so
    /// that the time tells nothing.
    pub(super) fn holder(&self, authorization: Option<&[u8]>) -> Option<&str> {
        let given = bearer(authorization?)?;
        let mut holder = None;
        for (name, token) in &self.0 {
            if same(given, token.as_bytes()) {
                holder = Some(name.as_str());
            }
        }
        holder
    }
}

fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Equality whose time depends on the lengths alone.
fn same(left: &[u8], right: &[u8]) -> bool {
    let differences =
        left.iter().zip(right).fold(0_u8, |differences, (l, r)| black_box(differences | (l ^ r)));
    left.len() == right.len() && black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ERP: &str = "0123456789abcdef";

    #[test]
    fn a_token_names_its_handler_and_nothing_else_does() {
        let tokens = Tokens::parse(&format!("# handlers\nerp:{ERP}\n\nshop:{ERP}2\n")).unwrap();
        assert_eq!(tokens.holder(Some(format!("Bearer {ERP}").as_bytes())), Some("erp"));
        assert_eq!(tokens.holder(Some(format!("bearer {ERP}2").as_bytes())), Some("shop"));
        for bad in ["", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Bearer 0123456789abcde"] {
            assert_eq!(tokens.holder(Some(bad.as_bytes())), None, "{bad}");
        }
        assert_eq!(tokens.holder(None), None);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line) in [
            ("", 0),
            ("erp", 1),
            ("erp:short", 1),
            ("#\n../x:0123456789abcdef", 2),
            ("erp:0123456789abcdef\nerp:0123456789abcdef0", 2),
            ("erp:0123456789abcdef\nshop:0123456789abcdef", 2),
        ] {
            assert_eq!(Tokens::parse(text).unwrap_err().0, line, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_everybody_reads_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("erp:{ERP}")).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Tokens::read(file.path()), Err(GatewayError::TokensOpen(_))));
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Tokens::read(file.path()).is_ok());
    }

    proptest! {
        #[test]
        fn same_is_equality(left: Vec<u8>, right: Vec<u8>) {
            prop_assert_eq!(same(&left, &right), left == right);
            prop_assert!(same(&left, &left.clone()));
        }

        #[test]
        fn no_tokens_file_makes_the_reader_panic(text in "(?s).{0,200}") {
            let _ = Tokens::parse(&text);
        }
    }
}
