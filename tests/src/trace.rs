//! What a program really asked of the kernel, and when: strace in front of it, its files read
//! back as calls with a start and an end. Both vaults run on one clock, so their calls can be
//! put in one order.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The calls that durability is about: data out, data to disk, names, answers.
const CALLS: &str = "trace=openat,read,readv,recvfrom,recvmsg,write,writev,pwrite64,pwritev,sendto,sendmsg,\
fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat";
/// Longer than a SQLite page, so that a row's key is seen wherever it lies on it.
const TEXT: &str = "5000";

/// Microseconds since the epoch.
pub type Moment = u64;

/// One finished system call.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it was entered.
    pub start: Moment,
    /// When it returned.
    pub end: Moment,
    /// `fsync`, `pwrite64`, …
    pub name: String,
    /// What its first file descriptor stands for: a path, `UNIX-STREAM:[…]`, `TCP:[…]`.
    pub file: String,
    /// All arguments as strace writes them; ASCII stands as it is.
    pub arguments: String,
    /// What it returned; negative for an error.
    pub result: i64,
}

impl Call {
    /// Did it bring a file's data to the disk?
    #[must_use]
    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync") && self.result == 0
    }

    /// Did it write?
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self.name.as_str(), "write" | "writev" | "pwrite64" | "pwritev" | "sendto" | "sendmsg")
            && self.result > 0
    }

    /// Did it read something?
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self.name.as_str(), "read" | "readv" | "recvfrom" | "recvmsg") && self.result > 0
    }

    /// Did it give a file another or a further name?
    #[must_use]
    pub fn is_naming(&self) -> bool {
        matches!(self.name.as_str(), "rename" | "renameat" | "renameat2" | "link" | "linkat")
            && self.result == 0
    }
}

/// The calls of one program, in the order in which they began.
#[derive(Debug, Clone, Default)]
pub struct Trace(pub Vec<Call>);

impl Trace {
    /// What to put in front of a program, so that [`Self::read`] finds its calls in `folder`.
    /// strace steps aside (`-D`): the process id stays the program's own.
    #[must_use]
    pub fn wrapper(folder: &Path) -> Vec<OsString> {
        let stem = Self::stem(folder);
        ["strace", "-D", "-ff", "-q", "-ttt", "-T", "-yy", "-s", TEXT, "-e", CALLS, "-e", "signal=none", "-o"]
            .into_iter()
            .map(OsString::from)
            .chain([stem.into()])
            .collect()
    }

    /// Reads what has been traced so far.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let stem = Self::stem(folder);
        let mut calls = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let file = entry?.path();
            // One file a thread: strace.1234
            if file.file_stem().is_some_and(|own| Some(own) == stem.file_name()) {
                let bytes = std::fs::read(&file).with_context(|| format!("{}", file.display()))?;
                calls.extend(String::from_utf8_lossy(&bytes).lines().filter_map(call));
            }
        }
        calls.sort_by_key(|call: &Call| call.start);
        Ok(Self(calls))
    }

    /// The first call that `wanted` accepts.
    pub fn find(&self, wanted: impl Fn(&Call) -> bool) -> Option<&Call> {
        self.0.iter().find(|call| wanted(call))
    }

    /// Is there a call to sync that file which began at `from` or later and had returned by `to`?
    #[must_use]
    pub fn syncs(&self, file: &str, from: Moment, to: Moment) -> bool {
        self.0.iter().any(|call| call.is_sync() && call.file == file && call.start >= from && call.end <= to)
    }

    fn stem(folder: &Path) -> PathBuf {
        folder.join("strace")
    }
}

/// `1700000000.123456 fsync(9</tmp/x>) = 0 <0.000031>`
fn call(line: &str) -> Option<Call> {
    let (at, rest) = line.split_once(' ')?;
    let start = microseconds(at)?;
    let (name, rest) = rest.split_once('(')?;
    let (arguments, outcome) = rest.rsplit_once(") = ")?;
    let (result, took) = outcome.rsplit_once('<')?;
    let took = microseconds(took.trim_end_matches('>'))?;
    let result = result.split([' ', '<']).next()?.parse().ok()?;
    Some(Call {
        start,
        end: start + took,
        name: name.to_owned(),
        file: first_file(arguments),
        arguments: arguments.to_owned(),
        result,
    })
}

/// What stands in the angle brackets behind the first argument; sockets have arrows in them.
fn first_file(arguments: &str) -> String {
    let Some((number, rest)) = arguments.split_once('<') else { return String::new() };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return String::new();
    }
    let ends = rest.match_indices('>').map(|(at, _)| at);
    let mut ends = ends.filter(|at| matches!(rest.as_bytes().get(at + 1), None | Some(b',')));
    ends.next().and_then(|end| rest.get(..end)).unwrap_or_default().to_owned()
}

fn microseconds(text: &str) -> Option<Moment> {
    let (seconds, fraction) = text.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_with_file_span_and_result() {
        let sync = call("1700000000.000100 fdatasync(9</tmp/x/a.db-wal>) = 0 <0.000031>").unwrap();
        assert_eq!((sync.start % 1_000_000, sync.end % 1_000_000), (100, 131));
        assert_eq!(sync.file, "/tmp/x/a.db-wal");
        assert!(sync.is_sync());
        let reply = call(
            "1700000000.000200 writev(12<UNIX-STREAM:[88->99,\"/tmp/c.sock\"]>, [{iov_base=\"HTTP/1.1 201 Created\", iov_len=20}], 1) = 20 <0.000005>",
        )
        .unwrap();
        assert_eq!(reply.file, "UNIX-STREAM:[88->99,\"/tmp/c.sock\"]");
        assert!(reply.is_write() && reply.arguments.contains("HTTP/1.1 201"));
        let refused =
            call("1700000000.000300 fsync(9</tmp/x>) = -1 EIO (Input/output error) <0.000031>").unwrap();
        assert!(!refused.is_sync());
        let named = call("1700000000.000300 rename(\"/tmp/a\", \"/tmp/b\") = 0 <0.000031>").unwrap();
        assert!(named.is_naming() && named.file.is_empty());
    }
}
