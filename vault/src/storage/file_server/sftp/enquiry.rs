//! Listing many folders with requests in flight: what is asked next, and whose answer has come.
//! Pure: takes replies in whatever order, gives out requests, and bounds both; knows no channel.
//!
//! Each folder is opened, read two answers at a time until the server says that this was all,
//! and closed. A folder that is not there is an empty one. After a refusal nothing new is opened
//! and what is open is closed, so that the channel can be used again.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::super::layout::Names;
use super::message::{Oddity, Reply, Request};

/// Folders open at once: some servers allow no more than 128 handles.
const WINDOW: usize = 100;
/// Reads asked of a folder before the first is answered: the names, and that there are no more.
const AHEAD: u8 = 2;
/// Entries read of all folders together; more is not of our making, and would fill the memory.
const MOST_ENTRIES: usize = if cfg!(test) { 1 << 15 } else { 1 << 20 };

const OK: u32 = 0;
const END: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const NO_SUCH_PATH: u32 = 10;

/// See the module.
pub(super) struct Enquiry<'a> {
    folders: &'a [PathBuf],
    wanted: Names,
    enough: usize,
    /// Of those that were opened.
    listed: Vec<Folder>,
    /// Folders from the first on that are read to their end, and the names in them.
    settled: usize,
    found: usize,
    reading: usize,
    /// Entries that came, of whatever names.
    entries: usize,
    asked: HashMap<u32, Asked>,
    last_id: u32,
    refused: Option<u32>,
}

/// What an open request is about: a folder by its place in the list.
enum Asked {
    Open(usize),
    Read(usize),
    Close,
}

#[derive(Default)]
struct Folder {
    handle: Vec<u8>,
    names: Vec<String>,
    /// Reads without an answer yet.
    reads: u8,
    ended: bool,
    done: bool,
}

impl<'a> Enquiry<'a> {
    /// About the `wanted` names in `folders`, from the first folder on until there are `enough`.
    pub(super) fn new(folders: &'a [PathBuf], wanted: Names, enough: usize) -> Self {
        Self {
            folders,
            wanted,
            enough,
            listed: Vec::new(),
            settled: 0,
            found: 0,
            reading: 0,
            entries: 0,
            asked: HashMap::new(),
            last_id: 0,
            refused: None,
        }
    }

    /// Appends what can be asked now of further folders.
    pub(super) fn ask_more(&mut self, out: &mut Vec<u8>) {
        while self.reading < WINDOW && self.found < self.enough && self.refused.is_none() {
            let at = self.listed.len();
            let Some(folder) = self.folders.get(at) else { break };
            let id = self.next_id(Asked::Open(at));
            Request::Open { id, path: folder.as_os_str().as_bytes() }.write_to(out);
            self.listed.push(Folder::default());
            self.reading += 1;
        }
    }

    /// Takes an answer and appends what follows from it.
    ///
    /// # Errors
    /// It answers nothing, or is too much; nothing more can be made of this channel.
    pub(super) fn take(&mut self, reply: Reply<'_>, out: &mut Vec<u8>) -> Result<(), Oddity> {
        let (Reply::Status { id, .. } | Reply::Handle { id, .. } | Reply::Names { id, .. }) = reply else {
            return Err(Oddity::Unasked);
        };
        match (self.asked.remove(&id).ok_or(Oddity::Unasked)?, reply) {
            (Asked::Open(at), Reply::Handle { handle, .. }) => {
                self.listed[at].handle = handle.to_vec();
                self.read_on(at, out);
            }
            (Asked::Open(at), Reply::Status { code, .. }) => {
                if code != NO_SUCH_FILE && code != NO_SUCH_PATH {
                    self.refuse(code);
                }
                self.end(at);
            }
            (Asked::Read(at), Reply::Names { names, .. }) => {
                self.note_names(at, &names)?;
                self.was_read(at, out);
            }
            (Asked::Read(at), Reply::Status { code, .. }) => {
                // What is asked behind the end may be answered in other words.
                if code != END && !self.listed[at].ended {
                    self.refuse(code);
                }
                self.listed[at].ended = true;
                self.was_read(at, out);
            }
            (Asked::Close, Reply::Status { code, .. }) => {
                if code != OK {
                    self.refuse(code);
                }
            }
            _ => return Err(Oddity::Unasked),
        }
        Ok(())
    }

