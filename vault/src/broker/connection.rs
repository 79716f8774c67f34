//! One connection from its greeting to its end: who it is, its two halves, its silence. Knows bytes
//! and deadlines; what its commands mean stands in [`super::asking`].

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::openwire::{
    Arrival, BrokerInfo, Command, ConnectionId, ConnectionInfo, Head, Incoming, KeepAliveInfo, Offer,
    Outgoing, Password, Settled, Text, Version,
};

use super::Hall;
use super::asking::{Asking, Goes};
use super::clients::{Place, Who};
use super::fault::Refused;
use super::large::{Frame, LARGE, LONG};
use super::porch::Stranger;
use super::seats::Seats;
use super::telling::{Replies, Reply, Telling, done, refusal};
use super::users::Verdict;

/// Greeting, and then saying who one is, may each take so long.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// What is said last must be taken within this time.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Nobody who is unknown sends a longer frame, bytes.
const MOST_UNKNOWN: usize = 64 << 10;
/// A peer whose sends are held, and that is not read meanwhile, is told a sign of life this often.
const SIGN: Duration = Duration::from_secs(2);
/// As much of a stranger's name is told in the log, in characters.
const LONGEST_USER: usize = 64;
/// Answers that may wait for the writing half.
const REPLIES: usize = 256;

/// Who is connected.
#[derive(Debug)]
pub(super) struct Client {
    /// Proved; empty where everybody is let in.
    pub(super) user: Arc<str>,
    pub(super) connection: ConnectionId,
    /// Are those temporary queues its own that are called after its connection?
    pub(super) has_id: bool,
    /// It was connected before: what it sends it may have sent already.
    pub(super) again: bool,
    /// Among all that may be connected.
    _seat: OwnedSemaphorePermit,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Its client closed it.
    Closed,
    /// The vault stops.
    Stopping,
    /// The same client has come back on another.
    Replaced,
    /// There are as many clients as there may be.
    Crowded,
    /// It had not said who it is, and had to go for another.
    Ousted,
    /// It asked for what ends a connection.
    Refused(Refused),
    /// It said nothing for so long.
    Silent(Duration),
    /// A large frame, of so many bytes, came too slowly.
    Slow(usize),
    /// Its socket.
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

/// One that has greeted.
struct Greeted<S> {
    stream: S,
    incoming: Incoming,
    outgoing: Outgoing,
    settled: Settled,
}

/// Serves one connection until its end.
pub(super) async fn serve<S>(hall: Arc<Hall>, stream: S, from: SocketAddr, stranger: Stranger) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    // Boxed: what greets is gone when the conversation goes on for days.
    let cut = stranger.cut.clone();
    let introduced = Box::pin(introduce(&hall, stream, from, stranger));
    let introduced = tokio::select! {
        introduced = introduced => introduced,
        () = cut.cancelled() => return End::Ousted,
        () = hall.shutdown.cancelled() => return End::Stopping,
    };
    match introduced {
        Ok((greeted, client, place)) => converse(&hall, greeted, from, &client, place).await,
        Err(end) => end,
    }
}

async fn introduce<S>(
    hall: &Arc<Hall>,
    stream: S,
    from: SocketAddr,
    stranger: Stranger,
) -> Result<(Greeted<S>, Client, Place), End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offer = Offer {
        version: Version::V12,
        max_frame: hall.settings.max_frame(),
        inactivity: hall.settings.silence,
        ..Offer::default()
    };
    let slow = |_| End::Silent(INTRODUCTION);
    let mut greeted = timeout(INTRODUCTION, greet(hall, stream, offer)).await.map_err(slow)??;
    let deadline = Instant::now() + INTRODUCTION;
    let info = timeout_at(deadline, greeted.hear_name()).await.map_err(slow)?;
    // Who has said a name waits for the door's answer, not for those who say nothing.
    drop(stranger);
    let (head, connection) = match &info {
        Ok(info) => (info.head, detached(&info.connection_id)),
        Err(_) => (Head::default(), ConnectionId { value: Text::default() }),
    };
    let admitted = match info {
        Ok(info) => tokio::select! {
            admitted = admit(hall, &info, from) => admitted,
            end = greeted.hear_end() => Err(end),
        },
        Err(end) => Err(end),
    };
    let told = match &admitted {
        Ok(_) => done(head),
        Err(End::Refused(refused)) => refusal(refused, head, &connection),
        Err(_) => return admitted.map(|(client, place)| (greeted, client, place)),
    };
    greeted.say(&told).await?;
    admitted.map(|(client, place)| (greeted, client, place))
}

