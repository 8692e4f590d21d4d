"""A mutation sent twice is done once; ids are never used again; the store outlives its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.kv.interface import read, run
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.layout import LayoutRule, checked, choose_chains, merged
from fireflyfs.meta.core.records import Garbage, GarbageKind, Inode, Outcome, Session, Trim, unpack_dentry
from fireflyfs.meta.store import outcomes
from fireflyfs.meta.store.format import prepare
from fireflyfs.meta.store.ids import InodeIds
from fireflyfs.proto import common_pb2, meta_pb2

RETRY = meta_pb2.Mutation(request_id=b"r" * 16, retry=True)
FIRST = meta_pb2.Mutation(request_id=b"r" * 16)


def at(path: bytes) -> meta_pb2.PathAt:
    return meta_pb2.PathAt(dir=1, path=path)


REQUESTS: list[tuple[str, Any]] = [
    ("open", meta_pb2.OpenRequest(at=at(b"new"), flags=0o301, mode=0o600, session=b"s" * 16)),
    ("make_node", meta_pb2.MakeNodeRequest(at=at(b"new"), mode=0o040755)),
    ("symlink", meta_pb2.SymlinkRequest(at=at(b"new"), target=b"x")),
    ("link", meta_pb2.LinkRequest(old=at(b"file"), new=at(b"new"))),
    ("remove", meta_pb2.RemoveRequest(at=at(b"file"))),
    ("remove", meta_pb2.RemoveRequest(at=at(b"dir"), kind=meta_pb2.REMOVE_RMDIR)),
    ("rename", meta_pb2.RenameRequest(old=at(b"file"), new=at(b"new"))),
    ("rename", meta_pb2.RenameRequest(old=at(b"file"), new=at(b"dir"), flags=2)),
    ("set_attr", meta_pb2.SetAttrRequest(at=at(b"file"), mode=0o600)),
]


@pytest.mark.parametrize(("name", "request_"), REQUESTS)
@pytest.mark.parametrize("restart", [False, True])
def test_every_mutation_is_done_once(meta: Any, name: str, request_: Any, restart: bool) -> None:
    meta.create(b"file")
    meta.mkdir(b"dir")

    def send(service: Any, mutation: meta_pb2.Mutation) -> Any:
        request = type(request_)()
        request.CopyFrom(request_)
        request.mutation.CopyFrom(mutation)
        return service.call(name, request)

    first = send(meta, FIRST)
    names, root = meta.names(), meta.stat(b"/")
    meta.clock.advance(60)
    service = meta.restarted() if restart else meta
    assert send(service, RETRY) == first
    assert send(service, FIRST) == first  # the first sending, overtaken by its retry
    assert (service.names(), service.stat(b"/")) == (names, root)


def test_a_failed_retry_stays_failed(meta: Any) -> None:
    def send(mutation: meta_pb2.Mutation) -> Any:
        return meta.call("remove", meta_pb2.RemoveRequest(at=at(b"f"), mutation=mutation))

    assert meta.code(lambda: send(RETRY)) is Code.NO_ENTRY
    meta.create(b"f")
    assert meta.code(lambda: send(FIRST)) is Code.NO_ENTRY
    assert meta.names() == [b"f"]


def test_a_request_id_belongs_to_one_kind_of_request(meta: Any) -> None:
    meta.call("make_node", meta_pb2.MakeNodeRequest(at=at(b"d"), mode=0o040755, mutation=FIRST))
    assert meta.code(lambda: meta.call("remove", meta_pb2.RemoveRequest(at=at(b"d"), mutation=FIRST))) is Code.INVALID
    short = meta_pb2.Mutation(request_id=b"short")
    assert meta.code(lambda: meta.call("remove", meta_pb2.RemoveRequest(at=at(b"d"), mutation=short))) is Code.INVALID


def test_a_retry_half_an_hour_late_still_finds_its_outcome_and_expiry_takes_it_then(meta: Any) -> None:
    send = lambda: meta.call("make_node", meta_pb2.MakeNodeRequest(at=at(b"d"), mode=0o040755, mutation=RETRY))  # noqa: E731
    made = send()
    meta.clock.advance(1800 - 1)
    assert outcomes.expire(meta.kv, meta.clock.unix_ns()) == []
    assert send() == made
    meta.clock.advance(1800)
    assert len(outcomes.expire(meta.kv, meta.clock.unix_ns())) == 1
    assert meta.code(send) is Code.EXISTS


def test_many_outcomes_expire_batch_after_batch(meta: Any) -> None:
    for _ in range(outcomes.EXPIRE_BATCH + 5):
        meta.code(lambda: meta.call("remove", meta_pb2.RemoveRequest(at=at(b"none"))))
        meta.create(b"f")
        meta.remove(b"f")
    meta.clock.advance(3600)
    kept = meta.create(b"f")
    removed, after = 0, b""
    while batch := outcomes.expire(meta.kv, meta.clock.unix_ns(), after):
        assert batch == sorted(batch)
        removed, after = removed + len(batch), batch[-1] + b"\0"
    assert removed == 2 * (outcomes.EXPIRE_BATCH + 5)
    assert outcomes.expire(meta.kv, meta.clock.unix_ns()) == []
    assert meta.stat(b"f").id == kept.id


def test_ids_are_never_used_twice() -> None:
    engine = MemoryKv()
    taken = [InodeIds(engine, batch=3).take() for _ in range(3)]
    one, two = InodeIds(engine, batch=3), InodeIds(engine, batch=3)
    for _ in range(7):
        taken += [one.take(), two.take()]
    assert len(set(taken)) == len(taken)
    assert min(taken) == 2


def test_a_power_cut_gives_no_id_out_again() -> None:
    """Chunks may be on disks before the file's name is: the next file with that id would show them."""

    class Disk(MemoryKv):
        kept = 0  # NEXT_INODE as a power cut leaves it

        def sync(self) -> None:
            super().sync()
            self.kept = int.from_bytes(read(self, lambda txn: txn.get(keys.NEXT_INODE)) or b"", "big")

    engine = Disk()
    ids = InodeIds(engine, batch=3)
    for _ in range(8):
        assert ids.take() < engine.kept


