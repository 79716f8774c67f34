//! The last lines of a source, for filters whose offences span several (`maxlines`, `<SKIPLINES>`).
//! Knows which lines a match took; must not know what it means.

use std::collections::VecDeque;

use super::pattern::{Pattern, Spans};

/// Bytes that are kept for one filter; the oldest lines go first.
const MOST_BYTES: usize = 1 << 20;

pub(crate) struct Window {
    lines: VecDeque<String>,
    most: usize,
}

impl Window {
    pub(crate) fn new(most: usize) -> Self {
        Self { lines: VecDeque::new(), most }
    }

    pub(crate) fn push(&mut self, line: &str) {
        self.lines.push_back(line.to_owned());
        let mut bytes: usize = self.lines.iter().map(String::len).sum();
        while self.lines.len() > self.most || (bytes > MOST_BYTES && self.lines.len() > 1) {
            bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    /// All lines, each ending with a line feed.
    pub(crate) fn text(&self, into: &mut String) {
        into.clear();
        self.lines.iter().for_each(|line| into.push_str(line));
    }

    /// Takes away the lines of a match in [`Self::text`], but not those that it skipped, and says what they were.
    pub(crate) fn take(&mut self, text: &str, pattern: &Pattern, spans: &Spans) -> String {
        let Some((start, end)) = spans.first().copied().flatten() else { return String::new() };
        let skipped: Vec<(usize, usize)> = pattern
            .names()
            .iter()
            .zip(spans)
            .filter(|(name, _)| name.as_deref().is_some_and(|name| name.starts_with("skiplines")))
            .filter_map(|(_, span)| *span)
            .collect();
        // A match that begins with a line feed begins on the line behind it.
        let start = if text.as_bytes().get(start) == Some(&b'\n') { start + 1 } else { start };
        let mut taken = String::new();
        let mut at = 0;
        self.lines.retain(|line| {
            let (from, to) = (at, at + line.len());
            at = to;
            let within = to > start && from < end.max(start + 1);
            let skipped = skipped.iter().any(|(first, last)| from >= *first && to <= *last);
            if within && !skipped {
                taken.push_str(line);
            }
            !within || skipped
        });
        taken
    }
}
