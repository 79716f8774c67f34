//! Adds, deletes and lists elements of our table's sets by messages of NETLINK_NETFILTER
//! (nfnetlink(7), linux/netfilter/nf_tables.h). Knows bytes and the kernel's answers; must not know
//! why an element is there.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use edge::firewall::ruleset::TABLE;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

/// Elements in one message: a nested list is at most 65,535 bytes, an element at most 44.
const ELEMENTS: usize = 1000;
/// Bytes of one transaction; the kernel takes no more than its send buffer at once.
const SEND_BUFFER: usize = 8 * 1024 * 1024;
/// What one `recv` may bring.
const RECEIVE: usize = 256 * 1024;
/// The kernel answers at once; this only ends a wait for what never comes.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers of one transaction or dump that are looked at; a dump of 16 million elements has fewer.
const MOST_ANSWERS: usize = 10_000_000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10 << 8;
const NEW_ELEMENT: u16 = NFTABLES | 12;
const ELEMENT: u16 = NFTABLES | 13;
const DELETE_ELEMENT: u16 = NFTABLES | 14;
const TABLE_QUERY: u16 = NFTABLES | 1;
const CHAIN_QUERY: u16 = NFTABLES | 4;
const RULE_QUERY: u16 = NFTABLES | 7;
const SET_QUERY: u16 = NFTABLES | 10;
const SET_NAME: u16 = 2;
/// What somebody's hand changes, and nothing that changes by itself: a table's flags; a chain's handle,
/// name, policy and flags; a rule's chain and handle, which is new with every rule; a set's name and
/// handle.
const OUTLINE: [(u16, &[u16]); 4] =
    [(TABLE_QUERY, &[2]), (CHAIN_QUERY, &[2, 3, 5, 10]), (RULE_QUERY, &[2, 3]), (SET_QUERY, &[SET_NAME, 16])];
const INET: u8 = 1;
const NESTED: u16 = 0x8000;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;
const INTERVAL_END: u32 = 1;

/// One change of a transaction; in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The set's name.
    pub set: String,
    /// Add, or delete.
    pub add: bool,
    /// The element.
    pub address: IpAddr,
    /// When it ends; only read where it is added.
    pub timeout: Duration,
    /// The far end of an interval, which the set keeps as an element of its own.
    pub interval_end: bool,
}

/// An element as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// The element.
    pub address: IpAddr,
    /// What remains of its time; zero where it has none.
    pub expires: Duration,
    /// The far end of an interval.
    pub interval_end: bool,
}

/// What stands in our table, as far as it does not change by itself; only to be compared.
pub(crate) type Outline = Vec<Vec<u8>>;

/// What the kernel says to a transaction that it refused as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// A set is full.
    #[error("a set is full")]
    Full,
    /// The table, a set, or an element to be deleted is not there.
    #[error("the table or an element is not there")]
    Missing,
    /// Another refusal, or the socket failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NFILE => Self::Full,
            Errno::NOENT => Self::Missing,
            other => Self::System(other.into()),
        }
    }
}

