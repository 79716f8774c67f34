//! A pattern's tree → text for Rust's engines: exact for `regex`, exact for `fancy-regex`, or a
//! regular text that matches at least as much, for the gate. Must not know what is done with it.

use std::fmt::Write as _;

use super::syntax::{Item, Node};

/// For which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// Exact, with groups; regular trees only.
    Regex,
    /// Exact, with groups.
    Fancy,
    /// Regular, without groups; matches wherever the exact one does, and little else. Hosts and
    /// characters outside of ASCII are taken roughly, so that the automaton of all filters is small.
    Gate,
}

/// Whether `regex` can match it exactly: nothing looks around, refers back or forbids backtracking.
pub(crate) fn is_regular(node: &Node) -> bool {
    match node {
        Node::Look { .. } | Node::Back(_) | Node::Condition { .. } | Node::Atomic(_) => false,
        Node::Repeat { possessive: true, .. } => false,
        Node::Concat(parts) | Node::Alternation(parts) => parts.iter().all(is_regular),
        Node::Flagged(_, node)
        | Node::Capture { node, .. }
        | Node::Repeat { node, .. }
        | Node::Host(node) => is_regular(node),
        _ => true,
    }
}

/// The text for an engine. `^` and `$` are Python's for a subject that ends with its only line feed.
pub(crate) fn emit(node: &Node, engine: For) -> String {
    let mut writer = Writer { out: String::with_capacity(256), engine, place: Place::Alone };
    writer.node(node);
    writer.out
}

/// The gate of a prefix together with what its content must match: one text that is passed where the
/// prefix matches and one of `inner` may match what follows. `None`: the prefix alone has to do, as it
/// need not hand on any content.
pub(crate) fn joined_gate(prefix: &Node, inner: &[&Node]) -> Option<String> {
    if !hands_on(prefix) {
        return None;
    }
    let mut content = Writer { out: String::with_capacity(1024), engine: For::Gate, place: Place::Inside };
    for (number, node) in inner.iter().enumerate() {
        content.put(if number > 0 { "|" } else { "" });
        // What need not begin where the content does may begin anywhere in it.
        content.put(if begins(node) { "(?:" } else { "(?s:.*)(?:" });
        content.node(node);
        content.put(")");
    }
    let joined = format!("(?:{})(?s:.*)", content.out);
    let mut writer =
        Writer { out: String::with_capacity(1024), engine: For::Gate, place: Place::Around(joined) };
    writer.node(prefix);
    Some(writer.out)
}

/// Every match has a `<F-CONTENT>` that is not empty.
fn hands_on(node: &Node) -> bool {
    match node {
        Node::Capture { name: Some(name), node, .. } if name == "content" => {
            matches!(node.as_ref(), Node::Repeat { min: 1.., .. })
        }
        Node::Capture { node, .. } | Node::Flagged(_, node) => hands_on(node),
        Node::Concat(parts) => parts.iter().any(hands_on),
        _ => false,
    }
}

/// Every match begins where the subject does.
pub(crate) fn begins(node: &Node) -> bool {
    match node {
        Node::Start | Node::TextStart => true,
        Node::Concat(parts) => {
            let first =
                parts.iter().find(|part| !matches!(part, Node::Flags(_) | Node::Empty | Node::Look { .. }));
            first.is_some_and(begins)
        }
        Node::Alternation(branches) => branches.iter().all(begins),
        Node::Flagged(_, node) | Node::Capture { node, .. } | Node::Host(node) | Node::Atomic(node) => {
            begins(node)
        }
        _ => false,
    }
}

struct Writer {
    out: String,
    engine: For,
    place: Place,
}

/// Which part of a gate is written.
enum Place {
    /// All of it.
    Alone,
    /// What a content must match: its bounds are somewhere within the line.
    Inside,
    /// A prefix, and what stands for its content.
    Around(String),
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn wrapped(&mut self, open: &str, node: &Node) {
        self.put(open);
        self.node(node);
        self.out.push(')');
    }

