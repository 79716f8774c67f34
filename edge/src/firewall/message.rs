//! The words between edge and the helper: a length, a kind, and addresses and times. Never rule
//! text: who may speak here can drop and admit networks, within the helper's own bounds, and
//! nothing else. Pure; must not know sockets beyond reading and writing one frame.
//!
//! A frame is its length (four bytes, big endian, without itself) and a body of at most
//! [`MAX_FRAME`] bytes: one byte of kind, then the fields in the order of the variants. A network is
//! family (4 or 6), prefix length and the address; a time is four bytes of seconds.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Ban, Figures, Reason};

/// Most networks in one frame.
pub const MAX_BATCH: usize = 1000;
/// Longest body of a frame: a batch of IPv6 is 22 KiB, a status with its drift some more.
pub const MAX_FRAME: usize = 128 * 1024;
/// Longest text that travels.
const MAX_TEXT: usize = 64 * 1024;

/// What the helper is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Drop these; at most [`MAX_BATCH`].
    Ban(Vec<Ban>),
    /// Admit these again; at most [`MAX_BATCH`].
    Unban(Vec<IpNet>),
    /// Every ban in force: answered by pages.
    List,
    /// Admit everybody again.
    Clear,
    /// Pentest leases; at most [`MAX_BATCH`].
    Lift(Vec<Ban>),
    /// End leases; at most [`MAX_BATCH`].
    Unlift(Vec<IpNet>),
    /// Fill and counts.
    Figures,
    /// Do the rules stand? Asked each second.
    Standing,
    /// Root only: load the rules of the file; roll back after so many seconds unless confirmed.
    Apply {
        /// Seconds; `None` keeps them for good.
        confirm: Option<u32>,
        /// `SSH_CONNECTION` of who asks.
        ssh: Option<String>,
    },
    /// Root only: keep the rules on trial.
    Confirm {
        /// `SSH_CONNECTION` of who asks.
        ssh: Option<String>,
    },
    /// Root only: back to the rules before those on trial.
    Rollback,
    /// Root only: how it stands.
    Status,
    /// Root only: no rules at all.
    Remove,
}

/// What the helper answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done, but for these places of the batch.
    Done(Vec<(u16, Reason)>),
    /// A page of bans; `true` says that another follows.
    Page(Vec<Ban>, bool),
    /// Fill and counts.
    Figures(Figures),
    /// How it stands.
    Status(Box<Status>),
    /// Done, and what to do next.
    Told(String),
    /// Not done, and why.
    Failed(String),
    /// Whether the rules stand.
    Standing(Standing),
}

/// What the kernel holds of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No table, or one without the sets of bans. Also the answer to an order that needs them.
    NoRules,
    /// As they were loaded.
    AsLoaded,
    /// Somebody changed them by hand.
    Changed,
}

/// What `edge firewall status` shows. Times are whole seconds since the UNIX epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Is the table in the kernel?
    pub loaded: bool,
    /// Since when.
    pub since: Option<u64>,
    /// Rules are on trial until then.
    pub on_trial_until: Option<u64>,
    /// What somebody changed behind the helper's back; empty where nothing is.
    pub drift: Vec<String>,
    /// What the operator should know: sets that run full, a file that changed, a host setting.
    pub warnings: Vec<String>,
    /// Bans in the kernel.
    pub bans: u64,
    /// Fill and counts.
    pub figures: Figures,
}

/// Bytes that are no frame of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It ends before its last field.
    #[error("a frame ends early")]
    Short,
    /// Something follows its last field.
    #[error("a frame holds more than its fields")]
    Long,
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// A field out of its range.
    #[error("a frame whose {0} is out of range")]
    Field(&'static str),
    /// More than [`MAX_FRAME`] bytes.
    #[error("a frame of {0} bytes; at most 131072 are allowed")]
    TooLong(usize),
    /// An answer to another question.
    #[error("an answer to another question")]
    Unexpected,
}

