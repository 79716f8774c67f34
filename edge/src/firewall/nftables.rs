//! The kernel, through the helper's socket: batches are pipelined, every wait ends after a second,
//! and a helper that is away is asked again once a second at most, so that its absence costs the
//! engine no time. Knows the words; must not know nftables.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::message::{Answer, MAX_BATCH, MessageError, Question, Standing, framed, read_frame};
use super::{Ban, Figures, Firewall, FirewallError, Refusal, State};

/// After a failure the helper is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// Frames that are under way at once: few enough that neither side's buffer fills with answers.
const UNDER_WAY: usize = 4;
/// Pages of a list; more than the largest sets hold.
const MOST_PAGES: usize = 100_000;

/// The kernel's sets, which only the helper may change.
pub(super) struct Kernel {
    socket: PathBuf,
    timeout: Duration,
    stream: Option<UnixStream>,
    /// Why and when the last attempt failed.
    failed: Option<(String, Instant)>,
}

impl Kernel {
    /// Connects with the first question.
    pub(super) fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout, stream: None, failed: None }
    }

    /// Asks all of them, and gives each answer with its place.
    fn ask_all(
        &mut self,
        questions: &[Question],
        mut each: impl FnMut(usize, Answer) -> Result<(), FirewallError>,
    ) -> Result<(), FirewallError> {
        let mut stream = self.connected()?;
        let result = pipelined(&mut stream, self.timeout, questions, &mut each);
        match result {
            Ok(()) => {
                self.stream = Some(stream);
                self.failed = None;
                Ok(())
            }
            Err(Ended::Refused(error)) => {
                // The conversation is cut, since answers may be under way; the helper is well.
                self.failed = None;
                Err(error)
            }
            Err(Ended::Stream(source)) => Err(self.absent(source)),
        }
    }

    fn ask(&mut self, question: Question) -> Result<Answer, FirewallError> {
        let mut answered = None;
        self.ask_all(&[question], |_, answer| {
            answered = Some(answer);
            Ok(())
        })?;
        answered.ok_or(FirewallError::Words(MessageError::Unexpected))
    }

    /// Bans or leases, by batches.
    fn order(
        &mut self,
        orders: &[Ban],
        question: impl Fn(Vec<Ban>) -> Question,
    ) -> Result<Vec<Refusal>, FirewallError> {
        let questions: Vec<_> = orders.chunks(MAX_BATCH).map(|batch| question(batch.to_vec())).collect();
        let mut refusals = Vec::new();
        self.ask_all(&questions, |batch, answer| {
            let Answer::Done(refused) = answer else { return Err(unexpected(answer)) };
            for (place, reason) in refused {
                let order = orders.get(batch * MAX_BATCH + usize::from(place));
                let network = order.ok_or(MessageError::Field("place"))?.network;
                refusals.push(Refusal { network, reason });
            }
            Ok(())
        })?;
        Ok(refusals)
    }

    fn end(
        &mut self,
        networks: &[IpNet],
        question: impl Fn(Vec<IpNet>) -> Question,
    ) -> Result<(), FirewallError> {
        let questions: Vec<_> = networks.chunks(MAX_BATCH).map(|batch| question(batch.to_vec())).collect();
        self.ask_all(&questions, |_, answer| match answer {
            Answer::Done(_) => Ok(()),
            other => Err(unexpected(other)),
        })
    }

    fn connected(&mut self) -> Result<UnixStream, FirewallError> {
        if let Some(stream) = self.stream.take().filter(is_open) {
            return Ok(stream);
        }
        if let Some((why, at)) = &self.failed
            && now().saturating_duration_since(*at) < PAUSE
        {
            return Err(FirewallError::Waiting { socket: self.socket.clone(), why: why.clone() });
        }
        connect(&self.socket, self.timeout).map_err(|source| self.absent(source))
    }

    fn absent(&mut self, source: io::Error) -> FirewallError {
        self.stream = None;
        self.failed = Some((source.to_string(), now()));
        FirewallError::Absent { socket: self.socket.clone(), source }
    }
}

/// Why a conversation ended before its end.
enum Ended {
    Stream(io::Error),
    Refused(FirewallError),
}

