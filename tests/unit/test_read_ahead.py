"""Reading a store's tables ahead: bounded, newest first, ended by whoever started it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from fireflyfs.common.kv import read_ahead as module
from fireflyfs.common.kv.read_ahead import available_bytes, read_ahead, read_tables
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.common.limits import KiB, MiB


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for number, nbytes in ((7, 3 * MiB), (12, 100 * KiB), (9, 1)):
        (tmp_path / f"{number:06d}.sst").write_bytes(bytes(nbytes))
    (tmp_path / "000013.log").write_bytes(bytes(MiB))  # no table: the store reads it itself
    return tmp_path


def test_it_reads_all_tables_and_nothing_else(tables: Path) -> None:
    assert read_tables(tables, 1 << 40, threading.Event()) == 3 * MiB + 100 * KiB + 1


def test_it_reads_no_more_than_it_may(tables: Path) -> None:
    assert read_tables(tables, 2 * MiB + 5, threading.Event()) == 2 * MiB + 5
    assert read_tables(tables, 0, threading.Event()) == 0


def test_it_begins_with_the_newest_table(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really_open = module.os.open
    monkeypatch.setattr(module.os, "open", lambda path, flags: opened.append(path.name) or really_open(path, flags))
    read_tables(tables, 1 << 40, threading.Event())
    assert opened == ["000012.sst", "000009.sst", "000007.sst"]


def test_it_stops_when_it_is_told(tables: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert read_tables(tables, 1 << 40, stop) == 0


def test_a_table_that_was_compacted_away_is_passed_over(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = sorted(tables.glob("*.sst"))
    (tables / "000012.sst").unlink()
    monkeypatch.setattr(Path, "glob", lambda _self, _pattern: iter(listed))
    assert read_tables(tables, 1 << 40, threading.Event()) == 3 * MiB + 1


def test_cancelled_it_tells_its_thread_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, told = threading.Event(), threading.Event()

    def read(_folder: Path, _bytes_max: int, stop: threading.Event) -> int:
        begun.set()
        if stop.wait(10):
            told.set()
        return 0

    async def main() -> None:
        job = asyncio.create_task(read_ahead(tmp_path, MiB))
        await asyncio.to_thread(begun.wait, 10)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    monkeypatch.setattr(module, "read_tables", read)
    asyncio.run(main())  # which waits for the thread
    assert told.is_set()


def test_a_disk_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "000001.sst").mkdir()  # reading it is EISDIR
    asyncio.run(read_ahead(tmp_path, MiB))
    assert "could not be read ahead" in caplog.text


def test_the_tables_of_a_real_store_are_found(tmp_path: Path) -> None:
    kv = RocksKv(tmp_path)
    try:
        with kv.transaction() as txn:
            txn.put(b"key", b"value")
            txn.commit()
        kv._database().flush()
        assert read_tables(tmp_path, MiB, threading.Event()) > 0
    finally:
        kv.close()


def test_the_kernel_says_how_much_memory_there_is() -> None:
    assert available_bytes() > MiB
