"""The benchmark of edge: CPU per request, p99 and memory against nginx and HAProxy, in turns of one run
with access log, limit per client and ban check on in all three. Prints one figure a line,
`NAME<TAB>VALUE<TAB>UNIT`; every turn goes to standard error.

  drive.py --binaries FOLDER [--only PHASE[,PHASE…]]
Phases: tls, plain, handshake, h2, idle, large, in_flight. EDGE_BENCH_ROUNDS, _FAST and _STEADY (seconds of
a turn), _REPEATS and _IDLE (connections) change their lengths, for trying out the driver. Each proxy is one
thread (edge's own further threads with it) on the last processor; the load, the application behind and this
driver have the others. In each round every proxy answers as fast as it can, then at one rate for all: half
of what the slowest can do. CPU is the scheduler's, of all threads of the proxy; requests are counted by the
application behind, so nothing counts that was not passed on. A figure against another proxy is the median
of the rounds' ratios; of the ratio as fast as it can and that at the rate, the worse one counts. A figure
of CPU is that of the answer of 1 KiB, the one of 64 KiB is told; the p99 is the worst of all cases."""

import argparse
import collections
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

from load import CONNECTIONS, Dial, H2Load
from parts import MIB, Application, Edge, HaProxy, Nginx, Place, Sink, on, run
from process import Failed

QUICK = bool(os.environ.get("EDGE_BENCH_QUICK"))
ROUNDS = int(os.environ.get("EDGE_BENCH_ROUNDS", "3" if QUICK else "9"))
# Seconds measured, after the warm-up: as fast as it goes, and at the rate.
FAST = float(os.environ.get("EDGE_BENCH_FAST", "1.5"))
STEADY = float(os.environ.get("EDGE_BENCH_STEADY", "2.5"))
WARM, TAIL = 0.7, 0.3
# A turn that fails its checks is repeated so often.
REPEATS = int(os.environ.get("EDGE_BENCH_REPEATS", "2"))
IDLE = int(os.environ.get("EDGE_BENCH_IDLE", "10000"))
REST = 10
PEERS = ["nginx", "haproxy"]
Case = collections.namedtuple("Case", "name phase kind path")
CASES = [
    Case("tls 1 KiB", "tls", "h1", "/1k"), Case("tls 64 KiB", "tls", "h1", "/64k"),
    Case("plain 1 KiB", "plain", "clear", "/1k"), Case("plain 64 KiB", "plain", "clear", "/64k"),
    Case("h2 1 KiB", "h2", "h2", "/1k"), Case("h2 64 KiB", "h2", "h2", "/64k"),
    Case("handshake", "handshake", "new", "/1k"),
]
FIGURES = {"tls": "tls_keepalive", "plain": "plain_keepalive", "h2": "h2", "handshake": "tls_handshake"}
# What one turn of one proxy has shown: CPU seconds and requests, their rate, microseconds.
Turn = collections.namedtuple("Turn", "each rate p99")


def say(text):
    print(f"edge: {text}", file=sys.stderr, flush=True)


def figure(name, value, unit="x"):
    print(f"{name}\t{value:.4g}\t{unit}", flush=True)


def middle(values, unit=""):
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g}){unit}"


def ticks(processors):
    """Seconds that these processors have worked, and that the host took from them."""
    busy = stolen = 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            name, *numbers = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in processors:
                user, nice, system, _, _, irq, softirq, steal = map(int, numbers[:8])
                busy += user + nice + system + irq + softirq + steal
                stolen += steal
    hertz = os.sysconf("SC_CLK_TCK")
    return busy / hertz, stolen / hertz


def doubts(rate, seconds, requests, accepted, cpu, busy, stolen):
    """Why a turn's numbers may not be those of the proxy alone."""
    wrong = []
    if rate and requests < 0.99 * rate * seconds:
        wrong.append(f"only {requests} of {rate * seconds:.0f} planned requests")
    if busy - cpu > 0.08 * seconds:
        wrong.append(f"others worked on the proxy's processor: {(busy - cpu) / seconds:.0%}")
    if stolen > 0.02 * seconds:
        wrong.append(f"the host took {stolen / seconds:.0%} of it")
    if accepted > max(2 * CONNECTIONS, requests / 20):
        wrong.append(f"{accepted} connections to the application for {requests} requests: they are not kept")
    return wrong


