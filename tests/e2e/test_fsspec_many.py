"""Many files at once through fsspec: batches, threads, transactions, caches that callers choose."""

from __future__ import annotations

import contextlib
import io
import os
import random
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from fsspec.callbacks import Callback
from fsspec.parquet import open_parquet_file

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.fsspec import FireflyFileSystem, many

pytestmark = pytest.mark.e2e


@pytest.fixture
def tree() -> dict[str, bytes]:
    """Relative names and bytes: empty, small, and larger than what is read in batches, in directories."""
    rng = random.Random(13)
    small = {f"d{n % 3}/{n}": rng.randbytes(n * 37) for n in range(100)}
    return small | {"empty": b"", "d1/edge": rng.randbytes(many.SMALL_BYTES), "big": rng.randbytes(3 << 20)}


class Counted(Callback):  # type: ignore[misc]
    """How many files were told, and how many bytes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def branched(self, path_1: Any, path_2: Any, **_: Any) -> Any:
        return _Bytes(self)


class _Bytes(Callback):  # type: ignore[misc]
    def __init__(self, total: Counted) -> None:
        super().__init__()
        self.total = total

    def relative_update(self, inc: int = 1) -> None:
        self.total.nbytes += inc


def test_a_tree_goes_in_and_out_and_is_copied(
    fs: FireflyFileSystem, folder: str, tmp_path: Path, tree: dict[str, bytes], other: FileSystem
) -> None:
    fs.pipe({f"{folder}/piped/{name}": data for name, data in tree.items()})
    out = Counted()
    fs.get(f"{folder}/piped", str(tmp_path / "out"), recursive=True, callback=out)
    local = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    local |= {name: (tmp_path / "out" / name).read_bytes() for name in tree}
    assert local == tree
    assert out.value == out.size == len(tree) + 3 + 1, "files, their directories, and the one that was named"
    assert out.nbytes == sum(map(len, tree.values()))
    fs.put(str(tmp_path / "out"), f"{folder}/put", recursive=True)
    fs.copy(f"{folder}/put", f"{folder}/copy", recursive=True)
    for place in ("put", "copy"):
        found = {name: other.read_bytes(f"{folder}/{place}/{name}") for name in tree}
        assert found == tree, place
    fs.get(f"{folder}/put/d0/*", str(tmp_path / "some") + "/")
    assert sorted(os.listdir(tmp_path / "some")) == sorted(name[3:] for name in tree if name.startswith("d0/"))


def test_lists_and_open_files_as_targets(fs: FireflyFileSystem, folder: str, mgmtd: str, tmp_path: Path) -> None:
    fs.pipe({f"{folder}/a": b"one", f"{folder}/b": b"two"})
    into = io.BytesIO()
    fs.get([f"ffs://{mgmtd}{folder}/a", f"{folder}/b"], [str(tmp_path / "deep" / "a"), into])
    assert ((tmp_path / "deep" / "a").read_bytes(), into.getvalue()) == (b"one", b"two")
    fs.put([str(tmp_path / "deep" / "a")] * 2, [f"{folder}/c", f"ffs://{mgmtd}{folder}/new/d"])
    assert fs.cat([f"{folder}/c", f"{folder}/new/d"]) == {f"{folder}/c": b"one", f"{folder}/new/d": b"one"}


def test_the_first_error_is_raised(fs: FireflyFileSystem, folder: str, tmp_path: Path) -> None:
    fs.pipe({f"{folder}/{n}": b"%d" % n for n in range(10)})
    names = [f"{folder}/{n}" for n in range(10)]
    with pytest.raises(FileNotFoundError, match="missing"):
        fs.get([*names, f"{folder}/missing"], [str(tmp_path / str(n)) for n in range(11)])
    assert (tmp_path / "9").read_bytes() == b"9", "what came before it is there"
    with pytest.raises(FileExistsError):
        fs.pipe(dict.fromkeys([f"{folder}/fresh", *names], b"new"), mode="create")
    assert fs.cat_file(names[0]) == b"0"
    with pytest.raises(NotADirectoryError):
        fs.pipe({f"{folder}/1/below": b"", f"{folder}/2/below": b""})
    with pytest.raises(FileNotFoundError):
        fs.copy([names[0], f"{folder}/missing"], [f"{folder}/x", f"{folder}/y"])
    fs.copy([names[0], f"{folder}/missing"], [f"{folder}/x", f"{folder}/y"], on_error="ignore")
    assert fs.cat_file(f"{folder}/x") == b"0"
    assert not fs.exists(f"{folder}/y")


def test_a_file_that_grows_while_it_is_fetched(
    fs: FireflyFileSystem, folder: str, tmp_path: Path, other: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.pipe({f"{folder}/a": b"a", f"{folder}/b": b"b"})
    data = random.Random(1).randbytes(2 * many.SMALL_BYTES)
    inode_batch = fs.client.inode_batch

    def late(paths: list[str], **kwargs: Any) -> Any:
        found = inode_batch(paths, **kwargs)
        other.write_bytes(f"{folder}/a", data)
        return found

    monkeypatch.setattr(fs.client, "inode_batch", late)
    fs.get(folder, str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out" / "a").read_bytes() == data
    assert (tmp_path / "out" / "b").read_bytes() == b"b"


def test_a_transaction_holds_whole_files_too(
    fs: FireflyFileSystem, folder: str, tmp_path: Path, other: FileSystem
) -> None:
    (tmp_path / "local").write_bytes(b"local")
    with fs.transaction:
        fs.pipe({f"{folder}/{n}": b"%d" % n for n in range(5)})
        fs.put_file(tmp_path / "local", f"{folder}/put")
        with pytest.raises(FileNotFoundError):
            other.read_bytes(f"{folder}/put")
    assert sorted(other.listdir(folder)) == [*"01234", "put"]
    assert other.read_bytes(f"{folder}/put") == b"local"
    with contextlib.suppress(ZeroDivisionError), fs.transaction:
        fs.pipe({f"{folder}/a": b"", f"{folder}/b": b""})
        raise ZeroDivisionError
    assert sorted(other.listdir(folder)) == [*"01234", "put"]


def test_removing_what_lies_in_each_other(fs: FireflyFileSystem, folder: str) -> None:
    fs.pipe({f"{folder}/{name}": b"" for name in ("a/b/c", "a/d", "a-b", "e")})
    fs.rm([f"{folder}/a", f"{folder}/a/b", f"{folder}/a/b/c"], recursive=True)
    assert fs.find(folder) == [f"{folder}/a-b", f"{folder}/e"]
    fs.pipe({f"{folder}/a/b/c": b""})
    fs.rm(f"{folder}/a/**", recursive=True)
    assert fs.ls(folder, detail=False) == [f"{folder}/a-b", f"{folder}/e"]


def test_a_cache_that_the_caller_chooses(
    fs: FireflyFileSystem, folder: str, mgmtd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(3).randbytes(1 << 20)
    fs.pipe_file(f"{folder}/file", data)
    with fsspec.open(
        f"blockcache::ffs://{mgmtd}{folder}/file", "rb", blockcache={"cache_storage": str(tmp_path)}
    ) as file:
        assert file.read() == data
    with fs.open(f"{folder}/file", "rb", cache_type="parts", cache_options={"data": {(10, 20): data[10:20]}}) as file:
        monkeypatch.setattr(fs, "cat_file", None)
        file.seek(12)
        assert file.read(8) == data[12:20], "nobody was asked"
    with pytest.raises(KeyError):
        fs.open(f"{folder}/file", "rb", cache_type="nonsense")


def test_parquet_columns_are_read_at_once_when_opened(
    fs: FireflyFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{folder}/table.parquet"
    plain: dict[str, Any] = {"use_dictionary": False, "compression": "none"}
    columns = {f"c{n}": np.arange(n, n + 200_000) for n in range(4)}
    pyarrow.parquet.write_table(pa.table(columns), path, filesystem=fs, row_group_size=10_000, **plain)
    asked: list[int] = []
    cat_ranges = fs.cat_ranges

    def counting(paths: list[str], *args: Any, **kwargs: Any) -> Any:
        asked.append(len(paths))
        return cat_ranges(paths, *args, **kwargs)

    monkeypatch.setattr(fs, "cat_ranges", counting)
    with open_parquet_file(path, fs=fs, columns=["c2"], engine="pyarrow") as file:
        monkeypatch.setattr(fs, "cat_file", None)
        found = pyarrow.parquet.read_table(file, columns=["c2"])["c2"]
    np.testing.assert_array_equal(found.to_numpy(), columns["c2"])
    assert max(asked) >= 10, "all row groups in one batch"
