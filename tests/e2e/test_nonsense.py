"""Nonsense into every door of a real cluster: a clear error, the service lives, nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import GRPC_MESSAGE_BYTES_MAX
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.proto import meta_pb2, mgmtd_pb2, storage_pb2
from fireflyfs.proto.common_pb2 import Endpoint, Layout
from fireflyfs.storage.engine.store import create_target

pytestmark = pytest.mark.e2e

SEED = 20
MIB = 1 << 20
IMAGE_BYTES = 1 << 30
SERVICES = {
    "mgmtd": mgmtd_pb2.DESCRIPTOR.services_by_name["Mgmtd"],
    "meta": meta_pb2.DESCRIPTOR.services_by_name["Meta"],
    "storage": storage_pb2.DESCRIPTOR.services_by_name["Storage"],
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    local = LocalCluster(tmp_path_factory.mktemp("nonsense"))
    local.create(ClusterSpec(replicas=3))
    local.up()
    yield local
    local.down()


@pytest.fixture
def fs(cluster: LocalCluster) -> Iterator[FileSystem]:
    with FileSystem.connect(cluster.mgmtd_addresses()) as connected:
        yield connected


@pytest.fixture(autouse=True)
def nothing_is_lost(cluster: LocalCluster, fs: FileSystem) -> Iterator[None]:
    """Every test: the same processes run afterwards, and what was written before is whole."""
    content = random.Random(SEED).randbytes(3 * MIB + 5)
    fs.write_bytes("/before", content)
    pids = [process.pid for process in cluster.status()]
    yield
    assert [process.pid for process in cluster.status()] == pids
    assert fs.read_bytes("/before") == content
    fs.write_bytes("/after", content)
    assert fs.read_bytes("/after") == content
    cluster.wait_serving(30)


def endpoints(cluster: LocalCluster) -> dict[str, Endpoint]:
    """Doors of a storage worker and of meta."""
    routing = cluster.routing()
    found = {"meta": routing.meta_servers()[0]}
    found["storage"] = next(iter(routing.endpoints.values()))
    return found


def send(door: str, data: bytes) -> bytes:
    """Send to "host:port" or to a Unix socket, and read what comes until the server closes or is silent."""
    unix = door.startswith("/")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
        sock.settimeout(1)
        host, _, port = door.rpartition(":")
        sock.connect(door if unix else (host, int(port)))
        answer = b""
        with contextlib.suppress(OSError):
            sock.sendall(data)
            while piece := sock.recv(65536):
                answer += piece
        return answer


@pytest.mark.parametrize("service", ["meta", "storage"])
@pytest.mark.parametrize("lane", ["tcp", "unix", "grpc"])
def test_random_bytes(cluster: LocalCluster, service: str, lane: str) -> None:
    rng = random.Random(SEED)
    door = getattr(endpoints(cluster)[service], lane)
    assert door
    for size in (0, 1, 31, 32, 33, 4096, 300_000):
        answer = send(door, rng.randbytes(size))
        assert len(answer) < 4096, "an echo of nonsense"
    send(door, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    send(door, b"\0" * 100_000)
    send(door, b"\xff" * 100_000)


def test_connections_that_say_nothing(cluster: LocalCluster, fs: FileSystem) -> None:
    """A few hundred silent connections take no one else's place."""
    silent = []
    host, _, port = endpoints(cluster)["storage"].tcp.rpartition(":")
    try:
        for _ in range(200):
            sock = socket.socket()
            silent.append(sock)
            sock.settimeout(5)
            sock.connect((host, int(port)))
        started = time.monotonic()
        fs.write_bytes("/beside", b"x" * MIB)
        assert time.monotonic() - started < 10
    finally:
        for sock in silent:
            sock.close()


def raw_call(address: str, service: str, method: str, body: bytes) -> tuple[grpc.StatusCode, str]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(f"/{SERVICES[service].full_name}/{method}", lambda x: x, lambda x: x)
        try:
            call(body, timeout=20)
        except grpc.RpcError as exc:
            return exc.code(), exc.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("service", SERVICES)
def test_every_grpc_method_refuses_garbage(cluster: LocalCluster, service: str) -> None:
    rng = random.Random(SEED)
    doors = {"mgmtd": cluster.mgmtd_addresses()[0]} | {name: end.grpc for name, end in endpoints(cluster).items()}
    for method in SERVICES[service].methods:
        for body in (b"\xff" * 100, rng.randbytes(2000)):
            status, text = raw_call(doors[service], service, method.name, body)
            assert status not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), (
                f"{method.name}: {status} {text}"
            )
    status, _ = raw_call(doors[service], service, "NoSuchMethod", b"")
    assert status == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", SERVICES)
def test_grpc_messages_of_absurd_size(cluster: LocalCluster, service: str) -> None:
    doors = {"mgmtd": cluster.mgmtd_addresses()[0]} | {name: end.grpc for name, end in endpoints(cluster).items()}
    method = SERVICES[service].methods[0].name
    status, text = raw_call(doors[service], service, method, bytes(GRPC_MESSAGE_BYTES_MAX * 2))
    assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text