async fn greet<S>(hall: &Arc<Hall>, mut stream: S, offer: Offer) -> Result<Greeted<S>, End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut outgoing = Outgoing::new(&offer.greeting()).map_err(Refused::from).map_err(End::Refused)?;
    let mut incoming = Incoming::new(offer);
    write(&mut stream, &mut outgoing).await?;
    let settled = loop {
        match incoming.arrival().map_err(Refused::from).map_err(End::Refused)? {
            Some(Arrival::Greeting(_, settled)) => break settled,
            Some(_) => return Err(End::Refused(Refused::Unknown)),
            None => read(&mut stream, &mut incoming).await?,
        }
    };
    outgoing.settle(&settled);
    incoming.limit(MOST_UNKNOWN);
    let mut greeted = Greeted { stream, incoming, outgoing, settled };
    let about = BrokerInfo::new(hall.id.clone(), Text::shortened(&hall.settings.name));
    greeted.say(&about.into()).await?;
    Ok(greeted)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeted<S> {
    /// Waits until the peer has said who it is.
    async fn hear_name(&mut self) -> Result<ConnectionInfo, End> {
        loop {
            match self.incoming.arrival().map_err(Refused::from).map_err(End::Refused)? {
                Some(Arrival::Command(Command::ConnectionInfo(info))) => return Ok(*info),
                Some(Arrival::Command(Command::KeepAliveInfo(_) | Command::ConnectionControl(_))) => {}
                Some(Arrival::Command(Command::ShutdownInfo(_))) => return Err(End::Closed),
                Some(Arrival::Command(Command::BrokerInfo(info))) if !info.network => {}
                Some(Arrival::Command(Command::BrokerInfo(_))) => {
                    let what = "network connectors of ActiveMQ (the vault's bridge takes their place)";
                    return Err(End::Refused(Refused::Unserved(what)));
                }
                Some(_) => return Err(End::Refused(Refused::Unknown)),
                None => read(&mut self.stream, &mut self.incoming).await?,
            }
        }
    }

    /// Waits until the peer has left. What it says meanwhile is kept, so much of it.
    async fn hear_end(&mut self) -> End {
        while self.incoming.gathered() < MOST_UNKNOWN {
            if let Err(error) = read(&mut self.stream, &mut self.incoming).await {
                return error.into();
            }
        }
        pending().await
    }

    async fn say(&mut self, command: &Command) -> Result<(), End> {
        self.outgoing.push(command).map_err(Refused::from).map_err(End::Refused)?;
        let written = timeout(LAST_WORDS, write(&mut self.stream, &mut self.outgoing)).await;
        written.map_err(|_| End::Silent(LAST_WORDS))?.map_err(End::from)
    }
}

/// Password first: a stranger learns nothing of who is connected.
async fn admit(hall: &Hall, info: &ConnectionInfo, from: SocketAddr) -> Result<(Client, Place), End> {
    let text = |text: Option<&Text>| text.map(Text::to_string).unwrap_or_default();
    let password = text(info.password.as_ref().map(Password::reveal));
    let user = text(info.user_name.as_ref());
    match hall.door.lets_in(from.ip(), &user, &password).await {
        Ok(Verdict::Known) => {}
        Ok(Verdict::Wrong) => {
            let user = user.chars().take(LONGEST_USER).collect();
            return Err(End::Refused(Refused::Password { user }));
        }
        Ok(Verdict::Busy) => return Err(End::Refused(Refused::Busy)),
        Err(error) => {
            tracing::error!("broker: {error}; nobody new is let in until then");
            return Err(End::Refused(Refused::Users));
        }
    }
    let seat = Arc::clone(&hall.places).try_acquire_owned().map_err(|_| End::Crowded)?;
    let name = info.client_id.as_ref().unwrap_or(&info.connection_id.value);
    // Who need not prove who he is may say anything.
    let user: Arc<str> = if hall.settings.users.is_some() { user.into() } else { Arc::default() };
    let connection = detached(&info.connection_id);
    let who = Who { user: Arc::clone(&user), name: name.detached(), connection: connection.clone() };
    let entered = hall.clients.enter(who, from, info.failover_reconnect).await;
    let place = entered.map_err(|holder| {
        End::Refused(Refused::ClientTaken {
            broker: hall.settings.name.clone(),
            client: name.to_string(),
            from: holder.to_string(),
        })
    })?;
    let (has_id, again) = (place.has_id, info.failover_reconnect);
    Ok((Client { user, connection, has_id, again, _seat: seat }, place))
}

