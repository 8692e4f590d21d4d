"""`ffs fsck` on a real cluster: each kind of damage planted for real, found, mended; work that goes on is no damage."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crc32c
import pytest

from fireflyfs.client.cli import exits
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.fsck.check import Check
from fireflyfs.client.fsck.cluster import Cluster
from fireflyfs.client.storage_client import WriteSpan
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.ids import InodeId
from fireflyfs.common.net.api import Call
from fireflyfs.common.net.methods import Method
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.proto import meta_pb2, storage_pb2
from fireflyfs.proto.common_pb2 import Caller
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Writer
from fireflyfs.storage.service.wire import Item, decode_results, encode_update

pytestmark = pytest.mark.e2e

CHUNK = 1 << 16
COMMAND_S = 180
DATA = random.Random(7).randbytes(9 * CHUNK + 1000)
Found = set[tuple[str, int, int]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    local = LocalCluster(tmp_path_factory.mktemp("fsck"))
    local.create(ClusterSpec(replicas=3, chunk_size=CHUNK, capacity_bytes=4 << 30))
    local.up()
    yield local
    local.down()


@pytest.fixture
def fs(cluster: LocalCluster) -> Iterator[FileSystem]:
    with connect(cluster) as connected:
        yield connected


def connect(cluster: LocalCluster, **options: Any) -> FileSystem:
    return FileSystem.connect(",".join(cluster.mgmtd_addresses()), **options)


def fsck(cluster: LocalCluster, *arguments: str, code: int = exits.OK) -> dict[str, Any]:
    words = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root), "--json", "fsck"]
    done = subprocess.run(
        [*words, "--pause", "0.5", *arguments], capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1500:]}"
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["clean"] is (code == exits.OK)
    return facts


def found(facts: dict[str, Any]) -> Found:
    return {(row["kind"], row["inode"], row["index"]) for row in facts["findings"]}


def layout_of(fs: FileSystem, path: str) -> FileLayout:
    at = meta_pb2.PathAt(dir=1, path=path.encode())
    inode = fs.context.meta.stat(meta_pb2.StatRequest(at=at)).inode
    return FileLayout.of(inode.id, inode.layout)


def forgotten_inode(fs: FileSystem) -> int:
    """An id that was given out, and whose file and chunks are gone."""
    fs.write_bytes("/short-lived", b"x")
    inode = fs.stat("/short-lived").st_ino
    fs.unlink("/short-lived")
    deadline = time.monotonic() + 30
    while fs.context.meta.list_files(meta_pb2.ListFilesRequest(inodes=[inode])).files:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return inode


def write_chunk(fs: FileSystem, inode: int, index: int, chain: int, data: bytes) -> None:
    """Behind the metadata's back."""
    span = WriteSpan(FileLayout(InodeId(inode), CHUNK, (chain,)), index * CHUNK, memoryview(data))
    assert not fs.context.storage.write([span])


def at_the_tail_alone(fs: FileSystem, file: FileLayout, index: int, kind: UpdateKind, data: bytes = b"") -> None:
    """An update that only the last replica of the chunk's chain gets, as if its predecessor had sent it."""
    chain = fs.context.routing.current().chain(file.chain_of(index))
    address = fs.context.routing.current().address(chain.serving[-1])
    ask = storage_pb2.QueryChunkRequest(
        chain_id=chain.chain_id, chunk=storage_pb2.ChunkId(inode=file.inode, index=index)
    )
    call = Call(Method.STORAGE_QUERY_CHUNK, ask.SerializeToString())
    state = storage_pb2.QueryChunkReply.FromString(bytes(fs.context.link.call(address, call).body)).state
    extents = [Extent(0, memoryview(data), crc32c.crc32c(data))] if data else []
    key = ChunkKey(file.inode, index)
    item = Item(key, kind, state.committed_version + 1, CHUNK, len(data), extents=extents, base=state.committed_version)
    body, pieces = encode_update(chain.chain_id, chain.version, Writer(os.urandom(16), 1, 1), 0, [item])
    answer = fs.context.link.call(address, Call(Method.STORAGE_UPDATE, body, out=pieces))
    assert decode_results(answer.body, 1)[0].code is Code.OK


