//! What records are called: whose, of which kind, and a name like a path. Pure; knows how a name
//! must be written and says what is wrong with one, not whether such a record exists.

use serde::{Deserialize, Serialize};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 512;

/// What a record is used as. Each kind has names of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A value that its owner's programs agree upon.
    Record,
    /// A file's name.
    Name,
    /// Who may do a job at present.
    Lease,
}

impl Kind {
    /// The word that stands in the chain's column `series`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Record => "record",
            Kind::Name => "name",
            Kind::Lease => "lease",
        }
    }
}

/// Names one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordName {
    /// The certificate's owner.
    pub owner: String,
    /// Its kind.
    pub kind: Kind,
    /// The name within both; [`checked`] before anything is entered.
    pub name: String,
}

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// Empty, or too long.
    #[error("a name is 1 to {MAX_NAME} bytes of UTF-8")]
    Length,
    /// `a//b`, `/a`, `a/`.
    #[error("a name has no empty segment: write a/b, without a slash at either end")]
    EmptySegment,
    /// `.` or `..`.
    #[error("a name has no segment . or ..: other programs would take it for another path")]
    DotSegment,
    /// Line ends and the like.
    #[error("a name has no control characters and no backslash")]
    Control,
    /// `…/content` of a file's name.
    #[error("a file's name does not end with the segment content, which asks for the file itself")]
    Content,
}

/// Is it written as a name must be?
///
/// # Errors
/// What is wrong with it.
pub fn checked(kind: Kind, name: &str) -> Result<(), NameFault> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(NameFault::Length);
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err(NameFault::Control);
    }
    for segment in name.split('/') {
        match segment {
            "" => return Err(NameFault::EmptySegment),
            "." | ".." => return Err(NameFault::DotSegment),
            _ => {}
        }
    }
    if kind == Kind::Name && name.rsplit('/').next() == Some("content") {
        return Err(NameFault::Content);
    }
    Ok(())
}

/// Could names begin so? The empty text begins all.
///
/// # Errors
/// What is wrong with it.
pub fn checked_prefix(prefix: &str) -> Result<(), NameFault> {
    if prefix.len() > MAX_NAME {
        return Err(NameFault::Length);
    }
    if prefix.chars().any(|c| c.is_control() || c == '\\') { Err(NameFault::Control) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_path_or_it_is_told_why_not() {
        for good in ["a", "a/b", "lots/2026/7", "Übersicht 1", "a.b/..c", &"x".repeat(MAX_NAME)] {
            assert_eq!(checked(Kind::Name, good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", NameFault::Length),
            (&*"x".repeat(MAX_NAME + 1), NameFault::Length),
            ("/a", NameFault::EmptySegment),
            ("a/", NameFault::EmptySegment),
            ("a//b", NameFault::EmptySegment),
            ("a/../b", NameFault::DotSegment),
            (".", NameFault::DotSegment),
            ("a\nb", NameFault::Control),
            ("a\\b", NameFault::Control),
            ("a/content", NameFault::Content),
        ] {
            assert_eq!(checked(Kind::Name, bad), Err(why), "{bad:?}");
        }
        assert_eq!(checked(Kind::Record, "a/content"), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_check_panic(text in ".{0,600}") {
            let _ = (checked(Kind::Name, &text), checked_prefix(&text));
        }
    }
}
