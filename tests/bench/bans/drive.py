"""The benchmark of bans: edge against fail2ban on the same lines, and from a written line to the
kernel. Drives the parts and prints one figure a line, `NAME<TAB>VALUE<TAB>UNIT`; what happens on
the way goes to standard error. Knows no part's inside.

  drive.py --binaries FOLDER --probe FILE --floor FILE [--only PHASE[,PHASE…]]
Phases: lines, twenty, drop, flood, restore, million. `peer` measures fail2ban alone."""

import argparse
import collections
import ipaddress
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import corpus
import guard
import peer
from lab import GUARDED, Lab
from process import Failed, Process, until

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 20260722
THREE = list(corpus.ATTACKS)
# Further filters of fail2ban that an operator may lay over one web server's log.
SEVENTEEN = ["apache-auth", "apache-botsearch", "apache-fakegooglebot", "apache-modsecurity",
             "apache-nohome", "apache-noscript", "apache-overflows", "apache-pass", "apache-shellshock",
             "nginx-http-auth", "nginx-limit-req", "lighttpd-auth", "haproxy-http-auth", "traefik-auth",
             "suhosin", "roundcube-auth", "drupal-auth"]
LINES = 500_000
ROUNDS = 5
OFFENCES = 5
CHUNK = 1 << 20

SAMPLES, TURNS = 100, 10
RATE = 20_000
FLOOD = 50_000
RESTORED = 100_000
MILLION = 1_000_000
# Seconds that one wait may take; the whole stays within ten minutes.
PATIENCE = 90

# Parts of the attacker's network, so that no phase meets another's bans.
DROP_FROM, FLOOD_FROM, RESTORE_FROM, MILLION_FROM = "10.66.0.1", "10.67.0.1", "10.72.0.1", "10.80.0.1"


def say(text):
    print(f"bans: {text}", file=sys.stderr, flush=True)


def figure(name, value, unit):
    print(f"{name}\t{value:.6g}\t{unit}", flush=True)


def from_address(first, count):
    start = int(ipaddress.IPv4Address(first))
    return [str(ipaddress.IPv4Address(start + step)) for step in range(count)]


def append(log, lines):
    """Writes the lines in pieces, as a busy server's buffer would."""
    with open(log, "ab", buffering=CHUNK) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


