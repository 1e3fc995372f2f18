"""Both ends of WebSocket connections: `websocket.py serve` prints its port and echoes; `websocket.py client URL` goes
through what an application may do, byte by byte, and prints "passed N"."""

import asyncio
import os
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

LARGEST = 16 * 1024 * 1024
LIMIT = 2 * LARGEST


async def serve_one(socket):
    try:
        await echo(socket)
    except websockets.ConnectionClosed:
        pass


async def echo(socket):
    """Echoes; what begins with "close" is carried out, and /pieces sends fragments."""
    async for message in socket:
        if isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            await socket.close(int(code), reason)
            return
        if socket.request.path == "/pieces" and message:
            step = len(message) // 7 + 1
            await socket.send(message[at : at + step] for at in range(0, len(message), step))
        else:
            await socket.send(message)


async def server():
    async with serve(serve_one, "127.0.0.1", 0, max_size=LIMIT, ping_interval=0.2) as running:
        print(running.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def messages():
    for size in (0, 1, 125, 126, 127, 65535, 65536, 65537, 1024 * 1024, LARGEST):
        yield os.urandom(size)
    yield ""
    yield "äöü€𝄞" * 1000
    yield "x" * LARGEST


async def client(url):
    passed = 0
    for compression in (None, "deflate"):
        for path in ("/", "/pieces"):
            async with connect(url + path, max_size=LIMIT, compression=compression, ping_interval=0.2) as socket:
                for message in messages():
                    await socket.send(message)
                    answer = await socket.recv()
                    assert type(answer) is type(message) and answer == message, (path, compression, len(message))
                    passed += 1
                # In fragments, with a ping between two of them.
                await socket.send(bytes([byte]) * 1000 for byte in range(50))
                assert await socket.recv() == b"".join(bytes([byte]) * 1000 for byte in range(50))
                await (await socket.ping(b"how are you?"))
                passed += 2
    # Many at once, each way, without waiting for an answer.
    async with connect(url + "/", max_size=LIMIT) as socket:
        sent = [os.urandom(1 + at * 37 % 5000) for at in range(1000)]

        async def send():
            for message in sent:
                await socket.send(message)

        sending = asyncio.create_task(send())
        for message in sent:
            assert await socket.recv() == message
        await sending
        passed += 1
    # Who closes, and with what, is told to the other side as it is.
    for code, reason in ((1000, ""), (1000, "bye"), (1001, "away"), (1011, "ä" * 60), (3000, "x"), (4999, "r" * 123)):
        async with connect(url + "/") as socket:
            await socket.send(f"close {code} {reason}")
            try:
                await socket.recv()
                raise AssertionError("it goes on")
            except websockets.ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, reason), closed
        async with connect(url + "/") as socket:
            await socket.close(code, reason)
            assert (socket.close_code, socket.close_reason) == (code, reason)
        passed += 2
    print("passed", passed)


if sys.argv[1] == "serve":
    asyncio.run(server())
else:
    asyncio.run(client(sys.argv[2]))