class Bench:
    """What a phase needs."""

    def __init__(self, place, binaries, running):
        self.place, self.binaries, self.running = place, binaries, running
        self.dial = os.path.join(binaries, "examples", "dial")
        self.sink = self.keep(Sink(place.words["SINK"]))
        self.application = self.keep(Application(place))
        self.proxies = [self.keep(Edge(place, os.path.join(binaries, "edge"))), self.keep(Nginx(place)),
                        self.keep(HaProxy(place))]
        self.negotiated = set()
        self.p99 = {}

    def keep(self, what):
        self.running.callback(what.stop)
        return what

    def in_order(self, turn):
        """Every proxy once, in changing order."""
        at = turn % len(self.proxies)
        return self.proxies[at:] + self.proxies[:at]

    def load(self, proxy, case, seconds, rate):
        times = os.path.join(self.place.folder, "times") if rate else None
        if case.kind == "new":
            return Dial(self.place, self.dial, proxy.tls, case.path, seconds, rate, times)
        scheme, port = ("http", proxy.plain) if case.kind == "clear" else ("https", proxy.tls)
        return H2Load(self.place, f"{scheme}://127.0.0.1:{port}{case.path}", case.kind == "h2", seconds, rate, times)

    def sample(self, proxy):
        accepted, requests = self.application.counts()
        return (time.time(), requests, accepted, proxy.cpu(), *ticks(self.place.proxy_on))

    def turn(self, proxy, case, rate=None):
        """One proxy under one load: what it has shown, and what is wrong with that."""
        length = STEADY if rate else FAST
        proxy.logged()
        before = proxy.threads() if proxy.name == "edge" else {}
        load = self.load(proxy, case, WARM + length + TAIL, rate)
        try:
            started = self.application.counts()
            time.sleep(WARM)
            first = self.sample(proxy)
            time.sleep(length)
            last = self.sample(proxy)
            wrong = load.finish(60)
            ended = self.application.counts()
        finally:
            load.stop()
        seconds, requests, accepted, cpu, busy, stolen = (b - a for a, b in zip(first, last))
        if requests < 20:
            raise Failed(f"{case.name}: {proxy.name}: only {requests} requests have reached the application")
        turn = Turn(cpu / requests * 1e6, requests / seconds, load.p99(first[0], last[0]) if rate else None)
        wrong += doubts(rate, seconds, requests, accepted, cpu, busy, stolen)
        lines, passed = proxy.logged(), ended[1] - started[1]
        # nginx keeps up to 64 KiB for a second.
        if lines < passed * 0.99 - 1000:
            wrong.append(f"{lines} lines of {passed} requests are in the access log")
        self.tell(proxy, case, rate, turn, busy / seconds, before, passed)
        if not rate and busy < 0.97 * seconds:
            # Repeating does not help: this proxy could do more than the other processor can ask and answer.
            say("   that is what the load and the application can do; this proxy has some left")
        if case.kind in ("h1", "h2") and (proxy.name, case.kind) not in self.negotiated:
            self.negotiated.add((proxy.name, case.kind))
            say(f"{proxy.name}, {case.phase}: {load.tls()}")
        return turn, wrong

    def tell(self, proxy, case, rate, turn, busy, before, passed):
        how = f"at {rate:.0f}/s" if rate else "as fast as it goes"
        late = f", p99 {turn.p99 / 1000:.2f} ms" if turn.p99 else ""
        say(f"{case.name}, {how}: {proxy.name}: {turn.each:.1f} µs, {turn.rate:.0f}/s, busy {busy:.0%}{late}")
        if before:
            after = proxy.threads()
            parts = [(name, [b - a for a, b in zip(before.get(name, (0, 0)), now)]) for name, now in after.items()]
            parts.sort(key=lambda part: -part[1][0])
            say("   its threads: " + "; ".join(
                f"{name} {seconds / passed * 1e6:.1f} µs, {switches / passed:.3f} switches"
                for name, (seconds, switches) in parts if seconds > 0.005))

    def sure_turn(self, proxy, case, rate=None):
        """A turn whose numbers can be trusted, or the last of those that were tried, and that is said."""
        for attempt in range(REPEATS + 1):
            turn, wrong = self.turn(proxy, case, rate)
            if not wrong:
                break
            again = "once more" if attempt < REPEATS else "KEPT AS IT IS"
            say(f"   {proxy.name}: {'; '.join(wrong)}: {again}")
        if any("failed" in one for one in wrong):
            raise Failed(f"{case.name}: {proxy.name}: {'; '.join(wrong)}")
        return turn


