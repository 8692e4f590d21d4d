"""Namespaces of the KV cache at the metadata service: files of one hidden directory that hold no bytes of their own.

A namespace is an inode with a layout, so that everything that files have is there: chains, replication, an owner and
rights, removal with garbage collection. What else it was made with stands in one extended attribute. It is made under a
passing name and renamed, so it is there whole or not at all. Through a mount it is an empty file in `/.kvcache`;
removing that removes the namespace with its blocks, emptying it (`> file`) its blocks.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fireflyfs.client.file import File
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache.api import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Namespace
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, FfsError, error, from_oserror
from fireflyfs.common.limits import CHUNK_BYTES_MIN, STRIPE_MAX
from fireflyfs.proto.common_pb2 import Layout

DIRECTORY = "/.kvcache"
ATTRIBUTE = "user.ffs.kvcache"
ATTRIBUTE_FORMAT = 1
NAME_BYTES_MAX = 128
FINGERPRINT_BYTES_MAX = 4096
TTL_S_MAX = 10 * 365 * 86_400.0
_PASSING = ".new-"  # names that begin so are being made
_NOREPLACE = 1


class Namespaces:
    """All namespaces of a cluster, as one client's user may see them."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._fs = filesystem

    def names(self) -> list[str]:
        with _as_ffs_errors():
            try:
                return sorted(name for name in self._fs.listdir(DIRECTORY) if not name.startswith(_PASSING))
            except FileNotFoundError:
                return []

    def get(self, name: str) -> tuple[Namespace, FileLayout]:
        """Raises NO_ENTRY, and INVALID for a file that is no namespace."""
        path = _path(name)
        with _as_ffs_errors():
            inode = self._fs.inode(path)
            try:
                raw = self._fs.getxattr(path, ATTRIBUTE)
            except OSError as exc:
                if exc.errno != errno.ENODATA:
                    raise
                raise error(Code.INVALID, f"{path} is no namespace of the KV cache") from exc
        return _unpack(name, inode.id, raw), FileLayout.of(inode.id, inode.layout)

    def open(
        self, name: str, *, block_size: int, replication: int, capacity_bytes: int, ttl_s: float, fingerprint: bytes
    ) -> tuple[Namespace, FileLayout]:
        """The namespace, made now if there is none. Raises INVALID where it was made for other blocks."""
        wanted = Namespace(name, 0, block_size, replication, capacity_bytes, ttl_s, fingerprint)
        _check(wanted)
        try:
            found = self.get(name)
        except FfsError as exc:
            if exc.code is not Code.NO_ENTRY:
                raise
            self._make(wanted)
            found = self.get(name)  # ours, or that of who was faster
        _require_same(found[0], wanted)
        return found

    def hold(self, namespace: Namespace) -> File:
        """An open file of the namespace: while somebody has one, a namespace that is removed keeps its inode, so that
        no block is put for one that is forgotten. Raises NO_ENTRY when it is gone, or another one by now."""
        with _as_ffs_errors():
            file = self._fs.open_file(_path(namespace.name), os.O_RDONLY)
        if file.handle.file.inode != namespace.inode:
            file.close()
            raise error(Code.NO_ENTRY, f"namespace {namespace.name!r} was removed")
        return file

    def remove(self, name: str) -> None:
        """Its name is gone at once, its blocks are collected as those of a removed file. Raises NO_ENTRY."""
        self.get(name)  # nothing but a namespace is removed
        with _as_ffs_errors():
            self._fs.unlink(_path(name))

    def _make(self, wanted: Namespace) -> None:
        """Make it, unless somebody else does. Raises INVALID when no chain table has enough replicas."""
        table, replicas = self._table_for(wanted.replication)
        size = max(CHUNK_BYTES_MIN, 1 << (wanted.block_size - 1).bit_length())
        layout = Layout(chunk_size=size, stripe_size=STRIPE_MAX, chain_table=table)
        passing = f"{DIRECTORY}/{_PASSING}{secrets.token_hex(8)}"
        with _as_ffs_errors():
            try:
                self._fs.mkdir(DIRECTORY)
                self._fs.chmod(DIRECTORY, 0o1777)  # whoever may use the cluster may make a namespace
            except FileExistsError:
                pass
            self._fs.open_file(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, layout=layout).close()
            try:
                self._fs.setxattr(passing, ATTRIBUTE, _pack(wanted._replace(replication=replicas)))
                self._fs.rename(passing, _path(wanted.name), flags=_NOREPLACE)
            except FileExistsError:
                self._fs.unlink(passing)
            except BaseException:
                self._fs.unlink(passing)
                raise

    def _table_for(self, replication: int) -> tuple[int, int]:
        """(table, its replicas): the one with the fewest that are enough."""
        tables = self._fs.context.routing.current().chain_tables
        enough = [(info.replicas, table_id) for table_id, info in tables.items() if info.replicas >= replication]
        if not enough:
            raise error(
                Code.INVALID,
                f"no chain table has {replication} replicas: see `ffs chain-tables list`, or make one with "
                "`ffs chain-tables create`",
            )
        replicas, table_id = min(enough)
        return table_id, replicas


