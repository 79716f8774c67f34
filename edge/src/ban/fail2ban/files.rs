//! A name → the files that make it: `.conf`, `.d/*.conf`, `.local`, `.d/*.local`, each with what it
//! includes before and after itself, later ones on top of earlier ones. Knows files and sections; must
//! not know filters or jails.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::ImportFault;
use super::ini::{self, Ini, Options, Value};
use super::interpolate;

/// Larger files are a fault; fail2ban's largest has 25 KiB.
const MAX_FILE: u64 = 1 << 20;
/// Files that one name may pull in.
const MAX_FILES: usize = 256;
/// Includes within includes.
const MAX_DEPTH: usize = 16;

/// All files of one name, laid over each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged {
    /// `[DEFAULT]` of all files.
    pub(super) defaults: Options,
    /// The others; `KNOWN/x` holds what `[x]` said before a later file changed it.
    pub(super) sections: IndexMap<String, Options>,
    /// Where each section begins, in the file that speaks of it first.
    pub(super) places: IndexMap<String, (Arc<Path>, usize)>,
    /// What was read, in order.
    pub(super) files: Vec<PathBuf>,
    /// Includes that are not there, and where they are named.
    pub(super) missing: Vec<(PathBuf, Value)>,
}

impl Merged {
    /// Reads everything that goes by `base` (a path without `.conf`); `None` where no such file is.
    pub(super) fn read(base: &Path) -> Result<Option<Self>, ImportFault> {
        let folder = with(base, ".d");
        let mut files = vec![with(base, ".conf")];
        files.extend(in_folder(&folder, "conf")?);
        files.push(with(base, ".local"));
        files.extend(in_folder(&folder, "local")?);
        files.retain(|file| file.is_file());
        if files.is_empty() {
            return Ok(None);
        }
        let mut merged = Self::default();
        let mut walk = Walk { missing: Vec::new(), found: Vec::new() };
        walk.all(&files, &[], None)?;
        for (file, ini) in walk.found {
            merged.lay(ini);
            merged.files.push(file);
        }
        merged.missing = walk.missing;
        Ok(Some(merged))
    }

    /// One more file on top.
    fn lay(&mut self, ini: Ini) {
        self.defaults.extend(ini.defaults);
        for (name, place) in ini.places {
            self.places.entry(name).or_insert(place);
        }
        for (name, mut options) in ini.sections {
            let mut name = name;
            // `[Init?family=inet6]`: each option under its condition.
            if let Some(at) = condition(&name) {
                let condition = name.split_off(at);
                options = options.into_iter().map(|(key, value)| (key + &condition, value)).collect();
            }
            match self.sections.get_mut(&name) {
                Some(below) => {
                    let hidden: Options = below
                        .iter()
                        .filter(|(key, _)| options.contains_key(*key))
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect();
                    below.extend(options);
                    self.sections.entry(format!("KNOWN/{name}")).or_default().extend(hidden);
                }
                None => {
                    self.sections.insert(name, options);
                }
            }
        }
    }
}

/// Where the condition of `name?condition` begins.
pub(super) fn condition(name: &str) -> Option<usize> {
    let at = name.find('?')?;
    let word = |c: char| c.is_alphanumeric() || c == '_';
    (at > 0 && at + 1 < name.len() && name[..at].chars().all(word)).then_some(at)
}

fn with(base: &Path, extension: &str) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(extension);
    PathBuf::from(name)
}