def test_the_namespace_survives_a_restart_on_rocksdb(tmp_path: Path) -> None:
    rule = LayoutRule(65536, 1, 1)
    kv = RocksKv(tmp_path / "kv")
    assert prepare(kv, 1, uid=3, gid=4, mode=0o750, layout=rule)
    kv.close()
    kv = RocksKv(tmp_path / "kv")
    try:
        assert not prepare(kv, 2, uid=0, gid=0, mode=0, layout=rule)
        run(kv, lambda txn: txn.put(keys.FORMAT, (99).to_bytes(4, "big")))
        with pytest.raises(FfsError, match="format 99"):
            prepare(kv, 2, uid=0, gid=0, mode=0, layout=rule)
    finally:
        kv.close()


def test_records_read_back_and_refuse_what_they_do_not_know() -> None:
    inode = Inode(
        7, 0o100644, 2, 10, 20, 0, 3, 1 << 40, 5, -1, 2, 3, 4, 1, 65536, 2, 1, (9, 8, 7)
    )  # fmt: skip
    assert Inode.unpack(7, inode.pack()) == inode
    link = Inode(8, 0o120777, target=b"somewhere")
    assert Inode.unpack(8, link.pack()) == link
    for record in (
        Session(b"c" * 16, True, 5),
        Trim(1 << 50, 3),
        Garbage(GarbageKind.TREE, 5, 6),
        Outcome(2, 3, 4, b"body"),
    ):
        data = record.pack()
        assert type(record).unpack(data) == record
        with pytest.raises(FfsError) as caught:
            type(record).unpack(b"\x09" + data[1:])
        assert caught.value.code is Code.VERSION_MISMATCH
        with pytest.raises(FfsError) as caught:
            type(record).unpack(data[:3])
        assert caught.value.code is Code.IO_ERROR
    with pytest.raises(FfsError):
        Inode.unpack(7, b"\x03" + inode.pack()[1:])
    with pytest.raises(FfsError):
        Inode.unpack(7, inode.pack()[:-1])
    with pytest.raises(FfsError):
        unpack_dentry(b"\x01")


def test_layout_decisions() -> None:
    assert choose_chains([1, 2, 3, 4], 2, 0) == (1, 2)
    assert choose_chains([1, 2, 3, 4], 2, 1) == (3, 4)
    assert choose_chains([1, 2, 3], 8, 1) == (2, 3, 1)
    rule = LayoutRule(65536, 2, 1)
    assert merged(LayoutRule(0, 4, 0), rule) == LayoutRule(65536, 4, 1)
    for bad in (LayoutRule(65537, 1, 1), LayoutRule(1024, 1, 1), LayoutRule(65536, 0, 1), LayoutRule(65536, 1, 0)):
        with pytest.raises(FfsError):
            checked(bad)


def test_layout_message_of_a_new_file_is_complete(meta: Any) -> None:
    made = meta.create(b"f")
    assert made.layout == common_pb2.Layout(chunk_size=65536, stripe_size=2, chain_table=1, chains=made.layout.chains)
