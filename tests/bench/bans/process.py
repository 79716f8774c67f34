"""One program that the benchmark runs: started with its output in a file, asked for the CPU time
and the memory it has used, ended by its own process id. Knows /proc; must not know the program."""

import os
import signal
import subprocess
import time


class Failed(Exception):
    """What did not work, in words for the operator."""


def until(what, within, probe, pause=0.02):
    """Repeats `probe` until it answers something true; Failed after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {within} s")
        time.sleep(pause)


def cpu_of(pid):
    """Seconds of CPU time of all threads of a process so far, from the scheduler's nanoseconds."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
        except FileNotFoundError:
            pass  # A thread that has just ended; the programs measured keep theirs.
    return total / 1e9


def resident_of(pid):
    """Bytes of memory that a process holds now."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Process:
    """A running program."""

    def __init__(self, name, command, folder, environment=None):
        self.name = name
        self.log = os.path.join(folder, f"{name}.log")
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(environment or {})}, start_new_session=True)
        self.pid = self.child.pid

    def runs(self):
        return self.child.poll() is None

    def must_run(self):
        """Failed, with the end of its log, where it has ended by itself."""
        if not self.runs():
            raise Failed(f"{self.name} ended with {self.child.returncode}:\n{self.tail()}")

    def tail(self, lines=15):
        with open(self.log, "rb") as log:
            return b"\n".join(log.read().splitlines()[-lines:]).decode(errors="replace")

    def cpu(self):
        """Seconds of CPU time of all its threads so far, from the scheduler's nanoseconds."""
        return cpu_of(self.pid)

    def resident(self):
        """Bytes of memory it holds now."""
        return resident_of(self.pid)

    def keep_to(self, processors):
        """All its threads, and those that they start, run on these processors alone."""
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                os.sched_setaffinity(int(task), processors)
            except ProcessLookupError:
                pass  # It has just ended.

    def kill(self):
        """KILL, and waits for the end."""
        if self.runs():
            self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self, within=15):
        """TERM, then KILL where that does not help."""
        if self.runs():
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(within)
            except subprocess.TimeoutExpired:
                self.child.send_signal(signal.SIGKILL)
        self.child.wait()
