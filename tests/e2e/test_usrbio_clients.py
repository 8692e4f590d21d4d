"""Programs that were written for 3FS, as their authors published them, on a mount of ours (usrbio_clients.sh)."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]

CLIENTS = Path(sys.prefix) / "usrbio-clients"
TIB = 1 << 40


@pytest.fixture
def point(cluster: Any, mount_of: Any) -> Path:
    return mount_of(cluster, "--subtype", "hf3fs").point


def run(script: str, *arguments: object, **environment: str) -> str:
    """What the script prints, as a program whose imports find the published packages first."""
    assert (CLIENTS / ".complete").exists(), "`make dev` fetches the programs that these tests run"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    settings = os.environ | {"PYTHONPATH": str(CLIENTS)} | environment
    settings.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


DEMO = """
import os, sys, hf3fs_fuse.io, hf3fs_py_usrbio
from hf3fs_fuse.io import *
from hf3fs_fuse.io import make_iovec, make_ioring, register_fd, deregister_fd, read_file, extract_mount_point
from multiprocessing.shared_memory import SharedMemory
mount, name, clients = sys.argv[1:]
assert hf3fs_fuse.io.__file__.startswith(clients) and not hf3fs_py_usrbio.__file__.startswith(clients)
path = f"{mount}/{name}"
shm = SharedMemory(size=1024, create=True)
iov = make_iovec(shm, mount, 0, -1)
shm.unlink()
ior = make_ioring(mount, 100, True, 0)
fd = os.open(path, os.O_RDONLY)
register_fd(fd)
ios = [(iov[:512], fd, 512), (iov[512:], fd, 0)]
for io in ios:
    ior.prepare(io[0], True, io[1], io[2], userdata=io)
for res in ior.submit().wait(min_results=2):
    assert res.result == len(memoryview(res.userdata[0])) == 512
whole = open(path, "rb").read()
assert bytes(shm.buf) == whole[512:1024] + whole[:512]
deregister_fd(fd)
os.close(fd)
assert read_file(path, block_size=100_000) == whole
assert extract_mount_point(path) == mount
seen = []
def cb(block, offset):
    seen.append((offset, len(block)))
    return offset + 300_000 if offset < 600_000 else offset >= 700_000
assert read_file(path, block_size=100_000, cb=cb) is None
assert seen == [(0, 100_000), (300_000, 100_000), (600_000, 100_000), (700_000, 100_000)]
del ior, iov, res, io, ios
shm.close()
print("done")
"""


def test_the_published_half_of_the_module(point: Path) -> None:
    """DeepSeek's hf3fs_fuse.io over our hf3fs_py_usrbio: its demonstration, and read_file."""
    (point / "demo").write_bytes(os.urandom(1_000_001))
    assert run(DEMO, point, "demo", CLIENTS) == "done\n"
    end_s = time.monotonic() + 10
    while os.listdir(point / "3fs-virt/iovs"):  # the program has ended: the mount hears of it
        assert time.monotonic() < end_s
        time.sleep(0.01)


READER = """
import ctypes, hashlib, json, sys
import fastsafetensor_3fs_reader as package
path, mount, header, body, buffer_size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
reader = package.ThreeFSFileReader(mount_point=mount, buffer_size=buffer_size)
said, length, size = reader.read_headers_batch([path])[path]
assert (length, size) == (8 + header, 8 + header + body), (length, size)
# Without a GPU the Python backend cannot copy: what it read is where it landed.
landing = (ctypes.c_ubyte * reader.iov_length).from_address(reader.iov_base)
digest, done = hashlib.sha256(), 0
while done < body:
    count = reader.read_chunked(path, 0, 8 + header + done, min(buffer_size, body - done), 0)
    assert count > 0
    digest.update(memoryview(landing)[:count])
    done += count
reader.close()
print(json.dumps([package.get_backend(), digest.hexdigest(), package.extract_mount_point(path)]))
"""


@pytest.mark.parametrize("backend", ["cpp", "python"])
def test_a_reader_of_model_files(point: Path, backend: str) -> None:
    """Its compiled extension stands on libhf3fs_api_shared.so, which it finds in the package; the other on Python."""
    import hashlib

    body = os.urandom(20_000_003)
    tensor = {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}
    header = json.dumps({"a": tensor}).encode()
    path = point / f"{backend}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    said = run(READER, path, point, len(header), len(body), 8 << 20, FASTSAFETENSORS_BACKEND=backend)
    assert json.loads(said) == [backend, hashlib.sha256(body).hexdigest(), str(point)]


WRITERS = """
import os, sys
from multiprocessing.shared_memory import SharedMemory
from hf3fs_fuse.io import make_iovec, make_ioring, register_fd, deregister_fd
path, mount, clients, each, size, total = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
def client(number):
    shm = SharedMemory(size=8 << 20, create=True)
    iov = make_iovec(shm, mount)
    shm.unlink()
    ring = make_ioring(mount, 8, False, 0)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    register_fd(fd)
    for turn in range(each):
        os.ftruncate(fd, total)
        shm.buf[:size] = bytes([number * 7 + turn + 1]) * size
        place = (turn * clients + number) * size + (total // 2 if turn % 2 else 28)
        ring.prepare(iov[:size], False, fd, place)
        assert [piece.result for piece in ring.submit().wait(min_results=1)] == [size]
    deregister_fd(fd)
    os.close(fd)
children = []
for number in range(clients):
    child = os.fork()
    if not child:
        try:
            client(number)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_sixteen_clients_of_one_file(cluster: Any, mount_of: Any, point: Path) -> None:
    """One file of 1 TiB, sparse, truncated to that by each of 16 that write their own ranges of it: nothing is lost."""
    clients, each, size = 16, 3, 1_000_001
    said = run(WRITERS, point / "wide", point, clients, each, size, TIB)
    assert said.strip() == str([0] * clients)
    with FileSystem.connect(cluster.mgmtd_addresses()) as fs, fs.open("/wide", "rb", buffering=0) as file:
        assert file.length == TIB
        for turn in range(each):
            for number in range(clients):
                place = (turn * clients + number) * size + (TIB // 2 if turn % 2 else 28)
                assert file.pread(size, place) == bytes([number * 7 + turn + 1]) * size, (turn, number)
        assert file.pread(28, 0) == bytes(28)
        assert file.pread(100, TIB - 50) == bytes(50)
    os.unlink(point / "wide")
