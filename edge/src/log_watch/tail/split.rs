//! Blocks of bytes → lines. Pure; knows neither files nor what lines mean. Hands slices of the
//! block out, so that no line is copied.

use memchr::{memchr, memchr_iter};

/// What must be remembered between two blocks of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Splitter {
    /// The next bytes belong to a line that is too long: they are skipped up to its end.
    pub(super) skipping: bool,
    /// Lines skipped because they were too long.
    pub(super) long_lines: u64,
}

impl Splitter {
    /// Hands out each complete line of `block` without its `\n` or `\r\n` and returns how many
    /// bytes are settled. What remains is the beginning of a line that is not complete: the next
    /// block begins with it. NULs in front of a line are the hole that a truncation leaves
    /// behind; they are skipped. A line longer than `max_line` bytes is skipped and counted.
    pub(super) fn split(&mut self, block: &[u8], max_line: usize, each: &mut dyn FnMut(&[u8])) -> usize {
        let mut start = 0;
        if self.skipping {
            let Some(end) = memchr(b'\n', block) else { return block.len() };
            start = end + 1;
            self.skipping = false;
        }
        let lines = &block[start..];
        let mut begin = 0;
        for end in memchr_iter(b'\n', lines) {
            self.hand_out(&lines[begin..end], max_line, each);
            begin = end + 1;
        }
        let rest = &lines[begin..];
        let nuls = rest.iter().take_while(|byte| **byte == 0).count();
        // One more than `max_line`, because the last byte may prove to be the `\r` of `\r\n`.
        if rest.len() - nuls > max_line + 1 {
            self.skipping = true;
            self.long_lines += 1;
            return block.len();
        }
        start + begin + nuls
    }

    fn hand_out(&mut self, line: &[u8], max_line: usize, each: &mut dyn FnMut(&[u8])) {
        let line = match line.first() {
            Some(0) => &line[line.iter().take_while(|byte| **byte == 0).count()..],
            _ => line,
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > max_line {
            self.long_lines += 1;
        } else {
            each(line);
        }
    }
}

/// Body of the fuzz target: however the bytes are cut into blocks, the lines are those of a
/// plain split at `\n`.
#[doc(hidden)]
pub fn fuzz_split(data: &[u8]) {
    let Some((sizes, text)) = data.split_first_chunk::<2>() else { return };
    let max_line = usize::from(sizes[0] % 32);
    let block = max_line + 2 + usize::from(sizes[1] % 64);
    let (mut splitter, mut offset, mut got) = (Splitter::default(), 0, Vec::new());
    loop {
        let end = text.len().min(offset + block);
        let settled =
            splitter.split(&text[offset..end], max_line, &mut |line: &[u8]| got.push(line.to_vec()));
        assert!(settled <= end - offset, "settles only what it was given");
        offset += settled;
        if end == text.len() {
            break;
        }
        assert!(settled > 0, "a full block always moves on");
    }
    let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let mut wanted = Vec::new();
    for line in text[..complete].split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = &line[line.iter().take_while(|byte| **byte == 0).count()..];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() <= max_line {
            wanted.push(line.to_vec());
        }
    }
    assert_eq!(got, wanted);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_oneof, proptest};
    use proptest::strategy::{Just, Strategy};

    fn lines(block: &[u8], max_line: usize) -> (Vec<String>, usize, u64) {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        let settled = splitter.split(block, max_line, &mut |line: &[u8]| {
            lines.push(String::from_utf8_lossy(line).into_owned())
        });
        (lines, settled, splitter.long_lines)
    }

    #[test]
    fn a_partial_last_line_waits() {
        assert_eq!(lines(b"a\r\n\nbc\nde", 10), (vec!["a".into(), String::new(), "bc".into()], 7, 0));
    }

    #[test]
    fn a_hole_of_nuls_is_skipped_with_and_without_a_line_behind_it() {
        assert_eq!(lines(b"\0\0\0a\nb\n\0\0", 10), (vec!["a".into(), "b".into()], 9, 0));
    }

    #[test]
    fn a_long_line_is_skipped_to_its_end_and_counted_once() {
        let (mut splitter, mut got) = (Splitter::default(), Vec::new());
        for block in [&b"ok\nxxxxxxxxxx"[..], b"xxxxxxxxxxxxxx", b"xx\nfine\n"] {
            let settled = splitter.split(block, 4, &mut |line: &[u8]| got.push(line.to_vec()));
            assert_eq!(settled, block.len());
        }
        assert_eq!(got, [b"ok".to_vec(), b"fine".to_vec()]);
        assert_eq!(splitter, Splitter { skipping: false, long_lines: 1 });
        assert_eq!(lines(b"abcd\r\nabcde\n", 4), (vec!["abcd".into()], 12, 1), "the \\r is none of the line");
    }

    proptest! {
        #[test]
        fn any_blocks_give_the_lines_of_a_plain_split(
            sizes in any::<[u8; 2]>(),
            text in proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(0), Just(b'x'), any::<u8>().prop_map(|byte| byte)], 0..400),
        ) {
            fuzz_split(&[&sizes[..], &text].concat());
        }
    }
}
