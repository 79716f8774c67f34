"""PostgreSQL for the benchmark: a server with its own folder and port, durable as it comes, with or
without a synchronous standby, and pgbench's turns at it. Starts and ends it; compares nothing."""

import glob
import os
import pwd
import re
import resource
import shutil
import statistics

from parts import free_port, run
from process import Failed, Process, until

USER = "postgres"


def programs():
    """The newest installed server's folder of programs."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
    if not found:
        raise Failed("no PostgreSQL below /usr/lib/postgresql; run: apt-get install postgresql")
    return os.path.dirname(max(found, key=lambda path: float(path.split("/")[4])))


def as_user(*command):
    """PostgreSQL does not run as root."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", *map(str, command)]


class Postgres:
    """One server. It listens on a socket in its own folder, and on loopback."""

    kind, database, user = "postgres", "vault", USER

    def __init__(self, name, folder, settings=""):
        self.name, self.bin, self.port = name, programs(), free_port()
        self.folder = os.path.join(folder, name)
        self.data = os.path.join(self.folder, "data")
        os.makedirs(self.folder)
        shutil.chown(self.folder, USER)
        self.settings = settings
        self.process = None

    def begin(self):
        """A new, empty server."""
        run(*as_user(f"{self.bin}/initdb", "-D", self.data, "-A", "trust", "-U", USER, "--no-locale", "-E", "UTF8"))
        return self.start()

    def standby_of(self, primary):
        """A copy of that server, which follows it."""
        dial = ["-h", primary.folder, "-p", primary.port, "-U", USER]
        run(*as_user(f"{self.bin}/pg_basebackup", "-D", self.data, "-R", "-X", "stream", "-c", "fast", *dial))
        return self.start()

    def start(self):
        words = [f"{self.bin}/postgres", "-D", self.data, "-p", self.port, "-k", self.folder,
                 "-c", "listen_addresses=127.0.0.1", "-c", "fsync=on", "-c", "max_connections=100"]
        for setting in self.settings.split():
            words += ["-c", setting]
        self.process = Process(self.name, as_user(*words), self.folder)
        until(self.name, 30, self.answers)
        return self

    def answers(self):
        self.process.must_run()
        try:
            return self.sql("SELECT 1")
        except Failed:
            return ""

    def sql(self, text):
        return run(f"{self.bin}/psql", "-h", self.folder, "-p", self.port, "-U", USER, "-Atqc", text)

    def hosts(self):
        return [f"127.0.0.1:{self.port}"]

    def cpu(self):
        """Seconds of CPU time of all its processes, those that have ended among them."""
        own = self.process.pid
        total, tick = 0, os.sysconf("SC_CLK_TCK")
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(entry) == own:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) == own:
                total += sum(map(int, fields[11:13]))
        return total / tick

    def bench(self, script, seconds, clients=32, protocol="simple"):
        """One turn of pgbench: transactions a second, the 99th percentile in ms, CPU seconds."""
        scripts = os.path.join(self.folder, "bench.sql")
        with open(scripts, "w", encoding="ascii") as file:
            file.write(script + "\n")
        before = self.cpu() + children()
        said = run(f"{self.bin}/pgbench", "-n", "-M", protocol, "-c", clients, "-j", os.cpu_count() or 2, "-T", seconds,
                   "-f", scripts, "-l", "--sampling-rate=0.2", f"--log-prefix={self.folder}/turn",
                   "-h", self.folder, "-p", self.port, "-U", USER, USER)
        cpu = self.cpu() + children() - before
        times = []
        for log in glob.glob(f"{self.folder}/turn.*"):
            with open(log, encoding="ascii") as file:
                times += [int(line.split()[2]) / 1000 for line in file]
            os.remove(log)
        rate = re.search(r"tps = ([0-9.]+)", said)
        if not rate or not times:
            raise Failed(f"pgbench says: {said[-400:]}")
        return float(rate[1]), statistics.quantiles(times, n=100)[98], cpu

    def stop(self):
        if self.process:
            self.process.stop()


def children():
    """CPU seconds of the programs that were run and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def with_standby(name, folder):
    """A primary whose every commit waits for its standby, and that standby."""
    primary = Postgres(f"{name}-primary", folder).begin()
    primary.settings = "synchronous_standby_names=*"
    standby = Postgres(f"{name}-standby", folder).standby_of(primary)
    primary.stop()
    primary.start()
    until("the synchronous standby", 30, lambda: "sync" in primary.sql("SELECT sync_state FROM pg_stat_replication"))
    return primary, standby


assert pwd.getpwnam(USER)
