//! One compiled pattern: on `regex` where it is regular, else on `fancy-regex` with a limit.
//! Knows subjects and groups; must not know what the groups mean.

use std::sync::Arc;

use super::emit::{For, emit, is_regular};
use super::syntax::{Tree, Wrong, parse};

/// How often an irregular pattern may go back on one subject. fail2ban's own need a few thousand;
/// a line that is made to need more is not worth a CPU.
const BACKTRACKS: usize = 200_000;
/// Bytes that one compiled pattern may need.
const SIZE: usize = 16 << 20;

/// It went back too often; what it would have found is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuchBacktracking;

pub(crate) struct Pattern {
    engine: Engine,
    tree: Tree,
    names: Vec<Option<Arc<str>>>,
}

enum Engine {
    Plain(regex::Regex),
    Fancy(Box<fancy_regex::Regex>),
}

/// Where groups lie in the subject, by index; 0 is the whole match.
pub(crate) type Spans = Vec<Option<(usize, usize)>>;

impl Pattern {
    /// `lines`: the subject holds several lines, and `^` is at each one's beginning.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(crate) fn compile(text: &str, lines: bool) -> Result<Self, Wrong> {
        let tree = parse(text)?;
        let mode = if lines { "(?m)" } else { "" };
        let large = |error: &dyn std::fmt::Display| Wrong { at: 0, what: first_line(error) };
        let engine = if is_regular(&tree.root) {
            let text = format!("{mode}{}", emit(&tree.root, For::Regex));
            let built = regex::RegexBuilder::new(&text).size_limit(SIZE).build();
            Engine::Plain(built.map_err(|error| large(&error))?)
        } else {
            let text = format!("{mode}{}", emit(&tree.root, For::Fancy));
            let built = fancy_regex::RegexBuilder::new(&text)
                .backtrack_limit(BACKTRACKS)
                .delegate_size_limit(SIZE)
                .build();
            Engine::Fancy(Box::new(built.map_err(|error| large(&error))?))
        };
        let names = tree.names.iter().map(|name| name.as_deref().map(Arc::from)).collect();
        Ok(Self { engine, tree, names })
    }

    /// Matches wherever this does, and is regular and small.
    pub(crate) fn gate(&self, lines: bool) -> String {
        let mode = if lines { "(?m)" } else { "" };
        format!("{mode}{}", emit(&self.tree.root, For::Gate))
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Names by group; group 0 has none.
    pub(crate) fn names(&self) -> &[Option<Arc<str>>] {
        &self.names
    }

    /// # Errors
    /// The limit was reached.
    pub(crate) fn is_match(&self, subject: &str) -> Result<bool, TooMuchBacktracking> {
        match &self.engine {
            Engine::Plain(regex) => Ok(regex.is_match(subject)),
            Engine::Fancy(regex) => regex.is_match(subject).map_err(|_| TooMuchBacktracking),
        }
    }

    /// The first match that begins at `from` or later.
    ///
    /// # Errors
    /// The limit was reached.
    pub(crate) fn find(&self, subject: &str, from: usize) -> Result<Option<Spans>, TooMuchBacktracking> {
        match &self.engine {
            Engine::Plain(regex) => {
                let mut found = regex.capture_locations();
                if regex.captures_read_at(&mut found, subject, from).is_none() {
                    return Ok(None);
                }
                Ok(Some((0..found.len()).map(|group| found.get(group)).collect()))
            }
            Engine::Fancy(regex) => {
                let found = regex.captures_from_pos(subject, from).map_err(|_| TooMuchBacktracking)?;
                Ok(found.map(|found| {
                    (0..found.len())
                        .map(|group| found.get(group).map(|part| (part.start(), part.end())))
                        .collect()
                }))
            }
        }
    }
}

/// The engines draw pictures of what they refuse; the last line says it.
fn first_line(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let said = text.lines().last().unwrap_or_default().trim();
    said.strip_prefix("error: ").unwrap_or(said).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_too_much_backtracking_is_told_and_not_matched() {
        let pattern = Pattern::compile(r"^(?:(?:a|aa)(?!x))+c$", false).unwrap();
        assert_eq!(pattern.is_match(&format!("{}b\n", "a".repeat(64))), Err(TooMuchBacktracking));
    }

    #[test]
    fn both_engines_tell_the_same_groups() {
        for text in [r"b(?P<x>c)?(d)", r"b(?P<x>c)?(d)(?!x)"] {
            let pattern = Pattern::compile(text, false).unwrap();
            assert_eq!(
                pattern.find("abd\n", 0).unwrap().unwrap(),
                [Some((1, 3)), None, Some((2, 3))],
                "{text}"
            );
        }
    }
}
