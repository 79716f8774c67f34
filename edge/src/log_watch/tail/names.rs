//! Names of logs as operators write them: with `*` and `?` in any part. Knows names and folders;
//! must not open a log.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// At most so many files match all patterns together.
pub(super) const MAX_FILES: usize = 1024;
/// At most so many entries of one folder are looked at.
const MAX_ENTRIES: usize = 65_536;
/// What rotation leaves behind compressed is never a log to follow.
const COMPRESSED: [&[u8]; 6] = [b".gz", b".xz", b".bz2", b".zst", b".lz4", b".Z"];

/// A watched name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) path: PathBuf,
    pub(super) tag: usize,
}

impl Pattern {
    /// Whether it holds `*` or `?`.
    pub(super) fn is_glob(&self) -> bool {
        is_glob(self.path.as_os_str())
    }

    /// Whether `path` is one of those it means. Folders behind symbolic links match by their last
    /// part alone: it is only asked whether looking is worth it.
    pub(super) fn matches(&self, path: &Path) -> bool {
        match (self.path.file_name(), path.file_name()) {
            (Some(pattern), Some(name)) => {
                is_glob(pattern) && matches(pattern.as_bytes(), name.as_bytes()) && !is_compressed(name)
            }
            _ => false,
        }
    }

    /// Whether `path` is what it means, part by part, whether there is such a file or not.
    pub(super) fn covers(&self, path: &Path) -> bool {
        if self.path == path {
            return true;
        }
        let all = self
            .path
            .components()
            .zip(path.components())
            .all(|(wanted, given)| matches(wanted.as_os_str().as_bytes(), given.as_os_str().as_bytes()));
        let same_depth = self.path.components().count() == path.components().count();
        all && same_depth && !path.file_name().is_some_and(is_compressed)
    }

    /// The files that exist and match, and the folders where more may appear. Rotated
    /// siblings of a match (`a.log.1` beside `a.log`) and compressed files are none.
    pub(super) fn expand(&self, files: &mut Vec<PathBuf>, folders: &mut Vec<PathBuf>) {
        let mut level = vec![PathBuf::new()];
        let parts: Vec<Component<'_>> = self.path.components().collect();
        for (index, part) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let part = part.as_os_str();
            if !is_glob(part) {
                for path in &mut level {
                    path.push(part);
                }
                continue;
            }
            let mut next = Vec::new();
            for folder in &level {
                next.extend(entries(folder, part, last));
            }
            folders.append(&mut level);
            next.truncate(MAX_FILES);
            level = next;
        }
        level.retain(|path| path.symlink_metadata().is_ok());
        let all = level.clone();
        level.retain(|path| !all.iter().any(|other| is_rotated(path, other)));
        files.append(&mut level);
    }
}

fn entries(folder: &Path, pattern: &OsStr, last: bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .take(MAX_ENTRIES)
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .filter(|name| matches(pattern.as_bytes(), name.as_bytes()))
        .map(|name| folder.join(name))
        .filter(|path| {
            if last { !path.is_dir() && !path.file_name().is_some_and(is_compressed) } else { path.is_dir() }
        })
        .collect();
    found.sort();
    found
}

fn is_glob(name: &OsStr) -> bool {
    name.as_bytes().iter().any(|byte| matches!(byte, b'*' | b'?'))
}

fn is_compressed(name: &OsStr) -> bool {
    COMPRESSED.iter().any(|suffix| name.as_bytes().ends_with(suffix))
}

/// `a.log.1`, `a.log-20261122` and `a.log.2026-11-22` are rotated from `a.log`.
fn is_rotated(path: &Path, other: &Path) -> bool {
    let rest = path.as_os_str().as_bytes().strip_prefix(other.as_os_str().as_bytes());
    rest.and_then(<[u8]>::split_first).is_some_and(|(first, rest)| {
        matches!(first, b'.' | b'-')
            && !rest.is_empty()
            && rest.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_'))
    })
}

/// `a.log` of `a.log.1`, `a.log-20261122` and `a.log.2.gz`.
pub(super) fn before_rotation(path: &Path) -> PathBuf {
    let whole = path.as_os_str().as_bytes();
    let name = COMPRESSED.iter().find_map(|suffix| whole.strip_suffix(*suffix)).unwrap_or(whole);
    let counts = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_');
    let kept = name.iter().rposition(|byte| !counts(byte)).map_or(0, |last| last + 1);
    let (kept, rest) = name.split_at(kept);
    let rotated = matches!(rest.first(), Some(b'.' | b'-')) && rest.iter().any(u8::is_ascii_digit);
    PathBuf::from(OsStr::from_bytes(if rotated { kept } else { name }))
}

