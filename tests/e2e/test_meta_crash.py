"""The metadata service in a process of its own, killed while clients make files: what was answered is there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.blocking import BlockingPool
from fireflyfs.common.net.control import ControlClient
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import common_pb2, meta_pb2

pytestmark = pytest.mark.e2e

SERVER = """
import asyncio, sys
from pathlib import Path
from fireflyfs.client.routing import Chain, Routing
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.common.net.control import ControlServer
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.server import LinkServer
from fireflyfs.meta.core.layout import LayoutRule
from fireflyfs.meta.service.assembly import assemble
from fireflyfs.proto import meta_pb2, mgmtd_pb2

class Fixed:
    routing = Routing(version=1, chains={1: Chain(1, 1, ((1, mgmtd_pb2.PUBLIC_SERVING),))},
                      chain_tables={1: mgmtd_pb2.ChainTableInfo(table_id=1, version=1, chains=[1])})
    def current(self):
        return self.routing

async def main():
    kv = RocksKv(Path(sys.argv[1]))
    parts = assemble(kv, SystemClock(), None, Fixed(), root=(0, 0, 0o755), layout=LayoutRule(65536, 1, 1))
    meta = meta_pb2.DESCRIPTOR.services_by_name["Meta"]
    link = LinkServer(Identity("crash"), link_handlers(meta, "META", parts.handlers))
    control = ControlServer([(meta, parts.handlers)])
    await link.start()
    await control.start()
    print(link.tcp, control.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """(process, data link, gRPC) of a metadata service on `folder`."""
    with subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            tcp, grpc = child.stdout.readline().split()
            yield child, tcp, grpc
        finally:
            child.kill()


def send(pool: BlockingPool, tcp: str, method: Method, request: meta_pb2.OpenRequest | meta_pb2.StatRequest) -> bytes:
    return bytes(pool.call(Address(tcp=tcp), Call(method, request.SerializeToString(), deadline_s=20)).body)


def create(number: int, *, retry: bool = False) -> meta_pb2.OpenRequest:
    return meta_pb2.OpenRequest(
        caller=common_pb2.Caller(client_id=b"c" * 16),
        mutation=meta_pb2.Mutation(request_id=b"%016d" % number, retry=retry),
        at=meta_pb2.PathAt(dir=1, path=b"f%06d" % number),
        flags=os.O_CREAT | os.O_EXCL | os.O_WRONLY,
        mode=0o644,
    )


def test_answered_creates_survive_kill_9_and_unanswered_ones_are_repeated_once(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    answered: dict[int, int] = {}
    number = 0
    for life in range(3):
        with served(folder) as (child, tcp, _):
            pool = BlockingPool(Identity("crash"))
            if life:  # the one that was cut off: exclusive, so doing it twice would show as EXISTS
                reply = meta_pb2.OpenReply.FromString(send(pool, tcp, Method.META_OPEN, create(number, retry=True)))
                assert reply.created
                answered[number] = reply.inode.id
                number += 1
            killer = threading.Timer(0.5, os.kill, (child.pid, signal.SIGKILL))
            killer.start()
            lost: Code | None = None
            while lost is None:
                try:
                    reply = meta_pb2.OpenReply.FromString(send(pool, tcp, Method.META_OPEN, create(number)))
                except FfsError as exc:
                    lost = exc.code
                else:
                    answered[number] = reply.inode.id
                    number += 1
            assert lost in (Code.UNAVAILABLE, Code.TIMEOUT)
            killer.join()
            pool.close()
    assert len(set(answered.values())) == len(answered)
    with served(folder) as (_, tcp, grpc):
        pool = BlockingPool(Identity("crash"))
        control = ControlClient(meta_pb2.DESCRIPTOR.services_by_name["Meta"], grpc)
        for made, inode_id in answered.items():
            request = meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=1, path=b"f%06d" % made))
            body = send(pool, tcp, Method.META_STAT, request)
            assert meta_pb2.InodeReply.FromString(body).inode.id == inode_id
            if made % 100 == 0:  # the other lane says the same
                assert control.call("Stat", request, deadline_s=20.0).SerializeToString() == body
        with pytest.raises(FfsError) as failed:
            control.call("Stat", meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=1, path=b"none")), deadline_s=20.0)
        assert failed.value.code is Code.NO_ENTRY
        control.close()
        pool.close()
