# What the installed fail2ban itself reads, as JSON: every filter of a folder, every jail, and times.
# Run by fail2ban_import.rs with fail2ban's own Python: FOLDER, then texts of times on standard input.
import glob, json, logging, os, sys

from fail2ban.client.filterreader import FilterReader
from fail2ban.client.jailreader import JailReader
from fail2ban.client.jailsreader import JailsReader
from fail2ban.server.mytime import MyTime

logging.disable(logging.CRITICAL)
folder = sys.argv[1]
NAMES = {"addfailregex": "failregex", "addignoreregex": "ignoreregex"}
# A host that has these jails has their files; this one need not.
JailReader._glob = staticmethod(lambda path: [path])


def said(stream):
    """The commands of one filter or jail -> option: value."""
    out = {"failregex": [], "ignoreregex": [], "logpath": [], "ignoreip": []}
    for command in stream:
        if command[0] == "multi-set" and command[2] in NAMES:
            out[NAMES[command[2]]] += command[3]
        elif command[0] == "set" and len(command) > 3:
            option = command[2]
            if option in NAMES:
                out[NAMES[option]].append(command[3])
            elif option == "addlogpath":
                out["logpath"].append(command[3])
            elif option == "addignoreip":
                out["ignoreip"] += command[3:]
            elif not option.startswith(("add", "action")):
                out[option] = command[3]
    return out


def filter_said(name, options):
    reader = FilterReader(name, "x", dict(options), basedir=folder)
    if not reader.read():
        return None
    reader.applyAutoOptions("auto")
    reader.getOptions(None)
    return said(reader.convert())


def attempt(what, *arguments):
    try:
        return what(*arguments)
    except Exception as error:
        return {"error": "%s: %s" % (type(error).__name__, error)}


filters = []
for file in sorted(glob.glob(folder + "/filter.d/*.conf")):
    name = os.path.splitext(os.path.basename(file))[0]
    text = open(file, encoding="utf-8").read()
    modes = [None] + [m for m in ("normal", "ddos", "extra", "aggressive", "more", "rbl", "errors", "auth") if "mdre-" + m in text]
    for mode in modes:
        for logtype in (None, "journal", "short", "rfc5424"):
            options = {k: v for k, v in (("mode", mode), ("logtype", logtype)) if v}
            filters.append({"name": name, "options": options, "said": attempt(filter_said, name, options)})

jails = {}
reader = JailsReader(force_enable=True, basedir=folder, share_config={})
reader.read()
# One jail that cannot be read ends them all, there.
attempt(reader.getOptions)
for jail in reader.jails:
    one = attempt(jail.convert, True)
    jails[jail.getName()] = said(one) if isinstance(one, list) else one

times = {text: attempt(MyTime.str2seconds, text) for text in sys.stdin.read().split("\n") if text}
json.dump({"filters": filters, "jails": jails, "times": times}, sys.stdout)
