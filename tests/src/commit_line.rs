//! A line in front of a broker that falls in the middle of a commit: before it gets through, or before its
//! answer comes back. So whoever committed cannot know, and the story does. Reads OpenWire's frames as far
//! as commits and their answers; knows nothing else of what passes. Ends when it is dropped.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// No frame is longer.
const MOST: usize = 128 << 20;
/// `TransactionInfo`, and its last byte that commits in one phase.
const TRANSACTION: (u8, u8) = (7, 2);
/// `Response`.
const RESPONSE: u8 = 30;

/// How a commit is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The broker never hears of it.
    Unheard,
    /// The broker has done it, and the answer is lost.
    Unanswered,
}

/// The line's near end.
#[derive(Debug)]
pub struct CommitLine {
    /// Where to connect to.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    is_over: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct State {
    is_down: bool,
    /// Commits that still pass, and what becomes of the next one.
    plan: Option<(u32, Cut)>,
    /// Both ends of every connection.
    ends: Vec<TcpStream>,
}

/// What is to be done with a commit.
enum Verdict {
    Pass,
    Watch,
    Fall,
}

impl CommitLine {
    /// A line to this server; everything passes.
    ///
    /// # Errors
    /// No port is free.
    pub fn to(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (state, is_over) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (shared, ends) = (state.clone(), is_over.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                // While it is down, and without a server, the caller is hung up on.
                if let Ok(far) = TcpStream::connect(server) {
                    let _refused = join(&shared, near, far);
                }
            }
        });
        Ok(Self { address, state, is_over })
    }

    /// `tcp://…`, for any client.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// It falls at a commit, after so many that pass.
    pub fn fall_at_commit(&self, after: u32, cut: Cut) {
        locked(&self.state).plan = Some((after, cut));
    }

    /// It falls now, and whoever calls is hung up on.
    pub fn fall(&self) {
        fall(&mut locked(&self.state));
    }

    /// Has it fallen, and not risen?
    #[must_use]
    pub fn is_down(&self) -> bool {
        locked(&self.state).is_down
    }

    /// Everything passes again, for those who call from now on.
    pub fn rise(&self) {
        locked(&self.state).is_down = false;
    }
}

impl Drop for CommitLine {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.fall();
        // Wakes whoever waits for connections.
        let _woken = TcpStream::connect(self.address);
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fall(state: &mut State) {
    (state.is_down, state.plan) = (true, None);
    for end in state.ends.drain(..) {
        // It may have hung up itself.
        let _gone = end.shutdown(Shutdown::Both);
    }
}

fn join(state: &Arc<Mutex<State>>, near: TcpStream, far: TcpStream) -> std::io::Result<()> {
    let mut held = locked(state);
    if held.is_down {
        return Ok(());
    }
    held.ends.retain(|end| end.peer_addr().is_ok());
    held.ends.extend([near.try_clone()?, far.try_clone()?]);
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    let watched = Arc::new(Mutex::new(None));
    let (there, back) = ((state.clone(), watched.clone()), (state.clone(), watched));
    std::thread::spawn(move || pass(near, far, |frame| heard(&there.0, &there.1, frame)));
    std::thread::spawn(move || pass(far_too, near_too, |frame| answered(&back.0, &back.1, frame)));
    Ok(())
}

/// A frame of the client: may it pass?
fn heard(state: &Mutex<State>, watched: &Mutex<Option<[u8; 4]>>, frame: &[u8]) -> bool {
    if (frame.get(4), frame.last()) != (Some(&TRANSACTION.0), Some(&TRANSACTION.1)) {
        return true;
    }
    let mut state = locked(state);
    let verdict = match &mut state.plan {
        Some((0, Cut::Unheard)) => Verdict::Fall,
        Some((0, Cut::Unanswered)) => Verdict::Watch,
        Some((after, _)) => {
            *after -= 1;
            Verdict::Pass
        }
        None => Verdict::Pass,
    };
    match verdict {
        Verdict::Pass => {}
        Verdict::Watch => {
            let number = frame.get(5..9).and_then(|number| number.try_into().ok());
            *watched.lock().unwrap_or_else(PoisonError::into_inner) = number;
        }
        Verdict::Fall => fall(&mut state),
    }
    !state.is_down
}

/// A frame of the broker: may it pass?
fn answered(state: &Mutex<State>, watched: &Mutex<Option<[u8; 4]>>, frame: &[u8]) -> bool {
    let watched = *watched.lock().unwrap_or_else(PoisonError::into_inner);
    let is_answer =
        frame.get(4) == Some(&RESPONSE) && frame.get(10..14) == watched.as_ref().map(|it| &it[..]);
    if is_answer {
        fall(&mut locked(state));
    }
    !is_answer
}

/// Frame by frame, until either end hangs up, which the other one is told.
fn pass(mut from: TcpStream, mut to: TcpStream, mut may_pass: impl FnMut(&[u8]) -> bool) {
    while let Ok(frame) = next(&mut from) {
        if !may_pass(&frame) || to.write_all(&frame).is_err() {
            break;
        }
    }
    // They may have hung up themselves.
    let _gone = from.shutdown(Shutdown::Both);
    let _gone = to.shutdown(Shutdown::Both);
}

/// A frame with its length in front.
fn next(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let bytes = u32::from_be_bytes(length) as usize;
    if bytes > MOST {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut frame = length.to_vec();
    frame.resize(4 + bytes, 0);
    from.read_exact(frame.split_at_mut(4).1)?;
    Ok(frame)
}
