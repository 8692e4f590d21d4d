"""Processes are known by id and start time; plans are kept, bounded and complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.client.cli import cluster as cluster_commands
from fireflyfs.common import config
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.host import host_id
from fireflyfs.deploy import plan as planning
from fireflyfs.deploy.local import LocalCluster
from fireflyfs.deploy.plan import ClusterSpec
from fireflyfs.deploy.process import ServerProcess, start_time, tail
from fireflyfs.meta.server import MetaConfig
from fireflyfs.mgmtd.server import MgmtdConfig
from fireflyfs.storage.engine import identity
from fireflyfs.storage.engine.identity import create_target, require_identity
from fireflyfs.storage.server import StorageConfig


@pytest.fixture
def mgmtd(tmp_path: Path) -> Iterator[ServerProcess]:
    """A real mgmtd process without a disk."""
    path = tmp_path / "mgmtd.toml"
    path.write_text(config.dump(MgmtdConfig("c", kv="memory", grpc_port=0)))
    process = ServerProcess(tmp_path, "mgmtd", ["run", "mgmtd", "--config", str(path)])
    yield process
    process.send(signal.SIGKILL)
    assert process.wait_gone(10)


def test_a_process_is_started_once_and_stopped(mgmtd: ServerProcess, tmp_path: Path) -> None:
    assert not mgmtd.status().running
    mgmtd.start()
    pid = mgmtd.pid()
    mgmtd.start()
    assert mgmtd.pid() == pid
    # Another process that looks at the same folder sees it too.
    assert ServerProcess(tmp_path, "mgmtd", []).pid() == pid
    assert os.getsid(pid) == pid, "a signal to our terminal is not for it"
    deadline = time.monotonic() + 20
    while "listens on" not in tail(mgmtd.log):
        assert time.monotonic() < deadline, mgmtd.failure("no start")
        time.sleep(0.02)
    assert mgmtd.send(signal.SIGTERM)
    assert mgmtd.wait_gone(10)
    assert not mgmtd.send(signal.SIGTERM)


def test_a_pid_that_belongs_to_someone_else_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as foreign:
        (tmp_path / "run").mkdir()
        pid_file = tmp_path / "run" / "meta.pid"
        process = ServerProcess(tmp_path, "meta", [])
        stored = {"pid": foreign.pid, "started": start_time(foreign.pid), "boot": "another boot"}
        pid_file.write_text(json.dumps(stored))
        assert process.pid() == 0
        pid_file.write_text(json.dumps(stored | {"boot": host_id(), "started": stored["started"] - 1}))
        assert not process.send(signal.SIGKILL)
        assert foreign.poll() is None
        for text in ("", "{}", "[1]", "null", '{"pid": "x"}'):
            pid_file.write_text(text)
            assert process.pid() == 0
        foreign.communicate(b"\n")
    assert start_time(foreign.pid) == 0
    pid_file.write_text(json.dumps(stored | {"boot": host_id(), "started": 0}))  # it had ended when that was written
    assert process.pid() == 0


def test_who_is_killed_while_it_starts_a_process_leaves_none_that_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "mgmtd.toml"
    path.write_text(config.dump(MgmtdConfig("c", kv="memory", grpc_port=0)))
    program = f"""
import os, pathlib, signal
from fireflyfs.deploy.process import ServerProcess
pathlib.Path.write_text = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # instead of the pid file
ServerProcess(pathlib.Path({str(tmp_path)!r}), "mgmtd", ["run", "mgmtd", "--config", {str(path)!r}]).start()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    try:
        while (left := _with_argument(str(path))) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []
    finally:
        for pid in _with_argument(str(path)):
            os.kill(pid, signal.SIGKILL)


