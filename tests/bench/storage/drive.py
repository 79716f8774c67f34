"""The benchmark of storage: vault against rclone and OpenSSH's sftp on the same servers, in turns
of one run. Prints one figure a line, `NAME<TAB>VALUE<TAB>UNIT`; what happens on the way, and every
time in seconds, goes to standard error. Knows no part's inside.

  drive.py --binaries FOLDER [--only PHASE[,PHASE…]] [--kind sftp|directory]
Phases: plain, delayed, bulk, small, first, memory, compare. With `--kind directory` the vaults
reach the servers' folders by mount, and only rclone uses SSH: for trying out the driver."""

import argparse
import json
import os
import queue
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from parts import Pair, Peers, Ssh, Wire, folder_of, free_port, run
from process import Failed, until

MIB = 1 << 20
PLAIN = 256 * MIB
BULK = 256 * MIB
SMALL, SMALL_SIZE = 2000, 16 * 1024
FIRST = 1 << 30
HUGE = 4 << 30
OBJECTS = int(os.environ.get("STORAGE_OBJECTS", "100000"))
ROUNDS = int(os.environ.get("STORAGE_ROUNDS", "3"))
# Transfers at once, for rclone and for us.
AT_ONCE = 8
# Half a round trip of 10 ms.
HALF_TRIP = 0.005
PHASES = ["plain", "delayed", "bulk", "small", "first", "memory", "compare"]
SEED = 20260722


def say(text):
    print(f"storage: {text}", file=sys.stderr, flush=True)


def figure(name, value, unit):
    print(f"{name}\t{value:.6g}\t{unit}", flush=True)


