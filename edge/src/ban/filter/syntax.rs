//! fail2ban's patterns as a tree: Python's regular expressions with tags such as `<HOST>`.
//! Knows Python's syntax (the documentation of its module `re`) and fail2ban's tags (jail.conf(5));
//! must not know how they are matched. It exists because Python's `{`, `[[]`, `\<`, `\Z`, `$` and
//! verbose mode mean something else to Rust's engines, and because the cheap gate is made from it.

mod class;
mod tag;
mod tree;

pub(crate) use tree::{Item, Node, Tree};

use tag::Tag;

/// No pattern is longer: one of fail2ban's longest has 4 KiB.
const LONGEST: usize = 64 * 1024;
/// Groups within groups; no filter comes near, and recursion stays bounded.
const DEEPEST: usize = 64;

/// Where a pattern is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Characters before the fault.
    pub(crate) at: usize,
    pub(crate) what: String,
}

/// Reads a pattern of Python's, with fail2ban's tags.
///
/// # Errors
/// What Python would refuse, and what is longer or deeper than any filter is.
pub(crate) fn parse(pattern: &str) -> Result<Tree, Wrong> {
    if pattern.len() > LONGEST {
        return Err(Wrong { at: LONGEST, what: "it is longer than 64 KiB; split it into several".into() });
    }
    let mut reader = Reader {
        text: pattern.chars().collect(),
        at: 0,
        depth: 0,
        verbose: false,
        names: vec![None],
        tags: Vec::new(),
        skips: 0,
    };
    let root = reader.alternation()?;
    if reader.at < reader.text.len() {
        return Err(reader.wrong(r"this `)` closes nothing; write `\)` for the character"));
    }
    Ok(Tree { root, names: reader.names })
}

struct Reader {
    text: Vec<char>,
    at: usize,
    depth: usize,
    /// `(?x)`: blanks and comments are left out.
    verbose: bool,
    names: Vec<Option<String>>,
    /// `<F-…>` that were opened: without one of these, a closing tag is plain text.
    tags: Vec<String>,
    skips: usize,
}

impl Reader {
    fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong { at: self.at, what: what.into() }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn sees(&self, what: &str) -> bool {
        what.chars().enumerate().all(|(ahead, char)| self.text.get(self.at + ahead) == Some(&char))
    }

    fn take(&mut self, what: &str) -> bool {
        let sees = self.sees(what);
        if sees {
            self.at += what.chars().count();
        }
        sees
    }

