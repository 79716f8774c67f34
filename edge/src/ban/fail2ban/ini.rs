//! One file of fail2ban's → its sections and options, as Python's `configparser` reads it: options in
//! lower case, indented lines go on, `#` and `;` begin a comment and ` ;` one within a line. Knows one
//! text; must not know includes, interpolation or what an option means.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::ImportFault;

/// Options of one file; further ones are a fault, because no real file comes near.
const MAX_OPTIONS: usize = 4096;

/// An option's text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) file: Arc<Path>,
    /// 1-based.
    pub(super) line: usize,
}

/// Options by name, in the file's order.
pub(super) type Options = IndexMap<String, Value>;

/// One file.
#[derive(Clone, Debug, Default)]
pub(super) struct Ini {
    /// `[DEFAULT]`
    pub(super) defaults: Options,
    /// Every other section.
    pub(super) sections: IndexMap<String, Options>,
    /// Where each of them begins.
    pub(super) places: IndexMap<String, (Arc<Path>, usize)>,
}

/// Reads `text`; `file` is only named.
pub(super) fn parse(file: &Path, text: &str) -> Result<Ini, ImportFault> {
    let mut reader = Reader { file: Arc::from(file), ini: Ini::default(), seen: BTreeSet::new(), at: None };
    let newlines;
    let text = if text.contains('\r') {
        newlines = text.replace("\r\n", "\n").replace('\r', "\n");
        &newlines
    } else {
        text
    };
    // How far the last section or option line was indented: what stands deeper goes on with it.
    let mut indent = 0;
    for (index, line) in text.split_terminator('\n').enumerate() {
        let comment = comment_start(line);
        let value = line[..comment.unwrap_or(line.len())].trim();
        if value.is_empty() {
            // An empty line belongs to the value around it, a comment does not.
            if comment.is_none() {
                reader.go_on("");
            }
            continue;
        }
        let column = line.chars().take_while(|c| c.is_whitespace()).count();
        if column > indent && reader.go_on(value) {
            continue;
        }
        indent = column;
        reader.begin(value, index + 1)?;
    }
    Ok(reader.finished())
}

/// Where the comment of this line begins: at its very start, or at a `;` after a blank.
fn comment_start(line: &str) -> Option<usize> {
    if line.trim_start().starts_with(['#', ';']) {
        return Some(0);
    }
    line.match_indices(';')
        .map(|(at, _)| at)
        .find(|at| line[..*at].chars().next_back().is_none_or(char::is_whitespace))
}

struct Reader {
    file: Arc<Path>,
    ini: Ini,
    /// Sections as `(name, "")`, and options.
    seen: BTreeSet<(String, String)>,
    /// The section we are in, and its option that may go on.
    at: Option<(String, Option<String>)>,
}

impl Reader {
    fn section(&mut self, name: &str) -> &mut Options {
        match name {
            "DEFAULT" => &mut self.ini.defaults,
            _ => self.ini.sections.entry(name.to_owned()).or_default(),
        }
    }

    /// One more line of the open option; false where none is open.
    fn go_on(&mut self, line: &str) -> bool {
        let Some((section, Some(option))) = self.at.clone() else { return false };
        if let Some(value) = self.section(&section).get_mut(&option) {
            value.text.push('\n');
            value.text.push_str(line);
        }
        true
    }