    fn node(&mut self, node: &Node) {
        let gate = self.engine == For::Gate;
        match node {
            Node::Start | Node::End | Node::TextStart | Node::TextEnd
                if matches!(self.place, Place::Inside) =>
            {
                self.put("(?:)");
            }
            Node::Capture { name: Some(name), .. }
                if name == "content" && matches!(self.place, Place::Around(_)) =>
            {
                if let Place::Around(content) = &self.place {
                    self.out.push_str(content);
                }
            }
            Node::Empty => self.put("(?:)"),
            Node::Literal(char) => self.literal(*char),
            Node::Dot => self.out.push('.'),
            Node::Class { negated, items } => self.class(*negated, items),
            Node::Start => self.out.push('^'),
            Node::End => self.put("(?m:$)"),
            Node::TextStart => self.put(r"\A"),
            Node::TextEnd => self.put(r"\z"),
            // Unicode's word boundaries are what a lazy automaton cannot do; less is asked here.
            Node::WordBoundary { .. } | Node::NotInWord if gate => self.put("(?:)"),
            Node::WordBoundary { negated: false } => self.put(r"\b"),
            Node::WordBoundary { negated: true } => self.put(r"\B"),
            Node::NotInWord if self.engine == For::Fancy => self.put(r"(?=^|\b|\W)"),
            Node::NotInWord => self.put(r"(?:\b{start-half}|\b{end-half})"),
            Node::Flags(flags) => {
                let _ = write!(self.out, "(?{flags})");
            }
            Node::Flagged(flags, inner) => self.wrapped(&format!("(?{flags}:"), inner),
            Node::Capture { node, .. } if gate => self.wrapped("(?:", node),
            Node::Capture { name: Some(name), node, .. } => self.wrapped(&format!("(?P<{name}>"), node),
            Node::Capture { name: None, node, .. } => self.wrapped("(", node),
            Node::Concat(parts) => parts.iter().for_each(|part| match part {
                Node::Alternation(_) => self.wrapped("(?:", part),
                part => self.node(part),
            }),
            Node::Alternation(branches) => {
                for (number, branch) in branches.iter().enumerate() {
                    if number > 0 {
                        self.out.push('|');
                    }
                    self.node(branch);
                }
            }
            Node::Repeat { node, min, max, lazy, possessive } => {
                self.repeat(node, *min, *max, *lazy, *possessive);
            }
            Node::Look { .. } if gate => self.put("(?:)"),
            Node::Look { behind, negative, node } => {
                let mark = ["(?=", "(?!", "(?<=", "(?<!"][usize::from(*behind) * 2 + usize::from(*negative)];
                self.wrapped(mark, node);
            }
            Node::Back(_) if gate => self.put("(?s:.*)"),
            Node::Back(group) => {
                let _ = write!(self.out, r"(?:\{group})");
            }
            Node::Condition { yes, no, .. } if gate => {
                self.put("(?:");
                self.node(yes);
                self.out.push('|');
                self.node(no);
                self.out.push(')');
            }
            Node::Condition { group, yes, no } => {
                let _ = write!(self.out, "(?({group})");
                self.wrapped("(?:", yes);
                self.out.push('|');
                self.wrapped("(?:", no);
                self.out.push(')');
            }
            Node::Atomic(node) => self.wrapped(if gate { "(?:" } else { "(?>" }, node),
            // No host holds any of these; the automaton of many patterns stays small.
            Node::Host(_) if gate => self.put(r#"[^\t-\r\x1c-\x20"'()<>,;=|{}]+"#),
            Node::Host(node) => self.wrapped("(?:", node),
        }
    }

    fn repeat(&mut self, node: &Node, min: u32, max: Option<u32>, lazy: bool, possessive: bool) {
        self.wrapped("(?:", node);
        match (min, max) {
            (0, None) => self.out.push('*'),
            (1, None) => self.out.push('+'),
            (0, Some(1)) => self.out.push('?'),
            (min, None) => {
                let _ = write!(self.out, "{{{min},}}");
            }
            (min, Some(max)) => {
                let _ = write!(self.out, "{{{min},{max}}}");
            }
        }
        if lazy {
            self.out.push('?');
        } else if possessive && self.engine == For::Fancy {
            self.out.push('+');
        }
    }

    fn literal(&mut self, char: char) {
        match char {
            '\n' => self.put(r"\n"),
            char if char.is_ascii_alphanumeric() || char == ' ' || !char.is_ascii() => self.out.push(char),
            char => self.hex(char),
        }
    }

    /// Nothing that either engine could take for syntax.
    fn hex(&mut self, char: char) {
        let _ = write!(self.out, r"\x{:02X}", u32::from(char) & 0x7f);
    }

    fn class(&mut self, negated: bool, items: &[Item]) {
        self.put(if negated { "[^" } else { "[" });
        for item in items {
            match item {
                Item::Range(low, high) => {
                    self.literal(*low);
                    if low != high {
                        self.out.push('-');
                        self.literal(*high);
                    }
                }
                // Of a negated class the gate must leave out less, of any other it must let in more.
                Item::Perl(class) if self.engine == For::Gate => self.put(roughly(*class, !negated)),
                Item::Perl('s') => self.put(r"\s\x1C-\x1F"),
                Item::Perl('S') => self.put(r"[^\s\x1C-\x1F]"),
                Item::Perl(class) => {
                    let _ = write!(self.out, r"\{class}");
                }
            }
        }
        self.out.push(']');
    }
}

/// Python's classes by their ASCII part; all other characters are in (`more`) or out.
fn roughly(class: char, more: bool) -> &'static str {
    match (class, more) {
        ('d', true) => r"0-9\x{80}-\x{10FFFF}",
        ('d', false) => "0-9",
        ('w', true) => r"0-9A-Za-z_\x{80}-\x{10FFFF}",
        ('w', false) => "0-9A-Za-z_",
        ('s', true) => r"\t-\r\x1c-\x20\x{80}-\x{10FFFF}",
        ('s', false) => r"\t-\r\x1c-\x20",
        ('D', true) => "[^0-9]",
        ('D', false) => r"[^0-9\x{80}-\x{10FFFF}]",
        ('W', true) => "[^0-9A-Za-z_]",
        ('W', false) => r"[^0-9A-Za-z_\x{80}-\x{10FFFF}]",
        (_, true) => r"[^\t-\r\x1c-\x20]",
        (_, false) => r"[^\t-\r\x1c-\x20\x{80}-\x{10FFFF}]",
    }
}