    /// Is every request answered?
    pub(super) fn is_over(&self) -> bool {
        self.asked.is_empty()
    }

    /// The sorted names in each of the folders, from the first on, that were looked at; the code of
    /// a refusal if there was one. Only once it is over.
    pub(super) fn finish(self) -> Result<Vec<Vec<String>>, u32> {
        debug_assert!(self.asked.is_empty(), "answers are still on their way");
        let sorted = |mut folder: Folder| {
            folder.names.sort_unstable();
            folder.names.dedup();
            folder.names
        };
        self.refused.map_or_else(|| Ok(self.listed.into_iter().map(sorted).collect()), Err)
    }

    fn next_id(&mut self, asked: Asked) -> u32 {
        // Far fewer are open than there are numbers.
        self.last_id = self.last_id.wrapping_add(1);
        self.asked.insert(self.last_id, asked);
        self.last_id
    }

    fn read_on(&mut self, at: usize, out: &mut Vec<u8>) {
        for _ in 0..AHEAD {
            let id = self.next_id(Asked::Read(at));
            let folder = &mut self.listed[at];
            folder.reads += 1;
            Request::Read { id, handle: &folder.handle }.write_to(out);
        }
    }

    fn note_names(&mut self, at: usize, names: &[&[u8]]) -> Result<(), Oddity> {
        self.entries += names.len();
        if self.entries > MOST_ENTRIES {
            return Err(Oddity::TooMany(MOST_ENTRIES));
        }
        let folder = &mut self.listed[at];
        // Some servers end with no names instead of a word.
        folder.ended |= names.is_empty();
        let texts = names.iter().filter_map(|name| std::str::from_utf8(name).ok());
        folder.names.extend(texts.filter(|name| self.wanted.hold(name)).map(str::to_owned));
        Ok(())
    }

    /// One of a folder's reads is answered.
    fn was_read(&mut self, at: usize, out: &mut Vec<u8>) {
        let folder = &mut self.listed[at];
        folder.reads -= 1;
        if folder.reads > 0 {
            return;
        }
        if !folder.ended && self.refused.is_none() {
            return self.read_on(at, out);
        }
        let id = self.next_id(Asked::Close);
        Request::Close { id, handle: &self.listed[at].handle }.write_to(out);
        self.end(at);
    }

    fn refuse(&mut self, code: u32) {
        self.refused.get_or_insert(code);
    }

    fn end(&mut self, at: usize) {
        self.reading -= 1;
        self.listed[at].done = true;
        while let Some(folder) = self.listed.get(self.settled).filter(|folder| folder.done) {
            self.found += folder.names.len();
            self.settled += 1;
        }
    }
}