/// The way to the kernel.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Netlink {
    /// Opens it; the right to change rules is checked by the kernel with each transaction.
    ///
    /// # Errors
    /// The system gives no such socket.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        // Beyond the system's usual bound where the capability reaches so far, else up to it.
        for size in [SEND_BUFFER, 1024 * 1024, 212_992] {
            if sockopt::set_socket_send_buffer_size_force(&socket, size).is_ok() {
                break;
            }
        }
        let _bounded = sockopt::set_socket_recv_buffer_size_force(&socket, SEND_BUFFER);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0, buffer: vec![MaybeUninit::uninit(); RECEIVE] })
    }

    /// Makes all changes, or none.
    ///
    /// # Errors
    /// The kernel's first refusal.
    pub(crate) fn transaction(&mut self, changes: &[Change]) -> Result<(), NetlinkError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(64 + changes.len() * 48);
        let first = self.next_sequence();
        batch_mark(&mut bytes, BATCH_BEGIN, first);
        let mut last = first;
        let mut rest = changes;
        while let Some(head) = rest.first() {
            let alike = |change: &&Change| change.set == head.set && change.add == head.add;
            let count = rest.iter().take(ELEMENTS).take_while(alike).count();
            let (group, after) = rest.split_at(count);
            rest = after;
            last = self.next_sequence();
            let ack = if rest.is_empty() { NLM_F_ACK } else { 0 };
            let (kind, flags) = if head.add { (NEW_ELEMENT, NLM_F_CREATE) } else { (DELETE_ELEMENT, 0) };
            let message = Message::begin(&mut bytes, kind, NLM_F_REQUEST | flags | ack, last, INET);
            elements(&mut bytes, &head.set, group);
            message.end(&mut bytes);
        }
        let end = self.next_sequence();
        batch_mark(&mut bytes, BATCH_END, end);
        self.send(&bytes)?;
        self.outcome(first, last)
    }

    /// Empties sets, all or none.
    ///
    /// # Errors
    /// The kernel's first refusal.
    pub(crate) fn flush(&mut self, sets: &[String]) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let first = self.next_sequence();
        batch_mark(&mut bytes, BATCH_BEGIN, first);
        let mut last = first;
        for (place, set) in sets.iter().enumerate() {
            last = self.next_sequence();
            let ack = if place + 1 == sets.len() { NLM_F_ACK } else { 0 };
            let message = Message::begin(&mut bytes, DELETE_ELEMENT, NLM_F_REQUEST | ack, last, INET);
            // Without a list of elements, all are meant.
            text_attribute(&mut bytes, LIST_TABLE, TABLE);
            text_attribute(&mut bytes, LIST_SET, set);
            message.end(&mut bytes);
        }
        let end = self.next_sequence();
        batch_mark(&mut bytes, BATCH_END, end);
        if sets.is_empty() {
            return Ok(());
        }
        self.send(&bytes)?;
        self.outcome(first, last)
    }

    /// Every element of a set; as it was at some moment during the call.
    ///
    /// # Errors
    /// There is no such set, or the socket failed.
    pub(crate) fn dump(&mut self, set: &str) -> Result<Vec<Element>, NetlinkError> {
        let mut found = Vec::new();
        self.each(ELEMENT, Some(set), |message| {
            if message.kind == NEW_ELEMENT {
                found.extend(listed(message.body));
            }
        })?;
        Ok(found)
    }

    /// The names of our table's sets; none where there is no table.
    ///
    /// # Errors
    /// The socket failed.
    pub(crate) fn sets(&mut self) -> Result<HashSet<String>, NetlinkError> {
        let mut names = HashSet::new();
        match self.each(SET_QUERY, None, |message| names.extend(set_name(message.body))) {
            Ok(()) | Err(NetlinkError::Missing) => Ok(names),
            Err(error) => Err(error),
        }
    }

    /// Chains, rules and sets of our table, and the elements of `lists`.
    ///
    /// # Errors
    /// There is no table, or the socket failed.
    pub(crate) fn outline(&mut self, lists: &[&str]) -> Result<Outline, NetlinkError> {
        let mut outline = Outline::new();
        for (query, kept) in OUTLINE {
            self.each(query, None, |message| outline.extend(of_ours(message.body, kept)))?;
        }
        for list in lists {
            let mut ends = match self.dump(list) {
                // Then it is not among the sets, either.
                Err(NetlinkError::Missing) => continue,
                dumped => dumped?,
            };
            ends.sort_unstable_by_key(|element| (element.address, element.interval_end));
            outline.extend(ends.iter().map(|end| format!("{list} {end:?}").into_bytes()));
        }
        Ok(outline)
    }

    /// Every message of the answer to one question about our table, or one set of it.
    fn each(
        &mut self,
        query: u16,
        set: Option<&str>,
        mut each: impl FnMut(Received<'_>),
    ) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        let message = Message::begin(&mut bytes, query, NLM_F_REQUEST | NLM_F_DUMP, sequence, INET);
        text_attribute(&mut bytes, LIST_TABLE, TABLE);
        if let Some(set) = set {
            text_attribute(&mut bytes, LIST_SET, set);
        }
        message.end(&mut bytes);
        self.send(&bytes)?;
        for _ in 0..MOST_ANSWERS {
            let received = self.receive()?;
            for message in messages(&received).filter(|message| message.sequence == sequence) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => refusal(message.body)?,
                    _ => each(message),
                }
            }
        }
        Err(NetlinkError::System(io::ErrorKind::TimedOut.into()))
    }

    /// Is our table there?
    ///
    /// # Errors
    /// The socket failed.
    pub(crate) fn has_table(&mut self) -> Result<bool, NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        let message = Message::begin(&mut bytes, TABLE_QUERY, NLM_F_REQUEST | NLM_F_ACK, sequence, INET);
        text_attribute(&mut bytes, LIST_TABLE, TABLE);
        message.end(&mut bytes);
        self.send(&bytes)?;
        match self.outcome(sequence, sequence) {
            Ok(()) => Ok(true),
            Err(NetlinkError::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for the acknowledgement of `last`, or an error of any message since `first`.
    fn outcome(&mut self, first: u32, last: u32) -> Result<(), NetlinkError> {
        for _ in 0..MOST_ANSWERS {
            let received = self.receive()?;
            for message in messages(&received) {
                let ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if ours && message.kind == NLMSG_ERROR {
                    refusal(message.body)?;
                    if message.sequence == last {
                        return Ok(());
                    }
                }
            }
        }
        Err(NetlinkError::System(io::ErrorKind::TimedOut.into()))
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        loop {
            match send(&self.socket, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NetlinkError::System(errno.into())),
            }
        }
    }

    fn receive(&mut self) -> Result<Vec<u8>, NetlinkError> {
        loop {
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok(((bytes, _), _)) => return Ok(bytes.to_vec()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NetlinkError::System(errno.into())),
            }
        }
    }
}

