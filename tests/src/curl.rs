//! HTTP as a person calls it: with curl. One call ([`Curl::send`]) whose answer is taken
//! apart, or many at once ([`Curl::crowd`]) of which the statuses are counted.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// The default of `--max-time`.
const PATIENCE: Duration = Duration::from_secs(30);

/// One curl command in the making.
#[derive(Debug, Clone)]
pub struct Curl {
    url: String,
    arguments: Vec<OsString>,
    body: Option<Vec<u8>>,
    patience: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The final status, past any 1xx.
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body's bytes.
    pub body: Vec<u8>,
}

/// What one of many calls at once came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// 0 where there was no answer at all.
    pub status: u16,
    /// `Retry-After`, empty where there was none.
    pub retry_after: String,
}

impl Curl {
    /// A `GET` of `url`.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), arguments: Vec::new(), body: None, patience: PATIENCE }
    }

    /// The same call of another path: `path` is added to the URL.
    #[must_use]
    pub fn to(mut self, path: &str) -> Self {
        self.url.push_str(path);
        self
    }

    /// Any further argument of curl's.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    fn pair(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    /// Another method than `GET` (or `POST` where there is a body).
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        if method == "HEAD" { self.arg("--head") } else { self.pair("--request", method) }
    }

    /// One more header.
    #[must_use]
    pub fn header(self, name: &str, value: impl Display) -> Self {
        self.pair("--header", format!("{name}: {value}"))
    }

    /// `Idempotency-Key`.
    #[must_use]
    pub fn key(self, key: impl Display) -> Self {
        self.header("Idempotency-Key", key)
    }

    /// A body, given on curl's standard input.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.pair("--data-binary", "@-")
    }

    /// A file as the body, streamed.
    #[must_use]
    pub fn upload(self, file: &Path) -> Self {
        self.pair("--request", "POST").pair("--upload-file", file)
    }

    /// Where the URL's host and port really are.
    #[must_use]
    pub fn at(self, address: SocketAddr) -> Self {
        self.pair("--connect-to", format!("::{}:{}", bracketed(address.ip()), address.port()))
    }

    /// Over a Unix socket.
    #[must_use]
    pub fn over(self, socket: &Path) -> Self {
        self.pair("--unix-socket", socket)
    }

    /// From another of this host's addresses: another client.
    #[must_use]
    pub fn from(self, address: IpAddr) -> Self {
        self.pair("--interface", address.to_string())
    }

    /// Trusts this authority alone.
    #[must_use]
    pub fn trust(self, authority: &Path) -> Self {
        self.pair("--cacert", authority)
    }

    /// Shows this certificate.
    #[must_use]
    pub fn show(self, certificate: &Path, key: &Path) -> Self {
        self.pair("--cert", certificate).pair("--key", key)
    }

    /// HTTP/2 by ALPN.
    #[must_use]
    pub fn http2(self) -> Self {
        self.arg("--http2")
    }

    /// HTTP/1.1 only.
    #[must_use]
    pub fn http1(self) -> Self {
        self.arg("--http1.1")
    }

    /// `--max-time`.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--path-as-is", "--noproxy", "*"])
            .args(["--max-time", &format!("{:.3}", self.patience.as_secs_f64())])
            .args(&self.arguments);
        command
    }

    /// Runs it.
    ///
    /// # Errors
    /// curl's own reason where no whole answer came: refused, cut off, too late.
    pub fn send(&self) -> anyhow::Result<Answer> {
        let mut command = self.command();
        command.args(["--globoff", "--include", &self.url]);
        let output = self.run(command)?;
        anyhow::ensure!(
            output.status.success(),
            "curl {}: {}",
            self.url,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Answer::parse(&output.stdout).with_context(|| format!("curl {}: no answer in it", self.url))
    }

    /// Runs it where a further argument says what becomes of the answer, as `--output`.
    ///
    /// # Errors
    /// curl's own reason.
    pub fn output(&self) -> anyhow::Result<String> {
        let mut command = self.command();
        command.args(["--globoff", &self.url]);
        let output = self.run(command)?;
        let told = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "curl {}: {}", self.url, told.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it prints with `--write-out`, also where the call as a whole fails: a server that
    /// answers before it has read everything may close before curl has sent everything.
    #[must_use]
    pub fn told(&self) -> String {
        let mut command = self.command();
        command.args(["--globoff", &self.url]);
        self.run(command).map_or_else(
            |error| format!("{error:#}"),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Runs `count` of it at once. Over HTTP/2 they share one connection, over HTTP/1.1 each
    /// has its own.
    ///
    /// # Errors
    /// curl cannot be run, or counts wrongly.
    pub fn crowd(&self, count: usize) -> anyhow::Result<Vec<Outcome>> {
        let mut command = self.command();
        let mark = if self.url.contains('?') { '&' } else { '?' };
        command.args(["--parallel", "--parallel-max", "300", "--output", "/dev/null"]);
        if !self.arguments.iter().any(|argument| argument == "--http2") {
            command.arg("--parallel-immediate");
        }
        command
            .args(["--write-out", "outcome %{http_code} %header{retry-after}\n"])
            .arg(format!("{}{mark}of=[1-{count}]", self.url));
        let output = self.run(command)?;
        let outcomes: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().filter_map(outcome).collect();
        anyhow::ensure!(
            outcomes.len() == count,
            "curl reported {} of {count}: {}",
            outcomes.len(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(outcomes)
    }

    fn run(&self, mut command: Command) -> anyhow::Result<std::process::Output> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("curl cannot be run; install it")?;
        let input = child.stdin.take();
        let body = self.body.clone().unwrap_or_default();
        // A server that answers early leaves part of the body unread: not this thread's matter.
        let feeder = std::thread::spawn(move || input.map(|mut input| input.write_all(&body)));
        let output = child.wait_with_output()?;
        let _ = feeder.join();
        Ok(output)
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, body) = split_head(bytes)?;
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        if (100..200).contains(&status) {
            return Self::parse(body);
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Self { status, headers, body: body.to_vec() })
    }

    /// A header's first value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none; the text shows status and body.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: no JSON: {}", self.status, self.text()))
    }

    /// A string of the body's JSON object.
    ///
    /// # Errors
    /// No JSON, or no such string in it.
    pub fn word(&self, name: &str) -> anyhow::Result<String> {
        let json = self.json()?;
        let word = json.get(name).and_then(serde_json::Value::as_str);
        word.map(str::to_owned).with_context(|| format!("{}: no {name} in {}", self.status, self.text()))
    }

    /// This answer if its status is among `wanted`.
    ///
    /// # Errors
    /// Another status; the text shows it with the body.
    pub fn expect(self, wanted: &[u16]) -> anyhow::Result<Self> {
        anyhow::ensure!(
            wanted.contains(&self.status),
            "status {} instead of {wanted:?}: {}",
            self.status,
            self.text().trim()
        );
        Ok(self)
    }
}

/// How many of `outcomes` have that status.
#[must_use]
pub fn count(outcomes: &[Outcome], status: u16) -> usize {
    outcomes.iter().filter(|outcome| outcome.status == status).count()
}

fn outcome(line: &str) -> Option<Outcome> {
    let (status, retry_after) = line.strip_prefix("outcome ")?.split_once(' ')?;
    Some(Outcome { status: status.parse().ok()?, retry_after: retry_after.trim().to_owned() })
}

fn split_head(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((bytes.get(..end)?, bytes.get(end + 4..)?))
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interim_answer_is_passed_over() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nRetry-After: 2\r\n\r\nlater";
        let answer = Answer::parse(bytes).unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("2")));
        assert_eq!(answer.text(), "later");
    }
}