    /// A section's or an option's first line.
    fn begin(&mut self, text: &str, line: usize) -> Result<(), ImportFault> {
        let syntax = |what| ImportFault::Syntax { file: self.file.to_path_buf(), line, what };
        if let Some(name) = header(text) {
            if name != "DEFAULT" && !self.seen.insert((name.to_owned(), String::new())) {
                return Err(self.twice(line, format!("[{name}]")));
            }
            self.section(name);
            self.ini.places.insert(name.to_owned(), (Arc::clone(&self.file), line));
            self.at = Some((name.to_owned(), None));
            return Ok(());
        }
        let Some((section, _)) = self.at.clone() else {
            return Err(syntax("stands before the first section"));
        };
        let Some(delimiter) = text.find(['=', ':']) else {
            return Err(syntax("is neither a [section] nor an option = value"));
        };
        let option = text[..delimiter].trim_end().to_lowercase();
        if option.is_empty() {
            return Err(syntax("has a value but no option"));
        }
        if !self.seen.insert((section.clone(), option.clone())) {
            return Err(self.twice(line, option));
        }
        if self.seen.len() > MAX_OPTIONS {
            return Err(syntax("is more than any file of fail2ban's holds"));
        }
        let value =
            Value { text: text[delimiter + 1..].trim().to_owned(), file: Arc::clone(&self.file), line };
        self.section(&section).insert(option.clone(), value);
        self.at = Some((section, Some(option)));
        Ok(())
    }

    fn twice(&self, line: usize, name: String) -> ImportFault {
        ImportFault::Twice { file: self.file.to_path_buf(), line, name }
    }

    fn finished(mut self) -> Ini {
        let all = self.ini.sections.values_mut().chain([&mut self.ini.defaults]);
        for value in all.flat_map(IndexMap::values_mut) {
            value.text.truncate(value.text.trim_end().len());
        }
        self.ini
    }
}

/// `[name]`, up to the last bracket.
fn header(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[')?;
    inner.rfind(']').map(|end| &inner[..end]).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String, String, usize)> {
        let ini = parse(Path::new("x.conf"), text).unwrap();
        let all = [("DEFAULT".to_owned(), ini.defaults)].into_iter().chain(ini.sections);
        all.flat_map(|(section, options)| {
            options.into_iter().map(move |(name, value)| (section.clone(), name, value.text, value.line))
        })
        .collect()
    }

    fn fault(text: &str) -> String {
        parse(Path::new("x.conf"), text).unwrap_err().to_string()
    }

    fn row(section: &str, name: &str, text: &str, line: usize) -> (String, String, String, usize) {
        (section.to_owned(), name.to_owned(), text.to_owned(), line)
    }

    #[test]
    fn indented_lines_go_on_and_comments_do_not() {
        assert_eq!(
            read(
                "# about\n[Definition]\nFailRegex = ^a ;comment\n  ^b;c\n# between\n\n  ^d = e\nmode: x\n\n[DEFAULT]\nq=\n"
            ),
            [
                row("DEFAULT", "q", "", 11),
                row("Definition", "failregex", "^a\n^b;c\n\n^d = e", 3),
                row("Definition", "mode", "x", 8),
            ]
        );
    }

    #[test]
    fn carriage_returns_end_lines_too() {
        assert_eq!(read("[a]\r\nb = c\rd = e\r\n"), [row("a", "b", "c", 2), row("a", "d", "e", 3)]);
    }

    #[test]
    fn what_is_no_option_is_told_with_its_line() {
        assert_eq!(
            fault("a = b\n"),
            "x.conf:1: stands before the first section; fail2ban would not read this file either: correct the line"
        );
        assert!(fault("[a]\nb\n").starts_with("x.conf:2: is neither a [section] nor an option = value;"));
        assert!(fault("[a]\n= b\n").starts_with("x.conf:2: has a value but no option;"));
        assert!(fault("[a]\nB = 1\nb = 2\n").starts_with("x.conf:3: b stands here twice;"));
        assert!(fault("[a]\n[b]\n[a]\n").starts_with("x.conf:3: [a] stands here twice;"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
            let _ = parse(Path::new("x.conf"), &text);
        }

        #[test]
        fn no_text_of_the_readers_own_signs_makes_it_panic(text in "[ \\[\\]=:;#a%()s<>/\n\r\t\u{a0}é]{0,80}") {
            let _ = parse(Path::new("x.conf"), &text);
        }
    }
}
