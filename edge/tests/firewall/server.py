"""A server that answers every byte with another, on the ports that edge and sshd would have."""
import socket
import threading


def serve(connection):
    try:
        while connection.recv(1):
            connection.sendall(b"o")
    except OSError:
        pass
    connection.close()


def listen(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


threads = []
for port in (8080, 8443, 22):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(1024)
    threads.append(threading.Thread(target=listen, args=(listener,)))
for thread in threads:
    thread.start()
print("ready", flush=True)