/// For the fuzzer: whatever bytes a server sends, the window holds and what is asked is bounded.
pub fn fuzz_listing(bytes: &[u8]) {
    let folders = vec![PathBuf::from("/srv/ab/cd"); 2 * WINDOW];
    let mut enquiry = Enquiry::new(&folders, Names::Digits(64), usize::MAX);
    let (mut left, mut out) = (bytes, Vec::new());
    enquiry.ask_more(&mut out);
    while let Ok(Some((reply, size))) = Reply::first(left) {
        left = &left[size..];
        if enquiry.take(reply, &mut out).is_err() {
            return;
        }
        enquiry.ask_more(&mut out);
        let open = enquiry.listed.iter().filter(|folder| !folder.done).count();
        assert!(open == enquiry.reading && open <= WINDOW, "{open} folders are open");
        assert!(enquiry.asked.len() <= enquiry.listed.len() * usize::from(AHEAD), "requests are bounded");
        assert!(!enquiry.is_over(), "these few bytes answer for no hundred folders");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_oneof};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::super::message::encoded;
    use super::*;

    const TWO: Names = Names::Digits(2);

    /// A server with folders: pages of so many names, answers in the order that `order` says.
    struct Server {
        folders: BTreeMap<Vec<u8>, Vec<String>>,
        page: usize,
        /// Says "that was all" with no names instead of a word.
        mute: bool,
        denied: Option<Vec<u8>>,
        open: BTreeMap<u32, VecDeque<String>>,
        handles: u32,
        most_open: usize,
    }

    impl Server {
        fn new(folders: &[(PathBuf, Vec<String>)], page: usize) -> Self {
            let folders =
                folders.iter().map(|(path, names)| (path.as_os_str().as_bytes().to_vec(), names.clone()));
            let (open, handles, most_open) = (BTreeMap::new(), 0, 0);
            Self { folders: folders.collect(), page, mute: false, denied: None, open, handles, most_open }
        }

        /// The answers to the requests in `bytes`.
        fn answer(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
            let mut answers = Vec::new();
            while !bytes.is_empty() {
                let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                let (size, kind, id) = (number(0) as usize, bytes[4], number(5));
                let text = &bytes[13..4 + size];
                answers.push(self.one(kind, id, text));
                bytes = &bytes[4 + size..];
            }
            answers
        }

        fn one(&mut self, kind: u8, id: u32, text: &[u8]) -> Vec<u8> {
            let status = |code| encoded(&Reply::Status { id, code });
            if kind == 11 {
                if self.denied.as_deref() == Some(text) {
                    return status(3);
                }
                let Some(names) = self.folders.get(text) else { return status(NO_SUCH_FILE) };
                self.handles += 1;
                self.open.insert(self.handles, names.iter().cloned().collect());
                self.most_open = self.most_open.max(self.open.len());
                return encoded(&Reply::Handle { id, handle: &self.handles.to_be_bytes() });
            }
            let handle = u32::from_be_bytes(text.try_into().unwrap());
            if kind == 4 {
                assert!(self.open.remove(&handle).is_some(), "closed twice");
                return status(OK);
            }
            let left = self.open.get_mut(&handle).expect("read after it was closed");
            let page: Vec<_> = left.drain(..left.len().min(self.page)).collect();
            if page.is_empty() && !self.mute {
                return status(END);
            }
            encoded(&Reply::Names { id, names: page.iter().map(String::as_bytes).collect() })
        }

        /// Runs an enquiry to its end; `order` picks the next answer of those on their way.
        fn run(&mut self, mut enquiry: Enquiry<'_>, order: &[usize]) -> Result<Vec<Vec<String>>, u32> {
            let (mut out, mut coming) = (Vec::new(), Vec::new());
            enquiry.ask_more(&mut out);
            let mut order = order.iter().cycle();
            while !enquiry.is_over() {
                coming.extend(self.answer(&out));
                out.clear();
                let next = coming.remove(order.next().unwrap() % coming.len());
                let (reply, _) = Reply::first(&next).unwrap().unwrap();
                enquiry.take(reply, &mut out).unwrap();
                enquiry.ask_more(&mut out);
            }
            assert!(out.is_empty() && coming.is_empty() && self.open.is_empty(), "every folder is closed");
            enquiry.finish()
        }
    }

    fn name(at: usize) -> String {
        format!("{at:02x}")
    }

    /// Folders with so many names each, out of order and with `.`, `..` and a stranger; where
    /// there is no number, there is no folder.
    fn tree(counts: &[Option<usize>]) -> (Vec<PathBuf>, Vec<(PathBuf, Vec<String>)>) {
        let paths: Vec<_> = (0..counts.len()).map(|at| PathBuf::from(format!("/f/{at}"))).collect();
        let strangers = [".".to_owned(), "..".to_owned(), "README".to_owned(), "0A".to_owned()];
        let names = |count: usize| (0..count).rev().map(name).chain(strangers.clone()).collect();
        let some =
            paths.iter().zip(counts).filter_map(|(path, count)| Some((path.clone(), names((*count)?))));
        (paths.clone(), some.collect())
    }

    proptest! {
        #[test]
        fn every_folder_is_listed_whole_whatever_the_pages_and_the_order_of_answers(
            counts in vec(prop_oneof![any::<bool>().prop_map(|there| there.then_some(1)), (0..40_usize).prop_map(Some)], 0..300),
            page in 1..50_usize,
            mute in any::<bool>(),
            order in vec(0..50_usize, 1..20),
        ) {
            let (paths, folders) = tree(&counts);
            let mut server = Server::new(&folders, page);
            server.mute = mute;
            let listed = server.run(Enquiry::new(&paths, TWO, usize::MAX), &order).unwrap();
            let expected: Vec<Vec<_>> = counts.iter().map(|count| (0..count.unwrap_or(0)).map(name).collect()).collect();
            prop_assert_eq!(listed, expected);
            prop_assert!(server.most_open <= WINDOW);
        }
    }

    #[test]
    fn it_ends_soon_after_there_is_enough() {
        let (paths, folders) = tree(&[Some(2); 400]);
        for enough in [0, 1, 2, 99, 200, 400, 600, 900] {
            let listed = Server::new(&folders, 10).run(Enquiry::new(&paths, TWO, enough), &[0]).unwrap();
            let needed = enough.div_ceil(2).min(400);
            assert!(listed.len() >= needed && listed.len() <= needed + WINDOW, "{enough}: {}", listed.len());
            assert!(listed.iter().all(|names| names.len() == 2));
        }
    }

    #[test]
    fn a_refusal_is_told_and_leaves_nothing_open_and_nothing_unanswered() {
        let (paths, folders) = tree(&[Some(3); 250]);
        for at in [0, 120, 249] {
            let mut server = Server::new(&folders, 1);
            server.denied = Some(paths[at].as_os_str().as_bytes().to_vec());
            let refused = server.run(Enquiry::new(&paths, TWO, usize::MAX), &[0]);
            assert_eq!(refused, Err(3));
        }
    }

    #[test]
    fn folders_without_end_fill_no_memory() {
        let paths: Vec<_> = (0..WINDOW).map(|at| PathBuf::from(format!("/f/{at}"))).collect();
        let (mut enquiry, mut out) = (Enquiry::new(&paths, TWO, usize::MAX), Vec::new());
        enquiry.ask_more(&mut out);
        let opened = u32::try_from(WINDOW).unwrap();
        for id in 1..=opened {
            enquiry.take(Reply::Handle { id, handle: b"h" }, &mut out).unwrap();
        }
        // The reads follow, in order, and each answer is asked on.
        let page = vec![&b"ab"[..]; 100];
        let told = (opened + 1..)
            .find_map(|id| enquiry.take(Reply::Names { id, names: page.clone() }, &mut out).err());
        assert_eq!(told, Some(Oddity::TooMany(MOST_ENTRIES)));
        assert!(enquiry.listed.iter().map(|folder| folder.names.len()).sum::<usize>() <= MOST_ENTRIES);
    }

    #[test]
    fn answers_to_nothing_are_odd() {
        let paths = [PathBuf::from("/a")];
        let after = |replies: &[Reply<'_>]| {
            let mut enquiry = Enquiry::new(&paths, TWO, 1);
            let mut out = Vec::new();
            enquiry.ask_more(&mut out);
            replies.iter().try_for_each(|reply| enquiry.take(reply.clone(), &mut out))
        };
        let handle = |id| Reply::Handle { id, handle: b"h" };
        assert_eq!(after(&[handle(1)]), Ok(()));
        for odd in [
            vec![Reply::Version(3)],
            vec![handle(2)],
            vec![Reply::Names { id: 1, names: vec![] }],
            vec![handle(1), handle(1)],
            vec![handle(1), handle(2)],
            vec![handle(1), Reply::Status { id: 2, code: END }, Reply::Status { id: 2, code: END }],
        ] {
            assert_eq!(after(&odd), Err(Oddity::Unasked), "{odd:?}");
        }
    }
}
