"""The embedded KV driver: RocksDB in this process, one owner, optimistic transactions checked in memory.

Durability: a commit is one write batch in the write-ahead log, written to the page cache before `commit` returns, so
it survives the death of the process; `sync` (or `sync_commits`) makes it survive a power cut. The directory is locked
by RocksDB: a second owner is refused. Every key and value is stored as it is; the format version stands under
`FORMAT_KEY`, which transactions never see.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import takewhile
from pathlib import Path
from typing import Any

import rocksdict

from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import Transaction
from fireflyfs.common.kv.occ import WINDOW_KEYS_MAX, ConflictWindow, OccTransaction, overlay
from fireflyfs.common.limits import MiB

FORMAT_COLUMN = "ffs-format"  # a column family of its own, so that no scan meets it
FORMAT_KEY = b"version"
FORMAT_VERSION = 1
BLOCK_CACHE_BYTES = 64 * MiB
WRITE_BUFFER_BYTES = 32 * MiB
LOG_FILES_MAX = 4


class _View:
    """One snapshot, shared by all transactions that start before the next commit: reads that happen before it starts
    go to the database itself, which is the same."""

    __slots__ = ("_snapshot", "_store", "version")

    def __init__(self, store: RocksKv, version: int, snapshot: Any) -> None:
        self._store = store
        self.version = version
        self._snapshot = snapshot

    def get(self, key: bytes) -> bytes | None:
        store = self._store
        value: bytes | None = (store._db if store._db is not None else store._database()).get(key)
        # The commit counter moves before anything is written: unmoved, what was read is what the snapshot holds.
        if store._commits_begun == self.version:
            return value
        try:
            value = self._snapshot[key]
        except Exception as exc:  # rocksdict has no class of its own for this
            if str(exc) != "key not found":
                raise error(Code.IO_ERROR, f"RocksDB at {store.path}: {exc}") from exc
            return None
        return value

    def scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        return self._store.scan_at(self, begin, end, reverse)

    def release(self) -> None:
        """Others may use it. RocksDB drops it, and what only it could see, with the last of them."""


class RocksKv:
    """A `KvEngine` in the directory `path`, created if missing.

    Raises IO_ERROR when the directory cannot be opened or belongs to another process, VERSION_MISMATCH when a newer
    release wrote it.
    """

    def __init__(self, path: Path, *, sync_commits: bool = False, window_keys_max: int = WINDOW_KEYS_MAX) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._window = ConflictWindow(window_keys_max)
        self._version = 0
        self._commits_begun = 0
        self._newest: _View | None = None  # of the newest version, until the next commit
        self._write_options = rocksdict.WriteOptions()
        self._write_options.sync = sync_commits
        try:
            path.mkdir(parents=True, exist_ok=True)
            column = {FORMAT_COLUMN: rocksdict.Options(raw_mode=True)}
            self._db: Any = rocksdict.Rdict(str(path), _options(), column_families=column)
            self._check_format()
        except OSError as exc:
            raise error(Code.IO_ERROR, f"cannot open the KV store {path}: {exc}") from exc
        except Exception as exc:
            if type(exc) is not Exception:
                raise
            raise error(Code.IO_ERROR, f"cannot open the KV store {path}: {exc}") from exc

    def _check_format(self) -> None:
        column = self._db.get_column_family(FORMAT_COLUMN)
        stored = column.get(FORMAT_KEY)
        if stored is None:
            column.put(FORMAT_KEY, str(FORMAT_VERSION).encode())
            self._db.flush_wal(True)
        elif int(stored) > FORMAT_VERSION:
            self.close()
            raise error(
                Code.VERSION_MISMATCH,
                f"the KV store {self.path} has format {int(stored)}, this release reads up to {FORMAT_VERSION}",
            )

    def _database(self) -> Any:
        if self._db is None:
            raise error(Code.UNAVAILABLE, "the KV store is closed")
        return self._db

    def transaction(self, *, read_only: bool = False) -> AbstractContextManager[Transaction]:
        self._database()
        return OccTransaction(self, read_only)

    def sync(self) -> None:
        self._database().flush_wal(True)

    def close(self) -> None:
        """Close the database. Later use raises UNAVAILABLE; closing again does nothing."""
        with self._lock:
            if self._db is not None:
                database, self._db, self._newest = self._db, None, None
                database.close()

    def open_snapshot(self) -> _View:
        view = self._newest
        if view is None:
            with self._lock:
                view = self._newest = _View(self, self._version, self._database().snapshot())
        return view

    def scan_at(self, view: _View, begin: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of [begin, end) as `view` has them. Raises TXN_CONFLICT when it is older than the window.

        An iterator of RocksDB shows the database as of its own start (rocksdict 0.3.29 has no iterator on a snapshot:
        the one it offers shows the newest state). What changed between the two is taken from the snapshot instead.
        """
        options = rocksdict.ReadOptions()
        options.set_iterate_upper_bound(end)
        with self._lock:
            changed = self._window.changed_since(view.version)
            database = self._database()
            if reverse:
                pairs: Iterator[tuple[bytes, bytes]] = database.items(backwards=True, read_opt=options)
                pairs = takewhile(lambda pair: pair[0] >= begin, pairs)
            else:
                pairs = database.items(from_key=begin, read_opt=options)
        if not changed:
            return pairs
        return overlay(pairs, {key: view.get(key) for key in changed if begin <= key < end}, reverse)

    def apply(self, transaction: OccTransaction) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in transaction.writes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        with self._lock:
            database = self._database()
            if self._window.conflicts(transaction.snapshot_version, transaction.keys, transaction.ranges):
                raise error(Code.TXN_CONFLICT)
            self._newest = None
            self._commits_begun += 1
            try:
                database.write(batch, self._write_options)
            except Exception as exc:
                # The log may hold the batch: readers go on with what they see, and the caller must find out.
                raise error(Code.TXN_UNKNOWN, f"RocksDB at {self.path}: {exc}") from exc
            finally:
                self._version = self._commits_begun
                self._window.add(self._version, transaction.writes)


def _options() -> Any:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(LOG_FILES_MAX)
    options.set_max_background_jobs(2)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options