fn detached(connection: &ConnectionId) -> ConnectionId {
    ConnectionId { value: connection.value.detached() }
}

async fn converse<S>(
    hall: &Arc<Hall>,
    greeted: Greeted<S>,
    from: SocketAddr,
    client: &Client,
    place: Place,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Greeted { stream, mut incoming, outgoing, settled } = greeted;
    incoming.limit(settled.max_frame);
    incoming.pass_over();
    // Gone before the place is free: the client's messages are back in their queues by then.
    let (session, deliveries) = hall.queues.connect();
    let (reading, writing): (ReadHalf<S>, WriteHalf<S>) = tokio::io::split(stream);
    let (replies, inbox) = mpsc::channel(REPLIES);
    let seats = Seats::default();
    let telling = Telling {
        socket: writing,
        outgoing,
        deliveries,
        replies: Replies::new(inbox),
        session: &session,
        seats: seats.clone(),
        connection: client.connection.clone(),
        temporaries: hall.temporaries.clone(),
        watch: None,
        beat: settled.inactivity.map(|silence| silence / 3),
        hall: Arc::clone(hall),
        narrow: Some(settled.max_frame).filter(|most| *most < hall.settings.max_frame()),
        poison: Vec::new(),
        ends: None,
        given_up: Vec::new(),
        shown: Vec::new(),
    };
    let ear = Ear {
        incoming,
        socket: reading,
        hall: Arc::clone(hall),
        from,
        frame: Frame::default(),
        inactivity: settled.inactivity,
        grace: Instant::now() + settled.initial_delay,
    };
    let asking = Asking::new(hall, client, &session, seats, replies.clone());
    let mut hearing = Box::pin(Hearing { asking, ear, replies }.run(&hall.shutdown, &place.cut));
    let mut telling = Box::pin(telling.run());
    let end = tokio::select! {
        end = &mut hearing => end,
        told = &mut telling => return told.err().unwrap_or(End::Closed),
    };
    // With it the last sender of replies goes: what was asked for is answered still.
    drop(hearing);
    if !matches!(end, End::Broken(_) | End::Replaced | End::Silent(_)) {
        let _gone = timeout(LAST_WORDS, telling).await;
    }
    end
}

/// The reading half.
struct Hearing<'a, S> {
    asking: Asking<'a>,
    ear: Ear<S>,
    replies: mpsc::Sender<Reply>,
}

/// The socket's own part of it.
struct Ear<S> {
    incoming: Incoming,
    socket: ReadHalf<S>,
    hall: Arc<Hall>,
    from: SocketAddr,
    /// The one that arrives, if it is large.
    frame: Frame,
    /// How long the peer may be silent,
    inactivity: Option<Duration>,
    /// from when on at the earliest: until then its signs of life need not have begun.
    grace: Instant,
}

