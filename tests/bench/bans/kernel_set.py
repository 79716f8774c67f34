"""Looks into a set of the kernel's firewall without `nft`, which would read all of it first. Knows
the netlink words of nftables (linux/netfilter/nf_tables.h); must not know who filled the set.

Run inside the network namespace:
  kernel_set.py count TABLE SET           prints how many elements it holds
  kernel_set.py wait TABLE SET SECONDS    reads IPv4 addresses from standard input until it ends,
      prints `ready`, then `first NANOSECONDS` and `all NANOSECONDS` of the monotonic clock, when
      the first of them and when all of them were there
  kernel_set.py empty TABLE SET           removes every element"""

import socket
import struct
import subprocess
import sys
import time

NETLINK_NETFILTER = 12
INET = 1
SUBSYSTEM = 10 << 8
NEW, GET = SUBSYSTEM | 12, SUBSYSTEM | 13
REQUEST, DUMP = 1, 0x300
ERROR, DONE = 2, 3
NESTED = 0x8000
ENOENT = 2
PAUSE = 0.001


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def head(table, name):
    return struct.pack(">BBH", INET, 0, 0) + attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")


def message(kind, flags, body):
    return struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, 1, 0) + body


def connect():
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    connection.bind((0, 0))
    return connection


def replies(data):
    """`(kind, body)` of each netlink message."""
    place = 0
    while place + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, place)
        yield kind, data[place + 16:place + length]
        place += (length + 3) & ~3


def fail(number):
    sys.exit(f"kernel_set.py: the kernel answers error {number}")


def holds(connection, table, name, address):
    key = attribute(NESTED | 1, attribute(1, socket.inet_aton(address)))
    elements = attribute(NESTED | 3, attribute(NESTED | 1, key))
    connection.send(message(GET, 0, head(table, name) + elements))
    for kind, body in replies(connection.recv(65536)):
        if kind == NEW:
            return True
        if kind == ERROR:
            number = -struct.unpack_from("=i", body)[0]
            if number != ENOENT:
                fail(number)
    return False


def count(table, name):
    connection = connect()
    connection.send(message(GET, DUMP, head(table, name)))
    total = 0
    while True:
        for kind, body in replies(connection.recv(1 << 20)):
            if kind == DONE:
                return total
            if kind == ERROR:
                fail(-struct.unpack_from("=i", body)[0])
            place = 4
            while place + 4 <= len(body):
                length, attr = struct.unpack_from("=HH", body, place)
                if attr & 0x3FFF == 3:
                    total += elements_in(body, place + 4, place + length)
                place += max(4, (length + 3) & ~3)


def elements_in(body, place, end):
    found = 0
    while place + 4 <= end:
        found += 1
        place += (struct.unpack_from("=H", body, place)[0] + 3) & ~3
    return found


def wait(table, name, seconds):
    addresses = sys.stdin.read().split()
    connection = connect()
    print("ready", flush=True)
    deadline = time.monotonic() + seconds
    missing, first = addresses, None
    while time.monotonic() < deadline:
        # Most are asked for only once they are there: cheap while nothing has happened.
        while missing and holds(connection, table, name, missing[-1]):
            missing.pop()
            if first is None:
                first = time.monotonic_ns()
                print("first", first, flush=True)
        if not missing:
            print("all", time.monotonic_ns(), flush=True)
            return
        time.sleep(PAUSE)
    sys.exit(f"kernel_set.py: {len(missing)} of {len(addresses)} were not there within {seconds} s, so {missing[-1]}")


def main():
    verb, table, name = sys.argv[1:4]
    if verb == "count":
        print(count(table, name))
    elif verb == "wait":
        wait(table, name, float(sys.argv[4]))
    elif verb == "empty":
        subprocess.run(["nft", "flush", "set", "inet", table, name], check=True)
    else:
        sys.exit(__doc__)


main()
