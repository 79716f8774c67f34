//! Into which patterns a client could write somebody else's address. Reads trees; must not know
//! what the log looks like, so it may warn of what is harmless there.

use std::fmt;

use super::emit::begins;
use super::syntax::{Item, Node, Tree, parse};
use crate::ban::FilterText;

/// One pattern that a client may be able to forge a match of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgeable {
    /// Number of the failregex, from 1.
    pub pattern: usize,
    /// What makes it so.
    pub why: Weakness,
}

/// Why a pattern can be forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// It does not begin with `^`: what a client sends may look like the line's beginning.
    NotAnchored,
    /// Text of any kind stands before the host, and the host is not bound to the line's end.
    TextBefore,
}

impl fmt::Display for Forgeable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Weakness::NotAnchored => {
                "does not begin with `^`: a client that gets its own text logged can name any host; begin it with `^`"
            }
            Weakness::TextBefore => {
                "has free text before its host: a client that gets its own text logged there can name any host; \
                 write what may stand there instead of `.*`, or end the pattern with `<HOST>$`"
            }
        };
        write!(f, "failregex {}: {why}", self.pattern)
    }
}

/// One entry a pattern at most. Patterns that cannot be read are left to the compiler.
pub(super) fn forgeable(text: &FilterText) -> Vec<Forgeable> {
    let prefix = text.prefregex.as_deref().and_then(|pattern| parse(pattern).ok());
    let mut found = Vec::new();
    for (index, pattern) in text.failregex.iter().enumerate() {
        let Ok(tree) = parse(pattern) else { continue };
        if let Some(why) = weakness(&tree, prefix.as_ref()) {
            found.push(Forgeable { pattern: index + 1, why });
        }
    }
    found
}

fn weakness(tree: &Tree, prefix: Option<&Tree>) -> Option<Weakness> {
    let anchored = |tree: &Tree| begins(&tree.root);
    if !anchored(tree) || prefix.is_some_and(|prefix| !anchored(prefix)) {
        return Some(Weakness::NotAnchored);
    }
    let mut walk = Walk::default();
    if let Some(prefix) = prefix {
        walk.node(&prefix.root);
        // What stands before the content is the logger's; only a host in it has to be bound.
        walk.free &= walk.host;
        walk.ended = false;
    }
    walk.node(&tree.root);
    let bound = walk.ended && !walk.free_after;
    (walk.free_before && !bound).then_some(Weakness::TextBefore)
}

#[derive(Default)]
struct Walk {
    host: bool,
    free: bool,
    free_before: bool,
    free_after: bool,
    ended: bool,
}

impl Walk {
    fn node(&mut self, node: &Node) {
        match node {
            // The content is looked at by itself.
            Node::Capture { name: Some(name), .. } if name == "content" => {}
            Node::Host(_) => {
                self.free_before |= self.free;
                self.host = true;
                self.free_after = false;
            }
            Node::End | Node::TextEnd => self.ended = true,
            Node::Repeat { node, max, .. } if max.is_none_or(|max| max > 8) && anything(node) => {
                self.free = true;
                self.free_after |= self.host;
            }
            Node::Concat(parts) | Node::Alternation(parts) => parts.iter().for_each(|part| self.node(part)),
            Node::Flagged(_, node)
            | Node::Capture { node, .. }
            | Node::Repeat { node, .. }
            | Node::Atomic(node) => self.node(node),
            Node::Condition { yes, no, .. } => {
                self.node(yes);
                self.node(no);
            }
            _ => {}
        }
    }
}

/// It may be a blank or a letter: whole sentences fit in.
fn anything(node: &Node) -> bool {
    match node {
        Node::Dot => true,
        Node::Class { negated, items } => {
            let holds = |char: char| {
                items.iter().any(|item| match item {
                    Item::Range(low, high) => (*low..=*high).contains(&char),
                    Item::Perl('s') => char == ' ',
                    Item::Perl('w') => char != ' ',
                    Item::Perl('S' | 'D') => char != ' ' || matches!(item, Item::Perl('D')),
                    Item::Perl('W') => char == ' ',
                    Item::Perl(_) => false,
                })
            };
            (holds(' ') != *negated) && (holds('a') != *negated)
        }
        Node::Flagged(_, node) | Node::Capture { node, .. } | Node::Repeat { node, .. } => anything(node),
        // `(?:(?! from ).)*` ends where what follows it begins.
        Node::Concat(parts) => {
            !matches!(parts.first(), Some(Node::Look { negative: true, .. })) && parts.iter().any(anything)
        }
        Node::Alternation(parts) => parts.iter().any(anything),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(prefix: Option<&str>, pattern: &str) -> Option<Weakness> {
        let failregex = vec![pattern.to_owned()];
        let text = FilterText { prefregex: prefix.map(str::to_owned), failregex, ..FilterText::default() };
        forgeable(&text).first().map(|found| found.why)
    }

    #[test]
    fn patterns_that_a_client_could_forge_are_told() {
        assert_eq!(why(None, "login failed for .* from <HOST>"), Some(Weakness::NotAnchored));
        assert_eq!(why(None, "^login failed for .* from <HOST>"), Some(Weakness::TextBefore));
        assert_eq!(why(None, r#"^"[^"]*" <HOST> -"#), Some(Weakness::TextBefore));
        assert_eq!(why(None, "^a <HOST>|b"), Some(Weakness::NotAnchored));
        assert_eq!(why(Some("sshd: <F-CONTENT>.+</F-CONTENT>$"), "^<HOST>"), Some(Weakness::NotAnchored));
    }

    #[test]
    fn patterns_that_begin_with_the_host_or_end_with_it_are_not() {
        assert_eq!(why(None, r#"^<HOST> \S+ \S+ \[\] "GET .*$"#), None);
        assert_eq!(why(None, "^login failed for .* from <HOST>$"), None);
        assert_eq!(
            why(Some(r"^<\S+> (?:<[^.]+>)?s: <F-CONTENT>.+</F-CONTENT>$"), "^refused from <HOST>"),
            None
        );
        assert_eq!(why(None, "^Failed for (?:(?! from ).)* from <HOST> port"), None);
        assert_eq!(why(Some(r"^\S+ sshd: <F-CONTENT>.+</F-CONTENT>$"), r"^failed from <HOST>\s*$"), None);
    }
}