    fn alternation(&mut self) -> Result<Node, Wrong> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.wrong("more than 64 groups lie within each other; make it flatter"));
        }
        let verbose = self.verbose;
        let mut branches = vec![self.concat()?];
        while self.take("|") {
            branches.push(self.concat()?);
        }
        self.depth -= 1;
        if self.depth > 0 {
            self.verbose = verbose;
        }
        Ok(if branches.len() == 1 { branches.remove(0) } else { Node::Alternation(branches) })
    }

    fn concat(&mut self) -> Result<Node, Wrong> {
        let mut parts = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                None | Some('|' | ')') => break,
                Some('<') => match self.tag()? {
                    Tag::Close => break,
                    Tag::Node(node) => parts.push(self.repeated(node)?),
                    Tag::None => {
                        self.at += 1;
                        parts.push(self.repeated(Node::Literal('<'))?);
                    }
                },
                Some(_) => {
                    let atom = self.atom()?;
                    parts.push(self.repeated(atom)?);
                }
            }
        }
        Ok(match parts.len() {
            0 => Node::Empty,
            1 => parts.remove(0),
            _ => Node::Concat(parts),
        })
    }

    fn skip_blanks(&mut self) {
        while self.verbose {
            match self.peek() {
                Some(blank) if blank.is_whitespace() => self.at += 1,
                Some('#') => {
                    while self.peek().is_some_and(|char| char != '\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
    }

    fn atom(&mut self) -> Result<Node, Wrong> {
        let Some(char) = self.peek() else { return Ok(Node::Empty) };
        match char {
            '(' => return self.group(),
            '[' => return self.class(),
            '\\' => return self.escape(),
            '*' | '+' | '?' => {
                return Err(
                    self.wrong(format!("`{char}` repeats nothing; write `\\{char}` for the character"))
                );
            }
            '{' if self.braces().is_some() => {
                return Err(self.wrong(r"`{` repeats nothing; write `\{` for the character"));
            }
            _ => {}
        }
        self.at += 1;
        Ok(match char {
            '.' => Node::Dot,
            '^' => Node::Start,
            '$' => Node::End,
            other => Node::Literal(other),
        })
    }

    /// The repetition after an atom, if there is one.
    fn repeated(&mut self, node: Node) -> Result<Node, Wrong> {
        self.skip_blanks();
        let (min, max) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => match self.braces() {
                Some((min, max, length)) => {
                    if max.is_some_and(|max| max < min) {
                        return Err(self.wrong("the least number of repetitions is above the greatest"));
                    }
                    self.at += length - 1;
                    (min, max)
                }
                None => return Ok(node),
            },
            _ => return Ok(node),
        };
        self.at += 1;
        let lazy = self.take("?");
        let possessive = !lazy && self.take("+");
        self.skip_blanks();
        if matches!(self.peek(), Some('*' | '+' | '?')) || self.braces().is_some() {
            return Err(self.wrong("this repeats a repetition; put `(?:…)` around the inner one"));
        }
        if matches!(node, Node::Flags(_)) {
            return Err(self.wrong("flags cannot be repeated"));
        }
        Ok(Node::Repeat { node: Box::new(node), min, max, lazy, possessive })
    }

    /// `{2}`, `{2,}`, `{,2}`, `{2,3}` at this place: least, most, length. Anything else is a character.
    fn braces(&self) -> Option<(u32, Option<u32>, usize)> {
        let rest = self.text.get(self.at..)?;
        if rest.first() != Some(&'{') {
            return None;
        }
        let end = rest.iter().take(24).position(|char| *char == '}')?;
        let inside: String = rest.get(1..end)?.iter().collect();
        let number = |text: &str| match text {
            text if text.chars().all(|char| char.is_ascii_digit()) => text.parse::<u32>().ok(),
            _ => None,
        };
        let (min, max) = match inside.split_once(',') {
            None => {
                let exact = number(&inside)?;
                (exact, Some(exact))
            }
            Some((min, max)) => (
                if min.is_empty() { 0 } else { number(min)? },
                if max.is_empty() { None } else { Some(number(max)?) },
            ),
        };
        Some((min, max, end + 1))
    }

    fn group(&mut self) -> Result<Node, Wrong> {
        let opened = self.at;
        self.at += 1;
        if !self.take("?") {
            return self.capture(None, opened, Self::closed);
        }
        if self.take("#") {
            while self.peek().is_some_and(|char| char != ')') {
                self.at += 1;
            }
            return self.closed(opened).map(|()| Node::Empty);
        }
        for (mark, behind, negative) in
            [("=", false, false), ("!", false, true), ("<=", true, false), ("<!", true, true)]
        {
            if self.take(mark) {
                let node = self.inside(opened)?;
                return Ok(look(behind, negative, node));
            }
        }
        if self.take(":") {
            // `(?:…)` is a group of its own only where precedence asks for it: the writer sees to that.
            let inner = self.inside(opened)?;
            return Ok(Node::Flagged(String::new(), Box::new(inner)));
        }
        if self.take(">") {
            return Ok(Node::Atomic(Box::new(self.inside(opened)?)));
        }
        if self.take("P=") {
            let name = self.word(')')?;
            let group = self.known(&name)?;
            return Ok(Node::Back(group));
        }
        if self.take("P<") {
            let name = self.word('>')?;
            return self.capture(Some(name), opened, Self::closed);
        }
        if self.take("(") {
            return self.condition(opened);
        }
        self.flags(opened)
    }

    fn condition(&mut self, opened: usize) -> Result<Node, Wrong> {
        let name = self.word(')')?;
        let group = self.known(&name)?;
        Ok(match self.inside(opened)? {
            Node::Alternation(mut branches) if branches.len() == 2 => {
                let no = branches.pop().unwrap_or(Node::Empty);
                let yes = branches.pop().unwrap_or(Node::Empty);
                Node::Condition { group, yes: Box::new(yes), no: Box::new(no) }
            }
            Node::Alternation(_) => {
                return Err(self.wrong("a condition has two branches at most; put `(?:…)` around each"));
            }
            yes => Node::Condition { group, yes: Box::new(yes), no: Box::new(Node::Empty) },
        })
    }

    fn flags(&mut self, opened: usize) -> Result<Node, Wrong> {
        let (mut on, mut off, mut negative) = (String::new(), String::new(), false);
        let mut verbose = self.verbose;
        loop {
            match self.peek() {
                Some('-') if !negative => negative = true,
                Some('x') => verbose = !negative,
                Some(flag @ ('i' | 'm' | 's')) => {
                    if negative { &mut off } else { &mut on }.push(flag);
                }
                // Text is Unicode here, as it is in Python unless `a` says otherwise.
                Some('u' | 'a' | 'L') => {}
                Some(end @ (')' | ':')) => {
                    self.at += 1;
                    let flags = if off.is_empty() { on } else { format!("{on}-{off}") };
                    if end == ')' {
                        self.verbose = verbose;
                        return Ok(if flags.is_empty() { Node::Empty } else { Node::Flags(flags) });
                    }
                    let outside = std::mem::replace(&mut self.verbose, verbose);
                    let inner = self.inside(opened);
                    self.verbose = outside;
                    return Ok(Node::Flagged(flags, Box::new(inner?)));
                }
                _ => return Err(self.wrong("after `(?` stands none of `: = ! <= <! > P< P= #` nor a flag")),
            }
            self.at += 1;
        }
    }

    /// What stands between here and the group's end.
    fn inside(&mut self, opened: usize) -> Result<Node, Wrong> {
        let node = self.alternation()?;
        self.closed(opened)?;
        Ok(node)
    }

    fn closed(&mut self, opened: usize) -> Result<(), Wrong> {
        if self.take(")") {
            return Ok(());
        }
        Err(Wrong { at: opened, what: r"this `(` is never closed; write `\(` for the character".into() })
    }

    fn capture(
        &mut self,
        name: Option<String>,
        opened: usize,
        close: fn(&mut Self, usize) -> Result<(), Wrong>,
    ) -> Result<Node, Wrong> {
        if let Some(name) = &name
            && self.names.iter().flatten().any(|known| known == name)
        {
            let what = format!(
                "a second group is called `{name}`, as one <HOST> or tag stands here twice; keep one"
            );
            return Err(Wrong { at: opened, what });
        }
        let index = self.names.len();
        self.names.push(name.clone());
        let node = Box::new(self.alternation()?);
        close(self, opened)?;
        Ok(Node::Capture { index, name, node })
    }

    /// The name up to `end`, which is passed over.
    fn word(&mut self, end: char) -> Result<String, Wrong> {
        let start = self.at;
        while self.peek().is_some_and(|char| char == '_' || char.is_ascii_alphanumeric()) {
            self.at += 1;
        }
        if self.peek() != Some(end) || self.at == start {
            return Err(self.wrong(format!("a group's name of letters, digits and `_` ends with `{end}`")));
        }
        self.at += 1;
        Ok(self.text.get(start..self.at - 1).unwrap_or_default().iter().collect())
    }

    fn known(&self, name: &str) -> Result<usize, Wrong> {
        let by_number = name.parse::<usize>().ok().filter(|group| (1..self.names.len()).contains(group));
        by_number
            .or_else(|| self.names.iter().position(|known| known.as_deref() == Some(name)))
            .ok_or_else(|| self.wrong(format!("no group before this is called `{name}`")))
    }
}

/// The two ways in which date patterns say "not inside of a word" need no engine that looks around.
fn look(behind: bool, negative: bool, node: Node) -> Node {
    let word = |node: &Node| *node == Node::WordBoundary { negated: false };
    let blank = |node: &Node| matches!(node, Node::Class { items, .. } if *items == [Item::Perl('W')]);
    if let (false, false, Node::Alternation(branches)) = (behind, negative, &node)
        && let [first, second, third] = branches.as_slice()
        && ((*first == Node::Start && word(second) && blank(third))
            || (word(first) && blank(second) && *third == Node::End))
    {
        return Node::NotInWord;
    }
    Node::Look { behind, negative, node: Box::new(node) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(pattern: &str) -> (usize, String) {
        let wrong = parse(pattern).unwrap_err();
        (wrong.at, wrong.what)
    }

    #[test]
    fn faults_tell_their_place_in_characters() {
        assert_eq!(fault("é(a").0, 1);
        assert_eq!(fault("ab)").0, 2);
        assert_eq!(fault("a[b").0, 1);
        assert_eq!(fault("a**").0, 2);
        assert_eq!(fault(r"^a\y").0, 2);
        assert!(fault("<HOST> to <HOST>").1.contains("twice"));
        assert_eq!(fault("<HOST> to <HOST>").0, 10);
    }

    #[test]
    fn what_is_no_repetition_is_a_character() {
        assert_eq!(
            parse("a{b}").unwrap().root,
            Node::Concat(['a', '{', 'b', '}'].map(Node::Literal).to_vec())
        );
    }

    #[test]
    fn a_tag_that_nobody_opened_is_text() {
        assert_eq!(parse("</F-X>").unwrap().names.len(), 1);
        assert_eq!(parse("<host>").unwrap().names.len(), 1);
        assert!(parse("<F-ALT_USER_1>x</F-ALT_USER_1>").unwrap().has("alt_user_1"));
    }

    #[test]
    fn deep_groups_are_a_fault_and_no_overflow() {
        assert!(fault(&"(".repeat(5000)).1.contains("64 groups"));
    }
}
