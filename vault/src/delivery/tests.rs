//! Deliveries through the front door: a real queue on a real file, and real handlers over HTTP and
//! TLS that fail in every way they can.

use std::convert::Infallible;
use std::future::pending;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::openwire::{self, MessageKind, ProducerId, Text};
use crate::queue;
use crate::queue::core::Send;
use crate::queue::message::{DEAD_LETTERS, Id, Placed};

const SOON: Duration = Duration::from_secs(20);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a handler does with a request.
#[derive(Debug, Clone)]
enum Reply {
    Status(u16),
    With(u16, header::HeaderName, String),
    /// After this time.
    Slow(Duration),
    Huge,
    Hang,
}

/// A request as a handler got it.
#[derive(Debug)]
struct Got {
    headers: HeaderMap,
    body: Bytes,
    at: Instant,
    /// Which connection brought it.
    client: SocketAddr,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// A handler that replies in turn, and with its last reply from then on.
struct Server {
    address: SocketAddr,
    got: mpsc::UnboundedReceiver<Got>,
}

impl Server {
    async fn start(replies: &[Reply], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, got) = mpsc::unbounded_channel();
        let replies = Arc::new(std::sync::Mutex::new(replies.to_vec()));
        tokio::spawn(async move {
            while let Ok((stream, client)) = listener.accept().await {
                let (replies, sender) = (Arc::clone(&replies), sender.clone());
                let service = service_fn(move |request| {
                    let (replies, sender) = (Arc::clone(&replies), sender.clone());
                    async move { Ok::<_, Infallible>(answer(request, client, &replies, &sender).await) }
                });
                let tls = tls.clone();
                tokio::spawn(async move {
                    // A client that breaks off is what some of these stories are about.
                    match tls {
                        None => {
                            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await)
                        }
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(
                                    http1::Builder::new()
                                        .serve_connection(TokioIo::new(stream), service)
                                        .await,
                                );
                            }
                        }
                    }
                });
            }
        });
        Self { address, got }
    }

    async fn next(&mut self) -> Got {
        timeout(SOON, self.got.recv()).await.expect("a request in time").unwrap()
    }
}

async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    replies: &std::sync::Mutex<Vec<Reply>>,
    sender: &mpsc::UnboundedSender<Got>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let reply = {
        let mut replies = replies.lock().unwrap();
        if replies.len() > 1 { replies.remove(0) } else { replies[0].clone() }
    };
    drop(sender.send(Got { headers: head.headers, body, at: Instant::now(), client }));
    let mut response = Response::new(Full::new(Bytes::new()));
    match reply {
        Reply::Status(status) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
        Reply::With(status, name, value) => {
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        Reply::Slow(time) => sleep(time).await,
        Reply::Huge => *response.body_mut() = Full::new(Bytes::from(vec![b'x'; 8 << 20])),
        Reply::Hang => pending().await,
    }
    response
}

/// A queue, a target and its state.
struct Story {
    folder: tempfile::TempDir,
    queues: Queues,
    targets: Targets,
    handles: Vec<JoinHandle<()>>,
    shutdown: Shutdown,
}

impl Story {
    fn start(url: String, authority_file: Option<PathBuf>) -> Self {
        Self::start_as(url, authority_file, |_| {})
    }