def test_absurd_requests_of_a_client(fs: FileSystem) -> None:
    for layout in (
        Layout(chunk_size=1, stripe_size=1, chain_table=1),
        Layout(chunk_size=3 << 20, stripe_size=1, chain_table=1),
        Layout(chunk_size=1 << 31, stripe_size=1, chain_table=1),
        Layout(chunk_size=MIB, stripe_size=1 << 30, chain_table=1),
    ):
        with pytest.raises(OSError, match=r"\w"):
            fs.open_file("/absurd", os.O_CREAT | os.O_WRONLY, layout=layout)
        assert not fs.exists("/absurd")
    file = fs.open_file("/wide", os.O_CREAT | os.O_RDWR)
    for offset in (-1, 1 << 63, (1 << 63) - 1):
        with pytest.raises((OSError, ValueError, OverflowError)):
            file.pwrite(b"xx", offset)
    file.close()
    for name in ("a" * 256, "/".join(["d"] * 3000), "nul\0nul"):
        with pytest.raises((OSError, ValueError)):
            fs.mkdir("/" + name)
    with pytest.raises(OSError, match=r"\w"):
        fs.truncate("/wide", 1 << 63)


def test_bad_chain_tables(cluster: LocalCluster) -> None:
    before = cluster.routing()
    target = next(iter(before.targets))
    spec = mgmtd_pb2.ChainSpec
    with contextlib.closing(cluster.mgmtd()) as client:
        for chains in (
            [spec(chain_id=0, targets=[target])],
            [spec(chain_id=90, targets=[])],
            [spec(chain_id=90, targets=[999999])],
            [spec(chain_id=90, targets=[target])],  # it is in a chain already
            [spec(chain_id=90, targets=[target, target])],
        ):
            with pytest.raises(FfsError) as caught:
                client.set_chains(mgmtd_pb2.SetChainsRequest(chains=chains))
            assert caught.value.message
        for table in ([], [4711], [1, 1]):
            with pytest.raises(FfsError):
                client.set_chain_table(mgmtd_pb2.SetChainTableRequest(table_id=1, chains=table))
        with pytest.raises(FfsError) as caught:
            client.get_routing(mgmtd_pb2.GetRoutingRequest(cluster_id="another cluster"))
        assert caught.value.code == Code.WRONG_CLUSTER
    after = cluster.routing()
    assert set(after.chains) == set(before.chains)
    assert after.chain_tables[1].chains == before.chain_tables[1].chains


@pytest.mark.parametrize("role", ["mgmtd", "meta", "storage-1"])
def test_unknown_configuration_keys(cluster: LocalCluster, role: str, tmp_path: Path) -> None:
    text = (cluster.root / "config" / f"{role}.toml").read_text(encoding="utf-8")
    config = tmp_path / "c.toml"
    config.write_text("heartbeet_s = 3\n" + text, encoding="utf-8")
    command = [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "run", role.partition("-")[0]]
    done = subprocess.run([*command, "--config", str(config)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "unknown key heartbeet_s" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 1 GiB in a loop-mounted image."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop mount")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """The targets may believe in 4 GiB each, their disk has 1 GiB for all: what was written stays, space comes back."""
    local = LocalCluster(tmp_path / "full")
    local.create(ClusterSpec(replicas=3, targets_per_worker=1, capacity_bytes=4 << 30))
    plan = local.plan()
    (local.root / "data").mkdir()
    for node, name in enumerate(plan.storage_names, 1):
        (small_disk / name).mkdir()
        (local.root / "data" / name).symlink_to(small_disk / name)
        for _, target_id in plan.targets(node):
            create_target(small_disk / name / str(target_id), plan.spec.cluster_id, target_id)
    local.up()
    try:
        with FileSystem.connect(local.mgmtd_addresses()) as fs:
            content = random.Random(SEED).randbytes(8 * MIB)
            fs.write_bytes("/kept", content)
            written = fill(fs, content)
            assert 100 * MIB < written < IMAGE_BYTES // 3
            assert fs.read_bytes("/kept") == content
            assert fs.read_bytes("/fill/0") == content
            assert all(process.running for process in local.status())
            local.wait_serving(60)
            fs.rmtree("/fill")
            deadline = time.monotonic() + 90
            while True:
                try:
                    fs.write_bytes("/again", content)
                    break
                except OSError as exc:
                    if exc.errno != errno.ENOSPC or time.monotonic() > deadline:
                        raise  # something else, or the space of removed files does not come back
                    time.sleep(0.5)
            assert fs.read_bytes("/again") == content
            assert fs.read_bytes("/kept") == content
    finally:
        local.down()


def fill(fs: FileSystem, content: bytes) -> int:
    """Write files until the disk is full; how many bytes were taken. The error must be ENOSPC."""
    fs.mkdir("/fill")
    for number in range(IMAGE_BYTES // len(content)):
        try:
            fs.write_bytes(f"/fill/{number}", content)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                return number * len(content)
            raise
    raise AssertionError("the disk never was full")
