"""Clients of one namespace, told by lines on standard input what to do; one line of answer each."""
import concurrent.futures
import socket
import sys

held = {}


def connect(source, target, port, wait):
    s = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
    s.settimeout(wait)
    try:
        s.bind((source, 0))
        s.connect((target, port))
        s.sendall(b"x")
        if s.recv(1) == b"o":
            return s, "ok"
        return None, "closed"
    except socket.timeout:
        return None, "silent"
    except ConnectionRefusedError:
        return None, "refused"
    except ConnectionResetError:
        return None, "reset"
    except OSError as error:
        return None, type(error).__name__ + str(error.errno)


def opened(source, target, port, count, wait):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: connect(source, target, port, wait), range(count)))
    held.setdefault(source, []).extend(s for s, _ in results if s)
    words = [word for _, word in results]
    return " ".join(f"{word}={words.count(word)}" for word in sorted(set(words)))


def asked(source):
    try:
        held[source][0].sendall(b"x")
        return "ok" if held[source][0].recv(1) == b"o" else "closed"
    except socket.timeout:
        return "silent"
    except OSError:
        return "reset"


for line in sys.stdin:
    verb, *rest = line.split()
    if verb == "open":
        answer = opened(rest[0], rest[1], int(rest[2]), int(rest[3]), float(rest[4]))
    elif verb == "close":
        for _ in range(min(int(rest[1]), len(held[rest[0]]))):
            held[rest[0]].pop().close()
        answer = "closed"
    else:
        answer = asked(rest[0])
    print(answer, flush=True)
