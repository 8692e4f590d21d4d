"""Extended attributes and ACLs as the service keeps them."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.kv.interface import read, run
from fireflyfs.common.limits import XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX
from fireflyfs.meta.core import acl, keys, xattrs
from fireflyfs.meta.core.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from fireflyfs.meta.store.format import FORMAT_VERSION
from fireflyfs.proto import meta_pb2 as m

ME = {"uid": 10, "gid": 20}
OTHER_USER = {"uid": 11, "gid": 21}
ONE = b"1" * 16
NAMED = (Entry(USER_OBJ, 7), Entry(USER, 6, 11), Entry(GROUP_OBJ, 4), Entry(MASK, 6), Entry(OTHER, 0))


class Attributes:
    """Calls by path."""

    def __init__(self, meta: Any) -> None:
        self.meta = meta

    def set(self, path: bytes, name: bytes, value: bytes, flags: int = 0, **who: Any) -> Any:
        request = m.SetXattrRequest(at=m.PathAt(dir=1, path=path), name=name, value=value, flags=flags)
        return self.meta.call("set_xattr", request, **who).inode

    def get(self, path: bytes, name: bytes, **who: Any) -> bytes:
        request = m.GetXattrRequest(at=m.PathAt(dir=1, path=path), name=name)
        value: bytes = self.meta.call("get_xattr", request, **who).value
        return value

    def list(self, path: bytes, **who: Any) -> list[bytes]:
        return list(self.meta.call("list_xattr", m.ListXattrRequest(at=m.PathAt(dir=1, path=path)), **who).names)

    def remove(self, path: bytes, name: bytes, **who: Any) -> Any:
        request = m.RemoveXattrRequest(at=m.PathAt(dir=1, path=path), name=name)
        return self.meta.call("remove_xattr", request, **who).inode


@pytest.fixture
def attributes(meta: Any) -> Attributes:
    meta.mkdir(b"home", 0o755)
    meta.set_attr(b"home", owner=10, group=20)
    meta.create(b"home/f", 0o644, **ME)
    return Attributes(meta)


def test_set_get_list_remove(attributes: Attributes) -> None:
    before = attributes.meta.stat(b"home/f")
    attributes.meta.clock.advance(1)
    after = attributes.set(b"home/f", b"user.a", b"one", **ME)
    assert after.xattrs
    assert after.ctime_ns > before.ctime_ns
    assert after.mtime_ns == before.mtime_ns
    attributes.set(b"home/f", b"user.b", b"", **ME)
    attributes.set(b"home/f", b"user.a", bytes(range(256)), **ME)
    assert attributes.get(b"home/f", b"user.a") == bytes(range(256))
    assert attributes.get(b"home/f", b"user.b") == b""
    assert attributes.list(b"home/f") == [b"user.a", b"user.b"]
    attributes.remove(b"home/f", b"user.a", **ME)
    assert attributes.list(b"home/f") == [b"user.b"]
    assert not attributes.remove(b"home/f", b"user.b", **ME).xattrs
    assert attributes.meta.records(b"X") == 0
    code = attributes.meta.code
    assert code(lambda: attributes.get(b"home/f", b"user.a")) is Code.NO_DATA
    assert code(lambda: attributes.remove(b"home/f", b"user.a", **ME)) is Code.NO_DATA


def test_create_and_replace(attributes: Attributes) -> None:
    code = attributes.meta.code
    assert code(lambda: attributes.set(b"home/f", b"user.a", b"1", xattrs.REPLACE)) is Code.NO_DATA
    attributes.set(b"home/f", b"user.a", b"1", xattrs.CREATE)
    assert code(lambda: attributes.set(b"home/f", b"user.a", b"2", xattrs.CREATE)) is Code.EXISTS
    attributes.set(b"home/f", b"user.a", b"3", xattrs.REPLACE)
    assert attributes.get(b"home/f", b"user.a") == b"3"
    assert code(lambda: attributes.set(b"home/f", b"user.a", b"2", 4)) is Code.INVALID


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"", b"", Code.OUT_OF_RANGE),
        (b"user." + b"n" * 251, b"", Code.OUT_OF_RANGE),
        (b"user.", b"", Code.INVALID),
        (b"user.a\0b", b"", Code.INVALID),
        (b"other.a", b"", Code.NOT_SUPPORTED),
        (b"system.a", b"", Code.NOT_SUPPORTED),
        (b"user.a", bytes(XATTR_VALUE_BYTES_MAX + 1), Code.TOO_BIG_ARGUMENT),
    ],
)
def test_names_and_values_have_bounds(attributes: Attributes, name: bytes, value: bytes, expected: Code) -> None:
    assert attributes.meta.code(lambda: attributes.set(b"home/f", name, value)) is expected
    attributes.set(b"home/f", b"user." + b"n" * 250, bytes(XATTR_VALUE_BYTES_MAX))


def test_all_together_have_a_bound(attributes: Attributes) -> None:
    for number in range(XATTRS_BYTES_MAX // XATTR_VALUE_BYTES_MAX - 1):
        attributes.set(b"home/f", b"user.%d" % number, bytes(XATTR_VALUE_BYTES_MAX))
    code = attributes.meta.code
    assert code(lambda: attributes.set(b"home/f", b"user.last", bytes(XATTR_VALUE_BYTES_MAX))) is Code.NO_SPACE
    assert len(attributes.list(b"home/f")) == 3
    attributes.meta.create(b"home/g", 0o644, **ME)
    for number in range(256):
        attributes.set(b"home/g", b"user." + b"%04d" % number + b"n" * 246, b"")
    assert code(lambda: attributes.set(b"home/g", b"user.one more", b"")) is Code.NO_SPACE


def test_namespaces(attributes: Attributes) -> None:
    code, meta = attributes.meta.code, attributes.meta
    attributes.set(b"home/f", b"trusted.t", b"t")
    attributes.set(b"home/f", b"security.s", b"s")
    attributes.set(b"home/f", b"user.u", b"u", **ME)
    assert attributes.list(b"home/f", **ME) == [b"security.s", b"user.u"]
    assert len(attributes.list(b"home/f")) == 3
    assert code(lambda: attributes.get(b"home/f", b"trusted.t", **ME)) is Code.NO_DATA
    assert attributes.get(b"home/f", b"security.s", **OTHER_USER) == b"s"
    for name in (b"trusted.x", b"security.x"):
        assert code(lambda name=name: attributes.set(b"home/f", name, b"", **ME)) is Code.NOT_PERMITTED
    assert code(lambda: attributes.set(b"home/f", b"user.u", b"", **OTHER_USER)) is Code.ACCESS_DENIED
    meta.set_attr(b"home/f", mode=0o600)
    assert code(lambda: attributes.get(b"home/f", b"user.u", **OTHER_USER)) is Code.ACCESS_DENIED
    meta.symlink(b"home/l", b"f", **ME)
    assert code(lambda: attributes.set(b"home/l", b"user.u", b"")) is Code.NOT_PERMITTED
    assert code(lambda: attributes.get(b"home/l", b"user.u")) is Code.NO_DATA
    attributes.set(b"home/l", b"trusted.t", b"on the link itself")
    meta.mkdir(b"sticky", 0o1777)
    assert code(lambda: attributes.set(b"sticky", b"user.u", b"", **ME)) is Code.NOT_PERMITTED


def test_they_go_with_the_inode(attributes: Attributes) -> None:
    meta = attributes.meta
    attributes.set(b"home/f", b"user.a", b"1")
    attributes.set(b"home/f", acl.ACCESS, acl.pack(NAMED))
    meta.mkdir(b"home/d")
    attributes.set(b"home/d", b"user.a", b"1")
    attributes.set(b"home/d", acl.DEFAULT, acl.pack(NAMED))
    meta.mkdir(b"tree/below/it", parents=True)
    meta.open(b"tree/below/g", os.O_CREAT | os.O_WRONLY, session=ONE)
    attributes.set(b"tree/below/g", b"user.a", b"1")
    attributes.set(b"tree/below", acl.ACCESS, acl.pack(NAMED))
    meta.close(meta.stat(b"tree/below/g").id, ONE)
    assert (meta.records(b"X"), meta.records(b"A")) == (3, 3)
    meta.remove(b"home/f")
    meta.rmdir(b"home/d")
    meta.remove(b"tree", m.REMOVE_RECURSIVE)
    meta.collect()
    assert (meta.records(b"X"), meta.records(b"A"), meta.records(b"G")) == (0, 0, 0)


def test_a_large_removed_tree_with_attributes_fits_the_transactions(attributes: Attributes) -> None:
    meta = attributes.meta
    meta.mkdir(b"tree")
    attributes.set(b"tree", acl.DEFAULT, acl.pack(NAMED))
    for number in range(100):
        name = b"tree/%d" % number
        meta.create(name, 0o666)
        attributes.set(name, b"user.a", b"1")
    meta.remove(b"tree", m.REMOVE_RECURSIVE)
    meta.collect()
    assert (meta.records(b"X"), meta.records(b"A"), meta.records(b"I")) == (0, 0, 3)


def test_an_acl_sets_the_mode_and_chmod_sets_its_mask(attributes: Attributes) -> None:
    meta = attributes.meta
    inode = attributes.set(b"home/f", acl.ACCESS, acl.pack(NAMED), **ME)
    assert inode.acl
    assert stat.S_IMODE(inode.mode) == 0o760
    assert attributes.get(b"home/f", acl.ACCESS, **OTHER_USER) == acl.pack(NAMED)
    assert attributes.list(b"home/f") == [acl.ACCESS]
    meta.open(b"home/f", os.O_RDWR, **OTHER_USER)
    meta.set_attr(b"home/f", mode=0o740, **ME)
    assert acl.parse(attributes.get(b"home/f", acl.ACCESS))[3] == Entry(MASK, 4)
    assert meta.code(lambda: meta.open(b"home/f", os.O_RDWR, **OTHER_USER)) is Code.ACCESS_DENIED
    meta.open(b"home/f", os.O_RDONLY, **OTHER_USER)
    short = (NAMED[0], NAMED[2], NAMED[4])
    assert not attributes.set(b"home/f", acl.ACCESS, acl.pack(short), **ME).acl
    assert meta.code(lambda: attributes.get(b"home/f", acl.ACCESS)) is Code.NO_DATA
    assert (stat.S_IMODE(meta.stat(b"home/f").mode), meta.records(b"A")) == (0o740, 0)
    attributes.remove(b"home/f", acl.ACCESS, **ME)  # none there: no error


def test_who_may_set_an_acl_and_on_what(attributes: Attributes) -> None:
    code = attributes.meta.code
    value = acl.pack(NAMED)
    assert code(lambda: attributes.set(b"home/f", acl.ACCESS, value, **OTHER_USER)) is Code.NOT_PERMITTED
    assert code(lambda: attributes.set(b"home/f", acl.DEFAULT, value, **ME)) is Code.ACCESS_DENIED
    attributes.remove(b"home/f", acl.DEFAULT, **ME)
    attributes.meta.symlink(b"home/l", b"f", **ME)
    assert code(lambda: attributes.set(b"home/l", acl.ACCESS, value, **ME)) is Code.NOT_SUPPORTED


def test_an_acl_counts_on_the_way_to_a_file(attributes: Attributes) -> None:
    meta = attributes.meta
    meta.set_attr(b"home", mode=0o700)
    assert meta.code(lambda: meta.stat(b"home/f", **OTHER_USER)) is Code.ACCESS_DENIED
    attributes.set(b"home", acl.ACCESS, acl.pack((NAMED[0], Entry(USER, 1, 11), *NAMED[2:3], Entry(MASK, 1), NAMED[4])))
    assert meta.stat(b"home/f", **OTHER_USER).id
    assert meta.code(lambda: meta.names(b"home", **OTHER_USER)) is Code.ACCESS_DENIED


def test_default_acls_are_inherited_and_take_the_umasks_place(attributes: Attributes) -> None:
    meta = attributes.meta
    attributes.set(b"home", acl.DEFAULT, acl.pack(NAMED), **ME)

    def make(path: bytes, mode: int, umask: int) -> Any:
        request = m.MakeNodeRequest(at=m.PathAt(dir=1, path=path), mode=mode, umask=umask)
        return meta.call("make_node", request, **ME).inode

    file = make(b"home/g", stat.S_IFREG | 0o666, 0o077)
    assert file.acl
    assert stat.S_IMODE(file.mode) == 0o660
    assert acl.parse(attributes.get(b"home/g", acl.ACCESS))[1] == Entry(USER, 6, 11)
    below = make(b"home/d", stat.S_IFDIR | 0o755, 0o077)
    assert below.acl
    assert below.default_acl
    assert stat.S_IMODE(below.mode) == 0o740
    assert attributes.get(b"home/d", acl.DEFAULT) == acl.pack(NAMED)
    assert not meta.symlink(b"home/l", b"f", **ME).acl
    attributes.remove(b"home", acl.DEFAULT, **ME)
    plain = make(b"home/h", stat.S_IFREG | 0o666, 0o077)
    assert not plain.acl
    assert stat.S_IMODE(plain.mode) == 0o600


def test_a_write_takes_the_capability(attributes: Attributes) -> None:
    meta = attributes.meta
    for change in ("write", "truncate", "owner", "open"):
        inode = attributes.set(b"home/f", xattrs.CAPABILITY, b"caps")
        assert inode.capability
        if change == "write":
            meta.open(b"home/f", os.O_WRONLY, session=ONE, **ME)
            meta.close(inode.id, ONE, 100, **ME)
        elif change == "truncate":
            meta.set_attr(b"home/f", length=5)
        elif change == "owner":
            meta.set_attr(b"home/f", owner=10)
        else:
            meta.open(b"home/f", os.O_WRONLY | os.O_TRUNC)
        assert not meta.stat(b"home/f").capability, change
        assert attributes.list(b"home/f") == []


def test_what_was_set_after_a_write_stays_when_the_write_is_told(attributes: Attributes) -> None:
    meta = attributes.meta
    inode = meta.open(b"home/f", os.O_WRONLY, session=ONE, **ME).inode
    meta.clock.advance(1)
    written = m.Timestamp(ns=meta.clock.unix_ns())
    hint = m.LengthHint(length=100)

    def tell(**fields: Any) -> Any:
        return meta.call("sync", m.SyncRequest(inode=inode.id, hint=hint, **fields), **ME).inode

    meta.clock.advance(1)
    attributes.set(b"home/f", xattrs.CAPABILITY, b"caps")
    meta.set_attr(b"home/f", mode=0o4755, **ME)
    told = tell(mtime=written)
    assert told.capability
    assert (told.mode & 0o7777, told.length) == (0o4755, 100)
    assert tell(privileges_taken=True).capability
    meta.clock.advance(1)
    told = tell(mtime=m.Timestamp(ns=meta.clock.unix_ns()))
    assert not told.capability
    assert told.mode & 0o7777 == 0o755


def test_a_set_that_is_sent_again_is_done_once(attributes: Attributes) -> None:
    request = m.SetXattrRequest(
        at=m.PathAt(dir=1, path=b"home/f"), name=b"user.a", value=b"1", flags=xattrs.CREATE,
        mutation=m.Mutation(request_id=b"r" * 16),
    )  # fmt: skip
    first = attributes.meta.call("set_xattr", request)
    request.mutation.retry = True
    assert attributes.meta.call("set_xattr", request) == first


def test_damaged_records_are_errors() -> None:
    packed = xattrs.pack({b"user.a": b"1", b"user.b": b"22"})
    assert xattrs.unpack(packed) == {b"user.a": b"1", b"user.b": b"22"}
    for cut in range(1, len(packed)):
        if cut not in (1, len(xattrs.pack({b"user.a": b"1"}))):  # those are whole records too
            with pytest.raises(Exception, match="damaged"):
                xattrs.unpack(packed[:cut])
    with pytest.raises(Exception, match="version"):
        xattrs.unpack(b"\2" + packed[1:])


def test_a_file_without_a_name(attributes: Attributes) -> None:
    meta = attributes.meta
    nameless = meta.open(b"home", os.O_TMPFILE | os.O_RDWR, session=ONE, **ME).inode
    assert nameless.nlink == 0
    assert meta.names(b"home") == [b"f"]
    meta.collect()
    assert meta.fstat(nameless.id).id == nameless.id  # its session keeps it
    request = m.LinkRequest(old=m.PathAt(dir=nameless.id), new=m.PathAt(dir=1, path=b"home/named"))
    assert meta.call("link", request, **ME).inode.nlink == 1
    meta.close(nameless.id, ONE, 0, **ME)
    meta.collect()
    assert meta.stat(b"home/named").id == nameless.id
    assert meta.records(b"G") == 0
    lost = meta.open(b"home", os.O_TMPFILE | os.O_RDWR, session=ONE, **ME).inode
    meta.close(lost.id, ONE, 0, **ME)
    meta.collect()
    assert meta.code(lambda: meta.fstat(lost.id)) is Code.STALE_HANDLE
    code = meta.code
    assert code(lambda: meta.open(b"home", os.O_TMPFILE | os.O_RDWR, **ME)) is Code.INVALID
    assert code(lambda: meta.open(b"home", os.O_TMPFILE | os.O_RDONLY, session=ONE, **ME)) is Code.INVALID
    assert code(lambda: meta.open(b"home", os.O_TMPFILE | os.O_RDWR, session=ONE, **OTHER_USER)) is Code.ACCESS_DENIED
    assert code(lambda: meta.open(b"home/f", os.O_TMPFILE | os.O_RDWR, session=ONE, **ME)) is Code.NOT_DIRECTORY


def test_privileges_go_on_request(attributes: Attributes) -> None:
    meta = attributes.meta
    meta.set_attr(b"home/f", mode=0o6755)
    assert meta.code(lambda: meta.set_attr(b"home/f", kill_privileges=True, **OTHER_USER)) is Code.NOT_PERMITTED
    assert stat.S_IMODE(meta.set_attr(b"home/f", kill_privileges=True, **ME).mode) == 0o755
    meta.set_attr(b"home/f", kill_privileges=True, **OTHER_USER)  # nothing to take


def test_a_store_of_the_first_format_is_opened_and_becomes_the_newest(meta: Any) -> None:
    meta.create(b"old", 0o644)
    run(meta.kv, lambda txn: txn.put(keys.FORMAT, (1).to_bytes(4, "big")))
    again = meta.restarted()
    assert again.stat(b"old").id
    assert read(meta.kv, lambda txn: txn.get(keys.FORMAT)) == (FORMAT_VERSION).to_bytes(4, "big")
    run(meta.kv, lambda txn: txn.put(keys.FORMAT, (FORMAT_VERSION + 1).to_bytes(4, "big")))
    with pytest.raises(FfsError, match=f"format {FORMAT_VERSION + 1}"):
        again.restarted()