impl Question {
    /// As a body. Batches beyond [`MAX_BATCH`] are the caller's mistake, and cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(self.len() <= MAX_BATCH, "callers split their batches");
        let mut out = Vec::with_capacity(8 + self.len() * 22);
        match self {
            Self::Ban(bans) => put_bans(put_kind(&mut out, 1), bans),
            Self::Unban(networks) => put_networks(put_kind(&mut out, 2), networks),
            Self::List => out.push(3),
            Self::Clear => out.push(4),
            Self::Lift(leases) => put_bans(put_kind(&mut out, 5), leases),
            Self::Unlift(networks) => put_networks(put_kind(&mut out, 6), networks),
            Self::Figures => out.push(7),
            Self::Apply { confirm, ssh } => {
                let out = put_kind(&mut out, 8);
                out.extend(confirm.unwrap_or(0).to_be_bytes());
                put_text(out, ssh.as_deref().unwrap_or_default());
            }
            Self::Confirm { ssh } => put_text(put_kind(&mut out, 9), ssh.as_deref().unwrap_or_default()),
            Self::Rollback => out.push(10),
            Self::Status => out.push(11),
            Self::Remove => out.push(12),
            Self::Standing => out.push(13),
        }
        out
    }

    /// Out of a body.
    ///
    /// # Errors
    /// It is no question.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let mut fields = Fields(body);
        let question = match fields.byte()? {
            1 => Self::Ban(fields.bans()?),
            2 => Self::Unban(fields.networks()?),
            3 => Self::List,
            4 => Self::Clear,
            5 => Self::Lift(fields.bans()?),
            6 => Self::Unlift(fields.networks()?),
            7 => Self::Figures,
            8 => Self::Apply {
                confirm: Some(fields.number()?).filter(|seconds| *seconds > 0),
                ssh: Some(fields.text()?).filter(|text| !text.is_empty()),
            },
            9 => Self::Confirm { ssh: Some(fields.text()?).filter(|text| !text.is_empty()) },
            10 => Self::Rollback,
            11 => Self::Status,
            12 => Self::Remove,
            13 => Self::Standing,
            kind => return Err(MessageError::Kind(kind)),
        };
        fields.end().map(|()| question)
    }

    /// May only root ask this?
    #[must_use]
    pub fn is_for_root(&self) -> bool {
        matches!(
            self,
            Self::Apply { .. } | Self::Confirm { .. } | Self::Rollback | Self::Status | Self::Remove
        )
    }

    fn len(&self) -> usize {
        match self {
            Self::Ban(bans) | Self::Lift(bans) => bans.len(),
            Self::Unban(networks) | Self::Unlift(networks) => networks.len(),
            _ => 0,
        }
    }
}

impl Answer {
    /// As a body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Done(refused) => {
                let out = put_kind(&mut out, 1);
                put_count(out, refused.len());
                for (place, reason) in refused.iter().take(MAX_BATCH) {
                    out.extend(place.to_be_bytes());
                    out.push(reason_code(*reason));
                }
            }
            Self::Page(bans, more) => {
                let out = put_kind(&mut out, 2);
                out.push(u8::from(*more));
                put_bans(out, bans);
            }
            Self::Figures(figures) => put_json(put_kind(&mut out, 3), figures),
            Self::Status(status) => put_json(put_kind(&mut out, 4), status),
            Self::Told(text) => put_text(put_kind(&mut out, 5), text),
            Self::Failed(text) => put_text(put_kind(&mut out, 6), text),
            Self::Standing(standing) => put_kind(&mut out, 7).push(match standing {
                Standing::NoRules => 0,
                Standing::AsLoaded => 1,
                Standing::Changed => 2,
            }),
        }
        out
    }

    /// Out of a body.
    ///
    /// # Errors
    /// It is no answer.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let mut fields = Fields(body);
        let answer = match fields.byte()? {
            1 => {
                let count = fields.count()?;
                let refused = (0..count)
                    .map(|_| Ok((fields.short()?, reason(fields.byte()?)?)))
                    .collect::<Result<_, _>>()?;
                Self::Done(refused)
            }
            2 => {
                let more = match fields.byte()? {
                    0 => false,
                    1 => true,
                    _ => return Err(MessageError::Field("mark of a further page")),
                };
                Self::Page(fields.bans()?, more)
            }
            3 => Self::Figures(fields.json()?),
            4 => Self::Status(Box::new(fields.json()?)),
            5 => Self::Told(fields.text()?),
            6 => Self::Failed(fields.text()?),
            7 => Self::Standing(match fields.byte()? {
                0 => Standing::NoRules,
                1 => Standing::AsLoaded,
                2 => Standing::Changed,
                _ => return Err(MessageError::Field("standing")),
            }),
            kind => return Err(MessageError::Kind(kind)),
        };
        fields.end().map(|()| answer)
    }
}

/// Writes one frame.
///
/// # Errors
/// The other side does not take it.
pub fn write_frame(to: &mut impl Write, body: &[u8]) -> std::io::Result<()> {
    to.write_all(&framed(body))
}

