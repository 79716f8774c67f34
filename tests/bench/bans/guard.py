"""edge and its privileged helper as the benchmark runs them: configuration, start, questions.
Knows their files and commands; must not know what is measured."""

import json
import os
import re
import subprocess

import lab as network
from process import Failed, Process, until

TABLE, SET = "edge", "ban4"


def quoted(text):
    """A TOML string. JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)


def listed(texts):
    return "[" + ", ".join(quoted(text) for text in texts) + "]"


def own_filter():
    """What the benchmark's own attackers do: one plain pattern."""
    return {"name": "bench", "failregex": [r'^<HOST> - - \[\] "GET /bench-attack HTTP/1\.1" 404 '],
            "ignoreregex": [], "prefregex": "", "maxlines": 1}


def own_line(address, at):
    """A line that `own_filter` takes for an offence; `{}` as address makes it a template."""
    return f'{address} - - [{at}] "GET /bench-attack HTTP/1.1" 404 162 "-" "bench"'


class Helper:
    """`edge-firewall serve` in the guarded namespace."""

    def __init__(self, binaries, lab, folder):
        self.folder = os.path.join(folder, "firewall")
        os.makedirs(self.folder, exist_ok=True)
        self.socket = os.path.join(self.folder, "firewall.sock")
        config = os.path.join(self.folder, "firewall.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"""admin_networks = ["{network.ADMIN}"]
edge_user = "root"
socket = {quoted(self.socket)}
state_folder = {quoted(os.path.join(self.folder, "state"))}
""")
        command = [os.path.join(binaries, "edge-firewall"), "serve", "--config", config]
        self.process = Process("edge-firewall", lab.inside(lab.guarded, *command), folder)
        until("edge-firewall listens", 15, self.ready)

    def ready(self):
        self.process.must_run()
        return os.path.exists(self.socket)

    def stop(self):
        self.process.stop()


class Edge:
    """An edge in the guarded namespace that follows `log` with one jail a filter."""

    def __init__(self, binaries, lab, folder, name, log, filters, max_offences, firewall_socket=None):
        self.binary = os.path.join(binaries, "edge")
        self.lab, self.folder, self.name = lab, os.path.join(folder, name), name
        os.makedirs(self.folder)
        self.config = os.path.join(self.folder, "edge.toml")
        certificate(self.folder)
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(self.text(log, filters, max_offences, firewall_socket))
        self.start()
        until("edge answers", 30, self.ready)

    def text(self, log, filters, max_offences, firewall_socket):
        place = lambda name: quoted(os.path.join(self.folder, name))
        kernel = f'firewall = "kernel"\nfirewall_socket = {quoted(firewall_socket)}'
        text = f"""name = "bench.example.test"
threads = 2

[listen]
https = ["0.0.0.0:8443"]

[[certificate]]
names = ["bench.example.test"]
certificate_file = {place("bench.pem")}
key_file = {place("bench.key")}

[access_log]
enabled = false

[admin]
listen = "127.0.0.1:8444"
control_socket = {place("control.sock")}

[[route]]
host = "bench.example.test"
path_prefix = "/"
upstream = "nobody"

[[upstream]]
name = "nobody"
servers = ["127.0.0.1:9000"]

[bans]
builtin = false
jails_folder = {place("no-jails.d")}
store = {place("bans.db")}
{kernel if firewall_socket else 'firewall = "rehearsal"'}
"""
        for one in filters:
            text += f"""
[[filter]]
name = {quoted(one["name"])}
failregex = {listed(one["failregex"])}
ignoreregex = {listed(one["ignoreregex"])}
"""
            if one["prefregex"]:
                text += f"prefregex = {quoted(one['prefregex'])}\n"
            if one["maxlines"] > 1:
                text += f"max_lines = {one['maxlines']}\n"
            text += f"""
[[jail]]
name = {quoted(one["name"])}
filter = {quoted(one["name"])}
logs = [{quoted(log)}]
max_offences = {max_offences}
find_time = "1d"
ban_time = "1d"
brake = false
"""
        return text

    def start(self):
        """Starts it; readiness is the caller's to wait for."""
        command = [self.binary, "serve", "--config", self.config]
        self.process = Process(self.name, self.lab.inside(self.lab.guarded, *command), self.folder)

    def ask(self, *words):
        """What `edge --config … words` prints; empty where it fails."""
        command = self.lab.inside(self.lab.guarded, self.binary, "--config", self.config, *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout if done.returncode == 0 else ""

    def ready(self):
        self.process.must_run()
        return self.ask("status", "--json")

    def has_banned(self, address):
        """Does the list of bans hold `address`?"""
        return address in self.banned()

    def banned(self):
        """The addresses of its list of bans, whatever else stands there."""
        self.process.must_run()
        return set(re.findall(r'"(\d+\.\d+\.\d+\.\d+)(?:/32)?"', self.ask("bans", "list", "--json")))

    def cpu(self):
        return self.process.cpu()

    def stop(self):
        self.process.stop()


def certificate(folder):
    """A certificate of its own, so that edge may listen at all."""
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=bench.example.test", "-addext", "subjectAltName=DNS:bench.example.test",
         "-keyout", os.path.join(folder, "bench.key"), "-out", os.path.join(folder, "bench.pem")],
        capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"openssl makes no certificate: {done.stderr.strip()}")
