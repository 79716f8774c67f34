//! The obvious and wrong pair, as a control: two servers, each with a journal of its own, which
//! write both while they hear each other and carry on from their own copy when the link is cut. It
//! speaks the vaults' API, so that the same callers and the same checker judge it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// A journal: numbers of each series, with the key of each.
type Journal = BTreeMap<String, BTreeMap<u64, String>>;

struct Shared {
    journals: Mutex<[Journal; 2]>,
    is_cut: AtomicBool,
    is_over: AtomicBool,
}

/// The two servers; they end with it.
pub(crate) struct OwnJournals {
    pub(crate) sockets: [SocketAddr; 2],
    shared: Arc<Shared>,
}

impl OwnJournals {
    /// Starts both.
    ///
    /// # Errors
    /// No port.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            journals: Mutex::default(),
            is_cut: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let listeners = [0, 1].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let [first, second] = listeners;
        let listeners = [first?, second?];
        let sockets = [listeners[0].local_addr()?, listeners[1].local_addr()?];
        for (own, listener) in listeners.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for caller in listener.incoming().flatten() {
                    if shared.is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A caller that hangs up is no fault.
                    std::thread::spawn(move || serve(&shared, own, caller).ok());
                }
            });
        }
        Ok(Self { sockets, shared })
    }

    /// Cuts the link between the two, or mends it; then each takes over what it lacks.
    pub(crate) fn cut(&self, cut: bool) {
        let mut journals = self.shared.journals.lock().unwrap_or_else(PoisonError::into_inner);
        if !cut {
            let theirs = journals.clone();
            for (own, other) in journals.iter_mut().zip(theirs.iter().rev()) {
                for (series, numbers) in other {
                    let own = own.entry(series.clone()).or_default();
                    for (number, key) in numbers {
                        own.entry(*number).or_insert_with(|| key.clone());
                    }
                }
            }
        }
        self.shared.is_cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for OwnJournals {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for socket in self.sockets {
            // A last caller, so that the listener looks up.
            let _ = TcpStream::connect(socket);
        }
    }
}

fn serve(shared: &Shared, own: usize, mut caller: TcpStream) -> anyhow::Result<()> {
    caller.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            let count = caller.read(&mut buffer)?;
            anyhow::ensure!(count > 0, "hung up");
            bytes.extend(buffer.iter().take(count));
            continue;
        };
        let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
        let header = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(": "));
            fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let length: usize = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        if bytes.len() < end + 4 + length {
            let count = caller.read(&mut buffer)?;
            anyhow::ensure!(count > 0, "hung up");
            bytes.extend(buffer.iter().take(count));
            continue;
        }
        bytes.drain(..end + 4 + length);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, body) = answer(shared, own, method, path, header("idempotency-key"));
        let body = body.to_string();
        write!(
            caller,
            "HTTP/1.1 {status} x\r\nVault-Life: {own:032x}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

fn answer(shared: &Shared, own: usize, method: &str, path: &str, key: Option<String>) -> (u16, Value) {
    let mut journals = shared.journals.lock().unwrap_or_else(PoisonError::into_inner);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let words: Vec<_> = path.split('/').skip(3).collect();
    let tell = |series: &str, number: u64, key: &str| json!({ "series": series, "number": number, "key": key, "state": "reserved" });
    match (method, words.as_slice(), key) {
        ("POST", [series, "numbers"], Some(key)) => {
            let numbers = journals[own].entry((*series).to_owned()).or_default();
            if let Some((number, _)) = numbers.iter().find(|(_, other)| **other == key) {
                return (200, tell(series, *number, &key));
            }
            let number = numbers.keys().last().copied().unwrap_or(0) + 1;
            let told = tell(series, number, &key);
            numbers.insert(number, key.clone());
            if !shared.is_cut.load(Ordering::Relaxed) {
                journals[1 - own].entry((*series).to_owned()).or_default().insert(number, key);
            }
            (201, told)
        }
        ("GET", [series, "numbers"], _) if !query.starts_with("key=") => {
            let numbers = journals[own].get(*series).into_iter().flatten();
            let items: Vec<_> = numbers.map(|(number, key)| tell(series, *number, key)).collect();
            (200, json!({ "items": items }))
        }
        ("GET", [_], _) => (200, json!({ "counts": [{}] })),
        _ => (503, json!({ "code": "in_doubt" })),
    }
}
