//! The task that owns a connection's socket: reads commands, gives answers to whoever waits for
//! them, writes what is asked, shows signs of life and gives up a silent broker. Knows no queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::{Asked, ClientError, MOST_WAITING, Shared, weight};
use crate::openwire::any::Command;
use crate::openwire::command::{Head, KeepAliveInfo, MessageDispatch, Throwable};
use crate::openwire::frame::{Arrival, Incoming, Outgoing};
use crate::openwire::greeting::Settled;

/// Bytes that may wait to be written before nothing more is taken to write.
const MOST_UNWRITTEN: usize = 1 << 20;
/// An answer that lies behind more than may wait is waited for so long while nothing of it is taken.
const STUCK: Duration = Duration::from_secs(1);
/// Without an agreement on silence nothing is due for so long.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

type Answer = oneshot::Sender<Result<Command, ClientError>>;

pub(super) struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    incoming: Incoming,
    outgoing: Outgoing,
    flushed: bool,
    asks: mpsc::Receiver<Asked>,
    dispatched: mpsc::UnboundedSender<Box<MessageDispatch>>,
    /// Who waits for the answer to which command.
    pending: HashMap<i32, Answer>,
    last_id: i32,
    silence: Option<Duration>,
    /// Before it the broker owes no sign of life.
    grace: Instant,
    silent_at: Instant,
    quiet_at: Instant,
    /// An answer lies behind more than may wait: until when it may be taken.
    stuck_at: Option<Instant>,
    shared: Arc<Shared>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection<S> {
    pub(super) fn new(
        stream: S,
        incoming: Incoming,
        outgoing: Outgoing,
        settled: Settled,
        asks: mpsc::Receiver<Asked>,
        dispatched: mpsc::UnboundedSender<Box<MessageDispatch>>,
        shared: Arc<Shared>,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let silence = settled.inactivity;
        let now = Instant::now();
        let grace = now + settled.initial_delay;
        Self {
            reader,
            writer,
            incoming,
            outgoing,
            flushed: true,
            asks,
            dispatched,
            pending: HashMap::new(),
            last_id: 0,
            silence,
            grace,
            silent_at: grace + silence.unwrap_or(NEVER),
            quiet_at: now + silence.unwrap_or(NEVER) / 3,
            stuck_at: None,
            shared,
        }
    }

    /// Until the connection ends; why stands in `shared` before anybody is told that it did.
    pub(super) async fn run(mut self) {
        let cause = match self.serve().await {
            Err(cause) => cause,
            // Nobody holds it any more.
            Ok(()) => ClientError::Closed,
        };
        let _first = self.shared.end.set(Arc::new(cause));
    }

    async fn serve(&mut self) -> Result<(), ClientError> {
        // What came right behind the greeting.
        self.arrivals()?;
        loop {
            self.gather()?;
            let has_room = self.shared.waiting.load(Ordering::Relaxed) < MOST_WAITING;
            let is_stuck = !has_room && !self.pending.is_empty();
            self.stuck_at = is_stuck.then(|| self.stuck_at.unwrap_or_else(|| Instant::now() + STUCK));
            let stuck_at = self.stuck_at.unwrap_or(self.silent_at);
            let may_take = self.outgoing.remaining() < MOST_UNWRITTEN;
            let remaining = self.outgoing.remaining();
            let unwritten = remaining > 0 || !self.flushed;
            let (silent_at, quiet_at) = (self.silent_at, self.quiet_at);
            tokio::select! {
                read = self.reader.read_buf(self.incoming.buffer()), if has_room => {
                    match read.map_err(ClientError::broken)? {
                        0 => return Err(ClientError::Closed),
                        bytes => self.moved(bytes),
                    }
                    self.heard();
                    self.arrivals()?;
                }
                written = write(&mut self.writer, &mut self.outgoing), if unwritten => {
                    self.flushed = written.map_err(ClientError::broken)?;
                    self.moved(remaining - self.outgoing.remaining());
                    self.quiet_at = Instant::now() + self.silence.unwrap_or(NEVER) / 3;
                }
                asked = self.asks.recv(), if may_take => match asked {
                    Some(asked) => self.ask(asked)?,
                    None if unwritten => self.finish().await?,
                    None => return Ok(()),
                },
                () = self.shared.taken.notified(), if !has_room => {
                    self.stuck_at = None;
                    self.heard();
                }
                () = sleep_until(stuck_at), if is_stuck => return Err(ClientError::Overrun),
                () = sleep_until(quiet_at) => {
                    self.quiet_at = Instant::now() + self.silence.unwrap_or(NEVER) / 3;
                    self.push(&KeepAliveInfo { head: Head::default() }.into())?;
                }
                // A peer that is not read cannot be heard.
                () = sleep_until(silent_at), if has_room => {
                    return Err(ClientError::Silent(self.silence.unwrap_or(NEVER)));
                }
            }
        }
    }

    fn moved(&self, bytes: usize) {
        self.shared.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The broker lives.
    fn heard(&mut self) {
        self.silent_at = Instant::now().max(self.grace) + self.silence.unwrap_or(NEVER);
    }

    /// The last words, when nobody asks any more.
    async fn finish(&mut self) -> Result<(), ClientError> {
        let last = async {
            self.writer.write_all_buf(&mut self.outgoing).await?;
            self.writer.flush().await
        };
        let within = self.silence.unwrap_or(super::FAREWELL).min(super::FAREWELL);
        // A broker that does not read any more misses nothing.
        let _unread = tokio::time::timeout(within, last).await;
        Err(ClientError::Closed)
    }

    /// All that is asked already, so that one write takes many small commands.
    fn gather(&mut self) -> Result<(), ClientError> {
        while self.outgoing.remaining() < MOST_UNWRITTEN {
            let Ok(asked) = self.asks.try_recv() else { break };
            self.ask(asked)?;
        }
        Ok(())
    }

    fn ask(&mut self, asked: Asked) -> Result<(), ClientError> {
        let Asked { mut command, answer } = asked;
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        command.head_mut().command_id = self.last_id;
        match (self.push(&command), answer) {
            (Ok(()), Some(answer)) => drop(self.pending.insert(self.last_id, answer)),
            // Nothing of it was sent: only this request fails.
            (Err(error), Some(answer)) => drop(answer.send(Err(error))),
            (pushed, None) => return pushed,
        }
        Ok(())
    }

    fn push(&mut self, command: &Command) -> Result<(), ClientError> {
        self.flushed = false;
        Ok(self.outgoing.push(command)?)
    }

    fn arrivals(&mut self) -> Result<(), ClientError> {
        while let Some(arrival) = self.incoming.arrival()? {
            // A second greeting is no command and does not get here.
            if let Arrival::Command(command) = arrival {
                self.arrived(command)?;
            }
        }
        Ok(())
    }

    fn arrived(&mut self, command: Command) -> Result<(), ClientError> {
        match command {
            Command::MessageDispatch(dispatch) => {
                self.shared.waiting.fetch_add(weight(&dispatch), Ordering::Relaxed);
                // Nobody takes them any more: they are unacknowledged, and so the broker's.
                let _untaken = self.dispatched.send(dispatch);
            }
            Command::Response(ref response) => self.answer(response.correlation_id, Ok(command)),
            Command::DataResponse(ref response) => self.answer(response.correlation_id, Ok(command)),
            Command::DataArrayResponse(ref response) => self.answer(response.correlation_id, Ok(command)),
            Command::IntegerResponse(ref response) => self.answer(response.correlation_id, Ok(command)),
            Command::ExceptionResponse(response) => {
                let exception = response.exception.unwrap_or_else(unnamed);
                self.answer(response.correlation_id, Err(ClientError::Refused(exception)));
            }
            Command::ConnectionError(error) => {
                return Err(ClientError::Told(error.exception.unwrap_or_else(unnamed)));
            }
            Command::KeepAliveInfo(sign) if sign.head.response_required => {
                let head = Head { response_required: false, ..sign.head };
                self.push(&KeepAliveInfo { head }.into())?;
            }
            // A broker that takes a consumer away will not say so again.
            Command::ConsumerControl(control) if control.close => return Err(ClientError::Closed),
            Command::ShutdownInfo(_) => return Err(ClientError::Closed),
            // Who the broker is and where its cluster is, and signs of life.
            _ => {}
        }
        Ok(())
    }

    fn answer(&mut self, id: i32, answer: Result<Command, ClientError>) {
        if let Some(waits) = self.pending.remove(&id) {
            // Whoever asked may have given up.
            let _gone = waits.send(answer);
        }
    }
}

/// Writes some, or flushes what is written; tells whether it is flushed.
async fn write<W: AsyncWrite + Unpin>(writer: &mut W, outgoing: &mut Outgoing) -> std::io::Result<bool> {
    if outgoing.has_remaining() {
        match writer.write_buf(outgoing).await? {
            0 => Err(std::io::ErrorKind::WriteZero.into()),
            _ => Ok(false),
        }
    } else {
        writer.flush().await.map(|()| true)
    }
}

fn unnamed() -> Throwable {
    Throwable::new("java.lang.Exception", "it gives no reason")
}

/// What is asked, as its deadline's message names it.
pub(super) fn name(command: &Command) -> &'static str {
    match command {
        Command::ConnectionInfo(_) => "the introduction",
        Command::SessionInfo(_) => "a new session",
        Command::ConsumerInfo(_) => "a new consumer",
        Command::ProducerInfo(_) => "a new producer",
        Command::TransactionInfo(_) => "a step of a transaction",
        Command::Message(_) => "a message",
        Command::MessageAck(_) => "an acknowledgement",
        Command::RemoveInfo(_) => "a close",
        _ => "a request",
    }
}