def requests(bench, phases):
    """All phases of requests at once, so that their rounds lie next to each other."""
    cases = [case for case in CASES if case.phase in phases]
    if "plain" in phases and bench.proxies[0].plain is None:
        say(f"plain is left out: this edge has no listener that serves without TLS: {bench.proxies[0].why_not}")
        cases = [case for case in cases if case.phase != "plain"]
    rates = {}
    for case in cases:
        rates[case] = min(bench.sure_turn(proxy, case).rate for proxy in bench.proxies) / 2
    seen = {}
    for turn in range(ROUNDS):
        say(f"== round {turn + 1} of {ROUNDS}")
        for case in cases:
            for rate in (None, rates[case]):
                for proxy in bench.in_order(turn):
                    seen.setdefault((case, bool(rate), proxy.name), []).append(bench.sure_turn(proxy, case, rate))
    say("== medians (and spreads)")
    worst = {}
    for case in cases:
        summary(case, seen)
        for peer in PEERS:
            cpu = max(ratio(seen, case, steady, peer, "each") for steady in (False, True))
            name = f"edge_{FIGURES[case.phase]}_cpu_vs_{peer}"
            if case.path == "/1k":
                figure(name, cpu)
            else:
                say(f"{name}_64k {cpu:.4g}")
            worst.setdefault(peer, []).append(ratio(seen, case, True, peer, "p99"))
    for peer, ratios in worst.items():
        figure(f"edge_p99_vs_{peer}_max", max(ratios))
    say(f"the p99 is the worst of {len(cases)} cases: {', '.join(case.name for case in cases)}")


def ratio(seen, case, steady, peer, what):
    """The median of the rounds' ratios of edge to a peer."""
    pairs = zip(seen[case, steady, "edge"], seen[case, steady, peer])
    return statistics.median(getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs)


def summary(case, seen):
    for steady in (False, True):
        for name in ("edge", *PEERS):
            turns = seen[case, steady, name]
            text = f"{case.name}, {'at the rate' if steady else 'as fast as it goes'}: {name}: " \
                   f"{middle([turn.each for turn in turns])} µs, {middle([turn.rate for turn in turns])}/s"
            if steady:
                text += f", p99 {middle([turn.p99 / 1000 for turn in turns])} ms"
            if name != "edge":
                text += f"; edge's CPU is {ratio(seen, case, steady, name, 'each'):.3f} of it"
                text += f", its p99 {ratio(seen, case, True, name, 'p99'):.2f}" if steady else ""
            say(text)


