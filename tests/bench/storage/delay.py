"""A wire with a delay: forwards TCP connections and holds every byte back for half a round trip in
each direction. Loopback has no delay, and not every kernel has netem. Ends by TERM.

  delay.py LISTEN-PORT TARGET-PORT SECONDS        forwards, SECONDS for each direction
  delay.py --measure LISTEN-PORT SECONDS          what the wire itself can do: MiB/s and round trip"""

import asyncio
import collections
import sys
import time

PIECE = 256 * 1024
# What may be on the wire at once, for each direction: far more than speed times delay.
ON_THE_WIRE = 32 << 20


async def carry(reader, writer, delay):
    """Copies until the end; a byte leaves `delay` seconds after it has come."""
    wire = collections.deque()
    came, left = asyncio.Event(), asyncio.Event()
    held = 0

    async def deliver():
        nonlocal held
        while True:
            while not wire:
                came.clear()
                await came.wait()
            due, piece = wire.popleft()
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            if not piece:
                break
            writer.write(piece)
            held -= len(piece)
            left.set()
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    delivering = asyncio.create_task(deliver())
    try:
        while True:
            piece = await reader.read(PIECE)
            wire.append((time.monotonic() + delay, piece))
            held += len(piece)
            came.set()
            if not piece:
                break
            while held > ON_THE_WIRE:
                left.clear()
                await left.wait()
        await delivering
    except (ConnectionError, asyncio.IncompleteReadError):
        delivering.cancel()


async def forward(listen, target, delay):
    async def serve(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target, limit=1 << 20)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(carry(reader, far_writer, delay), carry(far_reader, writer, delay))
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", listen, limit=1 << 20)
    async with server:
        await server.serve_forever()


async def measure(listen, delay):
    """Sends through a wire of its own to a sink that answers the last byte."""
    total = 512 << 20

    async def sink(reader, writer):
        got = 0
        while True:
            piece = await reader.read(1 << 20)
            if not piece:
                break
            if got == 0 or got + len(piece) == total + 1:
                writer.write(b".")
            got += len(piece)
        writer.close()

    target = await asyncio.start_server(sink, "127.0.0.1", 0, limit=1 << 20)
    port = target.sockets[0].getsockname()[1]
    wire = asyncio.create_task(forward(listen, port, delay))
    await asyncio.sleep(0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", listen, limit=1 << 20)
    began = time.monotonic()
    writer.write(b"x")
    await reader.readexactly(1)
    trip = time.monotonic() - began
    piece = bytes(1 << 20)
    began = time.monotonic()
    for _ in range(total >> 20):
        writer.write(piece)
        await writer.drain()
    await reader.readexactly(1)
    print(f"{(total >> 20) / (time.monotonic() - began):.0f} {trip * 1000:.1f}")
    writer.close()
    # Both ends close before the loop goes.
    await asyncio.sleep(0.2)
    wire.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        asyncio.run(measure(int(sys.argv[2]), float(sys.argv[3])))
    else:
        asyncio.run(forward(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
