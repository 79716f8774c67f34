//! The tree of a pattern: what it is made of, without how it was written. Must not know any engine.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Range(char, char),
    /// `d`, `D`, `s`, `S`, `w` or `W`.
    Perl(char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Empty,
    Literal(char),
    /// Everything but a line feed.
    Dot,
    Class {
        negated: bool,
        items: Vec<Item>,
    },
    /// `^`
    Start,
    /// `$`
    End,
    /// `\A`
    TextStart,
    /// `\Z`
    TextEnd,
    /// `\b`; negated `\B`.
    WordBoundary {
        negated: bool,
    },
    /// Not between two word characters: what fail2ban's date patterns ask for at either end.
    NotInWord,
    /// Flags for what follows in this group.
    Flags(String),
    /// Flags for what it holds.
    Flagged(String, Box<Node>),
    Capture {
        index: usize,
        name: Option<String>,
        node: Box<Node>,
    },
    Concat(Vec<Node>),
    Alternation(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: u32,
        max: Option<u32>,
        lazy: bool,
        possessive: bool,
    },
    Look {
        behind: bool,
        negative: bool,
        node: Box<Node>,
    },
    Back(usize),
    Condition {
        group: usize,
        yes: Box<Node>,
        no: Box<Node>,
    },
    Atomic(Box<Node>),
    /// Whom it is about: what `<HOST>`, `<ADDR>` and the like stand for.
    Host(Box<Node>),
}

/// A tree and the names of its groups, by index; group 0 is the whole.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) root: Node,
    pub(crate) names: Vec<Option<String>>,
}

impl Tree {
    /// Whether one of the groups has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.iter().flatten().any(|known| known == name)
    }
}