class Bench:
    """What every phase needs."""

    def __init__(self, lab, folder, binaries, probe, floor):
        self.lab, self.folder, self.binaries, self.probe = lab, folder, binaries, probe
        self.floor = floor
        self.helper = None

    def empty_log(self, name):
        log = os.path.join(self.folder, f"{name}.log")
        open(log, "wb").close()
        return log

    def edge(self, name, log, filters, offences, kernel=False):
        if kernel and self.helper is None:
            self.helper = guard.Helper(self.binaries, self.lab, self.folder)
        socket = self.helper.socket if kernel else None
        return guard.Edge(self.binaries, self.lab, self.folder, name, log, filters, offences, socket)

    def kernel_set(self, verb, *words):
        return self.lab.inside(self.lab.guarded, sys.executable, os.path.join(HERE, "kernel_set.py"), verb,
                               guard.TABLE, guard.SET, *words)

    def in_kernel(self):
        done = subprocess.run(self.kernel_set("count"), capture_output=True, text=True, check=True)
        return int(done.stdout)

    def watch(self, addresses):
        """Waits, beside us, until the kernel drops a sample of `addresses`, the last among them."""
        sample = addresses[::max(1, len(addresses) // 200)] + addresses[-1:]
        watcher = subprocess.Popen(self.kernel_set("wait", str(PATIENCE)), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)
        watcher.stdin.write("\n".join(sample))
        watcher.stdin.close()
        if watcher.stdout.readline() != "ready\n":
            raise Failed("the kernel's set cannot be watched; are the rules loaded?")
        return watcher

    def show_logs(self):
        """The ends of what the programs have said, before the folder goes."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith(".log") and not name.endswith("-access.log"):
                    with open(os.path.join(folder, name), "rb") as log:
                        last = log.read()[-2000:].decode(errors="replace")
                    say(f"--- end of {name} ---\n{last}")


def seen(watcher):
    """Seconds of the monotonic clock when the first and when all of them were in the kernel."""
    times = dict(line.split() for line in watcher.stdout.read().splitlines())
    if watcher.wait() or "all" not in times:
        raise Failed("not every ban has reached the kernel")
    return int(times["first"]) / 1e9, int(times["all"]) / 1e9


def sentinels(turn):
    """One address a filter that has never been seen before; its bans show that all is read."""
    return {kind: f"198.19.{turn}.{number + 1}" for number, kind in enumerate(THREE)}


def offenders(lines):
    """Who attacks often enough in `lines` to be banned."""
    attacks = collections.Counter(line.split(" ", 1)[0] for line in lines if line.startswith("198.18."))
    return {address for address, times in attacks.items() if times >= OFFENCES}


def one_turn(program, log, part, turn, now):
    """CPU seconds that `program` needs for the lines of `part`, appended to the `log` it follows."""
    ends = sentinels(turn)
    closing = [corpus.attack(kind, address, now) for kind, address in ends.items() for _ in range(OFFENCES)]
    before, start = program.cpu(), time.monotonic()
    append(log, part)
    append(log, closing)
    for kind, address in ends.items():
        until(f"{kind} has read to the end", PATIENCE, lambda a=address: program.has_banned(a), pause=0.1)
    spent = program.cpu() - before
    lines = len(part) + len(closing)
    say(f"turn {turn}: {lines} lines, {spent:.3f} s CPU, {time.monotonic() - start:.2f} s, "
        f"{lines / spent:,.0f} lines per CPU second")
    return lines, spent


def against_peer(bench, with_edge=True):
    """Turn about on the same lines: fail2ban, edge, fail2ban, …"""
    now = int(time.time())
    lines = list(corpus.ordinary(LINES, SEED, now))
    filters = peer.filters(THREE)
    peer_log, edge_log = bench.empty_log("peer-access"), bench.empty_log("lines-access")
    rival = peer.Peer(bench.folder, peer_log, THREE, OFFENCES)
    programs = [("fail2ban", rival, peer_log)]
    if with_edge:
        programs.append(("edge", bench.edge("lines", edge_log, filters, OFFENCES), edge_log))
    totals = {name: [0, 0.0] for name, *_ in programs}
    expected = offenders(lines) | {address for turn in range(ROUNDS) for address in sentinels(turn).values()}
    try:
        time.sleep(1)
        each = LINES // ROUNDS
        for turn in range(ROUNDS):
            part = lines[turn * each:(turn + 1) * each]
            for name, program, log in programs:
                say(f"{name}:")
                count, spent = one_turn(program, log, part, turn, now)
                totals[name][0] += count
                totals[name][1] += spent
        for name, program, _ in programs:
            banned = program.banned()
            if banned != expected:
                raise Failed(f"{name} has banned {len(banned)} addresses, {len(banned & expected)} of them of "
                             f"the {len(expected)} that attacked {OFFENCES} times; its figure is worth nothing")
    finally:
        for _, program, _ in programs:
            program.stop()
    rates = {name: count / spent for name, (count, spent) in totals.items()}
    say(f"lines per CPU second with three filters: {rates}")
    if with_edge:
        figure("bans_lines_vs_fail2ban", rates["edge"] / rates["fail2ban"], "x")
        figure("bans_lines_per_cpu_s_3", rates["edge"], "lines/s")


def twenty(bench):
    """Edge alone with twenty of fail2ban's filters on the same log."""
    now = int(time.time())
    lines = list(corpus.ordinary(LINES, SEED, now))
    log = bench.empty_log("twenty-access")
    edge = bench.edge("twenty", log, peer.filters(THREE + SEVENTEEN), OFFENCES)
    try:
        time.sleep(1)
        count, spent = one_turn(edge, log, lines, 0, now)
    finally:
        edge.stop()
    figure("bans_lines_per_cpu_s_20", count / spent, "lines/s")


def two_machines():
    """Processors of the guarded host and of the attacker. The attacker sends without a pause, which
    would be on a machine of its own: on a shared processor edge would wait for its time slice to end."""
    processors = sorted(os.sched_getaffinity(0))
    return (processors[:-1], processors[-1:]) if len(processors) > 1 else (processors, processors)


def drop(bench):
    """A line is written; the first packet that the kernel drops after it. Told in steps of the gap
    between two packets, 50 us. Turn about with `floor`, the least program that could do it, which
    tells what the machine takes by itself: where a halted processor was given back to the host, some
    eighty microseconds pass before anything runs. Where edge's own part goes, by tracepoints:
    inotify's thread 70 us, the engine reads 30, finds and judges 70, the helper 35, the kernel 35. A
    line in a flood takes 4 us for all of it: what the single one waits for are cold caches and the
    waking of three threads."""
    logs = {name: bench.empty_log(f"{name}-drop") for name in ("edge", "floor")}
    edge = bench.edge("drop", logs["edge"], [guard.own_filter()], 1, kernel=True)
    ours, theirs = two_machines()
    floor = Process("floor", bench.lab.inside(bench.lab.guarded, bench.floor, logs["floor"], guard.TABLE,
                                              guard.SET), bench.folder)
    times = {name: [] for name in logs}
    try:
        until("the floor follows its log", 10, floor.tail)
        for process in (edge.process, bench.helper.process, floor):
            process.keep_to(ours)
        for turn in range(2 * TURNS):
            name = "floor" if turn % 2 else "edge"
            first = str(ipaddress.IPv4Address(DROP_FROM) + turn * 4096)
            times[name] += shots(bench, theirs, logs[name], first)
            edge.process.must_run()
            floor.must_run()
    finally:
        floor.stop()
        edge.stop()
        bench.helper.process.keep_to(ours + theirs)
    for name, measured in times.items():
        cuts = statistics.quantiles(measured, n=100, method="inclusive")
        say(f"line to drop, {name}, us: p50 {cuts[49]:.0f}, p90 {cuts[89]:.0f}, p99 {cuts[98]:.0f}, "
            f"most {max(measured):.0f}")
        if name == "edge":
            figure("bans_drop_p50_us", cuts[49], "us")
            figure("bans_drop_p99_us", cuts[98], "us")
        else:
            figure("bans_drop_floor_p50_us", cuts[49], "us")


def shots(bench, processors, log, first):
    """One turn's microseconds from a line to its drop; the probe keeps to `processors`."""
    control = os.path.join(bench.folder, f"sink-{first}.sock")
    sink = Process("sink", bench.lab.inside(bench.lab.guarded, bench.probe, "sink", "--udp", "0.0.0.0:9999",
                                            "--control", control), bench.folder)
    try:
        until("the sink listens", 10, lambda: os.path.exists(control))
        sink.keep_to(processors)
        line = guard.own_line("{}", corpus.stamp(time.time()))
        done = subprocess.run(bench.lab.inside(
            bench.lab.attacker, "taskset", "--cpu-list", ",".join(map(str, processors)), "timeout", PATIENCE,
            bench.probe, "drop", "--control", control, "--sink", f"{GUARDED}:9999", "--log", log,
            "--line", line, "--first", first, "--samples", SAMPLES, "--rate", RATE),
            capture_output=True, text=True, check=False)
    finally:
        sink.stop()
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    times = [float(row[2]) for row in rows if row[0] == "drop"]
    never = sum(row[0] == "never" for row in rows)
    noise = sum(row[0] == "noise" for row in rows)
    say(f"{len(times)} drops, {never} never dropped, {noise} measured again")
    if done.returncode or never or len(times) < SAMPLES:
        raise Failed(f"not every written line became a drop; the probe ended with {done.returncode}: "
                     f"{done.stderr.strip() or 'no word'}")
    return times


def fill(bench, edge_log, addresses, within=PATIENCE):
    """Appends one line an address and waits for the kernel; seconds from the first byte written."""
    before = bench.in_kernel()
    at = corpus.stamp(time.time())
    lines = [guard.own_line(address, at) for address in addresses]
    watcher = bench.watch(addresses)
    start = time.monotonic()
    append(edge_log, lines)
    _, last = seen(watcher)
    until("every ban is in the kernel", within, lambda: bench.in_kernel() - before >= len(addresses))
    return last - start


def flood(bench):
    """Fifty thousand attackers at once."""
    log = bench.empty_log("flood-access")
    edge = bench.edge("flood", log, [guard.own_filter()], 1, kernel=True)
    try:
        fill(bench, log, from_address("10.66.128.1", 1000))
        spent = fill(bench, log, from_address(FLOOD_FROM, FLOOD))
    finally:
        edge.stop()
    say(f"{FLOOD} bans from a file into the kernel: {spent:.3f} s")
    figure("bans_per_s", FLOOD / spent, "bans/s")


def restore(bench):
    """edge is killed, the kernel has forgotten everything, edge starts again."""
    log = bench.empty_log("restore-access")
    edge = bench.edge("restore", log, [guard.own_filter()], 1, kernel=True)
    addresses = from_address(RESTORE_FROM, RESTORED)
    try:
        fill(bench, log, addresses)
        # The store writes behind the engine's back within moments.
        time.sleep(1)
        edge.process.kill()
        subprocess.run(bench.kernel_set("empty"), check=True)
        watcher = bench.watch(addresses)
        start = time.monotonic()
        edge.start()
        first, last = seen(watcher)
        until("every ban is back", PATIENCE, lambda: bench.in_kernel() >= RESTORED)
    finally:
        edge.stop()
    say(f"{RESTORED} bans restored: first after {first - start:.3f} s, last {last - first:.3f} s later")
    figure("bans_restore_100k_s", last - start, "s")


def million(bench):
    """What a million active bans cost edge in memory."""
    log = bench.empty_log("million-access")
    subprocess.run(bench.kernel_set("empty"), check=True)
    edge = bench.edge("million", log, [guard.own_filter()], 1, kernel=True)
    try:
        fill(bench, log, from_address("10.66.192.1", 1000))
        time.sleep(1)
        before = edge.process.resident()
        spent = fill(bench, log, from_address(MILLION_FROM, MILLION - 1000))
        time.sleep(2)
        grown = edge.process.resident() - before
    finally:
        edge.stop()
    say(f"{MILLION} bans in {spent:.1f} s, edge grew by {grown / 1e6:.0f} MB from {before / 1e6:.0f} MB")
    figure("bans_bytes_each", grown / (MILLION - 1000), "bytes")


PHASES = {"lines": against_peer, "twenty": twenty, "drop": drop, "flood": flood, "restore": restore,
          "million": million}


def main():
    # Whoever ends this ends the parts, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    words = argparse.ArgumentParser(description="The benchmark of bans.")
    words.add_argument("--binaries", required=True, help="the folder of edge and edge-firewall")
    words.add_argument("--probe", required=True, help="the probe, built")
    words.add_argument("--floor", required=True, help="floor.c, built")
    words.add_argument("--only", default=",".join(PHASES), help="phases, comma-separated")
    given = words.parse_args()
    folder = tempfile.mkdtemp(prefix="edge-bench-bans-")
    failed = []
    try:
        with Lab() as lab:
            bench = Bench(lab, folder, given.binaries, given.probe, given.floor)
            try:
                for name in dict.fromkeys(given.only.split(",")):
                    say(f"== {name}")
                    try:
                        if name == "peer":
                            against_peer(bench, with_edge=False)
                        else:
                            PHASES[name](bench)
                    except (Failed, OSError, subprocess.SubprocessError) as error:
                        failed.append(name)
                        say(f"{name} FAILED: {error}")
                        bench.show_logs()
            finally:
                if bench.helper:
                    bench.helper.stop()
    except Failed as error:
        failed.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if failed:
        sys.exit(f"bans: failed: {', '.join(failed)}")


main()
