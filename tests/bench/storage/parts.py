"""The parts of the storage benchmark: private SSH servers, the pair of vaults before them, and
rclone's view of the same servers. Starts and ends them; measures nothing."""

import json
import http.client
import os
import shutil
import socket
import subprocess

from process import Failed, Process, until


# How rclone is set: as it comes, where it has the server's shell hash what it has uploaded and
# compares; and bare, where it believes what it has sent, as it must on a server without a shell.
MODES = {"checked": "", "bare": "shell_type = none\ndisable_hashcheck = true"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command, within=600, **more):
    """Runs to the end; Failed with what it said where it does not end well."""
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=within, check=False, **more)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-600:]
        raise Failed(f"{command[0]} {command[1] if len(command) > 1 else ''}: exit {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


class Ssh:
    """One OpenSSH server with a key and a port of its own, serving files alone."""

    def __init__(self, name, folder, key):
        self.name, self.port = name, free_port()
        self.folder = os.path.join(folder, f"ssh-{name}")
        self.files = os.path.join(self.folder, "files")
        os.makedirs(self.files)
        os.makedirs("/run/sshd", exist_ok=True)
        self.key = key
        host_key = os.path.join(self.folder, "host_key")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key)
        config = os.path.join(self.folder, "sshd_config")
        with open(config, "w", encoding="ascii") as file:
            file.write(f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {host_key}
PidFile none
AuthorizedKeysFile {key}.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
LogLevel ERROR
""")
        with open(f"{host_key}.pub", encoding="ascii") as file:
            self.host_key = " ".join(file.read().split()[:2])
        # rclone has the user's shell hash what it has uploaded: how long that shell takes to start
        # is no matter of rclone's, so it finds no start-up files.
        bare = "for file in ~root/.bashrc ~root/.profile; do [ ! -e $file ] || mount --bind /dev/null $file; done"
        self.process = Process(f"sshd-{name}", [
            "unshare", "--mount", "sh", "-c", f"{bare}; exec /usr/sbin/sshd -D -e -f {config}"], folder)
        until(f"sshd {name}", 10, lambda: answers(self.port))

    def known(self, port):
        """Its line of a known_hosts file, reached through `port`."""
        return f"[127.0.0.1]:{port} {self.host_key}\n"


def answers(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Wire:
    """A forwarder with a delay before a server."""

    def __init__(self, folder, target, seconds):
        self.port = free_port()
        here = os.path.dirname(os.path.abspath(__file__))
        command = ["python3", "-B", os.path.join(here, "delay.py"), str(self.port), str(target), str(seconds)]
        self.process = Process("wire", command, folder)
        until("the wire", 10, lambda: answers(self.port))


class Peers:
    """rclone and OpenSSH's sftp, told the same servers and the same key."""

    def __init__(self, folder, servers, key, known_hosts):
        self.config = os.path.join(folder, "rclone.conf")
        self.key, self.known_hosts = key, known_hosts
        secret = run("rclone", "obscure", "a password of the benchmark").strip()
        with open(self.config, "w", encoding="ascii") as file:
            for mode, settings in MODES.items():
                for name, (port, path) in servers.items():
                    file.write(f"""[{name}-{mode}-bare]
type = sftp
host = 127.0.0.1
port = {port}
user = root
key_file = {key}
known_hosts_file = {known_hosts}
{settings}
[{name}-{mode}]
type = alias
remote = {name}-{mode}-bare:{path}
""")
                file.write(f"""[both-{mode}]
type = union
upstreams = paris-{mode}:rclone-{mode} lyon-{mode}:rclone-{mode}
action_policy = all
create_policy = all
search_policy = ff
[crypt-{mode}]
type = crypt
remote = both-{mode}:
password = {secret}
""")

    def rclone(self, *words):
        return run("rclone", "--config", self.config, *words)

    def sftp(self, port, *lines):
        options = ["-q", "-b", "-", "-P", port, "-i", self.key, "-o", f"UserKnownHostsFile={self.known_hosts}",
                   "-o", "StrictHostKeyChecking=yes"]
        return run("sftp", *options, "root@127.0.0.1", input="\n".join(lines).encode())


class Vault:
    """One vault of the pair."""

    def __init__(self, name, folder, binary):
        self.name, self.binary = name, binary
        self.folder = os.path.join(folder, name)
        os.makedirs(os.path.join(self.folder, "state"), mode=0o700)
        self.api, self.admin = free_port(), free_port()
        self.socket = os.path.join(self.folder, "control.sock")
        self.config = os.path.join(self.folder, "vault.toml")
        self.process = None

    def write(self, peer, owner, key, escrow, servers):
        with open(self.config, "w", encoding="ascii") as file:
            file.write(f"""name = "{self.name}"
state = "{self.folder}/state"
[api]
listen = "127.0.0.1:{self.api}"
admin = "127.0.0.1:{self.admin}"
control_socket = "{self.socket}"
[pair]
peer = "{peer.name}"
address = "127.0.0.1:{peer.api}"
[sequence]
owner = "{owner}"
[storage]
key_file = "{key}"
escrow_recipient = "{escrow}"
max_file = "5GiB"
min_replicas = 2
{servers}""")

    def command(self, *words, **more):
        return run(self.binary, *words, "--config", self.config, **more)

    def start(self):
        self.launch()
        until(self.name, 30, self.ready)

    def launch(self):
        """Starts it and waits for nothing."""
        self.process = Process(self.name, [self.binary, "serve", "--config", self.config, "--log", "warn"], self.folder)

    def ready(self):
        self.process.must_run()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=2)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False


class Pair:
    """Two vaults before the same two file servers."""

    def __init__(self, folder, binary, kinds):
        self.vaults = [Vault(name, folder, binary) for name in ("vault-a", "vault-b")]
        first, second = self.vaults
        key, escrow = os.path.join(folder, "storage.key"), os.path.join(folder, "escrow.key")
        made = run(binary, "--json", "keys", "init", "--file", key, "--escrow", escrow)
        recipient = json.loads(made)["escrow_recipient"]
        self.rewrite = lambda servers: [
            one.write(other, first.name, key, recipient, servers) for one, other in ((first, second), (second, first))]
        self.rewrite(kinds)
        first.command("pki", "init", "--authority", "bench")
        first.start()
        token = first.command("pki", "token", "--role", "vault", "--owner", "pair", "--name", second.name).split()[0]
        run(binary, "pki", "enrol", "--vault", f"{first.name}=127.0.0.1:{first.api}", "--token", token,
            "--config", second.config)
        second.start()

    def stop(self):
        for vault in self.vaults:
            vault.process.stop()

    def restart(self, servers):
        self.stop()
        self.rewrite(servers)
        for vault in self.vaults:
            vault.start()


def folder_of(path):
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path
