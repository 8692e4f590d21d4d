"""A link server or a client in a process of its own, to be killed and stopped: link_process.py serve | ask TCP FLAG.

`serve` prints where it listens as JSON and answers each line on its input with its counts. `ask` offers memory in one
request of method HELD, prints "sent" and waits for the answer; FLAG is a file whose appearance lets the server go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import threading

from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Address, Call, ServerRequest
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.server import LinkServer

DIGEST, FILL, HELD, MIRROR = 0x7201, 0x7202, 0x7203, 0x7204
OFFERED_BYTES = MiB
POLL_S = 0.02


class Served:
    """The handlers, and what they count."""

    def __init__(self) -> None:
        self.held: list[str] = []  # digests of what was pulled by HELD
        self.server: LinkServer

    async def digest(self, request: ServerRequest) -> None:
        digest = hashlib.sha256()
        for piece in await request.pull():
            digest.update(piece)
        request.reply(digest.digest())

    def fill(self, request: ServerRequest) -> None:
        for view in request.push_views():
            view[:] = bytes(request.body) * len(view)
        request.reply(b"", request.push_lengths)

    async def hold(self, request: ServerRequest) -> None:
        """Move nothing until the flag is there."""
        flag = bytes(request.body).decode()
        while not os.path.exists(flag):
            await asyncio.sleep(POLL_S)
        digest = hashlib.sha256()
        for piece in await request.pull():
            digest.update(piece)
        for view in request.push_views():
            view[:] = b"h" * len(view)
        request.reply(b"", request.push_lengths)
        self.held.append(digest.hexdigest())

    async def mirror(self, request: ServerRequest) -> None:
        """What was offered, in a row, into what is to be filled, in a row."""
        data = b"".join(bytes(piece) for piece in await request.pull())
        position = 0
        for view in request.push_views():
            view[:] = data[position : position + len(view)]
            position += len(view)
        request.reply(b"", request.push_lengths)

    def counts(self) -> dict[str, object]:
        rdma = self.server.rdma
        assert rdma is not None, "no device"
        return {
            "connections": rdma.connections,
            "opened": rdma.stats.connections,
            "failures": rdma.stats.failures,
            "work_requests": rdma.stats.work_requests,
            "pulled_bytes": rdma.stats.pulled_bytes,
            "pushed_bytes": rdma.stats.pushed_bytes,
            "registered_bytes": rdma.registered_bytes,
            "receive_bytes": rdma.receive_bytes,
            "requests": sum(connection._requests for connection in self.server._connections),
            "held": self.held,
        }


async def serve(port: int) -> None:
    served = Served()
    handlers = {DIGEST: served.digest, FILL: served.fill, HELD: served.hold, MIRROR: served.mirror}
    served.server = LinkServer(Identity("test"), handlers, port=port)
    await served.server.start()
    print(json.dumps(served.server.tcp), flush=True)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def read() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(lambda: print(json.dumps(served.counts()), flush=True))
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()
    await served.server.stop(0.1)


def ask(tcp: str, flag: str) -> None:
    link = BlockingPool(Identity("test"))
    memory = link.pool.allocate(2 * OFFERED_BYTES)
    memory.view[:OFFERED_BYTES] = b"o" * OFFERED_BYTES
    call = Call(
        HELD,
        flag.encode(),
        out=[memory.slice(0, OFFERED_BYTES)],
        into=[memory.slice(OFFERED_BYTES, OFFERED_BYTES)],
        deadline_s=60,
    )
    threading.Timer(0.2, lambda: print("sent", flush=True)).start()
    link.call(Address(tcp), call)
    print(bytes(memory.view[OFFERED_BYTES:]) == b"h" * OFFERED_BYTES, flush=True)
    link.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    else:
        ask(*sys.argv[2:])