def idle(bench):
    """Memory of many TLS connections that have had one request each, and rest."""
    each = {}
    for proxy in bench.proxies:
        before = proxy.resident()
        words = [bench.dial, "hold", "--to", f"127.0.0.1:{proxy.tls}", "--path", "/1k", "--connections", str(IDLE)]
        holder = subprocess.Popen(on(bench.place.load_on, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        try:
            if holder.stdout.readline() != f"held\t{IDLE}\n":
                raise Failed(f"{proxy.name} does not hold {IDLE} connections: {holder.communicate()[1].strip()}")
            time.sleep(REST)
            each[proxy.name] = (proxy.resident() - before) / IDLE
            out, err = holder.communicate("", timeout=60)
        finally:
            holder.kill()
        if out != f"open\t{IDLE}\n":
            raise Failed(f"{proxy.name} has closed connections that should rest: {out.strip()} of {IDLE} {err.strip()}")
        say(f"{IDLE} idle connections: {proxy.name}: {each[proxy.name] / 1024:.1f} KiB each, "
            f"{before / MIB:.1f} MiB before")
    figure("edge_idle_tls_bytes", each["edge"], "bytes")


def large(bench):
    """What a proxy's memory grows by at most while 1 GiB goes through, each way."""
    up = os.path.join(bench.place.folder, "files", "1g")
    most = 0
    for proxy in bench.proxies:
        url = f"https://127.0.0.1:{proxy.tls}"
        curl = on(bench.place.load_on, "curl", "--silent", "--show-error", "--fail", "--insecure", "--http1.1",
                  "--max-time", "120", "--output", "/dev/null", "--write-out", "%{size_download}")
        run(*curl, f"{url}/1k")
        run(*curl, "--upload-file", os.path.join(bench.place.folder, "files", "64k"), f"{url}/up")
        for way, words in (("down", [f"{url}/1g"]), ("up", ["--upload-file", up, f"{url}/up"])):
            before, taken = proxy.resident(), bench.sink.taken
            proxy.forget_peak()
            began, cpu = time.monotonic(), proxy.cpu()
            down = int(run(*curl, *words))
            gone = down if way == "down" else bench.sink.taken - taken
            if gone != 1 << 30:
                raise Failed(f"{proxy.name}: 1 GiB {way}: only {gone} bytes have arrived")
            grown = proxy.peak() - before
            say(f"1 GiB {way}: {proxy.name}: {time.monotonic() - began:.2f} s, {proxy.cpu() - cpu:.2f} s of CPU, "
                f"grown by {grown / 1024:.0f} KiB at most")
            most = max(most, grown) if proxy.name == "edge" else most
    figure("edge_large_body_bytes", most, "bytes")


def in_flight(bench):
    """The limit of requests in flight by itself, at a million clients."""
    told = run(*on(bench.place.proxy_on, os.path.join(bench.binaries, "examples", "in_flight"), "--rounds", ROUNDS))
    rows = [line.split("\t") for line in told.splitlines()]
    times = [float(value) for name, value in rows if name == "nanoseconds"]
    say(f"one request of a million clients in flight: {middle(times)} ns; "
        f"{', '.join(value for name, value in rows if name == 'bytes')} bytes each")
    figure("edge_in_flight_ns", statistics.median(times), "ns")


def show_logs(folder):
    """The ends of what the programs have said, before the folder goes."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".log") and not name.endswith("-access.log"):
            with open(os.path.join(folder, name), "rb") as log:
                say(f"--- end of {name} ---\n{log.read()[-2000:].decode(errors='replace')}")


def two_sides():
    """Processors of the proxy and of all else."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise Failed("two processors are needed, one of them for the proxy alone")
    return processors[-1:], processors[:-1]


def main():
    # Whoever ends this ends the parts, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    words = argparse.ArgumentParser(description="The benchmark of edge.")
    words.add_argument("--binaries", required=True)
    words.add_argument("--only", default="tls,plain,handshake,h2,idle,large,in_flight")
    words = words.parse_args()
    phases = words.only.split(",")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    work = {"idle": idle, "large": large, "in_flight": in_flight}
    work = {name: do for name, do in work.items() if name in phases}
    if set(phases) & set(FIGURES):
        work = {"requests": lambda bench: requests(bench, phases), **work}
    failed = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        try:
            proxy_on, load_on = two_sides()
            os.sched_setaffinity(0, load_on)
        except Failed as error:
            sys.exit(f"edge: {error}")
        for name, do in work.items():
            own = os.path.join(folder, name)
            os.makedirs(own)
            # Each with new processes: what one phase leaves in memory must not hide what the next needs.
            with ExitStack() as running:
                try:
                    do(Bench(Place(own, proxy_on, load_on), os.path.abspath(words.binaries), running))
                except (Failed, OSError, subprocess.SubprocessError) as error:
                    failed.append(name)
                    say(f"{name} FAILED: {error}")
                    show_logs(own)
    if failed:
        sys.exit(f"edge: failed: {', '.join(failed)}")


main()
