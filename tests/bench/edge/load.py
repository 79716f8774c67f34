"""What makes the load and tells how it went: h2load for connections that are kept, our own `dial` for
whole ones. Knows their words and what they print; must not know who answers."""

import re
import subprocess

from parts import on
from process import Failed

# With Host twelve lines, as a browser sends them.
HEADERS = [
    "user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "accept-language: en-GB,en;q=0.7,de;q=0.3",
    "accept-encoding: gzip, deflate, br",
    "referer: https://bench.example.test/orders/overview?month=2026-11",
    "cookie: session=5f1d7a9c0be24e6fa3c8d2b7e9914c60; theme=dark; language=en",
    "upgrade-insecure-requests: 1",
    "sec-fetch-dest: document",
    "sec-fetch-mode: navigate",
    "sec-fetch-site: same-origin",
    "cache-control: no-cache",
]
# The same in all three, whatever each would choose by itself.
CIPHER = "TLS_AES_256_GCM_SHA384"
# Connections of a load on HTTP/1.1; on HTTP/2 so many connections with so many streams each.
CONNECTIONS, H2_CONNECTIONS, H2_STREAMS = 64, 8, 8


class Load:
    """A running load; `finish` says what has become of it."""

    def __init__(self, place, words, times):
        self.times = times
        self.child = subprocess.Popen(on(place.load_on, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True)

    def finish(self, within):
        try:
            self.out, self.err = self.child.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Failed(f"the load has not ended within {within} s") from None
        if self.child.returncode:
            raise Failed(f"the load ended with {self.child.returncode}: {self.err.strip() or self.out.strip()[-500:]}")
        return self.faults()

    def stop(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()

    def p99(self, first, last):
        """Microseconds within which 99 of 100 requests were answered, of those that began from `first`
        to `last` (seconds since the epoch)."""
        took = []
        with open(self.times, encoding="ascii") as file:
            for line in file:
                began, _, microseconds = line.split("\t")[:3]
                if first * 1e6 <= int(began) < last * 1e6:
                    took.append(int(microseconds))
        if len(took) < 100:
            raise Failed(f"{len(took)} requests are too few for a p99")
        took.sort()
        return took[len(took) * 99 // 100]


class H2Load(Load):
    """Connections that are kept, over the whole load."""

    def __init__(self, place, url, h2, seconds, rate=None, times=None):
        clients = H2_CONNECTIONS if h2 else CONNECTIONS
        words = ["h2load", "-t1", f"-c{clients}", f"-m{H2_STREAMS if h2 else 1}", f"-D{round(seconds * 1000)}ms",
                 f"--tls13-ciphers={CIPHER}"]
        words += [] if h2 else ["--h1"]
        words += [f"--rps={rate / clients:.3f}"] if rate else []
        words += [f"--log-file={times}"] if times else []
        for header in HEADERS:
            words += ["-H", header]
        super().__init__(place, [*words, url], times)

    def faults(self):
        """What went wrong, in words; nothing where all was answered with 200."""
        found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", self.out)
        others = re.search(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", self.out)
        if not found or not others:
            raise Failed(f"h2load has not told how it went: {self.out[-500:]}")
        wrong = sum(map(int, found.groups()[1:])) + sum(map(int, others.groups()))
        return [f"{wrong} requests failed: {found.group()}, {others.group()}"] if wrong else []

    def tls(self):
        """What was negotiated."""
        told = r"^(?:TLS Protocol|Cipher|Server Temp Key|Application protocol): (.*)$"
        return ", ".join(re.findall(told, self.out, re.MULTILINE))


class Dial(Load):
    """A new connection for each request."""

    def __init__(self, place, dial, port, path, seconds, rate=None, times=None):
        words = [dial, "new", "--to", f"127.0.0.1:{port}", "--path", path, "--seconds", f"{seconds:.3f}"]
        words += ["--rate", f"{rate:.3f}"] if rate else []
        words += ["--log-file", times] if times else []
        for header in HEADERS:
            words += ["--header", header]
        super().__init__(place, words, times)

    def faults(self):
        told = dict(line.split("\t") for line in self.out.splitlines())
        done, failed, late = (int(told[key]) for key in ("done", "failed", "late"))
        wrong = [f"{failed} of {done + failed} connections failed: {self.err.strip()[-200:]}"] if failed else []
        return wrong + ([f"{late} of {done} connections began late"] if late > done / 100 else [])
