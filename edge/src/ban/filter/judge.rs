//! One filter's answer to one line, in fail2ban's order: prefregex, failregex by failregex,
//! ignoreregex, connection, subject. Must not know dates or other filters.

use std::time::Duration;

use super::groups::Groups;
use super::pattern::{Pattern, Spans, TooMuchBacktracking};
use super::{Figures, Filter, Hit};

/// Buffers that live as long as the set, so that no line is copied into new memory.
#[derive(Default)]
pub(crate) struct Scratch {
    content: String,
    lines: String,
}

impl Filter {
    /// The offence that `line` makes; it ends with its only line feed, and its date is cut out.
    pub(crate) fn judge(
        &mut self,
        line: &str,
        at: Option<Duration>,
        now: Duration,
        scratch: &mut Scratch,
        figures: &mut Figures,
    ) -> Option<Hit> {
        if let Some(window) = &mut self.window {
            window.push(line);
            window.text(&mut scratch.lines);
        }
        let lines = std::mem::take(&mut scratch.lines);
        let whole = if self.window.is_some() { lines.as_str() } else { line };
        let hit = self.judge_whole(whole, at, now, &mut scratch.content, figures);
        scratch.lines = lines;
        hit
    }

    fn judge_whole(
        &mut self,
        whole: &str,
        at: Option<Duration>,
        now: Duration,
        content: &mut String,
        figures: &mut Figures,
    ) -> Option<Hit> {
        // Few ignoreregex are asked first, of the whole line; many only where something matches.
        let first = !self.ignore.is_empty() && self.ignore.len() + 2 < self.fail.len();
        if first && self.ignores(whole, figures) {
            return None;
        }
        let mut groups = Groups::default();
        let mut subject = whole;
        let content_of_prefix = match &self.prefix {
            None => false,
            Some(prefix) => {
                let spans = counted(prefix.find(whole, 0), figures)?;
                groups = Groups::of(prefix, whole, &spans);
                let inner = groups.remove("content").filter(|inner| !inner.is_empty());
                if let Some(inner) = &inner {
                    content.clear();
                    content.push_str(inner);
                    content.push('\n');
                    subject = content.as_str();
                }
                inner.is_some()
            }
        };
        let (index, spans) = self.first_match(subject, figures)?;
        let pattern = self.fail.get(index)?;
        let taken = match &mut self.window {
            Some(window) if !content_of_prefix => Some(window.take(whole, pattern, &spans)),
            _ => None,
        };
        groups.overlay(Groups::of(pattern, subject, &spans), true);
        if !self.ignore.is_empty() && self.ignores(taken.as_deref().unwrap_or(subject), figures) {
            return None;
        }
        if let Some(id) = groups.value("mlfid").map(str::to_owned) {
            groups = self.connections.merge(&id, groups, now)?;
        } else if groups.says("nofail") {
            return None;
        }
        Some(Hit {
            subject: groups.subject()?,
            at,
            pattern: index,
            user: groups.value("user").map(str::to_owned),
            groups: groups.shown(),
        })
    }

    fn first_match(&self, subject: &str, figures: &mut Figures) -> Option<(usize, Spans)> {
        match &self.candidates {
            None => Some((0, counted(self.fail.first()?.find(subject, 0), figures)?)),
            Some(gate) => gate
                .matches(subject)
                .into_iter()
                .find_map(|index| Some((index, counted(self.fail.get(index)?.find(subject, 0), figures)?))),
        }
    }

    fn ignores(&self, subject: &str, figures: &mut Figures) -> bool {
        let mut matches = |pattern: &Pattern| match pattern.is_match(subject) {
            Ok(matches) => matches,
            Err(TooMuchBacktracking) => {
                figures.backtrack_limit += 1;
                false
            }
        };
        let ignores = self.ignore.iter().any(&mut matches);
        figures.ignored += u64::from(ignores);
        ignores
    }
}

fn counted(found: Result<Option<Spans>, TooMuchBacktracking>, figures: &mut Figures) -> Option<Spans> {
    found.unwrap_or_else(|TooMuchBacktracking| {
        figures.backtrack_limit += 1;
        None
    })
}
