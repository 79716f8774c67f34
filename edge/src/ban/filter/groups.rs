//! What a match says, by the names of its groups, and whom it is about. Knows fail2ban's names
//! (`ip4`, `fid`, `alt_user_1`); must not know patterns or lines.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Subject;
use super::pattern::{Pattern, Spans};

/// Names and what they hold; a group that took no part holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Groups(Vec<(Arc<str>, Option<String>)>);

impl Groups {
    /// The named groups of a match.
    pub(crate) fn of(pattern: &Pattern, subject: &str, spans: &Spans) -> Self {
        let mut groups = Self::default();
        for (name, span) in pattern.names().iter().zip(spans) {
            if let Some(name) = name {
                let text = span.and_then(|(start, end)| subject.get(start..end));
                groups.0.push((Arc::clone(name), text.map(str::to_owned)));
            }
        }
        groups.combine();
        groups
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.as_ref() == name).and_then(|(_, value)| value.as_deref())
    }

    /// Takes part and holds something.
    pub(crate) fn says(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| !value.is_empty())
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known.as_ref() == name)?;
        self.0.swap_remove(at).1
    }

    pub(crate) fn set(&mut self, name: &Arc<str>, value: Option<String>) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((Arc::clone(name), value)),
        }
    }

    /// `other` goes before; with `empty`, even where it holds nothing.
    pub(crate) fn overlay(&mut self, other: Self, empty: bool) {
        for (name, value) in other.0 {
            if empty || value.is_some() {
                self.set(&name, value);
            }
        }
    }

    /// What an operator may want to see: nothing of how the match was made.
    pub(crate) fn shown(&self) -> Vec<(String, String)> {
        const INNER: [&str; 8] = ["ip4", "ip6", "dns", "fid", "cidr", "user", "nofail", "content"];
        let shown = self.0.iter().filter(|(name, _)| {
            !INNER.contains(&name.as_ref()) && !name.starts_with("mlf") && !name.starts_with("skiplines")
        });
        shown.filter_map(|(name, value)| value.clone().map(|value| (name.to_string(), value))).collect()
    }

    /// `alt_user_1` stands in where `user` is empty; `tuple_id` is joined to `fid`.
    fn combine(&mut self) {
        let mut combined: Vec<(Arc<str>, bool, String)> = Vec::new();
        let mut named: Vec<&(Arc<str>, Option<String>)> = self
            .0
            .iter()
            .filter(|(name, _)| name.starts_with("alt_") || name.starts_with("tuple_"))
            .collect();
        named.sort();
        for (name, value) in named {
            let Some((kind, rest)) = name.split_once('_') else { continue };
            let base = match rest.rsplit_once('_') {
                Some((base, number)) if number.chars().all(|char| char.is_ascii_digit()) => base,
                _ => rest,
            };
            let base: Arc<str> = match base {
                "id" => "fid".into(),
                "port" => "fport".into(),
                other => other.into(),
            };
            if let Some(value) = value.clone().filter(|value| !value.is_empty()) {
                combined.push((base, kind == "tuple", value));
            }
        }
        for (base, joined, value) in combined {
            match self.value(&base) {
                Some(known) if joined => {
                    let both = format!("{known} {value}");
                    self.set(&base, Some(both));
                }
                Some(known) if !known.is_empty() => {}
                _ => self.set(&base, Some(value)),
            }
        }
    }

    /// Whom the match is about. What looks like an address and is none is an id: nobody is banned for it.
    pub(crate) fn subject(&self) -> Option<Subject> {
        let host = self.value("ip4").or_else(|| self.value("ip6"));
        if let Some(id) = self.value("fid")
            && host != Some(id)
        {
            return Some(addressed(id, None).unwrap_or_else(|| Subject::Id(id.to_owned())));
        }
        if let Some(text) = host {
            let subject = addressed(text, self.value("cidr"));
            return Some(subject.unwrap_or_else(|| Subject::Id(text.to_owned())));
        }
        let name = self.value("dns")?;
        Some(addressed(name, None).unwrap_or_else(|| Subject::Name(name.to_owned())))
    }
}

fn addressed(text: &str, prefix: Option<&str>) -> Option<Subject> {
    if let Some((address, bits)) = text.split_once('/') {
        return addressed(address, Some(bits));
    }
    let address = text.parse::<IpAddr>().ok()?.to_canonical();
    let Some(prefix) = prefix else { return Some(Subject::Address(address)) };
    let network = IpNet::new(address, prefix.parse().ok()?).ok()?;
    match network.prefix_len() == network.max_prefix_len() {
        true => Some(Subject::Address(address)),
        false => Some(Subject::Network(network.trunc())),
    }
}
