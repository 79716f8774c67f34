//! Names of log files as fail2ban writes them → as we follow them. Knows wildcards; must not know jails.

use std::path::{Path, PathBuf};

/// `[0-9]` in a file's name stands for one character, and so does `?`.
pub(super) fn without_classes(path: &str) -> String {
    let mut plain = String::new();
    let mut rest = path;
    while let Some((before, class)) = rest.split_once('[') {
        // A bracket that comes first in the class is part of it, also after the sign that turns it round.
        let first = class.strip_prefix('!').unwrap_or(class);
        let skipped = class.len() - first.len() + first.chars().next().map_or(0, char::len_utf8);
        let Some(end) = class.get(skipped..).and_then(|inner| inner.find(']')) else { break };
        plain.push_str(before);
        plain.push('?');
        rest = &class[skipped + end + 1..];
    }
    plain + rest
}

/// Is there certainly no such file? Of a name with `*` only the fixed beginning is asked.
pub(super) fn absent(path: &Path) -> bool {
    let fixed: PathBuf = path
        .components()
        .take_while(|part| {
            !part.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?'))
        })
        .collect();
    !fixed.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_in_a_files_name_becomes_one_character() {
        for (written, plain) in
            [("/L[0-9]*.log", "/L?*.log"), ("/[!]a]b", "/?b"), ("/[]]b[é]", "/?b?"), ("/[ab", "/[ab")]
        {
            assert_eq!(without_classes(written), plain);
        }
    }

    #[test]
    fn of_a_name_with_wildcards_the_fixed_beginning_is_asked() {
        assert!(!absent(Path::new("/dev/null")) && !absent(Path::new("/dev/nothing-like-*")));
        assert!(absent(Path::new("/nowhere/null")) && absent(Path::new("/nowhere/*")));
    }

    proptest::proptest! {
        #[test]
        fn no_name_makes_it_panic(path in "[\\[\\]!a*é/-]{0,20}") {
            proptest::prop_assert!(without_classes(&path).len() <= path.len());
        }
    }
}