    fn start_as(url: String, authority_file: Option<PathBuf>, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), SECRET).unwrap();
        let queues = Queues::open(queue::Settings::new(folder.path().join("queue.db"))).unwrap();
        let shutdown = Shutdown::new();
        let mut settings = settings(folder.path(), url, authority_file);
        change(&mut settings);
        let (targets, handles) =
            Targets::start(vec![settings], &queues, folder.path(), &Registry::new(), &shutdown).unwrap();
        Self { folder, queues, targets, handles, shutdown }
    }

    fn at(server: &Server) -> Self {
        Self::start(format!("http://{}/hook", server.address), None)
    }

    async fn send(&self, name: &str, text: &str) {
        let mut message = message();
        message.set_text(text);
        self.send_message(name, &message).await;
    }

    async fn send_message(&self, name: &str, message: &openwire::Message) {
        self.send_as(name, message, true).await;
    }

    async fn send_as(&self, name: &str, message: &openwire::Message, persistent: bool) {
        let body = message.to_bytes().unwrap();
        let kept = queue::message::Message {
            name: name.into(),
            at: 1,
            expiration: 0,
            marks: None,
            origin: None,
            body,
        };
        let send = Send {
            destination: Destination::queue("orders").unwrap(),
            persistent,
            priority: 4,
            producer: None,
            again: false,
            message: Arc::new(kept),
        };
        let (session, _) = self.queues.connect();
        session.send(send, None).await.unwrap().await.unwrap();
    }

    /// Until the target's counts are as told.
    async fn until(&self, what: impl Fn(&Status) -> bool) -> Status {
        let looking = async {
            loop {
                let status = self.targets.status().remove(0);
                if what(&status) {
                    return status;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        match timeout(SOON, looking).await {
            Ok(status) => status,
            Err(_) => panic!("it stays as it is: {:?}", self.targets.status()),
        }
    }

    /// What lies in a queue, by its messages' names.
    async fn names(&self, queue: &str) -> Vec<String> {
        let placed = self.placed(queue).await;
        placed.iter().map(|placed| placed.message.name.to_string()).collect()
    }

    async fn placed(&self, queue: &str) -> Vec<Placed> {
        let (session, _) = self.queues.connect();
        session.sync().await.unwrap().await.unwrap();
        let queue = Destination::queue(queue).unwrap();
        self.queues.browse(queue, Id::default(), 100, 1 << 20).await.unwrap_or_default()
    }

    async fn reason(&self) -> String {
        let dead = self.placed(DEAD_LETTERS).await;
        dead[0].message.origin.as_ref().unwrap().cause.why().unwrap().to_owned()
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        for handle in self.handles.drain(..) {
            timeout(SOON, handle).await.expect("it drains in time").unwrap();
        }
    }
}

fn settings(folder: &Path, url: String, authority_file: Option<PathBuf>) -> Settings {
    let deadlines = Deadlines { connect: Duration::from_secs(5), answer: Duration::from_secs(2) };
    let secret_file = Some(folder.join("secret"));
    Settings {
        name: "shop".to_owned(),
        queue: "orders".to_owned(),
        endpoint: Endpoint { url, authority_file, secret_file, deadlines },
        policy: Policy {
            tries: 2,
            first_wait: Duration::from_millis(20),
            longest_wait: Duration::from_secs(1),
        },
        concurrency: 1,
        per_second: NonZeroU32::new(1000).unwrap(),
    }
}

fn message() -> openwire::Message {
    let producer = ProducerId { connection: Text::shortened("ID:test"), value: 1, session: 1 };
    let queue = openwire::Destination::queue(Text::shortened("orders"));
    openwire::Message::new(MessageKind::Plain, producer.message(1), queue)
}

/// A server's side of TLS, and the file of its authority.
fn tls(folder: &Path) -> (TlsAcceptor, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = folder.join("authority.crt");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(shared::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

#[tokio::test]
async fn after_a_500_it_is_sent_again_under_the_same_id_and_acknowledged_after_its_200() {
    let mut server = Server::start(&[Reply::Status(500), Reply::Status(200)], None).await;
    let story = Story::at(&server);
    story.send("m-1", "Köln").await;
    let (first, second) = (server.next().await, server.next().await);
    assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
    assert_eq!(
        (&second.body[..], second.header("content-type")),
        ("Köln".as_bytes(), "text/plain; charset=utf-8")
    );
    assert_eq!(second.header("x-message-id"), "m-1");
    let status = story.until(|status| status.delivered == 1 && status.under_way == 0).await;
    assert_eq!((status.failed, status.dead), (1, 0));
    assert!(story.names("orders").await.is_empty() && story.names(DEAD_LETTERS).await.is_empty());
}

#[tokio::test]
async fn the_signature_is_what_pythons_own_hmac_and_the_schemes_own_library_make_of_it() {
    let mut server = Server::start(&[Reply::Status(200)], None).await;
    let story = Story::at(&server);
    story.send("m-1", "{\"total\": 7}").await;
    let got = server.next().await;
    // The library is asked where it is installed.
    let script = "import base64,hashlib,hmac,sys\n\
        secret,id,at,signature=sys.argv[1:]\n\
        body=sys.stdin.buffer.read()\n\
        try:\n\
        \x20from standardwebhooks.webhooks import Webhook\n\
        \x20Webhook(secret).verify(body,{'webhook-id':id,'webhook-timestamp':at,'webhook-signature':signature})\n\
        except ImportError: pass\n\
        key=base64.b64decode(secret.removeprefix('whsec_'))\n\
        said=(id+'.'+at+'.').encode()+body\n\
        print('v1,'+base64.b64encode(hmac.new(key,said,hashlib.sha256).digest()).decode())";
    let mut python = Command::new("python3")
        .args(["-c", script, SECRET, got.header("webhook-id"), got.header("webhook-timestamp")])
        .arg(got.header("webhook-signature"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(&got.body).unwrap();
    let made = python.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(made.stdout).unwrap().trim(), got.header("webhook-signature"));
}

#[tokio::test]
async fn when_a_pause_ends_those_that_waited_go_no_faster_than_the_targets_rate() {
    let mut server = Server::start(&[Reply::Status(200)], None).await;
    let story = Story::start_as(format!("http://{}/hook", server.address), None, |settings| {
        settings.concurrency = 3;
        settings.per_second = NonZeroU32::new(2).unwrap();
    });
    story.targets.pause("shop", "paused").unwrap();
    for name in ["m-1", "m-2", "m-3", "m-4", "m-5"] {
        story.send(name, "a").await;
    }
    // Time enough for each of them to be counted, if it were taken.
    sleep(Duration::from_secs(2)).await;
    story.targets.resume("shop").unwrap();
    let first = server.next().await;
    let mut last = first.at;
    for _ in 0..4 {
        last = server.next().await.at;
    }
    // Two at once, then one each half second.
    assert!(last - first.at >= Duration::from_millis(1300), "{:?}", last - first.at);
}

#[tokio::test]
async fn what_a_target_had_taken_is_in_front_in_order_while_it_is_paused_where_an_operator_reaches_it() {
    // The first one's request is under way, the others wait for their next try.
    let mut replies = vec![Reply::Status(500); 3];
    replies.push(Reply::Slow(Duration::from_millis(500)));
    let mut server = Server::start(&replies, None).await;
    let story = Story::start_as(format!("http://{}/hook", server.address), None, |settings| {
        settings.concurrency = 4;
        settings.policy.first_wait = Duration::from_secs(600);
        settings.policy.longest_wait = Duration::from_secs(600);
    });
    let names = ["m-1", "m-2", "m-3", "m-4", "m-5"];
    for name in names {
        story.send(name, "a").await;
    }
    for _ in 0..4 {
        server.next().await;
    }
    story.until(|status| status.failed == 3).await;
    story.targets.pause("shop", "paused").unwrap();
    let status = story.until(|status| status.under_way == 0).await;
    assert_eq!((status.delivered, status.dead), (1, 0), "the request under way has ended");
    // Whichever request came last was slow.
    let left = story.names("orders").await;
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(left.is_sorted(), "{left:?}");
    let orders = Destination::queue("orders").unwrap();
    let moved = async {
        while story.queues.list().await.unwrap().iter().any(|queue| queue.state.in_flight > 0) {
            sleep(Duration::from_millis(10)).await;
        }
        let aside = Destination::queue("aside").unwrap();
        story.queues.relocate(orders, None, aside).await.unwrap()
    };
    assert_eq!(timeout(SOON, moved).await.expect("nothing is in its hands"), 4);
    story.send("m-6", "a").await;
    story.targets.resume("shop").unwrap();
    assert_eq!(server.next().await.header("x-message-id"), "m-6");
}

#[tokio::test]
async fn retry_after_of_a_429_holds_the_next_message_too() {
    let busy = Reply::With(429, header::RETRY_AFTER, "1".to_owned());
    let mut server = Server::start(&[busy, Reply::Status(200)], None).await;
    let story = Story::at(&server);
    story.send("m-1", "a").await;
    story.send("m-2", "b").await;
    let (first, second, third) = (server.next().await, server.next().await, server.next().await);
    assert!(second.at - first.at >= Duration::from_millis(950), "{:?}", second.at - first.at);
    assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
    assert_ne!(second.header("webhook-id"), third.header("webhook-id"));
    story.until(|status| status.delivered == 2).await;
}

#[tokio::test]
async fn a_410_is_a_dead_letter_at_once_and_pauses_the_target_until_it_is_resumed() {
    let mut server = Server::start(&[Reply::Status(410), Reply::Status(200)], None).await;
    let mut story = Story::at(&server);
    story.send("m-1", "a").await;
    story.send("m-2", "b").await;
    server.next().await;
    let status = story.until(|status| status.paused.is_some() && status.dead == 1).await;
    assert_eq!(status.delivered, 0);
    assert_eq!(story.reason().await, "the handler answers 410 Gone: it wants no more");
    story.stop().await;
    assert_eq!(story.names("orders").await, ["m-2"], "what waited stays in its queue");

    let url = format!("http://{}/hook", server.address);
    let settings = settings(story.folder.path(), url, None);
    story.shutdown = Shutdown::new();
    let (queues, state) = (story.queues.clone(), story.folder.path().to_owned());
    (story.targets, story.handles) =
        Targets::start(vec![settings], &queues, &state, &Registry::new(), &story.shutdown).unwrap();
    story.until(|status| status.paused.is_some()).await;
    assert_eq!(story.names("orders").await, ["m-2"]);
    assert!(server.got.try_recv().is_err(), "paused over a restart");
    story.targets.resume("shop").unwrap();
    assert_eq!(server.next().await.header("x-message-id"), "m-2");
    story.until(|status| status.delivered == 1 && status.paused.is_none()).await;
    let unknown = story.targets.resume("nobody").unwrap_err().to_string();
    assert_eq!(unknown, "there is no target nobody; these are: shop");
}

#[tokio::test]
async fn what_is_not_persistent_and_given_up_is_gone_and_no_dead_letter_is_counted() {
    let server = Server::start(&[Reply::Status(410)], None).await;
    let story = Story::at(&server);
    let mut volatile = message();
    volatile.persistent = false;
    volatile.set_text("a");
    story.send_as("m-1", &volatile, false).await;
    let status = story.until(|status| status.gone == 1 && status.under_way == 0).await;
    assert_eq!(status.dead, 0);
    assert!(story.names(DEAD_LETTERS).await.is_empty());
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_its_dead_letter_says_what_to_write() {
    let mut elsewhere = Server::start(&[Reply::Status(200)], None).await;
    let away = Reply::With(307, header::LOCATION, format!("http://{}/", elsewhere.address));
    let server = Server::start(&[away], None).await;
    let story = Story::at(&server);
    story.send("m-1", "a").await;
    story.until(|status| status.dead == 1 && status.under_way == 0).await;
    assert!(story.reason().await.contains("redirects are not followed; write its final URL"));
    assert!(elsewhere.got.try_recv().is_err());
}

#[tokio::test]
async fn a_handler_that_hangs_is_given_up_and_a_slow_one_is_waited_for() {
    let mut server = Server::start(&[Reply::Slow(Duration::from_millis(300)), Reply::Hang], None).await;
    let story = Story::at(&server);
    story.send("m-1", "a").await;
    story.until(|status| status.delivered == 1).await;
    story.send("m-2", "b").await;
    story.until(|status| status.dead == 1 && status.under_way == 0).await;
    assert_eq!(
        story.reason().await,
        "given up after 2 tries; the last: the handler does not answer within 2s"
    );
    assert_eq!(server.next().await.header("x-message-id"), "m-1");
}

#[tokio::test]
async fn a_huge_answer_is_not_read_and_a_small_one_leaves_the_connection_in_use() {
    let mut server = Server::start(&[Reply::Huge, Reply::Status(200)], None).await;
    let story = Story::at(&server);
    for name in ["m-1", "m-2", "m-3"] {
        story.send(name, "a").await;
    }
    let (first, second, third) = (server.next().await, server.next().await, server.next().await);
    assert_ne!(first.client, second.client);
    assert_eq!(second.client, third.client);
    story.until(|status| status.delivered == 3 && status.failed == 0).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_trusted_signed_is_refused_and_the_named_authoritys_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, authority) = tls(folder.path());
    let (_, stranger) = {
        std::fs::create_dir(folder.path().join("stranger")).unwrap();
        tls(&folder.path().join("stranger"))
    };
    let mut server = Server::start(&[Reply::Status(200)], Some(acceptor)).await;
    let url = format!("https://{}/hook", server.address);
    let story = Story::start(url.clone(), Some(stranger));
    story.send("m-1", "a").await;
    story.until(|status| status.dead == 1 && status.under_way == 0).await;
    let reason = story.reason().await;
    assert!(reason.contains("no TLS with") && reason.contains("certificate"), "{reason}");
    assert!(server.got.try_recv().is_err());

    let story = Story::start(url, Some(authority));
    story.send("m-1", "a").await;
    assert_eq!(server.next().await.body, "a");
    story.until(|status| status.delivered == 1).await;
}

#[tokio::test]
async fn what_only_java_reads_is_a_dead_letter_and_the_next_goes_on() {
    let mut server = Server::start(&[Reply::Status(200)], None).await;
    let story = Story::at(&server);
    let mut map = message();
    map.kind = MessageKind::Map;
    map.content = Some(Bytes::from_static(&[0, 0, 0, 0]));
    story.send_message("m-1", &map).await;
    story.send("m-2", "b").await;
    assert_eq!(server.next().await.header("x-message-id"), "m-2");
    story.until(|status| status.delivered == 1 && status.dead == 1 && status.under_way == 0).await;
    assert!(story.reason().await.contains("send handlers text or bytes"));
}

#[tokio::test]
async fn stopping_waits_for_what_is_under_way_and_leaves_the_rest_in_its_queue() {
    let mut server =
        Server::start(&[Reply::Slow(Duration::from_millis(500)), Reply::Status(500)], None).await;
    let mut story = Story::at(&server);
    story.send("m-1", "a").await;
    story.send("m-2", "b").await;
    server.next().await;
    story.stop().await;
    assert_eq!(story.names("orders").await, ["m-2"]);
    assert_eq!(story.targets.status()[0].delivered, 1);
}
