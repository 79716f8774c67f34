"""fail2ban-server as the peer: its own configuration, socket and database in a folder of the
benchmark, its own filters as the package brings them, an action that does nothing. Knows how
fail2ban is configured and how it tells a ban; must not touch the machine's own fail2ban."""

import json
import os
import re
import shutil
import subprocess

from process import Failed, Process, until

INSTALLED = "/etc/fail2ban"
# Debian's interpreter owns the package; another one in PATH may not see it.
PYTHON = "/usr/bin/python3"

READ_FILTER = """
import json, sys
from fail2ban.client.filterreader import FilterReader
found = []
for name in sys.argv[2:]:
    reader = FilterReader(name, "bench", {}, share_config={}, basedir=sys.argv[1])
    if not reader.read():
        sys.exit(f"{name}: fail2ban has no such filter")
    reader.getOptions({})
    options = reader.getCombined()
    lines = lambda key: [l for l in (options.get(key) or "").split("\\n") if l]
    found.append({"name": name, "failregex": lines("failregex"), "ignoreregex": lines("ignoreregex"),
                  "prefregex": options.get("prefregex") or "", "maxlines": int(options.get("maxlines") or 1)})
print(json.dumps(found))
"""


def filters(names):
    """The filters `names` as fail2ban itself reads them: names, patterns after interpolation."""
    done = subprocess.run([PYTHON, "-c", READ_FILTER, INSTALLED, *names], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise Failed(f"fail2ban's filters cannot be read: {done.stderr.strip()}")
    return json.loads(done.stdout)


class Peer:
    """A fail2ban-server that follows `log` with one jail a filter."""

    def __init__(self, folder, log, names, max_offences):
        self.folder = os.path.join(folder, "fail2ban")
        config = os.path.join(self.folder, "config")
        os.makedirs(os.path.join(config, "action.d"))
        shutil.copytree(os.path.join(INSTALLED, "filter.d"), os.path.join(config, "filter.d"))
        shutil.copy(os.path.join(INSTALLED, "fail2ban.conf"), config)
        write(config, "fail2ban.local", f"[Definition]\ndbfile = {os.path.join(self.folder, 'database')}\n")
        write(config, "action.d/nothing.conf", "[Definition]\nactionstart =\nactionstop =\nactioncheck =\n"
              "actionban =\nactionunban =\n")
        write(config, "jail.conf", "[DEFAULT]\nbackend = auto\nusedns = no\nignoreself = false\nignoreip =\n"
              f"maxretry = {max_offences}\nfindtime = 1d\nbantime = 1d\naction = nothing\n" + "".join(
                  f"\n[{name}]\nenabled = true\nfilter = {name}\nlogpath = {log}\n" for name in names))
        self.told = os.path.join(self.folder, "told.log")
        self.process = Process("fail2ban-server", [
            "fail2ban-server", "-f", "-x", "-c", config, "-s", os.path.join(self.folder, "socket"),
            "-p", os.path.join(self.folder, "pid"), "--loglevel", "NOTICE", "--logtarget", self.told,
            "start",
        ], folder)
        self.names = names
        until("fail2ban-server is ready", 30, self.ready)

    def ready(self):
        self.process.must_run()
        done = subprocess.run(["fail2ban-client", "-s", os.path.join(self.folder, "socket"), "status"],
                              capture_output=True, text=True, check=False)
        return done.returncode == 0 and all(name in done.stdout for name in self.names)

    def has_banned(self, address):
        """Has any jail told a ban of `address`?"""
        return address in self.banned()

    def banned(self):
        """The addresses it has banned so far."""
        self.process.must_run()
        with open(self.told, encoding="utf-8", errors="replace") as file:
            return set(re.findall(r"\] Ban (\S+)", file.read()))

    def cpu(self):
        return self.process.cpu()

    def stop(self):
        self.process.stop()


def write(folder, name, text):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)