/// Shell's `*` and `?` over bytes; as in a shell, a leading dot wants to be written.
pub(super) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut at, mut upto) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while upto < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, upto));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[upto] => {
                at += 1;
                upto += 1;
            }
            _ => {
                let Some((back, from)) = star else { return false };
                star = Some((back, from + 1));
                (at, upto) = (back + 1, from + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Body of the fuzz target: any pattern and name give the answer of the plain recursive rule.
#[doc(hidden)]
pub fn fuzz_matches(data: &[u8]) {
    fn plain(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => plain(rest, name) || (!name.is_empty() && plain(pattern, &name[1..])),
            (Some((b'?', pattern)), Some((_, name))) => plain(pattern, name),
            (Some((a, pattern)), Some((b, name))) => a == b && plain(pattern, name),
            _ => false,
        }
    }
    let Some(middle) = data.iter().position(|byte| *byte == b'/') else { return };
    let (pattern, name) = (&data[..middle], &data[middle + 1..]);
    if pattern.len() > 12 || name.len() > 16 {
        let _any = matches(pattern, name);
        return;
    }
    let hidden = name.first() == Some(&b'.') && pattern.first() != Some(&b'.');
    assert_eq!(matches(pattern, name), !hidden && plain(pattern, name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_log_is_known_by_the_name_that_it_had() {
        for name in ["a.log", "a.log.1", "a.log.2.gz", "a.log-20261122.xz", "a.log.2026-11-22", "a.log.gz"] {
            assert_eq!(
                before_rotation(Path::new("/var/log").join(name).as_path()),
                Path::new("/var/log/a.log")
            );
        }
        for name in ["/x/a-2026.log", "/x/a.", "/x/1", "/x/a2"] {
            assert_eq!(before_rotation(Path::new(name)), Path::new(name));
        }
    }
    use proptest::prelude::proptest;

    #[test]
    fn rotated_and_compressed_siblings_are_no_logs_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.log", "a.log.1", "a.log-20261122", "a.log.2.gz", "b.log", "c-2026.log", ".a.log"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.path().join("d.log")).unwrap();
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        Pattern { path: folder.path().join("*log*"), tag: 0 }.expand(&mut files, &mut folders);
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.log", "b.log", "c-2026.log"]);
        assert_eq!(folders, [folder.path()]);
    }

    #[test]
    fn a_star_in_a_folder_s_name_finds_every_folder() {
        let folder = tempfile::tempdir().unwrap();
        for site in ["one", "two"] {
            std::fs::create_dir(folder.path().join(site)).unwrap();
            std::fs::write(folder.path().join(site).join("error.log"), "x").unwrap();
        }
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        Pattern { path: folder.path().join("*/error.log"), tag: 0 }.expand(&mut files, &mut folders);
        assert_eq!(files, [folder.path().join("one/error.log"), folder.path().join("two/error.log")]);
    }

    #[test]
    fn a_pattern_covers_what_it_means_in_every_part_of_the_name() {
        let covers = |pattern: &str, path: &str| {
            super::super::Watched { pattern: pattern.into(), tag: 0 }.covers(Path::new(path))
        };
        assert!(covers("/var/log/auth.log", "/var/log//auth.log"));
        assert!(covers("/var/log/*.log", "/var/log/auth.log"));
        assert!(covers("/srv/*/log/error?.log", "/srv/shop/log/error1.log"));
        assert!(covers("/var/log/packed.gz", "/var/log/packed.gz"), "named in full");
        for (pattern, path) in [
            ("/var/log/auth.log", "/var/log/auth.log.1"),
            ("/var/log/*.log", "/var/log/nginx/auth.log"),
            ("/srv/*/log/error.log", "/srv/log/error.log"),
            ("/srv/*/log/error.log", "/srv/a/b/log/error.log"),
            ("/srv/*/error.log", "/srv/.hidden/error.log"),
            ("/var/log/*", "/var/log/auth.log.2.gz"),
            ("/var/log/*.log", "/var/log"),
        ] {
            assert!(!covers(pattern, path), "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn stars_and_question_marks_mean_what_the_plain_rule_says(text in "[ab*?.]{0,10}/[ab.]{0,12}") {
            fuzz_matches(text.as_bytes());
        }
    }
}
