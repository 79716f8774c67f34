"""The programs of the benchmark of edge: the three proxies, and the application behind them. Each is
made from its template beside this file, on the processors it is given. Knows how they are configured
and asked; must not know what is measured."""

import http.client
import os
import resource
import socket
import subprocess
import threading

from process import Failed, Process, cpu_of, resident_of, until

HERE = os.path.dirname(os.path.abspath(__file__))
# So many networks are banned in each of the proxies; none of them is the load's.
BANNED = [f"198.18.{number // 250}.{1 + number % 250}" for number in range(1000)]
KIB, MIB = 1 << 10, 1 << 20
CHUNK = 1 << 18


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(words[:4])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def free_ports(number):
    """So many different ports of 127.0.0.1 that nobody has."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return path


def on(processors, *command):
    """The command line that runs `command` on these processors alone, with the same process id."""
    return ["taskset", "--cpu-list", ",".join(map(str, processors)), *map(str, command)]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Place:
    """What all of them share: a folder, the certificate, ports, processors."""

    def __init__(self, folder, proxy_on, load_on):
        self.folder, self.proxy_on, self.load_on = folder, proxy_on, load_on
        self.certificate, self.key = (os.path.join(folder, name) for name in ("site.pem", "site.key"))
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=bench.example.test", "-addext", "subjectAltName=DNS:bench.example.test",
            "-keyout", self.key, "-out", self.certificate)
        with open(self.certificate, encoding="ascii") as one, open(self.key, encoding="ascii") as two:
            pem = write(folder, "site-both.pem", one.read() + two.read())
        files = os.path.join(folder, "files")
        os.makedirs(files)
        for name, size in (("64k", 64 * KIB), ("1g", 1 << 30)):
            with open(os.path.join(files, name), "wb") as file:
                file.truncate(size)
        self.words = {
            "FOLDER": folder, "CERTIFICATE": self.certificate, "KEY": self.key, "PEM": pem, "FILES": files,
            "BANS": write(folder, "bans.nginx", "".join(f"{one} 1;\n" for one in BANNED)),
            "NETWORKS": write(folder, "bans.haproxy", "".join(f"{one}\n" for one in BANNED)),
            "KIBIBYTE": "x" * KIB, "DESCRIPTORS": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }
        self.words["APP"], self.words["SINK"], self.ports = *free_ports(2), {}

    def filled(self, template, name, **words):
        """A configuration: the template with its @WORDS@ replaced."""
        with open(os.path.join(HERE, template), encoding="utf-8") as file:
            text = file.read()
        for word, value in {**self.words, **words}.items():
            text = text.replace(f"@{word}@", str(value))
        return write(self.folder, name, text)


class Application:
    """nginx behind the proxies; it counts the connections and requests that it is given."""

    def __init__(self, place):
        config = place.filled("upstream.conf", "upstream.conf")
        self.port, self.asked = place.words["APP"], 0
        self.process = Process("upstream", on(place.load_on, "nginx", "-p", place.folder, "-c", config), place.folder)
        until("the application listens", 15, lambda: self.process.must_run() or answers(self.port))
        self.caller = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def counts(self):
        """Connections accepted and requests begun so far, those that ask here not counted."""
        self.caller.request("GET", "/status")
        words = self.caller.getresponse().read().split()
        self.asked += 1
        return int(words[7]), int(words[9]) - self.asked

    def stop(self):
        self.process.stop()


class Sink(threading.Thread):
    """The application that takes uploads: reads each to its end, keeps nothing, answers 200."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.taken = 0
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(60)
                try:
                    self.take(client)
                except OSError:
                    pass  # Whoever sent has gone; the caller of curl says so.

    def take(self, client):
        read = b""
        while b"\r\n\r\n" not in read:
            came = client.recv(CHUNK)
            if not came:
                return
            read += came
        head, rest = read.split(b"\r\n\r\n", 1)
        lines = head.lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        left, buffer = length - len(rest), bytearray(CHUNK)
        while left > 0:
            came = client.recv_into(buffer)
            if not came:
                return
            left -= came
        self.taken += length
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def stop(self):
        # Wakes `accept`, which a mere close does not.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Proxy:
    """One of the three. `tls` and `plain` are its ports; `plain` is None where it does not serve in clear."""

    def __init__(self, place, name):
        self.place, self.name = place, name
        self.tls, self.plain = free_ports(2)
        self.log = os.path.join(place.folder, f"{name}-access.log")

    def launch(self, *command):
        self.process = Process(self.name, on(self.place.proxy_on, *command), self.place.folder)
        until(f"{self.name} listens", 30, lambda: self.process.must_run() or answers(self.tls))

    def pids(self):
        """The process and those that it has started."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return [self.process.pid, *map(int, file.read().split())]

    def cpu(self):
        self.process.must_run()
        return sum(map(cpu_of, self.pids()))

    def resident(self):
        return sum(map(resident_of, self.pids()))

    def forget_peak(self):
        for pid in self.pids():
            with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
                file.write("5")

    def peak(self):
        """Bytes of memory that it has held at most since `forget_peak`."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        return total * KIB

    def logged(self):
        """Lines of its access log; the log is emptied."""
        with open(self.log, "rb+") as file:
            lines = sum(piece.count(b"\n") for piece in iter(lambda: file.read(MIB), b""))
            file.truncate(0)
        return lines

    def stop(self):
        self.process.stop()


