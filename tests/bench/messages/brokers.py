"""The brokers of the benchmark: Debian's ActiveMQ with its own store and its own network connector,
and a vault with its sections. Starts and ends them; measures nothing."""

import os
import socket

from java import machine
from parts import Pair, free_port
from process import Failed, Process, until

PROGRAM = "/usr/share/activemq/bin/activemq.jar"
LOG = """log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %-5p %c{1} %m%n
"""
# A WireFormatInfo of version 12 without properties: with that every OpenWire conversation opens.
GREETING = b"\0\0\0\x0e\x01ActiveMQ\0\0\0\x0c\0"


def speaks(port):
    """Does a broker greet there?"""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as stream:
            stream.settimeout(2)
            stream.sendall(GREETING)
            return GREETING[5:13] in stream.recv(64)
    except OSError:
        return False


class Broker:
    """Whichever it is: a port and a process."""

    process = None

    def uri(self):
        return f"tcp://127.0.0.1:{self.port}"

    def peak(self):
        """Bytes of memory that it held at most."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


class ActiveMq(Broker):
    """One with a folder of its own, durable as it comes; `connector` goes into its file."""

    def __init__(self, name, folder, connector=""):
        own = os.path.join(folder, name)
        for part in ("conf", "tmp"):
            os.makedirs(os.path.join(own, part))
        self.name, self.port = name, free_port()
        with open(os.path.join(own, "conf", "log4j.properties"), "w", encoding="ascii") as file:
            file.write(LOG)
        with open(os.path.join(own, "conf", "activemq.xml"), "w", encoding="ascii") as file:
            file.write(f"""<beans xmlns="http://www.springframework.org/schema/beans"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans-2.0.xsd http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
<broker xmlns="http://activemq.apache.org/schema/core" brokerName="{name}" dataDirectory="{own}/data" useJmx="false">
{connector}
<persistenceAdapter><kahaDB directory="{own}/data/kahadb" journalMaxFileLength="32mb"/></persistenceAdapter>
<systemUsage><systemUsage><memoryUsage><memoryUsage limit="64 mb"/></memoryUsage><storeUsage><storeUsage limit="4 gb"/></storeUsage><tempUsage><tempUsage limit="1 gb"/></tempUsage></systemUsage></systemUsage>
<transportConnectors><transportConnector name="openwire" uri="{self.uri()}"/></transportConnectors>
</broker></beans>
""")
        self.process = Process(name, [
            *machine(f"{own}/tmp"), "-Dactivemq.home=/usr/share/activemq", f"-Dactivemq.base={own}",
            f"-Dactivemq.conf={own}/conf", f"-Dactivemq.data={own}/data", f"-Dactivemq.classpath={own}/conf",
            "-jar", PROGRAM, "start", f"xbean:file:{own}/conf/activemq.xml"], folder)

    def ready(self):
        until(self.name, 90, self.answers)
        return self

    def answers(self):
        self.process.must_run()
        return speaks(self.port)

    def stop(self):
        self.process.stop()


def network_connector(target, pattern):
    """ActiveMQ's own bridge as it comes: one way, for what somebody wants at the other side."""
    return (f'<networkConnectors><networkConnector name="theirs" uri="static:({target.uri()})" duplex="false">'
            f'<dynamicallyIncludedDestinations><queue physicalName="{pattern}"/></dynamicallyIncludedDestinations>'
            "</networkConnector></networkConnectors>")


class Vault(Broker):
    """The first vault of a pair that serves as it does for its users; `sections` go into its file."""

    def __init__(self, folder, binary):
        self.folder = os.path.join(folder, "pair")
        servers = ""
        for server in ("paris", "lyon"):
            place = os.path.join(self.folder, server)
            os.makedirs(place)
            servers += f'[[file_server]]\nname = "{server}"\npath = "{place}"\n'
        self.pair = Pair(self.folder, binary, servers)
        self.own, self.port = self.pair.vaults[0], free_port()

    @property
    def process(self):
        return self.own.process

    def with_sections(self, sections):
        """Runs again, with these too."""
        self.own.process.stop()
        with open(self.own.config, "a", encoding="ascii") as file:
            file.write(sections)
        self.own.start()

    def with_broker(self):
        self.with_sections(f'[broker]\nlisten = "127.0.0.1:{self.port}"\nanonymous = true\nin_clear = true\n')
        until("the embedded broker", 30, lambda: speaks(self.port))
        return self

    def with_bridge(self, source, target, pattern):
        """Its bridge between two brokers; the vault itself is ended."""
        self.with_sections(f"""[[remote_broker]]
name = "source"
uri = "{source.uri()}"
[[remote_broker]]
name = "target"
uri = "{target.uri()}"
[[bridge]]
name = "ours"
from = "source"
to = "target"
destination = "{pattern}"
""")
        self.own.process.stop()
        return self

    def stop(self):
        self.pair.stop()


def installed():
    if not os.path.isfile(PROGRAM):
        raise Failed(f"no {PROGRAM}; run: apt-get install activemq")