/// A message whose length is known at its end.
struct Message(usize);

impl Message {
    fn begin(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8) -> Self {
        let at = out.len();
        out.extend([0; 4]);
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend([0; 4]);
        // nfgenmsg: family, version 0, resource 0; or nf_tables itself for the marks of a batch.
        out.push(family);
        out.push(0);
        let resource: u16 = if kind < NFTABLES { 10 } else { 0 };
        out.extend(resource.to_be_bytes());
        Self(at)
    }

    fn end(self, out: &mut [u8]) {
        let length = u32::try_from(out.len() - self.0).unwrap_or(u32::MAX);
        put(out, self.0, &length.to_ne_bytes());
    }
}

fn batch_mark(out: &mut Vec<u8>, kind: u16, sequence: u32) {
    let message = Message::begin(out, kind, NLM_F_REQUEST, sequence, 0);
    message.end(out);
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn attribute(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0; 2]);
    out.extend(kind.to_ne_bytes());
    fill(out);
    let length = u16::try_from(out.len() - at).unwrap_or(u16::MAX);
    put(out, at, &length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

fn text_attribute(out: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(out, kind, |out| {
        out.extend(text.as_bytes());
        out.push(0);
    });
}

fn elements(out: &mut Vec<u8>, set: &str, changes: &[Change]) {
    text_attribute(out, LIST_TABLE, TABLE);
    text_attribute(out, LIST_SET, set);
    attribute(out, LIST_ELEMENTS | NESTED, |out| {
        for change in changes {
            attribute(out, LIST_ELEMENT | NESTED, |out| element(out, change));
        }
    });
}

fn element(out: &mut Vec<u8>, change: &Change) {
    if change.interval_end {
        attribute(out, ELEMENT_FLAGS, |out| out.extend(INTERVAL_END.to_be_bytes()));
    }
    attribute(out, ELEMENT_KEY | NESTED, |out| {
        attribute(out, DATA_VALUE, |out| match change.address {
            IpAddr::V4(address) => out.extend(address.octets()),
            IpAddr::V6(address) => out.extend(address.octets()),
        });
    });
    if change.add && !change.interval_end {
        let milliseconds = u64::try_from(change.timeout.as_millis()).unwrap_or(u64::MAX);
        attribute(out, ELEMENT_TIMEOUT, |out| out.extend(milliseconds.to_be_bytes()));
    }
}

/// One message that came.
struct Received<'b> {
    kind: u16,
    sequence: u32,
    body: &'b [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<16>()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let (kind, sequence) = (u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]));
        Some(Received { kind, sequence, body })
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let [l0, l1, k0, k1] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !NESTED, value))
    })
}