def timed(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def in_turns(what, runners, rounds=ROUNDS):
    """Runs everybody once a round, in changing order; the median of each one's seconds."""
    times = {name: [] for name in runners}
    for turn in range(rounds):
        names = list(runners)
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            times[name].append(timed(lambda work=runners[name], turn=turn: work(turn)))
    for name, seconds in times.items():
        say(f"{what}: {name}: {' '.join(f'{second:.2f}' for second in seconds)} s")
    return times


def ratio(times, peer="rclone"):
    """How many times faster than the peer: the median of the rounds' ratios."""
    return statistics.median(theirs / ours for theirs, ours in zip(times[peer], times["vault"]))


def ratios(name, times):
    """Against rclone as it comes, which has the server's shell hash every file it has uploaded; and
    against rclone told not to, which then believes what it has sent."""
    figure(name, ratio(times), "x")
    figure(f"{name}_bare", ratio(times, "rclone bare"), "x")


def text_like(rng, size):
    """Lines as a server's log has them: compresses to about a fifth."""
    lines = []
    length = 0
    while length < size:
        line = (f"2026-11-22T{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}Z "
                f"order={rng.randrange(10**6)} customer={rng.randrange(10**5)} "
                f"state={rng.choice(['paid', 'sent', 'open', 'returned'])} sum={rng.randrange(10**5) / 100}\n")
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()[:size]


def make_file(path, size, share_of_text):
    """A file of `size` bytes in pieces of 1 MiB, text and noise in the given proportion."""
    rng = random.Random(SEED)
    text = text_like(rng, 8 * MIB)
    with open(path, "wb") as file:
        for index in range(size // MIB):
            at = index % 8 * MIB
            file.write(text[at:at + MIB] if rng.random() < share_of_text else rng.randbytes(MIB))


class Bench:
    """What every phase needs."""

    def __init__(self, folder, binaries, kind):
        self.folder, self.kind = folder, kind
        self.vault = os.path.join(binaries, "vault")
        self.single = os.path.join(binaries, "examples", "file_server")
        self.key = os.path.join(folder, "client_key")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        self.ssh = {name: Ssh(name, folder, self.key) for name in ("paris", "lyon")}
        self.wire = Wire(folder, self.ssh["paris"].port, HALF_TRIP)
        self.known_hosts = os.path.join(folder, "known_hosts")
        with open(self.known_hosts, "w", encoding="ascii") as file:
            for server in self.ssh.values():
                file.write(server.known(server.port))
            file.write(self.ssh["paris"].known(self.wire.port))
        ports = {name: (server.port, server.files) for name, server in self.ssh.items()}
        ports["far"] = (self.wire.port, self.ssh["paris"].files)
        self.peers = Peers(folder, ports, self.key, self.known_hosts)
        self.pair = None

    def server(self, name, port, path, kind=None):
        if (kind or self.kind) == "directory":
            return f'[[file_server]]\nname = "{name}"\nkind = "directory"\npath = "{path}"\n'
        return (f'[[file_server]]\nname = "{name}"\nkind = "sftp"\naddress = "127.0.0.1:{port}"\nuser = "root"\n'
                f'path = "{path}"\nknown_hosts_file = "{self.known_hosts}"\nkey_file = "{self.key}"\n')

    def both(self, folder="vault", kind=None, far=False):
        """Both servers as the vaults see them; with `far`, one of them through the wire."""
        made = ""
        for name, server in self.ssh.items():
            path = os.path.join(server.files, folder)
            os.makedirs(path, exist_ok=True)
            made += self.server(name, self.wire.port if far and name == "paris" else server.port, path, kind)
        return made

    def vaults(self):
        if self.pair is None:
            self.pair = Pair(self.folder, self.vault, self.both())
        return self.pair.vaults[0]

    def path(self, name):
        return os.path.join(self.folder, name)

    def stop(self):
        if self.pair:
            self.pair.stop()
        self.wire.process.stop()
        for server in self.ssh.values():
            server.process.stop()


class Caller:
    """One connection to a vault's control socket, as an application would keep it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(600)
        self.socket.connect(path)
        self.buffer = b""

    def send(self, head, body=b""):
        self.socket.sendall(head.encode() + body)

    def head(self):
        """Status and fields of the next answer."""
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        first, *fields = head.decode().split("\r\n")
        return int(first.split()[1]), {name.lower(): value for name, value in (line.split(": ", 1) for line in fields)}

    def more(self):
        came = self.socket.recv(1 << 20)
        if not came:
            raise Failed("vault closed the connection in the middle of an answer")
        self.buffer += came
        return len(came)

    def body(self, length):
        """Reads and forgets, or gives back where it is short."""
        if length <= 1 << 20:
            while len(self.buffer) < length:
                self.more()
            body, self.buffer = self.buffer[:length], self.buffer[length:]
            return body
        left = length - len(self.buffer)
        self.buffer = b""
        while left > 0:
            left -= self.more()
            self.buffer = b""
        return b""

    def put(self, key, pieces, length):
        self.send(f"POST /v1/files?owner=bench HTTP/1.1\r\nHost: vault\r\nIdempotency-Key: {key}\r\n"
                  f"Content-Length: {length}\r\n\r\n")
        for piece in pieces:
            self.socket.sendall(piece)
        status, fields = self.head()
        body = self.body(int(fields["content-length"]))
        if status not in (200, 201):
            raise Failed(f"vault answered an upload with {status}: {body.decode(errors='replace')}")
        return json.loads(body)["id"]

    def get(self, file):
        self.send(f"GET /v1/files/{file} HTTP/1.1\r\nHost: vault\r\n\r\n")
        status, fields = self.head()
        if status != 200:
            raise Failed(f"vault answered a download with {status}")
        return int(fields["content-length"])


def plain(bench, server="paris", port=None, name="storage_put_vs_rclone"):
    """One server, plain bytes."""
    port = port or bench.ssh["paris"].port
    remote = "far" if server == "far" else "paris"
    source, files = bench.path("plain"), bench.ssh["paris"].files
    if not os.path.exists(source):
        make_file(source, PLAIN, 0)
    ours = folder_of(os.path.join(files, f"single-{server}"))
    config = bench.path(f"single-{server}.toml")
    bench.vaults()
    with open(bench.pair.vaults[0].config, encoding="ascii") as file:
        text = file.read().split("[[file_server]]")[0]
    with open(config, "w", encoding="ascii") as file:
        file.write(text + bench.server("paris", port, ours) + bench.server("lyon", port, ours + "-2"))
    run(bench.single, config, "paris", "attach")
    ids = []

    def put(_):
        # What is there already would only be verified.
        for known in ids:
            shutil.rmtree(os.path.join(ours, known[:2]))
        ids[:] = [run(bench.single, config, "paris", "put", source).strip()]

    putting = {
        "vault": put,
        "rclone": lambda _: copy(bench, source, f"{remote}-checked:plain-rclone"),
        "rclone bare": lambda _: copy(bench, source, f"{remote}-bare:plain-bare"),
        "sftp": lambda _: bench.peers.sftp(port, f"put {source} {files}/plain-sftp"),
    }
    times = in_turns(f"put {PLAIN // MIB} MiB on {server}", putting)
    ratios(name, times)
    if server == "far":
        return
    target = bench.path("back")
    getting = {
        "vault": lambda _: run(bench.single, config, "paris", "get", ids[0], target),
        "rclone": lambda _: copy(bench, "paris-checked:plain-rclone", target),
        "rclone bare": lambda _: copy(bench, "paris-bare:plain-bare", target),
        "sftp": lambda _: bench.peers.sftp(port, f"get {files}/plain-sftp {target}"),
    }
    times = in_turns(f"get {PLAIN // MIB} MiB from {server}", getting)
    run("cmp", source, target)
    ratios("storage_get_vs_rclone", times)


def copy(bench, source, target):
    bench.peers.rclone("copyto", "--ignore-times", source, target)


def delayed(bench):
    """The same through a wire of 10 ms."""
    here = os.path.dirname(os.path.abspath(__file__))
    speed, trip = run("python3", "-B", os.path.join(here, "delay.py"), "--measure", free_port(), HALF_TRIP).split()
    say(f"the wire itself: {speed} MiB/s, a round trip takes {trip} ms")
    plain(bench, "far", bench.wire.port, "storage_put_10ms_vs_rclone")


def bulk(bench):
    """The whole path: compressed, encrypted, on both servers, durable."""
    vault = bench.vaults()
    for share, word in ((0.5, "half text, half noise"), (0.0, "noise"), (1.0, "text")):
        source = bench.path("bulk")
        make_file(source, BULK, share)
        runners = {
            "vault": lambda turn, share=share: vault.command(
                "file", "put", source, "--owner", "bench", "--key", f"bulk-{share}-{turn}"),
            "rclone": lambda turn, share=share: copy(bench, source, f"crypt-checked:bulk-{share}-{turn}"),
            "rclone bare": lambda turn, share=share: copy(bench, source, f"crypt-bare:bulk-{share}-{turn}"),
        }
        times = in_turns(f"{BULK // MIB} MiB of {word} to both servers", runners)
        say(f"{BULK // MIB} MiB of {word}: {ratio(times):.2f} times as fast as rclone")
        if share == 0.5:
            ratios("storage_dual_bulk_vs_rclone", times)


def small(bench):
    """Many small files over the whole path."""
    vault = bench.vaults()
    source = folder_of(bench.path("small"))
    rng = random.Random(SEED)
    text = text_like(rng, MIB)
    for index in range(SMALL):
        half = SMALL_SIZE // 2
        at = rng.randrange(len(text) - half)
        with open(os.path.join(source, f"{index:04}"), "wb") as file:
            file.write(text[at:at + half] + rng.randbytes(half))
    runners = {
        "vault": lambda turn: put_all(vault, source, turn),
        "rclone": lambda turn: copy_all(bench, source, f"crypt-checked:small-{turn}"),
        "rclone bare": lambda turn: copy_all(bench, source, f"crypt-bare:small-{turn}"),
    }
    times = in_turns(f"{SMALL} files of {SMALL_SIZE // 1024} KiB to both servers, {AT_ONCE} at once", runners)
    ratios("storage_dual_small_vs_rclone", times)


def copy_all(bench, source, target):
    bench.peers.rclone("copy", "--transfers", AT_ONCE, "--checkers", AT_ONCE, source, target)


def put_all(vault, source, turn):
    names = queue.SimpleQueue()
    for name in sorted(os.listdir(source)):
        names.put(name)
    failed = []

    def work():
        try:
            caller = Caller(vault.socket)
            while True:
                name = names.get_nowait()
                with open(os.path.join(source, name), "rb") as file:
                    content = file.read()
                caller.put(f"small-{turn}-{name}", [content], len(content))
        except queue.Empty:
            pass
        except (Failed, OSError) as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise Failed(f"a small file was not stored: {failed[0]}")


def noise(size):
    """Bytes that do not compress, without a file for them."""
    rng = random.Random(SEED)
    pieces = [rng.randbytes(MIB) for _ in range(16)]
    for index in range(size // MIB):
        yield pieces[index % 16]


def first(bench):
    """How soon the first byte of a large file comes."""
    vault = bench.vaults()
    file = Caller(vault.socket).put("first", noise(FIRST), FIRST)
    waits = []
    for _ in range(15):
        caller = Caller(vault.socket)
        began = time.monotonic()
        caller.get(file)
        while not caller.buffer:
            caller.more()
        waits.append((time.monotonic() - began) * 1000)
        caller.socket.close()
    say(f"first byte of {FIRST >> 30} GiB: {' '.join(f'{wait:.1f}' for wait in waits)} ms")
    figure("storage_first_byte_ms", statistics.median(waits), "ms")


def memory(bench):
    """What a vault holds at most while one huge upload and one huge download run."""
    vault = bench.vaults()
    bench.pair.restart(bench.both())
    file = Caller(vault.socket).put("huge-1", noise(HUGE), HUGE)
    alone = peak(vault)
    failed = []

    def download():
        try:
            caller = Caller(vault.socket)
            caller.body(caller.get(file))
        except (Failed, OSError) as error:
            failed.append(error)

    loading = threading.Thread(target=download)
    began = time.monotonic()
    loading.start()
    Caller(vault.socket).put("huge-2", noise(HUGE), HUGE)
    loading.join()
    if failed:
        raise Failed(f"the download broke off: {failed[0]}")
    say(f"{HUGE >> 30} GiB up and {HUGE >> 30} GiB down at once: {time.monotonic() - began:.0f} s; "
        f"most memory {peak(vault):.1f} MiB, of the upload before alone {alone:.1f} MiB")
    figure("storage_rss_mib", peak(vault), "MiB")


def peak(vault):
    with open(f"/proc/{vault.process.pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def compare(bench):
    """A full comparison of two servers with many objects."""
    if "sync" not in run(bench.vault, "file", "--help"):
        say("compare: this vault has no `file sync`; left out")
        return
    vault = bench.vaults()
    # The objects lie in memory: their number is what costs, and here it is listing that is measured.
    held = {}
    try:
        for name, server in bench.ssh.items():
            held[name] = tempfile.mkdtemp(prefix="vault-bench-", dir="/dev/shm")
            target = os.path.join(server.files, "many")
            shutil.rmtree(target, ignore_errors=True)
            os.symlink(held[name], target)
        bench.pair.stop()
        for one in bench.pair.vaults:
            for name in os.listdir(os.path.join(one.folder, "state")):
                if name.startswith("catalog.db"):
                    os.remove(os.path.join(one.folder, "state", name))
        # What a vault does by itself would run beside: the last lines of [storage] go before the servers.
        alone = 'sync_every = "0s"\nscrub_every = "0s"\n'
        bench.pair.restart(alone + bench.both("many", "directory"))
        calm = lambda: all(knows_all(one, OBJECTS) for one in bench.pair.vaults)
        began = time.monotonic()
        fill(vault, OBJECTS)
        say(f"compare: {OBJECTS} objects made in {time.monotonic() - began:.0f} s")
        bench.pair.restart(alone + bench.both("many"))
        until("that both vaults know every object", 120, calm, pause=1)
        seconds = [timed(lambda: agree(vault)) for _ in range(ROUNDS)]
        say(f"compare {OBJECTS} objects on both servers: {' '.join(f'{second:.2f}' for second in seconds)} s")
        # The name says how many; tried out with fewer it is no figure.
        if OBJECTS == 100_000:
            figure("storage_compare_100k_s", statistics.median(seconds), "s")
        bench.pair.restart(alone + bench.both("many", far=True))
        until("that both vaults know every object", 120, calm, pause=1)
        far = timed(lambda: agree(vault))
        say(f"compare {OBJECTS} objects, one server behind a round trip of {HALF_TRIP * 2000:.0f} ms: {far:.2f} s")
    finally:
        for folder in held.values():
            shutil.rmtree(folder, ignore_errors=True)


def knows_all(vault, count):
    """Does it know that many objects, and is no comparison of its own under way?"""
    files = json.loads(vault.command("--json", "status"))["files"]
    return files["objects"] == count and files["owed"] == 0 and not files["sync"]["running"]


def agree(vault):
    """Compares, and Failed where anything differs: then it was not this that was to be measured."""
    found = json.loads(vault.command("--json", "file", "sync"))
    if found["known"] < OBJECTS or found["listed"] < 2 * OBJECTS or found["missing"] or found["unlisted"]:
        raise Failed(f"the comparison of equal file servers found {found}")


def fill(vault, count):
    numbers = iter(range(count))
    lock, failed = threading.Lock(), []

    def work():
        try:
            caller = Caller(vault.socket)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                caller.put(f"many-{number}", [b"%d" % number], len(b"%d" % number))
        except (Failed, OSError) as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(32)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise Failed(f"an object was not stored: {failed[0]}")


def main():
    # Whoever ends this ends the parts, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser()
    parser.add_argument("--binaries", required=True)
    parser.add_argument("--only", default=",".join(PHASES))
    parser.add_argument("--kind", default="sftp", choices=["sftp", "directory"])
    wanted = parser.parse_args()
    say("unequal in rclone's favour: it flushes nothing to the disk and publishes under no second name; ours "
        "does both on each server, and hashes what it sends")
    say("figures named _bare are against rclone told not to check what it has uploaded")
    folder = tempfile.mkdtemp(prefix="vault-bench-storage-")
    status = 0
    bench = None
    try:
        bench = Bench(folder, wanted.binaries, wanted.kind)
        for phase in wanted.only.split(","):
            try:
                {"plain": plain, "delayed": delayed, "bulk": bulk, "small": small, "first": first,
                 "memory": memory, "compare": compare}[phase](bench)
            except (Failed, subprocess.TimeoutExpired, OSError) as error:
                say(f"{phase}: {error}")
                status = 1
    except Failed as error:
        say(str(error))
        status = 1
    finally:
        if bench:
            bench.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
