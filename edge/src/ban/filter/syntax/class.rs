//! Sets of characters and what begins with a backslash, as Python reads them.

use super::{Item, Node, Reader, Wrong};

impl Reader {
    pub(super) fn class(&mut self) -> Result<Node, Wrong> {
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

    pub(super) fn escape(&mut self) -> Result<Node, Wrong> {
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
}
