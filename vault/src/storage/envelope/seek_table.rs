//! The seek table of zstd's seekable format, a skippable frame behind the data frames:
//! <https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md>.
//! Checksums are left out: age authenticates every byte. A skippable frame in front of the data
//! frames (a long label) is the table's first entry, of no plaintext.

use super::{EnvelopeError, FRAME};

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const HEADER: usize = 8;
const ENTRY: usize = 8;
/// Frame count, descriptor, magic.
pub(super) const FOOTER: usize = 9;
/// Magic and length of a skippable frame.
const NOTE_HEADER: usize = HEADER;
/// The longest label there is.
const MAX_NOTE: usize = NOTE_HEADER + shared::api::MAX_LABEL;
/// Another number than the table's, so that nobody takes a label for a table.
const NOTE_MAGIC: u32 = 0x184D_2A50;
/// A terabyte of frames; more is no object of ours.
const MAX_FRAMES: usize = 1 << 20;

/// Where the frames of an object lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeekTable {
    /// Where each frame starts in the compressed stream, and where the last one ends.
    starts: Vec<u64>,
    /// Plaintext bytes of each frame.
    sizes: Vec<u32>,
}

impl SeekTable {
    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.sizes.len()
    }

    /// Start and length of a frame in the compressed stream, and its plaintext's length.
    #[must_use]
    pub fn frame(&self, index: usize) -> Option<(u64, usize, usize)> {
        let (start, end) = (*self.starts.get(index)?, *self.starts.get(index + 1)?);
        let size = usize::try_from(*self.sizes.get(index)?).ok()?;
        Some((start, usize::try_from(end - start).ok()?, size))
    }

    /// Length of the skippable frame in front of the first data frame; 0 without one.
    #[must_use]
    pub fn note(&self) -> usize {
        self.starts.first().and_then(|start| usize::try_from(*start).ok()).unwrap_or_default()
    }

    /// Plaintext bytes altogether.
    #[must_use]
    pub fn plaintext(&self) -> u64 {
        self.sizes.iter().map(|size| u64::from(*size)).sum()
    }
}

/// How many bytes the whole table takes, from its last [`FOOTER`] bytes.
pub(super) fn table_length(footer: &[u8]) -> Result<usize, EnvelopeError> {
    let damaged = EnvelopeError::Damaged("no seek table at the end");
    let (Some(count), Some(descriptor), Some(magic)) = (word(footer, 0), footer.get(4), word(footer, 5))
    else {
        return Err(damaged);
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if footer.len() != FOOTER || magic != SEEKABLE_MAGIC || *descriptor != 0 || count > MAX_FRAMES {
        return Err(damaged);
    }
    Ok(HEADER + count * ENTRY + FOOTER)
}

/// Reads a table (the whole skippable frame) that closes a compressed stream of `total` bytes.
///
/// # Errors
/// Anything that does not describe exactly that stream in frames of our size.
pub fn parse_seek_table(bytes: &[u8], total: u64) -> Result<SeekTable, EnvelopeError> {
    let damaged = EnvelopeError::Damaged("the seek table does not fit the body");
    let footer = bytes.len().checked_sub(FOOTER).and_then(|at| bytes.get(at..)).unwrap_or_default();
    let length = table_length(footer)?;
    let content = u32::try_from(length - HEADER).ok();
    if bytes.len() != length || word(bytes, 0) != Some(SKIPPABLE_MAGIC) || word(bytes, 4) != content {
        return Err(damaged);
    }
    let entries = &bytes[HEADER..length - FOOTER];
    let last = (entries.len() / ENTRY).saturating_sub(1);
    let bound = u32::try_from(zstd::zstd_safe::compress_bound(FRAME)).unwrap_or(u32::MAX);
    let mut table = SeekTable { starts: vec![0], sizes: Vec::new() };
    let mut end = 0_u64;
    for (index, entry) in entries.chunks_exact(ENTRY).enumerate() {
        let (Some(compressed), Some(plain)) = (word(entry, 0), word(entry, 4)) else { return Err(damaged) };
        if index == 0 && plain == 0 && (NOTE_HEADER..=MAX_NOTE).contains(&(compressed as usize)) {
            end = u64::from(compressed);
            table.starts = vec![end];
            continue;
        }
        let whole = plain as usize == FRAME || (index == last && (1..FRAME).contains(&(plain as usize)));
        if !whole || compressed == 0 || compressed > bound {
            return Err(damaged);
        }
        end += u64::from(compressed);
        table.starts.push(end);
        table.sizes.push(plain);
    }
    if end + length as u64 != total {
        return Err(damaged);
    }
    Ok(table)
}

/// Writes the table of frames given as (compressed, plaintext) lengths.
pub(super) fn write_seek_table(frames: &[(u32, u32)]) -> Result<Vec<u8>, EnvelopeError> {
    let count = u32::try_from(frames.len()).ok().filter(|count| *count as usize <= MAX_FRAMES);
    let count = count.ok_or(EnvelopeError::TooLong)?;
    let content = u32::try_from(frames.len() * ENTRY + FOOTER).map_err(|_| EnvelopeError::TooLong)?;
    let mut bytes = Vec::with_capacity(HEADER + frames.len() * ENTRY + FOOTER);
    bytes.extend(SKIPPABLE_MAGIC.to_le_bytes());
    bytes.extend(content.to_le_bytes());
    for (compressed, plain) in frames {
        bytes.extend(compressed.to_le_bytes());
        bytes.extend(plain.to_le_bytes());
    }
    bytes.extend(count.to_le_bytes());
    bytes.push(0);
    bytes.extend(SEEKABLE_MAGIC.to_le_bytes());
    Ok(bytes)
}

/// The skippable frame that carries a label in front of the data.
pub(super) fn write_note(label: &str) -> Result<Vec<u8>, EnvelopeError> {
    let length = u32::try_from(label.len()).map_err(|_| EnvelopeError::TooLong)?;
    if NOTE_HEADER + label.len() > MAX_NOTE {
        return Err(EnvelopeError::TooLong);
    }
    Ok([&NOTE_MAGIC.to_le_bytes()[..], &length.to_le_bytes(), label.as_bytes()].concat())
}

/// The label out of such a frame.
pub(super) fn parse_note(bytes: &[u8]) -> Result<String, EnvelopeError> {
    let damaged = || EnvelopeError::Damaged("the label in front of the body is not in its form");
    let label = bytes.get(NOTE_HEADER..).ok_or_else(damaged)?;
    let length = u32::try_from(label.len()).ok();
    if word(bytes, 0) != Some(NOTE_MAGIC) || word(bytes, 4) != length {
        return Err(damaged());
    }
    String::from_utf8(label.to_vec()).map_err(|_| damaged())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
