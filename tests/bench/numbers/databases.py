"""The other databases that may keep a copy of the ledger, for the benchmark: MariaDB, and an etcd of
three members, durable as they come, each on loopback with a folder of its own. Starts and ends them."""

import http.client
import os

from parts import free_port, run
from process import Failed, Process, until


class Mariadb:
    """One server with an empty database."""

    kind, database, user = "mariadb", "vault", "vault"

    def __init__(self, folder):
        self.folder, self.port = os.path.join(folder, "mariadb"), free_port()
        data, self.socket = os.path.join(self.folder, "data"), os.path.join(self.folder, "socket")
        os.makedirs(data)
        run("mariadb-install-db", "--no-defaults", "--user=root", "--auth-root-authentication-method=normal",
            "--skip-test-db", f"--datadir={data}")
        self.process = Process("mariadb", [
            "/usr/sbin/mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={self.socket}",
            f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"], self.folder)
        until("mariadb", 30, self.ready)
        self.sql("CREATE DATABASE vault CHARACTER SET utf8mb4; CREATE USER vault@'127.0.0.1'; "
                 "GRANT ALL ON vault.* TO vault@'127.0.0.1'")

    def ready(self):
        self.process.must_run()
        try:
            return self.sql("SELECT 1")
        except Failed:
            return ""

    def sql(self, text):
        return run("mariadb", "-N", "-B", "-u", "root", "--socket", self.socket, "-e", text)

    def hosts(self):
        return [f"127.0.0.1:{self.port}"]

    def stop(self):
        self.process.stop()


class Etcd:
    """Three members that agree before they answer."""

    kind, database, user = "etcd", "vault", "vault"

    def __init__(self, folder):
        members = {f"etcd-{place}": (free_port(), free_port()) for place in range(3)}
        cluster = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer) in members.items())
        self.ports, self.processes = [client for client, _ in members.values()], []
        for name, (client, peer) in members.items():
            client, peer = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            self.processes.append(Process(name, [
                "etcd", f"--name={name}", f"--data-dir={os.path.join(folder, name)}",
                f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster={cluster}", "--log-level=warn"], folder))
        for port in self.ports:
            until("etcd", 30, lambda port=port: self.ready(port))

    def ready(self, port):
        for process in self.processes:
            process.must_run()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def hosts(self):
        return [f"127.0.0.1:{port}" for port in self.ports]

    def stop(self):
        for process in self.processes:
            process.stop()