def _with_argument(argument: str) -> list[int]:
    """Processes that have `argument` among theirs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in arguments:
            found.append(int(folder.name))
    return found


def test_a_start_that_was_killed_while_it_made_targets_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = LocalCluster(tmp_path / "c")
    cluster.create(ClusterSpec(storage_nodes=1, replicas=1, targets_per_worker=2, capacity_bytes=1 << 30))
    made: list[Path] = []

    def killed(path: Path, cluster_id: str, target_id: int) -> None:
        if made:
            raise KeyboardInterrupt
        create_target(path, cluster_id, target_id)
        made.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(identity, "create_target", killed)
        with pytest.raises(KeyboardInterrupt):
            cluster._ready_plan()
    cluster._ready_plan()
    for _, target_id in cluster.plan().targets(1):
        require_identity(cluster.root / "data" / "storage-1" / str(target_id), cluster.cluster_id, target_id)
    assert [path.name for path in (cluster.root / "data").iterdir()] == ["storage-1"]


def test_a_process_that_ends_tells_why(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path, "mgmtd", ["run", "mgmtd", "--config", str(tmp_path / "missing.toml")])
    for _ in range(4):
        process.start()
        deadline = time.monotonic() + 20
        while process.pid():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    (tmp_path / "log" / "mgmtd-worker0.log").write_text("what a worker said\n")
    failure = str(process.failure("it ended"))
    assert "what a worker said" in failure
    assert "has ended" in failure
    assert "missing.toml" in failure
    assert sorted(path.name for path in (tmp_path / "log").glob("*.err*")) == [
        "mgmtd.err",
        "mgmtd.err.1",
        "mgmtd.err.2",
    ]


def test_the_end_of_a_log_says_each_thing_once(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("early\n" + "a\nb\nc\n" + "no disk\n" * 50 + "c\n")
    assert tail(tmp_path / "log") == "b\nno disk\nc"
    assert tail(tmp_path / "nothing") == ""


def test_a_plan_is_kept_and_gives_valid_configurations(tmp_path: Path) -> None:
    spec = ClusterSpec(storage_nodes=3, workers_per_node=2, targets_per_worker=2, replicas=3)
    plan = planning.new_plan(spec, tmp_path)
    planning.save(tmp_path / planning.PLAN_FILE, plan)
    assert planning.load_plan(tmp_path) == plan
    assert len(set(plan.ports.values())) == len(plan.ports) == 3 + 3 * 2 * 2
    targets = [target for node in (1, 2, 3) for _, target in plan.targets(node)]
    assert len(set(targets)) == 12
    assert plan.spec.capacity_bytes > 0
    assert plan.spec.cluster_id != planning.new_plan(spec, tmp_path).spec.cluster_id
    for schema, made in (
        (MgmtdConfig, planning.mgmtd_config(plan, tmp_path)),
        (MetaConfig, planning.meta_config(plan, tmp_path)),
        (StorageConfig, planning.storage_config(plan, tmp_path, 2)),
    ):
        assert config.parse(schema, config.dump(made)) == made


@pytest.mark.parametrize(
    "choices",
    [
        {"storage_nodes": 0},
        {"storage_nodes": 2, "replicas": 3},
        {"workers_per_node": 0},
        {"targets_per_worker": 100},
        {"capacity_bytes": -1},
    ],
)
def test_impossible_clusters_are_refused(choices: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        ClusterSpec(**choices)  # type: ignore[arg-type]


def test_a_cluster_is_made_once(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c")
    assert not cluster.exists()
    cluster.create(ClusterSpec(storage_nodes=1, replicas=1))
    assert cluster.exists()
    assert cluster.names() == ["mgmtd", "storage-1", "meta"]
    assert cluster.mgmtd_addresses()[0].startswith("127.0.0.1:")
    assert not any(process.running for process in cluster.status())
    with pytest.raises(FfsError) as failure:
        cluster.create()
    assert failure.value.code is Code.EXISTS
    with pytest.raises(FfsError, match="no process nobody"):
        cluster.kill("nobody")
    with pytest.raises(FfsError, match="does not run"):
        cluster.kill("meta")
    settings: Any = SimpleNamespace(root=cluster.root)
    assert not cluster_commands._make(settings, cluster, 1, 1, 0.0), "as the second of two `ffs up` at once"
    # Data without its plan is not overwritten.
    (cluster.root / planning.PLAN_FILE).unlink()
    (cluster.root / "data").mkdir()
    with pytest.raises(FfsError, match="holds data"):
        cluster.create()


def test_socket_paths_fit_the_kernel(tmp_path: Path) -> None:
    assert planning.socket_path(Path("/srv/ffs"), "c", "meta") == "/srv/ffs/run/meta.sock"
    deep = tmp_path / ("x" * 120)
    path = planning.socket_path(deep, "c", "meta")
    assert len(path) <= planning.UNIX_PATH_BYTES_MAX
    assert path == planning.socket_path(deep, "c", "meta")
    Path(path).parent.rmdir()


def test_ports_are_below_those_of_outgoing_connections() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = planning.free_ports("127.0.0.1", 20)
    assert len(set(ports)) == 20
    assert max(ports) < max(first, planning.PORT_END)
