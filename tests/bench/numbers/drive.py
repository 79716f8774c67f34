"""The benchmark of numbers: a pair of vaults against PostgreSQL's `nextval` (which may give a number
twice) and a row's `UPDATE … RETURNING` (which does not), in short turns of one run. Prints one figure
a line, `NAME<TAB>VALUE<TAB>UNIT`; every turn, and the CPU seconds it took, goes to standard error.

  drive.py --binaries FOLDER
What is measured: both vaults are real processes with their real link (TCP, mutual TLS), and both
journals are on this machine's disk, synced before an answer. The callers, 32 or 1,000 of them, are
in the first vault's process and skip HTTP, nothing else; those of `numbers_http_…` do not skip even
that. Each reserves one number after the other, always with a new random key. Where a database keeps a
copy of the ledger, an answer waits for that copy too, and a turn in which one did not is no turn: it
ends the benchmark. pgbench's 32 clients are pgbench's."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from databases import Etcd, Mariadb
from parts import Pair, run
from postgres import Postgres, children, with_standby
from process import Failed, Process

ROUNDS = int(os.environ.get("NUMBERS_ROUNDS", "5"))
SECONDS = int(os.environ.get("NUMBERS_SECONDS", "5"))
NEXTVAL = "SELECT nextval('s');"
UPDATE = "UPDATE counter SET n = n + 1 WHERE id = 1 RETURNING n;"
SCHEMA = "CREATE SEQUENCE s; CREATE TABLE counter (id int PRIMARY KEY, n bigint); INSERT INTO counter VALUES (1, 0)"


def say(text):
    print(f"numbers: {text}", file=sys.stderr, flush=True)


class Ours:
    """A pair of vaults; the callers sit in the first. `more` are further sections of both configurations."""

    def __init__(self, name, folder, binaries, more=""):
        self.name, self.folder = name, os.path.join(folder, name)
        self.driver = os.path.join(binaries, "examples", "numbers")
        os.makedirs(self.folder)
        servers = ""
        for server in ("paris", "lyon"):
            place = os.path.join(self.folder, server)
            os.makedirs(place)
            servers += f'[[file_server]]\nname = "{server}"\npath = "{place}"\n'
        binary = os.path.join(binaries, "vault")
        self.pair = Pair(self.folder, binary, servers + more)
        self.first, self.second = self.pair.vaults
        token = self.first.command("pki", "token", "--role", "edge", "--owner", "erp", "--name", "caller").split()[0]
        self.holder = os.path.join(self.folder, "holder")
        os.makedirs(self.holder)
        dial = f"{self.first.name}=127.0.0.1:{self.first.api}"
        run(binary, "pki", "enrol", "--vault", dial, "--token", token, "--out", self.holder)
        self.first.process.stop()
        with open(os.path.join(self.folder, "inside.log"), "ab") as log:
            self.inside = subprocess.Popen(
                [self.driver, "inside", self.first.config], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True)
        if self.inside.stdout.readline().strip() != "ready":
            raise Failed(f"the first vault does not start; see {self.folder}/inside.log")

    def cpu(self):
        """Of both vaults; a database's own time is left out."""
        return cpu_of(self.inside.pid) + cpu_of(self.second.process.pid)

    def turn(self, callers, seconds=SECONDS):
        before = self.cpu()
        self.inside.stdin.write(f"{callers} {seconds}\n")
        self.inside.stdin.flush()
        said = self.inside.stdout.readline()
        if not said:
            raise Failed(f"{self.name}: the callers have ended; see {self.folder}/inside.log")
        return measured(said) + (self.cpu() - before,)

    def over_http(self, callers, seconds=SECONDS):
        files = {end: file for file in find(self.holder) for end in (".crt", ".key") if file.endswith(end)}
        authority = next(file for file in find(self.holder) if file.endswith("authority.crt"))
        certificate = next(file for file in find(self.holder) if file.endswith(".crt") and file != authority)
        before = self.cpu() + children()
        said = run(self.driver, "http", f"{self.first.name}=127.0.0.1:{self.first.api}", certificate, files[".key"],
                   authority, callers, seconds)
        return measured(said) + (self.cpu() + children() - before,)

    def stop(self):
        self.inside.stdin.close()
        try:
            self.inside.wait(15)
        except subprocess.TimeoutExpired:
            self.inside.kill()
            self.inside.wait()
        self.second.process.stop()


def copied_to(server):
    """The section of both configurations that names this server."""
    hosts = ", ".join(f'"{host}"' for host in server.hosts())
    server_is = f'kind = "{server.kind}"\nhosts = [{hosts}]\ndatabase = "{server.database}"\nuser = "{server.user}"'
    return f"[sequence.database]\n{server_is}\nin_clear = true\n"