def copies_of(fs: FileSystem) -> dict[int, dict[tuple[int, int], tuple[int, int, int]]]:
    """Everything on every replica: target to chunk to (version, length, checksum)."""
    routing = fs.context.routing.current()
    held: dict[int, dict[tuple[int, int], tuple[int, int, int]]] = {}
    for chain in routing.chains.values():
        for target in chain.serving:
            request = storage_pb2.ListChunksRequest(target_id=target)
            reply = fs.context.link.call(
                routing.address(target), Call(Method.STORAGE_LIST_CHUNKS, request.SerializeToString())
            )
            states = [one.state for one in storage_pb2.ListChunksReply.FromString(bytes(reply.body)).chunks]
            held[target] = {(s.chunk.inode, s.chunk.index): (s.committed_version, s.length, s.crc32c) for s in states}
    return held


def test_an_untouched_cluster_is_clean(cluster: LocalCluster, fs: FileSystem) -> None:
    fs.write_bytes("/clean", DATA)
    with fs.open_file("/sparse", os.O_CREAT | os.O_RDWR) as file:
        file.pwrite(b"end", 40 * CHUNK)
    facts = fsck(cluster)
    assert facts["findings"] == facts["notes"] == []
    assert facts["files"] == 2
    assert facts["files_with_holes"] == 1
    assert facts["chunks"] == 11
    assert facts["copies"] == 33
    text = subprocess.run(
        [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root), "fsck"],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=True,
    )
    assert text.stdout == "2 files (1 with holes), 11 chunks, 33 copies: clean\n"
    assert text.stderr == ""


def test_each_kind_of_damage_is_found_and_mended(cluster: LocalCluster, fs: FileSystem) -> None:
    for name in ("a", "b", "c"):
        fs.write_bytes(f"/{name}", DATA)
    a, b, c = (layout_of(fs, f"/{name}") for name in ("a", "b", "c"))
    assert len(set(a.chains)) == 2
    orphan = forgotten_inode(fs)
    other = next(chain for chain in a.chains if chain != a.chain_of(0))
    write_chunk(fs, orphan, 3, a.chains[0], b"nobody's")
    write_chunk(fs, orphan, 4, a.chains[1], DATA[:CHUNK])
    write_chunk(fs, a.inode, 0, other, DATA[:CHUNK])
    write_chunk(fs, a.inode, 12, a.chain_of(12), b"beyond the end")
    write_chunk(fs, b.inode, 9, b.chain_of(9), DATA[9 * CHUNK :] + b"and some more")
    missing = next(index for index in range(9) if b.chain_of(index) == min(b.chains))
    at_the_tail_alone(fs, b, missing, UpdateKind.REMOVE)
    newer = next(index for index in range(9) if c.chain_of(index) == max(c.chains))
    at_the_tail_alone(fs, c, newer, UpdateKind.REPLACE, DATA[newer * CHUNK : (newer + 1) * CHUNK])
    expected: Found = {
        ("orphan", orphan, 3),
        ("orphan", orphan, 4),
        ("misplaced", a.inode, 0),
        ("beyond end", a.inode, 12),
        ("beyond end", b.inode, 9),
        ("missing", b.inode, missing),
        ("differs", c.inode, newer),
    }
    before = copies_of(fs)
    assert found(fsck(cluster, code=exits.FINDINGS)) == expected
    assert copies_of(fs) == before, "without --repair nothing changes"
    tails = {chain.serving[-1] for chain in fs.context.routing.current().chains.values()}

    facts = fsck(cluster, "--repair")
    assert found(facts) == expected
    assert all(row["repaired"] for row in facts["findings"])
    (lost,) = (row for row in facts["findings"] if row["kind"] == "missing")
    assert set(lost["targets"]) <= tails
    cluster.wait_serving()
    assert fsck(cluster)["findings"] == []
    for name in ("a", "b", "c"):
        assert fs.read_bytes(f"/{name}") == DATA
        assert fs.stat(f"/{name}").st_size == len(DATA)
    held = copies_of(fs)
    for chain in fs.context.routing.current().chains.values():
        assert len(chain.serving) == 3
        assert all(held[target] == held[chain.serving[0]] for target in chain.serving)
    assert not any(inode == orphan for chunks in held.values() for inode, _ in chunks)