fn refusal(body: &[u8]) -> Result<(), NetlinkError> {
    let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw_os_error(code.saturating_neg()).into()),
    }
}

/// The kept attributes of what belongs to our table; the first attribute is always the table's name.
fn of_ours(body: &[u8], kept: &[u16]) -> Option<Vec<u8>> {
    let fields = || attributes(body.get(4..).unwrap_or_default());
    let name = fields().find(|(kind, _)| *kind == LIST_TABLE)?.1;
    let ours = name.strip_suffix(&[0]).unwrap_or(name) == TABLE.as_bytes();
    let kept = fields().filter(|(kind, _)| kept.contains(kind));
    ours.then(|| kept.flat_map(|(kind, value)| [&kind.to_ne_bytes(), value].concat()).collect())
}

fn set_name(body: &[u8]) -> Option<String> {
    let (_, name) = attributes(body.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == SET_NAME)?;
    String::from_utf8(name.strip_suffix(&[0]).unwrap_or(name).to_vec()).ok()
}

fn listed(body: &[u8]) -> Vec<Element> {
    let nested = attributes(body.get(4..).unwrap_or_default())
        .find(|(kind, _)| *kind == LIST_ELEMENTS)
        .map_or(&[][..], |(_, value)| value);
    attributes(nested).filter_map(|(_, element)| one_listed(element)).collect()
}

fn one_listed(bytes: &[u8]) -> Option<Element> {
    let mut address = None;
    let (mut expires, mut interval_end) = (Duration::ZERO, false);
    for (kind, value) in attributes(bytes) {
        match kind {
            ELEMENT_KEY => {
                let key = attributes(value).find(|(kind, _)| *kind == DATA_VALUE)?.1;
                address = match key.len() {
                    4 => key.first_chunk::<4>().map(|key| Ipv4Addr::from(*key).into()),
                    16 => key.first_chunk::<16>().map(|key| Ipv6Addr::from(*key).into()),
                    _ => None,
                };
            }
            ELEMENT_EXPIRATION => {
                expires =
                    Duration::from_millis(value.first_chunk::<8>().map_or(0, |v| u64::from_be_bytes(*v)));
            }
            ELEMENT_FLAGS => {
                let flags = value.first_chunk::<4>().map_or(0, |value| u32::from_be_bytes(*value));
                interval_end = flags & INTERVAL_END != 0;
            }
            _ => {}
        }
    }
    address.map(|address| Element { address, expires, interval_end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_an_element_reads_back() {
        let change = Change {
            set: "ban6".to_owned(),
            add: true,
            address: "2001:db8::".parse().unwrap(),
            timeout: Duration::from_secs(60),
            interval_end: false,
        };
        let mut bytes = Vec::new();
        let message = Message::begin(&mut bytes, NEW_ELEMENT, NLM_F_REQUEST, 7, INET);
        elements(&mut bytes, "ban6", &[change.clone(), change.clone()]);
        message.end(&mut bytes);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!((read.len(), read[0].sequence, read[0].kind), (1, 7, NEW_ELEMENT));
        let found = listed(read[0].body);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].address, change.address);
    }

    #[test]
    fn the_kernel_s_refusals_are_told_apart() {
        assert!(refusal(&0_i32.to_ne_bytes()).is_ok());
        assert!(matches!(refusal(&(-23_i32).to_ne_bytes()), Err(NetlinkError::Full)));
        assert!(matches!(refusal(&(-2_i32).to_ne_bytes()), Err(NetlinkError::Missing)));
        assert!(matches!(refusal(&(-1_i32).to_ne_bytes()), Err(NetlinkError::System(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(data in proptest::collection::vec(0_u8.., 0..200)) {
            for message in messages(&data) {
                let _any = (listed(message.body), refusal(message.body));
                let _any = (of_ours(message.body, &[2]), set_name(message.body));
            }
        }
    }
}