/// `body` with its length in front, so that several leave in one write.
#[must_use]
pub fn framed(body: &[u8]) -> Vec<u8> {
    debug_assert!(body.len() <= MAX_FRAME, "every part of a body is bounded");
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

/// Reads one frame's body; `None` where the other side has hung up between two frames.
///
/// # Errors
/// The stream fails, ends within a frame, or announces one beyond [`MAX_FRAME`] (`InvalidData`).
pub fn read_frame(from: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    loop {
        match from.read(&mut length[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    from.read_exact(&mut length[1..])?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, MessageError::TooLong(length)));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(body))
}

/// Bytes out of the socket, as either side reads them: whatever is understood reads back the same.
pub fn fuzz_message(data: &[u8]) {
    if let Ok(question) = Question::decode(data) {
        assert_eq!(Question::decode(&question.encode()), Ok(question));
    }
    if let Ok(answer) = Answer::decode(data) {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
    let mut stream = data;
    while let Ok(Some(body)) = read_frame(&mut stream) {
        assert!(body.len() <= MAX_FRAME);
    }
}

fn put_kind(out: &mut Vec<u8>, kind: u8) -> &mut Vec<u8> {
    out.push(kind);
    out
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u16::try_from(count.min(MAX_BATCH)).unwrap_or(u16::MAX).to_be_bytes());
}

fn put_network(out: &mut Vec<u8>, network: IpNet) {
    match network.addr() {
        IpAddr::V4(address) => {
            out.extend([4, network.prefix_len()]);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            out.extend([6, network.prefix_len()]);
            out.extend(address.octets());
        }
    }
}

fn put_networks(out: &mut Vec<u8>, networks: &[IpNet]) {
    put_count(out, networks.len());
    for network in networks.iter().take(MAX_BATCH) {
        put_network(out, *network);
    }
}

/// Times are rounded up: a ban never ends before it should.
fn put_bans(out: &mut Vec<u8>, bans: &[Ban]) {
    put_count(out, bans.len());
    for ban in bans.iter().take(MAX_BATCH) {
        put_network(out, ban.network);
        let seconds = ban.remaining.as_secs().saturating_add(u64::from(ban.remaining.subsec_nanos() > 0));
        out.extend(u32::try_from(seconds).unwrap_or(u32::MAX).to_be_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let cut = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    out.extend(u32::try_from(cut).unwrap_or(0).to_be_bytes());
    out.extend(text.as_bytes().iter().take(cut));
}

fn put_json(out: &mut Vec<u8>, value: &impl Serialize) {
    // Plain numbers and texts always have a JSON form; an empty text reads as "out of range".
    put_text(out, &serde_json::to_string(value).unwrap_or_default());
}

fn reason_code(reason: Reason) -> u8 {
    match reason {
        Reason::Protected => 1,
        Reason::Prefix => 2,
        Reason::Time => 3,
        Reason::Full => 4,
        Reason::Overlaps => 5,
    }
}

fn reason(code: u8) -> Result<Reason, MessageError> {
    Ok(match code {
        1 => Reason::Protected,
        2 => Reason::Prefix,
        3 => Reason::Time,
        4 => Reason::Full,
        5 => Reason::Overlaps,
        _ => return Err(MessageError::Field("reason")),
    })
}

/// What is left of a body.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], MessageError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(MessageError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        self.take(N)?.try_into().map_err(|_| MessageError::Short)
    }

    fn byte(&mut self) -> Result<u8, MessageError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn short(&mut self) -> Result<u16, MessageError> {
        self.array().map(u16::from_be_bytes)
    }

    fn number(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_be_bytes)
    }

    fn count(&mut self) -> Result<usize, MessageError> {
        let count = usize::from(self.short()?);
        if count > MAX_BATCH { Err(MessageError::Field("count")) } else { Ok(count) }
    }

    fn network(&mut self) -> Result<IpNet, MessageError> {
        let (family, prefix) = (self.byte()?, self.byte()?);
        let address = match family {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(MessageError::Field("family")),
        };
        IpNet::new(address, prefix).map_err(|_| MessageError::Field("prefix length"))
    }

    fn networks(&mut self) -> Result<Vec<IpNet>, MessageError> {
        (0..self.count()?).map(|_| self.network()).collect()
    }

    fn bans(&mut self) -> Result<Vec<Ban>, MessageError> {
        let ban = |fields: &mut Self| {
            let network = fields.network()?;
            Ok(Ban { network, remaining: Duration::from_secs(u64::from(fields.number()?)) })
        };
        (0..self.count()?).map(|_| ban(self)).collect()
    }

    fn text(&mut self) -> Result<String, MessageError> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if length > MAX_TEXT {
            return Err(MessageError::Field("text's length"));
        }
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| MessageError::Field("text"))
    }

    fn json<T: for<'d> Deserialize<'d>>(&mut self) -> Result<T, MessageError> {
        // Absent fields are written out again, so what is read leaves room for them.
        let text = self.text()?;
        let read = if text.len() > MAX_TEXT - 1024 { None } else { serde_json::from_str(&text).ok() };
        read.ok_or(MessageError::Field("report"))
    }

    fn end(self) -> Result<(), MessageError> {
        if self.0.is_empty() { Ok(()) } else { Err(MessageError::Long) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0_u8..=32).prop_map(|(bits, prefix)| IpNet::new(
                Ipv4Addr::from(bits).into(),
                prefix
            )
            .unwrap()),
            (any::<u128>(), 0_u8..=128).prop_map(|(bits, prefix)| IpNet::new(
                Ipv6Addr::from(bits).into(),
                prefix
            )
            .unwrap()),
        ]
    }

    fn bans() -> impl Strategy<Value = Vec<Ban>> {
        let ban = (network(), any::<u32>())
            .prop_map(|(network, seconds)| Ban { network, remaining: Duration::from_secs(seconds.into()) });
        proptest::collection::vec(ban, 0..20)
    }

    proptest! {
        #[test]
        fn a_question_reads_back(bans in bans(), confirm in 1_u32.., ssh in "[ -~]{1,40}") {
            let networks: Vec<_> = bans.iter().map(|ban| ban.network).collect();
            let questions = [
                Question::Ban(bans.clone()), Question::Unban(networks.clone()), Question::List,
                Question::Clear, Question::Lift(bans), Question::Unlift(networks), Question::Figures,
                Question::Apply { confirm: Some(confirm), ssh: None },
                Question::Apply { confirm: None, ssh: Some(ssh.clone()) },
                Question::Confirm { ssh: Some(ssh) }, Question::Rollback, Question::Status, Question::Remove,
                Question::Standing,
            ];
            for question in questions {
                prop_assert_eq!(Question::decode(&question.encode()), Ok(question));
            }
        }

        #[test]
        fn an_answer_reads_back(bans in bans(), more: bool, place: u16, text in ".{0,40}", used: u64) {
            let figures = Figures {
                sets: vec![super::super::Fill { set: text.clone(), used, size: 7 }], ..Figures::default()
            };
            let reasons = [Reason::Protected, Reason::Prefix, Reason::Time, Reason::Full, Reason::Overlaps];
            let status = Status { drift: vec![text.clone()], figures: figures.clone(), ..Status::default() };
            let answers = [
                Answer::Page(bans, more), Answer::Done(reasons.map(|reason| (place, reason)).to_vec()),
                Answer::Figures(figures), Answer::Status(Box::new(status)),
                Answer::Told(text.clone()), Answer::Failed(text), Answer::Standing(Standing::NoRules),
                Answer::Standing(Standing::AsLoaded), Answer::Standing(Standing::Changed),
            ];
            for answer in answers {
                prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_message(&data);
        }

        #[test]
        fn a_damaged_frame_is_an_error_or_another_message(bans in bans(), at: usize, to: u8) {
            let mut body = Question::Ban(bans).encode();
            let at = at % body.len();
            body[at] = to;
            fuzz_message(&body);
        }
    }

    #[test]
    fn a_frame_beyond_the_bound_is_refused_before_it_is_read() {
        let error = read_frame(&mut &[0xff, 0xff, 0xff, 0xff][..]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(read_frame(&mut &[][..]).unwrap(), None);
        assert_eq!(read_frame(&mut &framed(b"x")[..]).unwrap(), Some(b"x".to_vec()));
        assert!(read_frame(&mut &framed(b"xyz")[..5]).is_err());
    }

    #[test]
    fn a_time_is_rounded_up() {
        let ban = Ban { network: "192.0.2.1/32".parse().unwrap(), remaining: Duration::from_millis(1) };
        let Ok(Question::Ban(read)) = Question::decode(&Question::Ban(vec![ban]).encode()) else { panic!() };
        assert_eq!(read[0].remaining, Duration::from_secs(1));
    }
}