/// The files of `folder` with that extension, sorted; a missing folder has none.
fn in_folder(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, ImportFault> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(ImportFault::Unreadable { file: folder.to_owned(), source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .filter(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")))
        .take(MAX_FILES + 1)
        .collect();
    files.sort();
    Ok(files)
}

struct Walk {
    found: Vec<(PathBuf, Ini)>,
    missing: Vec<(PathBuf, Value)>,
}

impl Walk {
    /// `files` and what they include, each followed by its `.local`; `above` are the files that led here.
    fn all(
        &mut self,
        files: &[PathBuf],
        above: &[PathBuf],
        named: Option<&Value>,
    ) -> Result<(), ImportFault> {
        for file in files {
            self.one(file, above, named)?;
            let local = file.with_extension("local");
            if !files.contains(&local) && local.is_file() {
                self.one(&local, above, named)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, file: &Path, above: &[PathBuf], named: Option<&Value>) -> Result<(), ImportFault> {
        if let Some(named) = named {
            let (place, line) = (named.file.to_path_buf(), named.line);
            if above.iter().any(|other| same(other, file)) {
                return Err(ImportFault::IncludeLoop { file: place, line, included: file.to_owned() });
            }
            if above.len() > MAX_DEPTH || self.found.len() >= MAX_FILES {
                return Err(ImportFault::TooManyFiles { file: place, line });
            }
        }
        let Some(text) = text_of(file)? else {
            // Its own .local is asked for by many a file and seldom there.
            if let Some(named) = named
                && file.extension().is_none_or(|extension| extension != "local")
            {
                self.missing.push((file.to_owned(), named.clone()));
            }
            return Ok(());
        };
        let ini = ini::parse(file, &text)?;
        let mut here = above.to_vec();
        here.push(file.to_owned());
        self.included(file, &ini, "before", &here)?;
        let after = ini.clone();
        self.found.push((file.to_owned(), ini));
        self.included(file, &after, "after", &here)
    }

    fn included(
        &mut self,
        file: &Path,
        ini: &Ini,
        option: &str,
        here: &[PathBuf],
    ) -> Result<(), ImportFault> {
        let single =
            Merged { defaults: ini.defaults.clone(), sections: ini.sections.clone(), ..Merged::default() };
        let Some(value) = interpolate::value(&single, "INCLUDES", option, &IndexMap::new())? else {
            return Ok(());
        };
        let folder = file.parent().unwrap_or(Path::new("."));
        for (number, name) in value.text.split('\n').enumerate().filter(|(_, name)| !name.is_empty()) {
            let named = Value { line: value.line + number, ..value.clone() };
            self.all(&[folder.join(name)], here, Some(&named))?;
        }
        Ok(())
    }
}

/// The same file, however it is named.
fn same(left: &Path, right: &Path) -> bool {
    left == right || matches!((left.canonicalize(), right.canonicalize()), (Ok(l), Ok(r)) if l == r)
}

/// `None` where there is no such file.
fn text_of(file: &Path) -> Result<Option<String>, ImportFault> {
    let unreadable = |source| ImportFault::Unreadable { file: file.to_owned(), source };
    match fs::metadata(file) {
        Ok(found) if !found.is_file() => return Ok(None),
        Ok(found) if found.len() > MAX_FILE => {
            return Err(ImportFault::TooLarge { file: file.to_owned(), bytes: found.len(), limit: MAX_FILE });
        }
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(unreadable(source)),
    }
    fs::read_to_string(file).map(Some).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        folder
    }

    fn text<'m>(merged: &'m Merged, section: &str, option: &str) -> &'m str {
        &merged.sections[section][option].text
    }

    #[test]
    fn later_files_win_and_the_earlier_value_stays_known() {
        let folder = folder(&[
            ("jail.conf", "[INCLUDES]\nbefore = paths.conf\n[a]\nx = conf\ny = conf\n"),
            ("paths.conf", "[a]\nx = paths\nz = paths\n"),
            ("jail.d/1.conf", "[a]\nx = one\n"),
            ("jail.d/2.conf", "[a]\nx = two\n"),
            ("jail.d/1.local", "[a]\nx = last\n"),
            ("jail.local", "[a]\nx = local\n"),
        ]);
        let merged = Merged::read(&folder.path().join("jail")).unwrap().unwrap();
        assert_eq!(text(&merged, "a", "x"), "last");
        assert_eq!(text(&merged, "a", "y"), "conf");
        assert_eq!(text(&merged, "a", "z"), "paths");
        assert_eq!(text(&merged, "KNOWN/a", "x"), "local");
    }

    #[test]
    fn an_include_brings_its_own_local_file() {
        let folder = folder(&[
            (
                "f.conf",
                "[INCLUDES]\nbefore = common.conf\nafter = gone.local\n gone.conf\n[Init?x=y]\no = 1\n",
            ),
            ("common.conf", "[DEFAULT]\na = 1\n"),
            ("common.local", "[DEFAULT]\na = 2\n"),
        ]);
        let merged = Merged::read(&folder.path().join("f")).unwrap().unwrap();
        assert_eq!(merged.defaults["a"].text, "2");
        assert_eq!(text(&merged, "Init", "o?x=y"), "1");
        // The .local may be absent, the other is told, with its line.
        assert_eq!(merged.missing.len(), 1);
        assert_eq!((merged.missing[0].1.line, merged.missing[0].0.ends_with("gone.conf")), (4, true));
    }

    #[test]
    fn an_include_loop_is_a_fault_with_its_place() {
        let folder = folder(&[
            ("a.conf", "[INCLUDES]\nbefore = b.conf\n"),
            ("b.conf", "[INCLUDES]\n\nafter = ./a.conf\n"),
        ]);
        let told = Merged::read(&folder.path().join("a")).unwrap_err().to_string();
        assert!(told.contains("b.conf:3: includes") && told.contains("a.conf, which led here"), "{told}");
    }

    #[test]
    fn includes_that_multiply_end() {
        let files: Vec<(String, String)> = (0..14)
            .map(|n| (format!("{n}.conf"), format!("[INCLUDES]\nbefore = {0}.conf\n  {0}.conf\n", n + 1)))
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
        let folder = folder(&files);
        let told = Merged::read(&folder.path().join("0")).unwrap_err().to_string();
        assert!(told.contains("too many files"), "{told}");
    }

    #[test]
    fn no_file_is_no_answer() {
        assert!(Merged::read(&folder(&[]).path().join("jail")).unwrap().is_none());
    }
}