def find(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


def cpu_of(pid):
    return Process.cpu(type("Running", (), {"pid": pid}))


def measured(said):
    rate, _median, late = map(float, said.split())
    return rate, late


class Turns:
    """Everybody once a round, in changing order: what each did, and the medians of the rounds' ratios."""

    def __init__(self, runners):
        self.rates = {name: [] for name in runners}
        self.late = {name: [] for name in runners}
        for turn in range(ROUNDS):
            names = list(runners)
            for name in names[turn % len(names):] + names[:turn % len(names)]:
                rate, late, cpu = runners[name]()
                self.rates[name].append(rate)
                self.late[name].append(late)
                say(f"round {turn + 1}: {name}: {rate:.0f}/s, p99 {late:.2f} ms, {cpu:.2f} s of CPU, "
                    f"{cpu / max(rate * SECONDS, 1) * 1e6:.1f} µs each")
        for name in runners:
            say(f"{name}: {statistics.median(self.rates[name]):.0f}/s, p99 {statistics.median(self.late[name]):.2f} ms")

    def figure(self, name, ours, theirs, of="rates"):
        measured_by = getattr(self, of)
        if ours in measured_by and theirs in measured_by:
            ratios = [one / other for one, other in zip(measured_by[ours], measured_by[theirs])]
            print(f"{name}\t{statistics.median(ratios):.4g}\tx", flush=True)


def measure(folder, binaries, running):
    """Adds to `running` what it starts."""
    def start(what):
        running.append(what)
        return what

    plain = start(Postgres("postgres", folder)).begin()
    plain.sql(SCHEMA)
    primary, standby = with_standby("synchronous", folder)
    running.extend((primary, standby))
    primary.sql(SCHEMA)
    for one in (plain, primary):
        one.sql("CREATE DATABASE vault")
    mariadb, etcd = start(Mariadb(folder)), start(Etcd(folder))
    sqlite = start(Ours("pair", folder, binaries))
    copied = {server: start(Ours(name, folder, binaries, copied_to(server))) for name, server in (
        ("with-postgres", plain), ("with-standby", primary), ("with-mariadb", mariadb), ("with-etcd", etcd))}
    for callers in (32, 1000):
        sqlite.turn(callers, 1)
    for ours in copied.values():
        ours.turn(32, 1)
    turns = Turns({
        "nextval": lambda: plain.bench(NEXTVAL, SECONDS),
        "pair": lambda: sqlite.turn(32),
        "nextval, prepared": lambda: plain.bench(NEXTVAL, SECONDS, protocol="prepared"),
        "pair, 1000 callers": lambda: sqlite.turn(1000),
        "row update": lambda: plain.bench(UPDATE, SECONDS),
        "pair, HTTP": lambda: sqlite.over_http(32),
        "row update, synchronous standby": lambda: primary.bench(UPDATE, SECONDS),
        "pair and PostgreSQL": lambda: copied[plain].turn(32),
        "pair and PostgreSQL, synchronous standby": lambda: copied[primary].turn(32),
        "pair and MariaDB": lambda: copied[mariadb].turn(32),
        "pair and etcd": lambda: copied[etcd].turn(32),
    })
    turns.figure("numbers_sqlite_pair_vs_nextval", "pair", "nextval")
    turns.figure("numbers_pg_vs_nextval", "pair and PostgreSQL", "nextval")
    turns.figure("numbers_pg_sync_vs_nextval", "pair and PostgreSQL, synchronous standby", "nextval")
    turns.figure("numbers_pg_sync_vs_row_update", "pair and PostgreSQL, synchronous standby",
                 "row update, synchronous standby")
    turns.figure("numbers_mariadb_vs_nextval", "pair and MariaDB", "nextval")
    turns.figure("numbers_etcd_vs_nextval", "pair and etcd", "nextval")
    turns.figure("numbers_1000_vs_nextval", "pair, 1000 callers", "nextval")
    turns.figure("numbers_p99_vs_nextval", "pair", "nextval", of="late")
    turns.figure("numbers_http_vs_nextval", "pair, HTTP", "nextval")
    turns.figure("numbers_sqlite_pair_vs_nextval_prepared", "pair", "nextval, prepared")
    turns.figure("numbers_1000_vs_nextval_prepared", "pair, 1000 callers", "nextval, prepared")
    turns.figure("numbers_sqlite_pair_vs_row_update", "pair", "row update")
    turns.figure("numbers_sqlite_pair_vs_sync_row_update", "pair", "row update, synchronous standby")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--binaries", required=True)
    binaries = os.path.abspath(arguments.parse_args().binaries)
    running = []
    with tempfile.TemporaryDirectory(prefix="vault-bench-numbers-") as folder:
        os.chmod(folder, 0o755)
        try:
            measure(folder, binaries, running)
        except Failed as failed:
            say(failed)
            sys.exit(1)
        finally:
            for one in reversed(running):
                one.stop()


main()