#[cfg(test)]
mod tests {
    use super::super::syntax::parse;
    use super::*;
    use proptest::prelude::*;

    fn exact(pattern: &str) -> regex::Regex {
        regex::Regex::new(&emit(&parse(pattern).unwrap().root, For::Regex)).unwrap()
    }

    #[test]
    fn pythons_punctuation_means_the_same() {
        assert!(exact(r"^\<a\>\%\@\/$").is_match("<a>%@/\n"));
        assert!(exact(r"^[[]a[]x]&&~~[\]\[^-]$").is_match("[a]&&~~-\n"));
        assert!(exact("^a{b}{,2}$").is_match("a{b}}\n"));
        assert!(exact("(?x) ^ a b # words\n c $").is_match("abc\n"));
        assert!(exact(r"^\x41\101\0$").is_match("AA\0\n"));
        assert!(!exact("a$").is_match("ab\n"));
    }

    #[test]
    fn irregular_patterns_run_on_the_other_engine() {
        let irregular = |pattern: &str, line: &str| {
            let tree = parse(pattern).unwrap();
            assert!(!is_regular(&tree.root), "{pattern}");
            fancy_regex::Regex::new(&emit(&tree.root, For::Fancy)).unwrap().is_match(line).unwrap()
        };
        assert!(irregular(r"^(?P<q>['x])a(?P=q)$", "'a'\n"));
        assert!(!irregular(r"^(?P<q>['x])a(?P=q)$", "'ax\n"));
        assert!(irregular(r"^(?P<q>')?a(?(q)'|-)$", "a-\n"));
        assert!(!irregular(r"^(?P<q>')?a(?(q)'|-)$", "'a-\n"));
        assert!(irregular(r"^(?!b)a(?<=a)(?<!b)b$", "ab\n"));
        assert!(!irregular(r"^a++ab$", "aaab\n"));
        assert!(!irregular(r"^(?>a|ab)c$", "abc\n"));
    }

    proptest! {
        #[test]
        fn the_gate_lets_through_whatever_matches(line in "[ a-cé\u{2003}:.1\"-]{0,24}") {
            for pattern in [
                r"^<HOST> [^\s:]+\W", r"\d\s\w*", r#"^[^"]*"\S+$"#, r"[^\W:]\D\b", r"(?i)A[^\d]*C",
                r"^(?:<ADDR>|-) \s?a", r"[\S:]+é", r"^(?!a)<DNS>:\w",
            ] {
                let tree = parse(pattern).unwrap();
                let matches = fancy_regex::Regex::new(&emit(&tree.root, For::Fancy)).unwrap()
                    .is_match(&format!("{line}\n")).unwrap();
                let passes = regex::Regex::new(&emit(&tree.root, For::Gate)).unwrap()
                    .is_match(&format!("{line}\n"));
                prop_assert!(passes || !matches, "{pattern} matches {line:?} behind the gate's back");
            }
        }
    }
}
