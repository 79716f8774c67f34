"""Debian's Java client of ActiveMQ, told what to do line by line: `tests/java`, compiled into a folder
of its own. Knows the lines; must not know what is measured."""

import glob
import json
import os
import select
import subprocess
import time

from parts import run
from process import Failed

LIBRARIES = ["activemq-client", "geronimo-jms_1.1_spec", "geronimo-j2ee-management-1.1-spec", "hawtbuf", "slf4j-api",
             "slf4j-nop", "jackson-annotations", "jackson-core", "jackson-databind"]


def machine(folder):
    """How every virtual machine here runs: as an operator would start it, with 256 MiB."""
    return ["java", "-Xms64m", "-Xmx256m", "-XX:-UsePerfData", f"-Djava.io.tmpdir={folder}"]


class Java:
    """One virtual machine with the client in it."""

    def __init__(self, sources, folder):
        jars = [f"/usr/share/java/{name}.jar" for name in LIBRARIES]
        classes = os.path.join(folder, "classes")
        run("javac", "-cp", ":".join(jars), "-d", classes, *glob.glob(os.path.join(sources, "*.java")))
        with open(os.path.join(folder, "java.log"), "ab") as log:
            self.child = subprocess.Popen(
                [*machine(folder), "-cp", ":".join([*jars, classes]), "Main"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self.last, self.said = 0, b""

    def ask(self, op, within=120, **words):
        """Says a command and waits for its answer; Failed with what the client says against it."""
        self.last += 1
        self.child.stdin.write(json.dumps({"id": self.last, "op": op, **words}).encode() + b"\n")
        self.child.stdin.flush()
        answer = json.loads(self.line(op, time.monotonic() + within))
        if answer.get("refused"):
            raise Failed(f"java: {op}: {answer['refused']}")
        return answer["done"]

    def line(self, op, deadline):
        while b"\n" not in self.said:
            ready, _, _ = select.select([self.child.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise Failed(f"java: {op}: no answer in time")
            more = os.read(self.child.stdout.fileno(), 65536)
            if not more:
                raise Failed(f"java: {op}: it has ended")
            self.said += more
        line, _, self.said = self.said.partition(b"\n")
        return line

    def load(self, kind, uri, queue, messages, connections, batch=0):
        """Begins to send or to receive; returns once every connection is there."""
        return self.ask("load", kind=kind, uri=uri, destination=queue, messages=messages, connections=connections,
                        batch=batch, bytes=1024, persistent=True, name="p", idle=20_000, file=None)

    def whole(self, load, within=120):
        """Waits until all is through: messages, and seconds from the first to the last."""
        return self.outcome(self.ask("load_wait", within, load=load))

    def after(self, load, seconds):
        """Ends it after so long."""
        time.sleep(seconds)
        return self.outcome(self.ask("load_stop", load=load))

    def outcome(self, state):
        if state["errors"]:
            raise Failed(f"java: {state['errors'][0]}")
        return state["messages"], state["seconds"]

    def stop(self):
        # It ends with its input.
        self.child.stdin.close()
        try:
            self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
