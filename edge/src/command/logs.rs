//! Opens an old log for a command, as it was written or as log rotation has compressed it. Must not
//! know what its lines mean.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// Read at once.
const BLOCK: usize = 256 * 1024;
/// A compressed log is read this far: beyond it is no log of one day, but a trap.
const MOST_UNPACKED: u64 = 64 << 30;

/// How a compressed file begins, by what, and what unpacks it.
const COMPRESSED: [(&[u8], &str, &str); 3] = [
    (&[0xFD, b'7', b'z', b'X', b'Z', 0], "xz", "unxz -k"),
    (&[0x28, 0xB5, 0x2F, 0xFD], "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2 -k"),
];

/// The log's bytes; gzip's are unpacked.
///
/// # Errors
/// It cannot be opened, is a folder, or is compressed otherwise; also later, while it is read.
pub(super) fn open(log: &Path) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::with_capacity(BLOCK, File::open(log)?);
    let start = file.fill_buf()?;
    if start.starts_with(&[0x1F, 0x8B]) {
        let unpacked = Bounded { inner: MultiGzDecoder::new(file), left: MOST_UNPACKED };
        return Ok(Box::new(BufReader::with_capacity(BLOCK, unpacked)));
    }
    if let Some((_, by, command)) = COMPRESSED.iter().find(|(magic, ..)| start.starts_with(magic)) {
        let what = format!("is compressed with {by}; write `{command} {}` first", log.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Box::new(file))
}

/// Ends with an error where it would go on for ever.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("holds too much to be a log; unpack it and look"))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn file(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
        let file = folder.path().join("log");
        std::fs::write(&file, bytes).unwrap();
        file
    }

    fn read(file: &Path) -> io::Result<String> {
        let mut text = String::new();
        open(file)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_log_is_read_as_it_lies_or_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(&file(&folder, b"a\nb\n")).unwrap(), "a\nb\n");
        assert_eq!(read(&file(&folder, b"")).unwrap(), "");
        let twice = [packed(b"a\n"), packed(b"b\n")].concat();
        assert_eq!(read(&file(&folder, &twice)).unwrap(), "a\nb\n", "as two rotations append them");
    }

    #[test]
    fn what_is_no_log_or_cut_off_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let zstd = read(&file(&folder, &[0x28, 0xB5, 0x2F, 0xFD, 0])).unwrap_err().to_string();
        assert!(zstd.starts_with("is compressed with zstd; write `unzstd /"), "{zstd}");
        let whole = packed(&[b'x'; 10_000]);
        assert!(read(&file(&folder, &whole[..whole.len() / 2])).is_err());
        assert!(read(folder.path()).is_err());
        let mut bomb = Bounded { inner: io::repeat(0), left: 5000 };
        assert!(io::copy(&mut bomb, &mut io::sink()).is_err());
    }
}
