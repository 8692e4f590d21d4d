"""`ffs://` for fsspec on a real local cluster: what its abstract suites do not ask."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import random
import re
import stat
import struct
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.fsspec import FireflyFileSystem, connections
from fireflyfs.deploy.local import LocalCluster
from fireflyfs.proto.common_pb2 import Caller

pytestmark = pytest.mark.e2e

MIB = 1 << 20
NOBODY = 0xFFFFFFFF  # no id: an ACL's entry for a class of users
ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_examples(cluster: LocalCluster, mgmtd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFS_MGMTD", mgmtd)
    text = (ROOT / "docs" / "fsspec.md").read_text()
    names: dict[str, Any] = {"mgmtd": mgmtd}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        exec(compile(block, "docs/fsspec.md", "exec"), names)
    connections.disconnect_all()


def test_a_cluster_is_named_by_url_option_environment_or_root(
    cluster: LocalCluster, mgmtd: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"ffs://{mgmtd}{folder}/file"
    with fsspec.open(url, "wb") as file:
        file.write(b"named")
    by_root, path = fsspec.url_to_fs(f"ffs://{folder}/file", root=str(cluster.root))
    assert by_root.cat_file(path) == b"named"
    by_root.disconnect()
    monkeypatch.setenv("FFS_MGMTD", mgmtd)
    with fsspec.open(f"ffs://{folder}/file", "rb") as file:
        assert file.read() == b"named"
    FireflyFileSystem().disconnect()
    found, path = fsspec.url_to_fs(url)
    assert path == f"{folder}/file"
    assert found.unstrip_protocol(path) == url
    with pytest.raises(ValueError, match="no HOST:PORT"):
        fsspec.open("ffs://data/file", "rb").open()
    with pytest.raises(TypeError, match="colour"):
        FireflyFileSystem(mgmtd=mgmtd, colour="red")
    monkeypatch.delenv("FFS_MGMTD")
    with pytest.raises(FileNotFoundError, match="no cluster"):
        FireflyFileSystem(root="/nowhere", skip_instance_cache=True).ls("/")


def test_attributes(fs: FireflyFileSystem, folder: str) -> None:
    fs.pipe_file(f"{folder}/file", b"12345")
    fs.symlink("file", f"{folder}/link")
    fs.symlink("missing", f"{folder}/dangling")
    fs.mkdir(f"{folder}/dir")
    fs.symlink("dir", f"{folder}/to_dir")
    fs.symlink(".", f"{folder}/dir/loop")
    fs.link(f"{folder}/file", f"{folder}/dir/hard")
    infos = {os.path.basename(info["name"]): info for info in fs.ls(folder)}
    assert {name: info["type"] for name, info in infos.items()} == {
        "file": "file", "link": "file", "dangling": "other", "dir": "directory", "to_dir": "directory",
    }  # fmt: skip
    assert infos["link"] == {**fs.info(f"{folder}/link")}
    assert (infos["link"]["size"], infos["link"]["islink"], infos["link"]["destination"]) == (5, True, "file")
    assert infos["link"]["ino"] == infos["file"]["ino"]
    assert infos["file"]["nlink"] == 2
    assert stat.S_ISREG(infos["file"]["mode"])
    assert fs.ls(f"{folder}/file", detail=False) == [f"{folder}/file"]
    assert fs.find(folder) == [f"{folder}/{name}" for name in ("dangling", "dir/hard", "file", "link")]
    assert fs.find(f"{folder}/file", detail=True)[f"{folder}/file"]["size"] == 5
    assert fs.du(folder) == 15
    assert fs.glob(f"{folder}/*i*") == [f"{folder}/{name}" for name in ("dangling", "dir", "file", "link", "to_dir")]
    assert fs.exists(f"{folder}/link")
    assert not fs.exists(f"{folder}/dangling")
    assert fs.lexists(f"{folder}/dangling")
    assert not fs.exists(f"{folder}/file/below")
    assert fs.islink(f"{folder}/link")
    assert fs.readlink(f"{folder}/link") == "file"
    fs.chmod(f"{folder}/file", 0o600)
    assert fs.info(f"{folder}/file")["mode"] & 0o777 == 0o600
    assert fs.created(f"{folder}/file") <= fs.modified(f"{folder}/file")
    for missing in (fs.info, fs.ls, fs.cat_file, fs.rm, fs.rm_file, fs.modified, fs.ukey):
        with pytest.raises(FileNotFoundError):
            missing(f"{folder}/missing")
    with pytest.raises(IsADirectoryError):
        fs.cat_file(folder)
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{folder}/dir")


def test_ukey_follows_the_bytes(fs: FireflyFileSystem, folder: str, other: FileSystem) -> None:
    path = f"{folder}/file"
    fs.pipe_file(path, b"one")
    before = fs.ukey(path), fs.checksum(path)
    assert (fs.ukey(path), fs.checksum(path)) == before
    other.write_bytes(path, b"two")
    assert fs.ukey(path) != before[0]
    assert fs.checksum(path) != before[1]


def test_what_others_write_is_seen_at_once(fs: FireflyFileSystem, folder: str, other: FileSystem) -> None:
    assert fs.ls(folder) == []
    other.write_bytes(f"{folder}/a", b"x" * 10)
    assert [info["size"] for info in fs.ls(folder)] == [10]
    other.rename(f"{folder}/a", f"{folder}/b")
    assert fs.ls(folder, detail=False) == [f"{folder}/b"]


def test_ranges_and_slices(fs: FireflyFileSystem, folder: str) -> None:
    rng = random.Random(7)
    data = rng.randbytes(3 * MIB + 17)
    fs.pipe({f"{folder}/a": data, f"{folder}/b": data[::-1]})
    bounds: list[tuple[int | None, int | None]] = [
        (None, None), (0, 0), (5, 5), (10, 5), (None, 100), (-100, None), (-100, -50), (MIB - 1, MIB + 1),
        (len(data) - 1, len(data) + 100), (len(data), len(data) + 1), (len(data) + 5, None), (0, 10 * MIB),
        (-10 * MIB, 3),
    ]  # fmt: skip
    for start, end in bounds:
        assert fs.cat_file(f"{folder}/a", start, end) == data[start:end], (start, end)
    many = [(name, rng.randrange(len(data)), rng.randrange(len(data))) for name in "ab" * 40]
    got = fs.cat_ranges([f"{folder}/{name}" for name, _, _ in many], [a for _, a, _ in many], [b for _, _, b in many])
    assert got == [(data if name == "a" else data[::-1])[a:b] for name, a, b in many]
    mixed = fs.cat_ranges([f"{folder}/a", f"{folder}/no", folder], 1, 3)
    assert mixed[0] == data[1:3]
    assert isinstance(mixed[1], FileNotFoundError)
    assert isinstance(mixed[2], IsADirectoryError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{folder}/a", f"{folder}/no"], 1, 3, on_error="raise")
    with pytest.raises(ValueError, match="2 starts"):
        fs.cat_ranges([f"{folder}/a"], [1, 2], [3])
    assert fs.cat(f"{folder}/*") == {f"{folder}/a": data, f"{folder}/b": data[::-1]}
    assert fs.cat([f"{folder}/a", f"{folder}/no"], on_error="omit") == {f"{folder}/a": data}
    assert fs.cat(f"{folder}/a", start=5, end=-7) == data[5:-7]
    assert fs.cat([f"{folder}/a", f"{folder}/b"], start=-9) == {
        f"{folder}/a": data[-9:],
        f"{folder}/b": data[::-1][-9:],
    }
    assert fs.head(f"{folder}/a", 10) == data[:10]
    assert fs.tail(f"{folder}/a", 10) == data[-10:]
    assert fs.read_block(f"{folder}/a", 100, 50) == data[100:150]


@pytest.mark.parametrize("block_size", [0, 1 << 16, 4 * MIB])
def test_reads_of_any_order_and_size(fs: FireflyFileSystem, folder: str, block_size: int) -> None:
    rng = random.Random(block_size)
    data = rng.randbytes(5 * MIB + 3)
    path = f"{folder}/file"
    fs.pipe_file(path, data)
    with fs.open(path, "rb", block_size=block_size) as file:
        assert file.size == len(data)
        model = io.BytesIO(data)
        for _ in range(300):
            choice = rng.random()
            if choice < 0.25:
                place = rng.choice([0, 1, len(data), len(data) + 9, rng.randrange(len(data))])
                assert file.seek(place) == model.seek(place)
            size = rng.choice([0, 1, 100, 4096, 1 << 17, MIB, MIB + 1])
            if choice < 0.6:
                assert file.read(size) == model.read(size)
            else:
                ours, theirs = bytearray(size), bytearray(size)
                assert file.readinto(ours) == model.readinto(theirs)
                assert ours == theirs
            assert file.tell() == model.tell()
        file.seek(0)
        assert file.read() == data


def test_lines_text_and_compression(fs: FireflyFileSystem, folder: str) -> None:
    lines = [f"line {number} ü\n" for number in range(50_000)]
    with fs.open(f"{folder}/text", "w", encoding="utf-8") as file:
        file.writelines(lines)
    with fs.open(f"{folder}/text", "r", encoding="utf-8") as file:
        assert list(file) == lines
    with fs.open(f"{folder}/text.gz", "wt", compression="infer", encoding="utf-8") as file:
        file.writelines(lines)
    with fs.open(f"{folder}/text.gz", "rt", compression="infer", encoding="utf-8") as file:
        assert file.readlines() == lines
    assert fs.info(f"{folder}/text.gz")["size"] < fs.info(f"{folder}/text")["size"]
    with fs.open(f"{folder}/archive.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inside", b"zipped")
    with fs.open(f"{folder}/archive.zip", "rb") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("inside") == b"zipped"


def test_writing_modes(fs: FireflyFileSystem, folder: str) -> None:
    path = f"{folder}/made/on/the/way/file"
    with fs.open(path, "wb") as file:
        assert file.write(b"one") == 3
    for block_size in (0, None):
        with fs.open(path, "ab", block_size=block_size) as file:
            assert file.tell() == 3  # as of a local file: who writes a header only where there is none asks for it
    with fs.open(path, "ab") as file:
        file.write(b"two")
        assert file.tell() == 6
    with fs.open(path, "r+b") as file:
        file.seek(1)
        file.write(b"N")
    assert fs.cat_file(path) == b"oNetwo"
    fs.touch(path, truncate=False)
    assert fs.cat_file(path) == b"oNetwo"
    fs.touch(path)
    assert fs.cat_file(path) == b""
    fs.touch(f"{folder}/new", truncate=False)
    assert fs.isfile(f"{folder}/new")
    strict = FireflyFileSystem(mgmtd=fs.storage_options["mgmtd"], auto_mkdir=False)
    with pytest.raises(FileNotFoundError):
        strict.open(f"{folder}/no/such/file", "wb")
    with pytest.raises(NotADirectoryError):
        fs.pipe_file(f"{path}/below", b"")
    with pytest.raises(IsADirectoryError):
        fs.open(folder, "rb")
    assert not fs.exists(f"{folder}/no")


def test_moves_and_removals(fs: FireflyFileSystem, folder: str) -> None:
    fs.pipe({f"{folder}/a/{name}": name.encode() for name in ("x", "y", "sub/z")})
    inode = fs.info(f"{folder}/a/sub/z")["ino"]
    fs.mv(f"{folder}/a", f"{folder}/new/place")
    assert fs.info(f"{folder}/new/place/sub/z")["ino"] == inode
    assert not fs.exists(f"{folder}/a")
    fs.mv(f"{folder}/new/place/x", f"{folder}/new/place/y")
    assert fs.cat_file(f"{folder}/new/place/y") == b"x"
    fs.mv(f"{folder}/new/place/y", f"{folder}/new/place/sub")
    fs.mv(f"{folder}/new/place/sub/*", f"{folder}/flat/")
    assert fs.find(f"{folder}/flat") == [f"{folder}/flat/y", f"{folder}/flat/z"]
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{folder}/missing", f"{folder}/b/c")
    assert not fs.exists(f"{folder}/b")
    fs.symlink("flat", f"{folder}/link")
    fs.rm(f"{folder}/link", recursive=True)
    assert fs.exists(f"{folder}/flat/y"), "a link was removed, not what it leads to"
    fs.rm([f"{folder}/new", f"{folder}/flat"], recursive=True)
    assert fs.ls(folder) == []


def test_a_copy_is_made_inside_the_cluster(fs: FireflyFileSystem, folder: str) -> None:
    data = random.Random(3).randbytes(2 * MIB + 5)
    fs.pipe_file(f"{folder}/a", data)
    fs.pipe_file(f"{folder}/b", b"x" * 4 * MIB)
    fs.cp_file(f"{folder}/a", f"{folder}/b")
    assert fs.cat_file(f"{folder}/b") == data
    fs.link(f"{folder}/a", f"{folder}/c")
    for target in "ac":
        with pytest.raises(ValueError, match=r"itself|one file"):
            fs.cp_file(f"{folder}/a", f"{folder}/{target}")
    assert fs.cat_file(f"{folder}/a") == data


def test_a_transaction_shows_all_or_nothing(fs: FireflyFileSystem, folder: str, other: FileSystem) -> None:
    fs.pipe_file(f"{folder}/old", b"old")
    with fs.transaction:
        with fs.open(f"{folder}/old", "wb") as file:
            file.write(b"new")
        with fs.open(f"{folder}/deep/second", "xb") as file:
            file.write(b"second")
        assert other.read_bytes(f"{folder}/old") == b"old"
        assert not other.exists(f"{folder}/deep/second")
    assert other.read_bytes(f"{folder}/old") == b"new"
    assert other.read_bytes(f"{folder}/deep/second") == b"second"
    with contextlib.suppress(RuntimeError), fs.transaction:
        with fs.open(f"{folder}/old", "wb") as file:
            file.write(b"never")
        raise RuntimeError
    assert fs.cat_file(f"{folder}/old") == b"new"
    with pytest.raises(ValueError, match="whole files"), fs.transaction:
        fs.open(f"{folder}/old", "ab")
    fs.start_transaction()
    with fs.open(f"{folder}/late", "xb") as file:
        file.write(b"ours")
    other.write_bytes(f"{folder}/late", b"theirs")
    with pytest.raises(FileExistsError):
        fs.end_transaction()
    assert fs.cat_file(f"{folder}/late") == b"theirs"
    assert sorted(fs.find(folder)) == [f"{folder}/{name}" for name in ("deep/second", "late", "old")]


def test_memory_and_local_files(fs: FireflyFileSystem, folder: str, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(9 * MIB + 1)
    (tmp_path / "local").write_bytes(data)
    fs.put_file(tmp_path / "local", f"{folder}/put")
    with pytest.raises(FileExistsError):
        fs.put_file(tmp_path / "local", f"{folder}/put", mode="create")
    fs.get_file(f"{folder}/put", tmp_path / "far" / "back")
    assert (tmp_path / "far" / "back").read_bytes() == data
    into = io.BytesIO()
    fs.get_file(f"{folder}/put", into)
    assert into.getvalue() == data
    with fs.open(f"{folder}/view", "wb") as file:
        file.write(memoryview(data)[5:])
    assert fs.cat_file(f"{folder}/view") == data[5:]


def test_errors_keep_their_kind(fs: FireflyFileSystem, folder: str, mgmtd: str) -> None:
    fs.pipe_file(f"{folder}/secret", b"s")
    fs.chmod(f"{folder}/secret", 0o600)
    with fs.open(f"{folder}/secret", "rb") as file, pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    fs.pipe_file(f"{folder}/shared", b"s")
    nobody = Caller(uid=65534, gid=65534)
    with FileSystem(fs.client.context.acting_for(nobody)) as theirs:
        assert theirs.read_files([f"{folder}/shared", f"{folder}/missing", f"{folder}/secret"])[0] == b"s"
        kinds = [type(one) for one in theirs.read_files([f"{folder}/missing", f"{folder}/secret"])]
        assert kinds == [FileNotFoundError, PermissionError]
        fs.client.chown(f"{folder}/secret", 65534, 0)
        assert theirs.read_files([f"{folder}/secret"]) == [b"s"]
        fs.client.chown(f"{folder}/secret", 0, 0)
        allowed = struct.pack("<I", 2) + b"".join(
            struct.pack("<HHI", tag, perm, number)
            for tag, perm, number in [(1, 6, NOBODY), (2, 4, 65534), (4, 0, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]
        )
        fs.client.setxattr(f"{folder}/secret", "system.posix_acl_access", allowed)
        assert theirs.read_files([f"{folder}/secret"]) == [b"s"], "an ACL names the user"


def test_instances_threads_and_pickles(fs: FireflyFileSystem, folder: str, mgmtd: str) -> None:
    fs.pipe_file(f"{folder}/file", b"0123456789")
    assert FireflyFileSystem(mgmtd=mgmtd) is fs
    again = pickle.loads(pickle.dumps(fs))
    assert again == fs
    with fs.open(f"{folder}/file", "rb") as file:
        file.seek(4)
        with pickle.loads(pickle.dumps(file)) as copy:
            assert copy.read() == b"456789"
    with fs.open(f"{folder}/w", "wb") as file, pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(file)
    clients: list[FileSystem] = []
    threads = [threading.Thread(target=lambda: clients.append(FireflyFileSystem(mgmtd=mgmtd).client)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [client is fs.client for client in clients] == [True] * 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_instance_works_in_child_processes(fs: FireflyFileSystem, folder: str, method: str) -> None:
    fs.pipe_file(f"{folder}/file", b"inherited")
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as children:
        assert list(children.map(fs.cat_file, [f"{folder}/file"] * 4, timeout=60)) == [b"inherited"] * 4
    assert fs.cat_file(f"{folder}/file") == b"inherited", "the parent's connection lives"