class Nginx(Proxy):
    def __init__(self, place):
        super().__init__(place, "nginx")
        config = place.filled("nginx.conf", "nginx.conf", TLS=self.tls, PLAIN=self.plain, LOG=self.log)
        self.launch("nginx", "-p", place.folder, "-c", config)


class HaProxy(Proxy):
    def __init__(self, place):
        super().__init__(place, "haproxy")
        config = place.filled("haproxy.cfg", "haproxy.cfg", TLS=self.tls, PLAIN=self.plain)
        self.launch("haproxy", "-db", "-f", config)
        # It writes each line to its standard output, which is this file.
        self.log = self.process.log


class Edge(Proxy):
    # What today's edge may not have: a listener that serves without TLS.
    CLEAR = '\n[[listener]]\naddress = "127.0.0.1:{}"\nmode = "clear"\n'

    def __init__(self, place, binary):
        super().__init__(place, "edge")
        self.binary, self.admin = binary, free_ports(1)[0]
        words = {"TLS": self.tls, "LOG": self.log, "ADMIN": self.admin}
        self.config = place.filled("edge.toml", "edge.toml", **words)
        run(binary, "check", "--config", self.config)
        with open(self.config, encoding="utf-8") as file:
            both = write(place.folder, "edge-clear.toml", file.read() + self.CLEAR.format(self.plain))
        done = subprocess.run([binary, "check", "--config", both], capture_output=True, text=True, check=False)
        # In words for the operator where it has none.
        self.why_not = (done.stderr or done.stdout).strip()
        if done.returncode:
            self.plain = None
        else:
            self.config = both
        self.launch(binary, "serve", "--config", self.config)
        control = os.path.join(place.folder, "control.sock")
        until("edge's control socket", 15, lambda: os.path.exists(control))
        run(binary, "--config", self.config, "bans", "add", "--for", "7d", *BANNED)

    def threads(self):
        """CPU seconds and voluntary context switches by the name of each of its threads."""
        found = {}
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            folder = f"/proc/{self.process.pid}/task/{task}"
            try:
                with open(f"{folder}/comm", encoding="utf-8") as file:
                    name = file.read().strip()
                with open(f"{folder}/schedstat", encoding="ascii") as file:
                    seconds = int(file.read().split()[0]) / 1e9
                with open(f"{folder}/status", encoding="utf-8") as file:
                    switches = next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt"))
            except FileNotFoundError:
                continue
            before = found.get(name, (0, 0))
            found[name] = before[0] + seconds, before[1] + switches
        return found
