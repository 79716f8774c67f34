//! fail2ban's patterns as a tree: Python's regular expressions with tags such as `<HOST>`.
//! Knows Python's syntax (the documentation of its module `re`) and fail2ban's tags (jail.conf(5));
//! must not know how they are matched. It exists because Python's `{`, `[[]`, `\<`, `\Z`, `$` and
//! verbose mode mean something else to Rust's engines, and because the cheap gate is made from it.

/// No pattern is longer: one of fail2ban's longest has 4 KiB.
const LONGEST: usize = 64 * 1024;
/// Groups within groups; no filter comes near, and recursion stays bounded.
const DEEPEST: usize = 64;

/// IPv4 as fail2ban reads it: digits and dots; whether it is an address is seen later.
const IP4: &str = r"(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})";
/// IPv6. Each repeated part ends with a colon, so the last one may be a colon without looking behind.
const IP6: &str = r"(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|:))";
const DNS: &str = r"(?P<dns>[\w\-.^_]*\w)";
const CIDR: &str = r"(?P<cidr>\d+)";

/// Where a pattern is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Characters before the fault.
    pub(crate) at: usize,
    pub(crate) what: String,
}

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

    fn class(&mut self) -> Result<Node, Wrong> {
        let opened = self.at;
        self.at += 1;
        let negated = self.take("^");
        let mut items = Vec::new();
        loop {
            let Some(char) = self.peek() else {
                return Err(Wrong {
                    at: opened,
                    what: r"this `[` is never closed; write `\[` for the character".into(),
                });
            };
            if char == ']' && !items.is_empty() {
                self.at += 1;
                return Ok(Node::Class { negated, items });
            }
            let first = self.class_item(char)?;
            let ranged =
                self.peek() == Some('-') && self.text.get(self.at + 1).is_some_and(|next| *next != ']');
            let Item::Range(low, _) = first else {
                items.push(first);
                continue;
            };
            if !ranged {
                items.push(first);
                continue;
            }
            self.at += 1;
            let next = self.peek().unwrap_or(']');
            match self.class_item(next)? {
                Item::Range(high, _) if low <= high => items.push(Item::Range(low, high)),
                _ => {
                    return Err(self.wrong(r"this range ends before it begins; write `\-` for the character"));
                }
            }
        }
    }

    fn class_item(&mut self, char: char) -> Result<Item, Wrong> {
        if char != '\\' {
            self.at += 1;
            return Ok(Item::Range(char, char));
        }
        match self.text.get(self.at + 1).copied() {
            Some('b') => {
                self.at += 2;
                Ok(Item::Range('\u{8}', '\u{8}'))
            }
            _ => match self.escape()? {
                Node::Literal(char) => Ok(Item::Range(char, char)),
                Node::Class { items, negated: false } => {
                    items.into_iter().next().ok_or_else(|| self.wrong("this escape is empty"))
                }
                _ => Err(self.wrong("this escape has no meaning between `[` and `]`")),
            },
        }
    }

    fn escape(&mut self) -> Result<Node, Wrong> {
        let Some(char) = self.text.get(self.at + 1).copied() else {
            return Err(self.wrong(r"the pattern ends with `\`; write `\\` for the character"));
        };
        self.at += 2;
        Ok(match char {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                Node::Class { negated: false, items: vec![Item::Perl(char)] }
            }
            'b' => Node::WordBoundary { negated: false },
            'B' => Node::WordBoundary { negated: true },
            'A' => Node::TextStart,
            'Z' => Node::TextEnd,
            'n' => Node::Literal('\n'),
            'r' => Node::Literal('\r'),
            't' => Node::Literal('\t'),
            'f' => Node::Literal('\u{c}'),
            'v' => Node::Literal('\u{b}'),
            'a' => Node::Literal('\u{7}'),
            'x' => self.hex(2)?,
            'u' => self.hex(4)?,
            'U' => self.hex(8)?,
            '0' => self.octal(0),
            '1'..='9' => return self.reference(char),
            letter if letter.is_ascii_alphabetic() => {
                self.at -= 2;
                return Err(
                    self.wrong(format!(r"`\{letter}` has no meaning; write `{letter}` for the letter"))
                );
            }
            other => Node::Literal(other),
        })
    }

    fn reference(&mut self, first: char) -> Result<Node, Wrong> {
        let mut name = String::from(first);
        let octal =
            (0..2).all(|ahead| self.text.get(self.at + ahead).is_some_and(|char| ('0'..='7').contains(char)));
        if octal && first < '4' {
            return Ok(self.octal(first.to_digit(8).unwrap_or(0)));
        }
        if let Some(second) = self.peek().filter(char::is_ascii_digit) {
            name.push(second);
            self.at += 1;
        }
        Ok(Node::Back(self.known(&name)?))
    }

    fn octal(&mut self, start: u32) -> Node {
        let mut value = start;
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|char| char.to_digit(8)) else { break };
            value = value * 8 + digit;
            self.at += 1;
        }
        Node::Literal(char::from_u32(value).unwrap_or('\0'))
    }

    fn hex(&mut self, digits: usize) -> Result<Node, Wrong> {
        let text: String = self.text.iter().skip(self.at).take(digits).collect();
        let whole = text.len() == digits && text.chars().all(|char| char.is_ascii_hexdigit());
        let char = u32::from_str_radix(&text, 16).ok().filter(|_| whole).and_then(char::from_u32);
        let Some(char) = char else {
            return Err(self.wrong(format!("{digits} hexadecimal digits of a character belong here")));
        };
        self.at += digits;
        Ok(Node::Literal(char))
    }

    /// A tag of fail2ban's at this `<`.
    fn tag(&mut self) -> Result<Tag, Wrong> {
        let opened = self.at;
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(end) = rest.iter().take(64).position(|char| *char == '>') else { return Ok(Tag::None) };
        let name: String = rest.get(1..end).unwrap_or_default().iter().collect();
        let known = match name.as_str() {
            "HOST" => format!(r"(?:\[?(?:{IP4}|{IP6})\]?|{DNS})"),
            "ADDR" | "F-ADDR/" => format!(r"\[?(?:{IP4}|{IP6})\]?"),
            "SUBNET" | "F-SUBNET/" => format!(r"\[?(?:{IP4}|{IP6})(?:/{CIDR})?\]?"),
            "IP4" | "F-IP4/" => IP4.to_owned(),
            "IP6" | "F-IP6/" => IP6.to_owned(),
            "DNS" | "F-DNS/" => DNS.to_owned(),
            "CIDR" | "F-CIDR/" => CIDR.to_owned(),
            "F-ID/" => r"(?P<fid>\S+)".to_owned(),
            "F-PORT/" => r"(?P<fport>\w+)".to_owned(),
            "SKIPLINES" => {
                self.skips += 1;
                format!(r"\n(?P<skiplines{}>(?:(?:.*\n)*?))", self.skips - 1)
            }
            _ => return self.custom_tag(&name, end, opened),
        };
        self.at += end + 1;
        let node = self.expanded(&known, opened)?;
        Ok(Tag::Node(match name.trim_end_matches('/').trim_start_matches("F-") {
            "CIDR" | "PORT" | "SKIPLINES" => Node::Flagged(String::new(), Box::new(node)),
            _ => Node::Host(Box::new(node)),
        }))
    }

    /// Reads what a tag stands for, with this pattern's counting of groups.
    fn expanded(&mut self, meaning: &str, opened: usize) -> Result<Node, Wrong> {
        let outside = std::mem::replace(&mut self.text, meaning.chars().collect());
        let (at, verbose) = (std::mem::take(&mut self.at), std::mem::take(&mut self.verbose));
        let node = self.alternation();
        self.text = outside;
        (self.at, self.verbose) = (at, verbose);
        node.map_err(|wrong| Wrong { at: opened, what: wrong.what })
    }

    /// `<F-NAME>` opens a named group and `</F-NAME>` closes it.
    fn custom_tag(&mut self, name: &str, end: usize, opened: usize) -> Result<Tag, Wrong> {
        let (closing, custom) = match name.strip_prefix('/') {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let Some(custom) = custom.strip_prefix("F-").filter(|custom| {
            let of_tag =
                |char: char| char.is_ascii_uppercase() || char.is_ascii_digit() || "_-".contains(char);
            !custom.is_empty() && custom.chars().all(of_tag)
        }) else {
            return Ok(Tag::None);
        };
        if closing {
            return Ok(if self.tags.iter().any(|open| open == custom) { Tag::Close } else { Tag::None });
        }
        self.at += end + 1;
        self.tags.push(custom.to_owned());
        let group = match custom {
            "ID" => "fid".to_owned(),
            "PORT" => "fport".to_owned(),
            other => other.to_lowercase().replace('-', "_"),
        };
        let subject = matches!(group.as_str(), "fid" | "ip4" | "ip6" | "dns");
        let node = self.capture(Some(group), opened, Self::tag_closed)?;
        Ok(Tag::Node(if subject { Node::Host(Box::new(node)) } else { node }))
    }

    /// Any closing tag or bracket ends the group, as both stand for `)` to fail2ban.
    fn tag_closed(&mut self, opened: usize) -> Result<(), Wrong> {
        if self.take(")") {
            return Ok(());
        }
        if self.sees("</F-")
            && let Some(end) = self.text.iter().skip(self.at).position(|char| *char == '>')
        {
            self.at += end + 1;
            return Ok(());
        }
        Err(Wrong {
            at: opened,
            what: "this tag is never closed; write `</F-…>` behind what it holds".into(),
        })
    }
}

enum Tag {
    /// The group that is open ends here.
    Close,
    Node(Node),
    /// It is no tag.
    None,
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
