"""The gRPC lane, and the same handlers over the data link."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import grpc
import pytest

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import GRPC_MESSAGE_BYTES_MAX
from fireflyfs.common.net.api import Address, Call, Peer
from fireflyfs.common.net.binding import snake_case
from fireflyfs.common.net.control import AsyncControlClient, ControlClient, ControlServer
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.methods import Method
from fireflyfs.common.net.multiplex import MultiplexLink
from fireflyfs.common.net.server import LinkServer
from fireflyfs.proto import meta_pb2

META = meta_pb2.DESCRIPTOR.services_by_name["Meta"]


class Meta:
    """Answers a few methods in each allowed shape."""

    def __init__(self) -> None:
        self.peers: list[Peer | None] = []

    async def stat(self, request: meta_pb2.StatRequest) -> meta_pb2.InodeReply:
        await asyncio.sleep(0)
        return meta_pb2.InodeReply(inode=meta_pb2.Inode(id=request.at.dir))

    def lookup(self, request: meta_pb2.LookupRequest, peer: Peer | None) -> meta_pb2.InodeReply:
        self.peers.append(peer)
        return meta_pb2.InodeReply(inode=meta_pb2.Inode(id=7))

    def open(self, request: meta_pb2.OpenRequest) -> meta_pb2.OpenReply:
        raise error(Code.FENCED, "no mgmtd for 5 s")

    async def close(self, request: meta_pb2.CloseRequest) -> meta_pb2.InodeReply:
        raise KeyError("a bug")

    async def sync(self, request: meta_pb2.SyncRequest) -> meta_pb2.InodeReply:
        await asyncio.sleep(30)
        return meta_pb2.InodeReply()

    def readlink(self, request: meta_pb2.ReadlinkRequest) -> meta_pb2.InodeReply:
        return meta_pb2.InodeReply(inode=meta_pb2.Inode(symlink_target=bytes(GRPC_MESSAGE_BYTES_MAX)))


async def code_of(awaitable) -> Code:
    with pytest.raises(FfsError) as caught:
        await awaitable
    return caught.value.code


async def grpc_lane() -> AsyncIterator[tuple[Meta, ControlServer, AsyncControlClient]]:
    meta = Meta()
    server = ControlServer([(META, meta)])
    await server.start()
    client = AsyncControlClient(META, server.address)
    try:
        yield meta, server, client
    finally:
        await client.close()
        await server.stop(0.1)


def test_calls_errors_and_bounds() -> None:
    async def run() -> None:
        async for meta, _, client in grpc_lane():
            reply = await client.call("Stat", meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=42)))
            assert reply.inode.id == 42
            assert (await client.call("Lookup", meta_pb2.LookupRequest())).inode.id == 7
            assert meta.peers == [None]
            with pytest.raises(FfsError, match="no mgmtd for 5 s") as caught:
                await client.call("Open", meta_pb2.OpenRequest())
            assert caught.value.code is Code.FENCED
            assert await code_of(client.call("Close", meta_pb2.CloseRequest())) is Code.INTERNAL
            assert await code_of(client.call("Rename", meta_pb2.RenameRequest())) is Code.UNKNOWN_METHOD
            assert await code_of(client.call("NoSuch", meta_pb2.StatRequest())) is Code.UNKNOWN_METHOD
            assert await code_of(client.call("Sync", meta_pb2.SyncRequest(), deadline_s=0.1)) is Code.TIMEOUT
            assert await code_of(client.call("Readlink", meta_pb2.ReadlinkRequest())) is Code.TOO_LARGE
            huge = meta_pb2.StatRequest(at=meta_pb2.PathAt(path=bytes(GRPC_MESSAGE_BYTES_MAX)))
            assert await code_of(client.call("Stat", huge)) is Code.TOO_LARGE

    asyncio.run(run())


def test_malformed_bytes_and_absurd_sizes_at_the_door() -> None:
    async def run() -> None:
        async for _, server, client in grpc_lane():
            async with grpc.aio.insecure_channel(
                server.address, options=[("grpc.max_send_message_length", -1)]
            ) as channel:
                stat = channel.unary_unary("/fireflyfs.Meta/Stat")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stat(b"\xff\xff\xff")
                assert dict(caught.value.trailing_metadata())["ffs-code"] == "1003 PROTOCOL"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stat(bytes(GRPC_MESSAGE_BYTES_MAX + 100))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/fireflyfs.Nothing/Stat")(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert (await client.call("Lookup", meta_pb2.LookupRequest())).inode.id == 7

    asyncio.run(run())


def test_a_taken_port_is_an_error() -> None:
    async def run() -> None:
        async for _, server, _ in grpc_lane():
            second = ControlServer([(META, Meta())], port=int(server.address.rpartition(":")[2]))
            assert await code_of(second.start()) is Code.CONFIG

    asyncio.run(run())


def test_blocking_client_and_a_server_that_goes_and_comes_back() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def on_loop(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    server = ControlServer([(META, Meta())])
    on_loop(server.start())
    client = ControlClient(META, server.address)
    assert client.call("Stat", meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=3))).inode.id == 3
    on_loop(server.stop(0))
    with pytest.raises(FfsError) as caught:
        client.call("Stat", meta_pb2.StatRequest(), deadline_s=3)
    assert caught.value.code in (Code.UNAVAILABLE, Code.TIMEOUT)
    again = ControlServer([(META, Meta())], port=int(server.address.rpartition(":")[2]))
    on_loop(again.start())
    for _ in range(50):
        try:
            assert client.call("Lookup", meta_pb2.LookupRequest(), deadline_s=5).inode.id == 7
            break
        except FfsError as exc:
            if exc.code is not Code.UNAVAILABLE:
                raise
            threading.Event().wait(0.1)
    else:
        pytest.fail("the client did not reconnect")
    client.close()
    with pytest.raises(FfsError):
        client.call("Lookup", meta_pb2.LookupRequest())
    on_loop(again.stop(0))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_the_same_handlers_over_the_data_link() -> None:
    async def run() -> None:
        meta = Meta()
        identity = Identity("c")
        server = LinkServer(identity, link_handlers(META, "META", meta))
        await server.start()
        link = MultiplexLink(identity)
        address = Address(server.tcp)

        async def call(method: Method, body: bytes) -> bytes:
            return bytes((await link.call(address, Call(method, body))).body)

        request = meta_pb2.StatRequest(at=meta_pb2.PathAt(dir=42))
        reply = meta_pb2.InodeReply.FromString(await call(Method.META_STAT, request.SerializeToString()))
        assert reply.inode.id == 42
        assert meta_pb2.InodeReply.FromString(await call(Method.META_LOOKUP, b"")).inode.id == 7
        assert meta.peers[0] is not None
        assert meta.peers[0].client_id == identity.client_id
        assert await code_of(call(Method.META_OPEN, b"")) is Code.FENCED
        assert await code_of(call(Method.META_STAT, b"\xff\xff\xff")) is Code.PROTOCOL
        assert await code_of(call(Method.META_RENAME, b"")) is Code.UNKNOWN_METHOD
        assert await code_of(call(Method.META_CLOSE, b"")) is Code.INTERNAL
        await link.close()
        await server.stop(0.1)

    asyncio.run(run())


def test_snake_case() -> None:
    assert snake_case("GetRouting") == "get_routing"
    assert snake_case("StatFs") == "stat_fs"


def test_a_handler_of_another_service_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="answers no method"):
        ControlServer([(META, object())])