impl<S: AsyncRead + AsyncWrite> Hearing<'_, S> {
    async fn run(mut self, stopping: &CancellationToken, cut: &CancellationToken) -> End {
        let mut signed = Instant::now();
        loop {
            let deaf = self.asking.is_full();
            if !deaf {
                match self.ear.incoming.arrival() {
                    Ok(Some(Arrival::Command(command))) => {
                        let frame = std::mem::take(&mut self.ear.frame);
                        match end_of(self.asking.obey(command, frame.room).await) {
                            None => continue,
                            Some(end) => return end,
                        }
                    }
                    Ok(Some(Arrival::Oversized { head, length, limit })) => {
                        match end_of(self.asking.miss(head, length, limit).await) {
                            None => continue,
                            Some(end) => return end,
                        }
                    }
                    Ok(Some(Arrival::Greeting(..))) => return End::Refused(Refused::Unknown),
                    Err(error) => return self.garbled(error.into()).await,
                    Ok(None) => {}
                }
            }
            let waited = tokio::select! {
                end = self.ear.more(), if !deaf => match end {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
                waited = self.asking.next_held() => waited,
                // Whoever is not read is told of life, for one who has hung up cannot take it.
                () = sleep_until(signed + SIGN), if deaf => {
                    let _many = self.replies.try_send(Reply::Now(KeepAliveInfo { head: Head::default() }.into()));
                    signed = Instant::now();
                    continue;
                }
                () = stopping.cancelled() => return End::Stopping,
                () = cut.cancelled() => return End::Replaced,
            };
            if let Some(end) = end_of(self.asking.obey_held(waited).await) {
                return end;
            }
        }
    }

    /// Says so, where the peer still understands it.
    async fn garbled(&mut self, refused: Refused) -> End {
        let connection = ConnectionId { value: Text::default() };
        let told = refusal(&refused, Head::default(), &connection);
        let _deaf = self.replies.send(Reply::Now(told)).await;
        End::Refused(refused)
    }
}

impl<S: AsyncRead + AsyncWrite> Ear<S> {
    /// Waits for more bytes. Only this waiting counts as the peer's silence. May be dropped while it
    /// waits.
    async fn more(&mut self) -> Result<(), End> {
        let large = self.incoming.announced().filter(|length| *length > LARGE);
        let come = self.incoming.gathered();
        if let Some(length) = large {
            self.make_room(length, come).await;
        }
        let begun = Instant::now();
        let (inactivity, from) = (self.inactivity, self.grace.max(begun));
        let patience = self.frame.pace.left(self.frame.waited, come);
        let slow = async {
            match large {
                Some(length) => {
                    sleep_until(begun + patience).await;
                    length
                }
                None => pending().await,
            }
        };
        let late = async {
            match inactivity {
                Some(silence) => {
                    sleep_until(from + silence).await;
                    silence
                }
                None => pending().await,
            }
        };
        tokio::select! {
            read = read(&mut self.socket, &mut self.incoming) => {
                if large.is_some() {
                    self.frame.waited += begun.elapsed();
                }
                Ok(read?)
            }
            length = slow => Err(End::Slow(length)),
            silent = late => Err(End::Silent(silent)),
        }
    }
    /// Waits for room for what comes next.
    async fn make_room(&mut self, length: usize, come: usize) {
        let Frame { room, is_told, .. } = &mut self.frame;
        if !*is_told && timeout(LONG, room.grow(&self.hall.large, length, come)).await.is_err() {
            *is_told = true;
            let (from, why) = (self.from, "others that come slowly, or that wait for their queues, have it");
            let told = format!("a message of {length} bytes from {from} waits for room: {why}");
            self.hall.complaints.tell(&told);
        }
        room.grow(&self.hall.large, length, come).await;
    }
}

/// How the connection ends, if it does.
fn end_of(goes: Goes) -> Option<End> {
    match goes {
        Goes::On => None,
        Goes::Closed | Goes::Deaf => Some(End::Closed),
        Goes::Refused(refused) => Some(End::Refused(refused)),
    }
}

/// # Errors
/// The socket's; [`io::ErrorKind::UnexpectedEof`] at its end.
async fn read<S: AsyncRead + Unpin>(socket: &mut S, incoming: &mut Incoming) -> io::Result<()> {
    match socket.read_buf(incoming.buffer()).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn write<S: AsyncWrite + Unpin>(socket: &mut S, outgoing: &mut Outgoing) -> io::Result<()> {
    while outgoing.has_remaining() {
        if socket.write_buf(outgoing).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    socket.flush().await
}