def _path(name: str) -> str:
    raw = name.encode()
    good = 0 < len(raw) <= NAME_BYTES_MAX and name.isprintable() and "/" not in name and not name.startswith(".")
    if not good:
        raise error(
            Code.INVALID, f"{name!r} is no name for a namespace: 1 to {NAME_BYTES_MAX} bytes, no '/', no '.' first"
        )
    return f"{DIRECTORY}/{name}"


def _check(wanted: Namespace) -> None:
    _path(wanted.name)
    if not BLOCK_BYTES_MIN <= wanted.block_size <= BLOCK_BYTES_MAX:
        raise error(Code.INVALID, f"a block size of {wanted.block_size}: {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX} bytes")
    if wanted.replication < 1:
        raise error(Code.INVALID, f"{wanted.replication} replicas")
    if not 0 <= wanted.capacity_bytes < 1 << 63:
        raise error(Code.INVALID, f"a capacity of {wanted.capacity_bytes} bytes")
    if not 0 <= wanted.ttl_s <= TTL_S_MAX:
        raise error(Code.INVALID, f"a time to live of {wanted.ttl_s:g} s: 0 to {TTL_S_MAX:g}")
    if len(wanted.fingerprint) > FINGERPRINT_BYTES_MAX:
        raise error(Code.INVALID, f"a fingerprint of {len(wanted.fingerprint)} bytes, at most {FINGERPRINT_BYTES_MAX}")


def _require_same(found: Namespace, wanted: Namespace) -> None:
    """Another fingerprint means blocks of another model: to hand one out would be garbage in the model's memory."""
    if found.fingerprint != wanted.fingerprint:
        raise error(
            Code.INVALID,
            f"namespace {found.name!r} holds blocks with fingerprint {found.fingerprint!r}, not "
            f"{wanted.fingerprint!r}: use another name, or remove it",
        )
    if found.block_size != wanted.block_size:
        raise error(
            Code.INVALID,
            f"namespace {found.name!r} has blocks of {found.block_size} bytes, not {wanted.block_size}: "
            "use another name, or remove it",
        )


def _pack(namespace: Namespace) -> bytes:
    fields: dict[str, Any] = {
        "format": ATTRIBUTE_FORMAT,
        "block_size": namespace.block_size,
        "replication": namespace.replication,
        "capacity_bytes": namespace.capacity_bytes,
        "ttl_s": namespace.ttl_s,
        "fingerprint": namespace.fingerprint.hex(),
    }
    return json.dumps(fields).encode()


def _unpack(name: str, inode: int, raw: bytes) -> Namespace:
    """Raises VERSION_MISMATCH for a newer format, INVALID for nonsense."""
    try:
        fields = json.loads(raw)
        if fields["format"] != ATTRIBUTE_FORMAT:
            raise error(
                Code.VERSION_MISMATCH,
                f"namespace {name!r} has format {fields['format']}, this release reads {ATTRIBUTE_FORMAT}",
            )
        return Namespace(
            name,
            inode,
            int(fields["block_size"]),
            int(fields["replication"]),
            int(fields["capacity_bytes"]),
            float(fields["ttl_s"]),
            bytes.fromhex(fields["fingerprint"]),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise error(Code.INVALID, f"the attribute {ATTRIBUTE} of {DIRECTORY}/{name} is damaged: {exc}") from exc


@contextmanager
def _as_ffs_errors() -> Iterator[None]:
    try:
        yield
    except FfsError:
        raise
    except OSError as exc:
        raise from_oserror(exc) from exc
