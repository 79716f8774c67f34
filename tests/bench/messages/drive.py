"""The benchmark of messages: the embedded broker against ActiveMQ, and our bridge against ActiveMQ's
own network connector, by the same Java client in turns of one run. Prints one figure a line,
`NAME<TAB>VALUE<TAB>UNIT`; every turn, and the CPU seconds it took, goes to standard error.

  drive.py --binaries FOLDER [--only PHASE[,PHASE…]]
Phases: brokers, bridge, million. Messages are persistent, of 1 KiB; every broker syncs before it
answers, ActiveMQ with 256 MiB of heap and otherwise as it comes. Senders wait for each answer,
receivers acknowledge each message by itself (AUTO_ACKNOWLEDGE). Everything shares this machine's
processors, the Java client too."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack

from brokers import ActiveMq, Vault, installed, network_connector, speaks
from java import Java
from process import Failed, until

ROUNDS = int(os.environ.get("MESSAGES_ROUNDS", "3"))
SECONDS = int(os.environ.get("MESSAGES_SECONDS", "4"))
# What waits before a turn of receivers, and before a turn of the bridges.
BACKLOG = int(os.environ.get("MESSAGES_BACKLOG", "30000"))
MANY = int(os.environ.get("MESSAGES_MANY", "1000000"))
MIB = 1 << 20
PHASES = ["brokers", "bridge", "million"]


def say(text):
    print(f"messages: {text}", file=sys.stderr, flush=True)


def figure(name, value, unit="x"):
    print(f"{name}\t{value:.4g}\t{unit}", flush=True)


class Bench:
    """What a phase needs: a folder, the Java client, and a list of what is to be ended after it."""

    def __init__(self, folder, binaries, java, running):
        self.folder, self.java, self.running = folder, java, running
        self.binary = os.path.join(binaries, "vault")

    def keep(self, what):
        self.running.callback(what.stop)
        return what

    def fill(self, broker, queue, messages):
        """So many wait there, sent as fast as it goes."""
        if messages > 0:
            load = self.java.load("send", broker.uri(), queue, messages, 4, batch=250)
            self.java.whole(load, within=600)


class Turns:
    """Rates by what was done and by whom, and what the figures are made of."""

    def __init__(self):
        self.rates = {}

    def add(self, turn, what, who, done, cpu):
        messages, seconds = done
        rate = messages / max(seconds, 1e-9)
        self.rates.setdefault((what, who), []).append(rate)
        say(f"round {turn + 1}: {what}: {who}: {messages} in {seconds:.2f} s: {rate:.0f}/s, "
            f"{cpu:.2f} s of CPU, {cpu / max(messages, 1) * 1e6:.0f} µs each")

    def figure(self, name, what, ours, theirs):
        pairs = list(zip(self.rates[what, ours], self.rates[what, theirs]))
        say(f"{what}: {ours} {statistics.median(one for one, _ in pairs):.0f}/s, "
            f"{theirs} {statistics.median(other for _, other in pairs):.0f}/s")
        figure(name, statistics.median(one / other for one, other in pairs))


def in_order(names, turn):
    """Everybody once, in changing order."""
    return names[turn % len(names):] + names[:turn % len(names)]


def brokers(bench):
    vault = bench.keep(Vault(bench.folder, bench.binary)).with_broker()
    everybody = {"vault": vault, "ActiveMQ": bench.keep(ActiveMq("activemq", bench.folder)).ready()}
    fresh = {who: broker.process.resident() for who, broker in everybody.items()}
    for broker in everybody.values():
        # Java gets faster with time, on both sides.
        a_turn(bench, broker, "warm", 16, 2)
    turns = Turns()
    for turn in range(ROUNDS):
        for connections in (1, 16):
            for who in in_order(list(everybody), turn):
                sent, received = a_turn(bench, everybody[who], f"round{turn}", connections, SECONDS)
                turns.add(turn, f"send, {connections}", who, *sent)
                turns.add(turn, f"receive, {connections}", who, *received)
    for what in ("send", "receive"):
        for connections in (1, 16):
            turns.figure(f"messages_broker_{what}_{connections}_vs_activemq", f"{what}, {connections}", "vault", "ActiveMQ")
    memory(everybody, fresh)


def a_turn(bench, broker, queue, connections, seconds):
    """Senders for so long, then receivers for a backlog: what each did, and the broker's CPU seconds."""
    queue = f"{queue}.{connections}"
    began = broker.process.cpu()
    load = bench.java.load("send", broker.uri(), queue, 10_000_000, connections)
    sent = bench.java.after(load, seconds), broker.process.cpu() - began
    waiting = max(sent[0][0], BACKLOG)
    bench.fill(broker, queue, waiting - sent[0][0])
    began = broker.process.cpu()
    load = bench.java.load("receive", broker.uri(), queue, waiting, connections)
    return sent, (bench.java.whole(load), broker.process.cpu() - began)


