"""Configuration of a storage node, and what the doors make of nonsense."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fireflyfs.common import config as configuration
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto.storage_wire import EXTENT, UPDATE_HEADER, UPDATE_ITEM, UpdateKind
from fireflyfs.storage import server
from fireflyfs.storage.engine.identity import create_target
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Writer
from fireflyfs.storage.server import StorageConfig, TargetConfig, WorkerConfig, open_targets
from fireflyfs.storage.service.wire import Item, decode_reads, decode_update, encode_update
from fireflyfs.storage.worker import StorageWorker

WRITER = Writer(b"w" * 16, 3, 4)


def test_a_worker_whose_machine_was_suspended_is_fenced(
    suspend: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """mgmtd has taken it out of its chains meanwhile; its timers have hardly gone on."""
    workers: list[StorageWorker] = []

    class Heard:
        """A membership whose last heartbeat was answered just now."""

        def __init__(self, *arguments: Any) -> None:
            self._clock: Clock = arguments[-1]
            self.last_heartbeat_ok: float | None = None

        async def start(self) -> None:
            self.last_heartbeat_ok = self._clock.monotonic_s()
            assert not workers[0].replicas.fenced()
            suspend(10)
            assert workers[0].replicas.fenced()

        async def stop(self, *, planned: bool) -> None: ...

    def made(*arguments: Any, **options: Any) -> StorageWorker:
        workers.append(StorageWorker(*arguments, **options))
        return workers[-1]

    monkeypatch.setattr(server, "Membership", Heard)
    monkeypatch.setattr(server, "StorageWorker", made)
    monkeypatch.setattr(server, "open_targets", lambda *_: ([], []))
    config = StorageConfig("c", 7, ["127.0.0.1:1"], [WorkerConfig([TargetConfig(7001, "/a")])])

    async def serve() -> None:
        stop = asyncio.Event()
        stop.set()
        await server.serve_worker(config, 0, stop)

    asyncio.run(serve())
    assert workers


def test_a_worker_that_cannot_be_started_now_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though whoever cleans /tmp has been there meanwhile."""
    config = StorageConfig("c", 7, ["127.0.0.1:1"], [WorkerConfig([TargetConfig(7001, "/a")])])
    stop = asyncio.Event()
    started: list[StorageConfig] = []

    async def start(*command: str, **_: Any) -> None:
        path = Path(command[command.index("--config") + 1])
        if started and path.is_relative_to(tempfile.gettempdir()):
            shutil.rmtree(path.parent, ignore_errors=True)
        started.append(configuration.load(StorageConfig, path))
        if len(started) == 3:
            stop.set()
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(server, "RESTART_FIRST_S", 0.001)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    asyncio.run(asyncio.wait_for(server.serve_node(config, stop), 10))
    assert started == [config] * 3


def test_the_configuration_survives_being_written() -> None:
    config = StorageConfig(
        "c", 7, ["127.0.0.1:1"], [WorkerConfig([TargetConfig(7001, "/a"), TargetConfig(7002, "/b")])]
    )
    assert configuration.parse(StorageConfig, configuration.dump(config)) == config


@pytest.mark.parametrize(
    "text",
    [
        "workers = []",
        'threads = 0\n[[workers]]\n[[workers.targets]]\ntarget_id = 1\npath = "/a"',
        'treads = 2\n[[workers]]\n[[workers.targets]]\ntarget_id = 1\npath = "/a"',
    ],
)
def test_a_configuration_that_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(FfsError) as caught:
        configuration.parse(StorageConfig, 'cluster_id = "c"\nnode_id = 1\nmgmtd = []\n' + text)
    assert caught.value.code is Code.CONFIG


def test_a_disk_that_is_not_there_leaves_its_target_out(tmp_path: Path) -> None:
    worker = WorkerConfig([TargetConfig(number, str(tmp_path / str(number))) for number in (7001, 7002, 7003)])
    config = StorageConfig("c", 7, ["127.0.0.1:1"], [worker], create_targets=False)
    with pytest.raises(FfsError, match="7001"):
        open_targets(config, worker)
    create_target(tmp_path / "7002", "c", 7002)
    create_target(tmp_path / "7003", "another cluster", 7003)
    opened, absent = open_targets(config, worker)
    assert ([local.target_id for local in opened], [target.target_id for target in absent]) == ([7002], [7001, 7003])
    for local in opened:
        local.close()


def good() -> tuple[bytes, list[int]]:
    extents = [Extent(0, memoryview(b"abc"), 1), Extent(10, memoryview(b"de"), 2)]
    items = [
        Item(ChunkKey(1, 2), UpdateKind.WRITE, 0, 65536, 0, 0, extents),
        Item(ChunkKey(1, 3), UpdateKind.REMOVE, 0, 65536, 0),
    ]
    body, pieces = encode_update(9, 8, WRITER, 0, items)
    return body, [len(piece) for piece in pieces]


def test_an_update_is_read_back() -> None:
    body, lengths = good()
    request = decode_update(memoryview(body), lengths, from_client=True)
    assert (request.chain_id, request.chain_version, request.writer) == (9, 8, WRITER)
    assert [(item.key, item.kind, len(item.extents)) for item in request.items] == [
        (ChunkKey(1, 2), UpdateKind.WRITE, 2),
        (ChunkKey(1, 3), UpdateKind.REMOVE, 0),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 9),
        ("kind", 4),
        ("chunk_size", 0),
        ("chunk_size", 3000),
        ("chunk_size", 1 << 31),
        ("extents", 3),
        ("extents", 1),
        ("extents", 0),
        ("version", 1),
    ],
)
def test_an_item_that_makes_no_sense_is_refused(field: str, value: int) -> None:
    body, lengths = good()
    raw = bytearray(body)
    rows = np.frombuffer(raw, UPDATE_ITEM, 2, UPDATE_HEADER.itemsize)
    rows[field][0] = value
    with pytest.raises(FfsError):
        decode_update(memoryview(bytes(raw)), lengths, from_client=True)


@pytest.mark.parametrize(("field", "value"), [("offset", 65534), ("length", 4), ("length", 0)])
def test_an_extent_outside_its_chunk_is_refused(field: str, value: int) -> None:
    body, lengths = good()
    raw = bytearray(body)
    rows = np.frombuffer(raw, EXTENT, 2, UPDATE_HEADER.itemsize + 2 * UPDATE_ITEM.itemsize)
    rows[field][0] = value
    with pytest.raises(FfsError):
        decode_update(memoryview(bytes(raw)), lengths, from_client=True)


def test_random_bytes_are_refused_with_an_error_of_ours() -> None:
    chance = np.random.default_rng(1)
    body, lengths = good()
    for _ in range(2000):
        raw = bytearray(body)
        for place in chance.integers(0, len(raw), 3):
            raw[place] = int(chance.integers(0, 256))
        try:
            decode_update(memoryview(bytes(raw[: int(chance.integers(0, len(raw) + 1))])), lengths, from_client=False)
            decode_update(memoryview(bytes(raw)), lengths, from_client=False)
        except FfsError as exc:
            if exc.code not in (Code.PROTOCOL, Code.TOO_LARGE):
                raise
    with pytest.raises(FfsError):
        decode_reads(memoryview(bytes(31)), [1])
