"""The RocksDB of one target: options with bounded memory, errors as ours, ranges. Keys and values: `record.py`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rocksdict import AccessType, BlockBasedOptions, Cache, Options, Rdict, ReadOptions, WriteBatch, WriteBufferManager

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import MiB

BLOCK_CACHE_BYTES = 48 * MiB  # of one process, however many targets it has
WRITE_BUFFERS_BYTES = 32 * MiB  # the same: beyond, the fullest memtable is written out
WRITE_BUFFER_BYTES = 8 * MiB  # one memtable
WRITE_BUFFERS_MAX = 3  # of one target
OPEN_FILES_MAX = 256
# Files of level 0 that are merged into the next one. RocksDB's own choice is 4: each merge writes all of level 1 again,
# and most of what overwrites log is dead soon. Each file more costs a look-up one filter.
LEVEL_0_FILES = 8

__all__ = ["MetaStore", "WriteBatch", "new_batch"]


def new_batch() -> WriteBatch:
    return WriteBatch(raw_mode=True)


@cache
def _shared() -> tuple[Cache, WriteBufferManager]:
    """The memory that all stores of this process share."""
    return Cache(BLOCK_CACHE_BYTES), WriteBufferManager(WRITE_BUFFERS_BYTES, False)


def _options() -> Options:
    block_cache, write_buffers = _shared()
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX)
    options.set_write_buffer_manager(write_buffers)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_level_zero_file_num_compaction_trigger(LEVEL_0_FILES)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(4 * MiB)
    options.set_stats_dump_period_sec(0)
    options.set_max_background_jobs(2)
    table = BlockBasedOptions()
    table.set_block_cache(block_cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options


def _translate(exc: Exception, what: str) -> FfsError:
    """RocksDB's errors come as plain exceptions with a text.

    A full disk is a failed one here: the log was cut short, and RocksDB takes no more writes until it is opened again.
    BlockStore keeps a reserve so that it does not come to that.
    """
    text = str(exc)
    if "lock hold by" in text or "No locks available" in text:
        return error(Code.BUSY, f"{what}: another process has it open")
    return error(Code.DISK_FAILED, f"{what}: {text}")


class MetaStore:
    """Keys to values, with atomic batches. Thread-safe. `get` sees every batch written before it."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = Rdict(str(path), _options(), access_type=AccessType.read_write())
        except Exception as exc:
            raise _translate(exc, f"opening {path}") from exc
        self._get = self._db.get
        self.written_bytes = 0  # given to the log

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._get(key)
        except Exception as exc:
            raise _translate(exc, "reading metadata") from exc
        return value

    def write(self, batch: WriteBatch) -> None:
        """All of the batch or nothing, in the log when this returns (the page cache: see flush)."""
        self.written_bytes += batch.size_in_bytes()
        try:
            self._db.write(batch)
        except Exception as exc:
            raise _translate(exc, "writing metadata") from exc

    def put(self, key: bytes, value: bytes) -> None:
        batch = new_batch()
        batch.put(key, value)
        self.write(batch)

    def flush(self) -> None:
        """Every batch written before this call survives a power cut."""
        try:
            self._db.flush_wal(True)
        except Exception as exc:
            raise _translate(exc, "syncing metadata") from exc

    def range(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) with begin <= key < end, in order, as of one moment.

        There is no way back: rocksdict 0.3.29 sets the upper bound when it is asked for a lower one, so that an
        iterator that goes backwards would look at everything below the range, deleted keys included.
        """
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        try:
            for key, value in self._db.items(from_key=begin, read_opt=options):
                assert isinstance(key, bytes)
                yield key, value
        except FfsError:
            raise
        except Exception as exc:
            raise _translate(exc, "listing metadata") from exc

    def stats(self) -> dict[str, float]:
        names = ("rocksdb.estimate-num-keys", "rocksdb.cur-size-all-mem-tables", "rocksdb.total-sst-files-size")
        own = {"metadata_bytes": float(self.written_bytes)}
        return own | {name: float(self._db.property_int_value(name) or 0) for name in names}

    def close(self) -> None:
        self._db.close()