def memory(everybody, fresh):
    """Both have had the same turns. What a broker holds after a while is no more than what it keeps."""
    time.sleep(10)
    steady = {who: broker.process.resident() for who, broker in everybody.items()}
    peak = {who: broker.peak() for who, broker in everybody.items()}
    for who in everybody:
        say(f"memory: {who}: {fresh[who] / MIB:.0f} MiB when it is ready, {peak[who] / MIB:.0f} MiB at most, "
            f"{steady[who] / MIB:.0f} MiB ten seconds after the load")
    figure("messages_rss_vs_activemq", steady["vault"] / steady["ActiveMQ"])
    figure("messages_rss_peak_vs_activemq", peak["vault"] / peak["ActiveMQ"])


def bridge(bench):
    """From a backlog at one ActiveMQ to a Java consumer at another one. Both bridges have the same two."""
    target = bench.keep(ActiveMq("target", bench.folder)).ready()
    source = bench.keep(ActiveMq("source", bench.folder, network_connector(target, "theirs.>"))).ready()
    vault = bench.keep(Vault(bench.folder, bench.binary)).with_bridge(source, target, "ours.>")
    turns = Turns()
    for turn in range(-1, ROUNDS):
        for who in in_order(["theirs", "ours"], turn):
            done = crossed(bench, source, target, vault if who == "ours" else None, f"{who}.round{turn}")
            # Before the first round Java is warmed up.
            if turn >= 0:
                turns.add(turn, "bridge", who, *done)
    turns.figure("messages_bridge_vs_activemq", "bridge", "ours", "theirs")


def crossed(bench, source, target, vault, queue):
    """From the first message that is received to the last; CPU seconds of the brokers and the vault."""
    bench.fill(source, queue, BACKLOG)
    processes = [source.process, target.process]
    began = sum(process.cpu() for process in processes)
    load = bench.java.load("receive", target.uri(), queue, BACKLOG, 1)
    if vault:
        vault.own.start()
        processes.append(vault.process)
    done = bench.java.whole(load)
    used = sum(process.cpu() for process in processes) - began
    if vault:
        say(f"our bridge: {vault.process.cpu():.2f} s of CPU, {vault.peak() / MIB:.0f} MiB at most")
        vault.own.process.stop()
    return done, used


def million(bench):
    """A vault that was killed over so many messages, until a client has the first one."""
    vault = bench.keep(Vault(bench.folder, bench.binary)).with_broker()
    began = time.monotonic()
    bench.fill(vault, "many", MANY)
    say(f"million: {MANY} messages in {time.monotonic() - began:.0f} s; {vault.peak() / MIB:.0f} MiB at most")
    times = []
    for turn in range(ROUNDS):
        vault.process.kill()
        began = time.monotonic()
        vault.own.launch()
        until("the embedded broker", 60, lambda: speaks(vault.port), pause=0.005)
        load = bench.java.load("receive", vault.uri(), "many", 10_000, 1)
        until("the first message", 60, lambda: bench.java.ask("load_state", load=load)["messages"], pause=0.005)
        times.append(time.monotonic() - began)
        first = vault.peak()
        bench.java.whole(load)
        say(f"round {turn + 1}: million: {times[-1]:.2f} s to the first message, {first / MIB:.0f} MiB at most; "
            f"{vault.peak() / MIB:.0f} MiB after 10,000")
    figure("messages_million_start_s", statistics.median(times), "s")
    figure("messages_million_rss_mib", vault.peak() / MIB, "MiB")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--binaries", required=True)
    arguments.add_argument("--only", default=",".join(PHASES))
    arguments = arguments.parse_args()
    work = {"brokers": brokers, "bridge": bridge, "million": million}
    with tempfile.TemporaryDirectory(prefix="vault-bench-messages-") as folder, ExitStack() as always:
        try:
            installed()
            java = Java("tests/java", folder)
            always.callback(java.stop)
            for phase in arguments.only.split(","):
                own = os.path.join(folder, phase)
                os.makedirs(own)
                with ExitStack() as running:
                    work[phase](Bench(own, os.path.abspath(arguments.binaries), java, running))
        except Failed as failed:
            say(failed)
            sys.exit(1)


main()