def test_an_orphan_whose_id_was_not_given_out_yet_is_told_and_left(cluster: LocalCluster, fs: FileSystem) -> None:
    future = 1 << 40
    chain = min(fs.context.routing.current().chains)
    write_chunk(fs, future, 0, chain, b"from where?")
    facts = fsck(cluster, "--repair", code=exits.FINDINGS)
    assert found(facts) == {("orphan", future, 0)}
    assert facts["findings"][0]["repaired"] is None
    fs.context.storage.remove(FileLayout(InodeId(future), CHUNK, (chain,)))
    fsck(cluster)


def test_only_root_may_check(cluster: LocalCluster) -> None:
    with connect(cluster, caller=Caller(uid=1000, gid=1000)) as other:
        view = Cluster(other.context)
        with pytest.raises(FfsError) as caught:
            Check(view).run()
        view.close()
    assert caught.value.code is Code.NOT_PERMITTED


class Busy(threading.Thread):
    """Makes, writes, appends to, cuts, renames and removes files of its own; knows what they must hold."""

    def __init__(self, cluster: LocalCluster, number: int) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.number = number
        self.chance = random.Random(number)
        self.content: dict[str, bytearray] = {}
        self.halt = threading.Event()
        self.actions = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with connect(self.cluster) as fs:
                fs.mkdir(f"/busy{self.number}")
                while not self.halt.is_set():
                    self.chance.choice([self.make, self.make, self.change, self.cut, self.remove])(fs)
                    self.actions += 1
        except BaseException as exc:
            self.failure = exc

    def make(self, fs: FileSystem) -> None:
        name = f"/busy{self.number}/{self.chance.randrange(20)}"
        data = self.chance.randbytes(self.chance.choice([0, 10, CHUNK, 3 * CHUNK + 5, 12 * CHUNK]))
        fs.write_bytes(name, data)
        self.content[name] = bytearray(data)

    def change(self, fs: FileSystem) -> None:
        """Through one open file for a while: the recorded length is behind what is written."""
        if not self.content:
            return
        name = self.chance.choice(sorted(self.content))
        content = self.content[name]
        with fs.open_file(name, os.O_RDWR) as file:
            for _ in range(self.chance.randint(1, 8)):
                offset = self.chance.randrange(len(content) + CHUNK)
                data = self.chance.randbytes(self.chance.choice([1, 5000, 2 * CHUNK]))
                file.pwrite(data, offset)
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
                time.sleep(self.chance.choice([0, 0, 0.05, 0.3]))

    def cut(self, fs: FileSystem) -> None:
        if not self.content:
            return
        name = self.chance.choice(sorted(self.content))
        length = self.chance.randrange(len(self.content[name]) + CHUNK)
        fs.truncate(name, length)
        content = self.content[name]
        content.extend(bytes(max(0, length - len(content))))
        del content[length:]

    def remove(self, fs: FileSystem) -> None:
        if not self.content:
            return
        name = self.chance.choice(sorted(self.content))
        if self.chance.random() < 0.5:
            fs.unlink(name)
        else:  # removed while it is open, and written on
            with fs.open_file(name, os.O_RDWR) as file:
                fs.unlink(name)
                file.pwrite(b"z" * CHUNK, 5 * CHUNK)
                time.sleep(0.2)
        del self.content[name]


