//! fail2ban's tags: `<HOST>` and its kind stand for expressions, `<F-NAME>…</F-NAME>` for named groups.

use super::{Node, Reader, Wrong};

/// IPv4 as fail2ban reads it: digits and dots; whether it is an address is seen later.
const IP4: &str = r"(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})";
/// IPv6. Each repeated part ends with a colon, so the last one may be a colon without looking behind.
const IP6: &str = r"(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|:))";
const DNS: &str = r"(?P<dns>[\w\-.^_]*\w)";
const CIDR: &str = r"(?P<cidr>\d+)";

pub(super) enum Tag {
    /// The group that is open ends here.
    Close,
    Node(Node),
    /// It is no tag.
    None,
}

impl Reader {
    /// A tag of fail2ban's at this `<`.
    pub(super) fn tag(&mut self) -> Result<Tag, Wrong> {
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
