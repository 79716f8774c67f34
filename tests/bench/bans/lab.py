"""Two network namespaces, joined by a cable: `guarded` with edge and its firewall, and `attacker`,
which owns every address of a large network. Made here, removed here, named by this process;
the machine's own network and firewall are never touched."""

import os
import subprocess

from process import Failed

GUARDED = "10.77.0.1"
CABLE = "10.77.0.2"
ADMIN = "10.77.0.3"
# Any address of it can be bound in the attacker's namespace: four million of them.
CROWD = "10.64.0.0/10"


class Lab:
    """Exists between `with Lab() as lab:` and the end of that block."""

    def __init__(self):
        if os.geteuid() != 0:
            raise Failed("network namespaces need root; run the benchmark as root")
        own = f"evb-{os.getpid()}"
        self.guarded, self.attacker = f"{own}-guarded", f"{own}-attacker"

    def __enter__(self):
        remove_leftovers()
        g, a = self.guarded, self.attacker
        try:
            for name in (g, a):
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", g, "link", "add", "wire0", "type", "veth", "peer", "name", "wire0", "netns", a)
            for name, address in ((g, GUARDED), (a, CABLE)):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "wire0")
                ip("-n", name, "link", "set", "wire0", "up")
            ip("-n", g, "route", "add", CROWD, "via", CABLE)
            ip("-n", a, "route", "add", "local", CROWD, "dev", "lo")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in (self.guarded, self.attacker):
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)

    def inside(self, name, *command):
        """The command line that runs `command` in the namespace `name`, with the same process id."""
        return ["ip", "netns", "exec", name, *map(str, command)]


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"ip {' '.join(words)}: {done.stderr.strip()}")


def remove_leftovers():
    """Namespaces of runs that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        parts = line.split()[0].split("-") if line else []
        if len(parts) == 3 and parts[0] == "evb" and not os.path.exists(f"/proc/{parts[1]}"):
            subprocess.run(["ip", "netns", "delete", "-".join(parts)], check=False)