def test_work_that_goes_on_is_no_finding_and_repair_harms_none_of_it(cluster: LocalCluster, fs: FileSystem) -> None:
    workers = [Busy(cluster, number) for number in range(3)]
    for worker in workers:
        worker.start()
    runs = 0
    until = time.monotonic() + 30
    looked: list[int] = []
    with connect(cluster) as own:
        view = Cluster(own.context)
        look = view.look

        def counted(suspects: Any) -> Any:
            looked.append(len(suspects))
            return look(suspects)

        view.look = counted  # type: ignore[method-assign]
        while time.monotonic() < until:
            report = Check(view, repair=True, pause_s=0.3).run()
            assert report.findings == []
            assert report.notes == []
            runs += 1
        view.close()
    for worker in workers:
        worker.halt.set()
    for worker in workers:
        worker.join(60)
        assert worker.failure is None, worker.failure
        assert worker.actions > 10
    assert runs >= 3
    assert sum(looked), "the check never had to look twice: the test shows nothing"
    for worker in workers:
        for name, content in worker.content.items():
            assert fs.read_bytes(name) == content, name
    assert fsck(cluster)["findings"] == []
    for worker in workers:
        fs.rmtree(f"/busy{worker.number}")


def test_copies_into_a_mount_are_no_finding(cluster: LocalCluster, tmp_path: Path) -> None:
    """Write-behind: what programs have written is in storage before meta hears of a length."""
    words = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(cluster.root)]
    point, source = tmp_path / "mount", Path(json.__file__).parent.parent
    subprocess.run([*words, "mount", str(point)], check=True, timeout=COMMAND_S, capture_output=True)
    script = (
        'set -e; for n in 1 2 3; do mkdir "$1/c$n"; cp -a "$2/asyncio" "$2/email" "$1/c$n/"; '
        'for i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/urandom; sleep 0.1; done > "$1/c$n/slow"; '
        'truncate -s 70000 "$1/c$n/slow"; cat "$1/c$n/slow" >> "$1/c$n/slow2"; '
        '[ $n = 1 ] || rm -r "$1/c$((n - 1))"; done'
    )
    try:
        with (
            subprocess.Popen(["sh", "-c", script, "sh", str(point), str(source)]) as copying,
            connect(cluster) as own,
            contextlib.closing(Cluster(own.context)) as view,
        ):
            runs = 0
            while copying.poll() is None or runs < 2:
                report = Check(view, repair=True, pause_s=0.3).run()
                assert report.findings == []
                runs += 1
        assert copying.returncode == 0
        assert (point / "c3/slow").stat().st_size == (point / "c3/slow2").stat().st_size == 70000
        subprocess.run(
            ["diff", "-r", "-x", "__pycache__", source / "email", point / "c3/email"], check=True, timeout=COMMAND_S
        )
    finally:
        subprocess.run([*words, "umount", str(point)], check=True, timeout=COMMAND_S, capture_output=True)
    assert fsck(cluster)["findings"] == []


def test_a_cluster_with_servers_away(cluster: LocalCluster, fs: FileSystem) -> None:
    fs.write_bytes("/kept", DATA)
    for name in ("storage-1", "storage-2"):
        cluster.kill(name)
    deadline = time.monotonic() + 30
    while any(len(chain.serving) != 1 for chain in cluster.routing().chains.values()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert fsck(cluster)["findings"] == [], "the replicas that are left agree with themselves"
    cluster.kill("storage-3")
    while any(chain.serving for chain in cluster.routing().chains.values()):
        assert time.monotonic() < deadline + 30
        time.sleep(0.2)
    facts = fsck(cluster, "--repair", code=exits.FINDINGS)
    assert {row["kind"] for row in facts["findings"]} == {"not serving"}
    assert {row["chain"] for row in facts["findings"]} == set(cluster.routing().chains)
    cluster.up()
    assert fsck(cluster)["findings"] == []
    assert fs.read_bytes("/kept") == DATA