fn pipelined(
    stream: &mut UnixStream,
    timeout: Duration,
    questions: &[Question],
    each: &mut impl FnMut(usize, Answer) -> Result<(), FirewallError>,
) -> Result<(), Ended> {
    for (group, questions) in questions.chunks(UNDER_WAY).enumerate() {
        let bytes: Vec<u8> = questions.iter().flat_map(|question| framed(&question.encode())).collect();
        if let Err(error) = stream.write_all(&bytes) {
            return Err(last_words(stream, error));
        }
        wait(stream, timeout).map_err(Ended::Stream)?;
        for place in 0..questions.len() {
            let body = read_frame(stream).map_err(Ended::Stream)?;
            let body = body.ok_or_else(|| Ended::Stream(ErrorKind::UnexpectedEof.into()))?;
            let answer = Answer::decode(&body).map_err(|error| Ended::Refused(error.into()))?;
            each(group * UNDER_WAY + place, answer).map_err(Ended::Refused)?;
        }
    }
    Ok(())
}

/// Until there is something to read. A blocking read would also be woken, for nothing, when the
/// helper takes the question off the socket: two switches more before the helper gets to the kernel.
fn wait(stream: &UnixStream, timeout: Duration) -> io::Result<()> {
    let timeout = timeout.try_into().ok();
    match poll(&mut [PollFd::new(stream, PollFlags::IN)], timeout.as_ref()) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A helper that refuses to talk says why before it hangs up.
fn last_words(stream: &mut UnixStream, error: io::Error) -> Ended {
    let said = read_frame(stream).ok().flatten().and_then(|body| Answer::decode(&body).ok());
    match said {
        Some(Answer::Failed(why)) => Ended::Refused(FirewallError::Refused(why)),
        _ => Ended::Stream(error),
    }
}

fn unexpected(answer: Answer) -> FirewallError {
    match answer {
        Answer::Failed(why) => FirewallError::Refused(why),
        Answer::Standing(Standing::NoRules) => FirewallError::NoRules,
        _ => FirewallError::Words(MessageError::Unexpected),
    }
}

fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    // A unix socket connects at once or, with a full backlog, waits for its send timeout.
    let unconnected = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    unconnected.set_write_timeout(Some(timeout))?;
    unconnected.set_read_timeout(Some(timeout))?;
    unconnected.connect(&socket2::SockAddr::unix(socket)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(unconnected)))
}

/// Between two questions nothing may arrive; an end of file is a helper that was restarted.
fn is_open(stream: &UnixStream) -> bool {
    let mut byte = [0; 1];
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(recv(stream, &mut byte, look), Err(Errno::AGAIN))
}

#[expect(clippy::disallowed_methods, reason = "how long the helper is left alone is this room's own")]
fn now() -> Instant {
    Instant::now()
}

/// One question to the helper on `socket`, for an operator's command.
///
/// # Errors
/// Nobody answers within `timeout`, or not in our words. That the helper refuses is an answer.
pub fn ask(socket: &Path, timeout: Duration, question: Question) -> Result<Answer, FirewallError> {
    Kernel::new(socket.to_owned(), timeout).ask(question)
}

impl Firewall for Kernel {
    fn ban(&mut self, bans: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        self.order(bans, Question::Ban)
    }

    fn unban(&mut self, networks: &[IpNet]) -> Result<(), FirewallError> {
        self.end(networks, Question::Unban)
    }

    fn list(&mut self) -> Result<Vec<Ban>, FirewallError> {
        let mut stream = self.connected()?;
        let mut listed = Vec::new();
        let mut each = |answer| match answer {
            Answer::Page(page, more) => {
                listed.extend(page);
                Ok(more)
            }
            other => Err(unexpected(other)),
        };
        match pages(&mut stream, &mut each) {
            Ok(()) => {
                self.stream = Some(stream);
                self.failed = None;
                Ok(listed)
            }
            Err(Ended::Refused(error)) => Err(error),
            Err(Ended::Stream(source)) => Err(self.absent(source)),
        }
    }

