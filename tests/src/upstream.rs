//! A neighbour that edge routes to: an HTTP/1.1 server that remembers what it was asked and
//! can hold requests until it is told to let go, so that "50 in flight" is a state to look
//! at instead of a race against a timer.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A held request is let go after this even if nobody says so.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// The longest body that may be asked for.
const MOST_BYTES: usize = 64 << 20;

/// One request as it arrived here.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET /path?query HTTP/1.1`
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Seen {
    /// A header's values, joined as HTTP allows.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> =
            self.headers.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str()).collect();
        if values.is_empty() { None } else { Some(values.join(", ")) }
    }
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Seen>,
    held: usize,
    open: bool,
    failing: bool,
}

#[derive(Debug, Default)]
struct Room {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

/// The neighbour. Stops when dropped.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    room: Arc<Room>,
}

impl Upstream {
    /// Starts one. It answers 200 with the text of the request line, `/echo` with the
    /// request's body, `/bytes/1000` with a thousand bytes, and `/hold` only after [`Self::release`];
    /// and 500 instead of 200 as long as [`Self::fail`] says so.
    ///
    /// # Errors
    /// No port.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let room = Arc::new(Room::default());
        let inside = Arc::clone(&room);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if inside.stopping.load(Ordering::SeqCst) {
                    break;
                }
                let room = Arc::clone(&inside);
                std::thread::spawn(move || serve(&connection, &room));
            }
        });
        Ok(Self { address, room })
    }

    /// How many requests are being held.
    #[must_use]
    pub fn held(&self) -> usize {
        lock(&self.room).held
    }

    /// Lets every held request go, and holds no more.
    pub fn release(&self) {
        lock(&self.room).open = true;
        self.room.changed.notify_all();
    }

    /// Holds again after a [`Self::release`].
    pub fn hold_again(&self) {
        lock(&self.room).open = false;
    }

    /// Answers 500 to everything, or 200 again.
    pub fn fail(&self, failing: bool) {
        lock(&self.room).failing = failing;
    }

    /// Everything it was asked so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.room).seen.clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.room.stopping.store(true, Ordering::SeqCst);
        self.release();
        // Wakes the accept loop, which then ends.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn lock(room: &Room) -> MutexGuard<'_, State> {
    room.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(connection: &TcpStream, room: &Room) {
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader) {
        let body = answer(&request, room);
        let mut state = lock(room);
        state.seen.push(request);
        let status = if state.failing { "500 Internal Server Error" } else { "200 OK" };
        drop(state);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut writer = connection;
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            break;
        }
    }
    let _ = connection.shutdown(Shutdown::Both);
}

fn answer(request: &Seen, room: &Room) -> Vec<u8> {
    let target = request.line.split(' ').nth(1).unwrap_or("");
    if target.starts_with("/hold") {
        let mut state = lock(room);
        state.held += 1;
        let (mut state, _) = room
            .changed
            .wait_timeout_while(state, LONGEST_HOLD, |state| !state.open)
            .unwrap_or_else(PoisonError::into_inner);
        state.held -= 1;
    }
    match target.strip_prefix("/bytes/").map(str::parse) {
        Some(Ok(count)) => vec![b'x'; MOST_BYTES.min(count)],
        _ if target.starts_with("/echo") => request.body.clone(),
        _ => request.line.clone().into_bytes(),
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Seen> {
    let line = read_line(reader)?;
    let mut headers = Vec::new();
    loop {
        let header = read_line(reader)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Seen { line, headers, body: Vec::new() };
    if request.header("transfer-encoding").is_some() {
        request.body = read_chunks(reader)?;
    } else if let Some(length) = request.header("content-length") {
        let mut body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        request.body = body;
    }
    Some(request)
}

fn read_chunks(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let length = usize::from_str_radix(read_line(reader)?.trim(), 16).ok()?;
        let mut chunk = vec![0; length];
        reader.read_exact(&mut chunk).ok()?;
        body.extend(chunk);
        read_line(reader)?;
        if length == 0 {
            return Some(body);
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line).ok()? == 0 {
        return None;
    }
    Some(String::from_utf8_lossy(&line).trim_end().to_owned())
}