    fn clear(&mut self) -> Result<(), FirewallError> {
        match self.ask(Question::Clear)? {
            Answer::Done(_) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn lift(&mut self, leases: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        self.order(leases, Question::Lift)
    }

    fn unlift(&mut self, networks: &[IpNet]) -> Result<(), FirewallError> {
        self.end(networks, Question::Unlift)
    }

    fn figures(&mut self) -> Result<Figures, FirewallError> {
        match self.ask(Question::Figures)? {
            Answer::Figures(figures) => Ok(figures),
            other => Err(unexpected(other)),
        }
    }

    fn state(&mut self) -> State {
        match self.ask(Question::Standing) {
            Ok(Answer::Standing(Standing::AsLoaded)) => State::Works,
            Ok(Answer::Standing(Standing::Changed)) => State::Changed,
            Ok(other) => unexpected(other).state(),
            Err(error) => error.state(),
        }
    }
}

fn pages(
    stream: &mut UnixStream,
    each: &mut impl FnMut(Answer) -> Result<bool, FirewallError>,
) -> Result<(), Ended> {
    if let Err(error) = stream.write_all(&framed(&Question::List.encode())) {
        return Err(last_words(stream, error));
    }
    for _ in 0..MOST_PAGES {
        let body = read_frame(stream).map_err(Ended::Stream)?;
        let body = body.ok_or_else(|| Ended::Stream(ErrorKind::UnexpectedEof.into()))?;
        let answer = Answer::decode(&body).map_err(|error| Ended::Refused(error.into()))?;
        if !each(answer).map_err(Ended::Refused)? {
            return Ok(());
        }
    }
    Err(Ended::Refused(FirewallError::Words(MessageError::Field("number of pages"))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::Reason;
    use super::super::message::write_frame;
    use super::*;

    fn ban(text: &str) -> Ban {
        Ban { network: text.parse().unwrap(), remaining: Duration::from_secs(60) }
    }

    #[test]
    fn an_absent_helper_costs_no_time_and_is_asked_again_after_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("helper.sock");
        let mut kernel = Kernel::new(path.clone(), Duration::from_secs(1));
        assert!(matches!(kernel.ban(&[ban("192.0.2.1/32")]), Err(FirewallError::Absent { .. })));
        assert!(matches!(kernel.state(), State::Absent(_)));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(kernel.ban(&[ban("192.0.2.1/32")]), Err(FirewallError::Waiting { .. })));
        let helper = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let body = read_frame(&mut stream).unwrap().unwrap();
            assert!(matches!(Question::decode(&body), Ok(Question::Ban(bans)) if bans.len() == 1));
            write_frame(&mut stream, &Answer::Done(vec![(0, Reason::Protected)]).encode()).unwrap();
            let told = [Standing::AsLoaded, Standing::Changed, Standing::NoRules];
            for answer in told.map(Answer::Standing).into_iter().chain([Answer::Failed("no".to_owned())]) {
                let body = read_frame(&mut stream).unwrap().unwrap();
                assert_eq!(Question::decode(&body), Ok(Question::Standing));
                write_frame(&mut stream, &answer.encode()).unwrap();
            }
        });
        kernel.failed = kernel.failed.take().map(|(why, at)| (why, at.checked_sub(PAUSE).unwrap()));
        let refused = kernel.ban(&[ban("192.0.2.1/32")]).unwrap();
        let network = "192.0.2.1/32".parse().unwrap();
        assert_eq!(refused, [Refusal { network, reason: Reason::Protected }]);
        let refuses = State::Absent("the helper says: no".to_owned());
        for state in [State::Works, State::Changed, State::NoRules, refuses] {
            assert_eq!(kernel.state(), state, "as the helper says, not only that it answers");
        }
        helper.join().unwrap();
        // It has gone; that is noticed before the question is lost.
        assert!(!kernel.stream.as_ref().is_some_and(is_open));
        assert!(matches!(kernel.state(), State::Absent(_)));
    }

    #[test]
    fn a_silent_helper_is_given_up_after_the_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("helper.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut kernel = Kernel::new(path, Duration::from_millis(50));
        let before = now();
        assert!(matches!(kernel.list(), Err(FirewallError::Absent { .. })));
        assert!(before.elapsed() < Duration::from_secs(1));
    }
}
