"""The command line against a real local cluster: what people type, what scripts parse, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fireflyfs.client.cli import exits
from fireflyfs.deploy.local import ClusterSpec, LocalCluster

pytestmark = pytest.mark.e2e

COMMAND_S = 120
Ffs = Callable[..., subprocess.CompletedProcess[str]]


def command(root: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-P", "-m", "fireflyfs.client.cli.main", "--root", str(root), *map(str, arguments)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    local = LocalCluster(tmp_path_factory.mktemp("cli"))
    local.create(ClusterSpec(replicas=3))
    local.up()
    yield local
    local.down()


@pytest.fixture(scope="module")
def ffs(cluster: LocalCluster) -> Ffs:
    return runner(cluster)


def runner(cluster: LocalCluster) -> Ffs:
    """A function that runs `ffs` on `cluster`: the exit code must be `code`, and what fails says so."""

    def run(*arguments: object, code: int = exits.OK) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(cluster.root, *arguments), capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == code, (
            f"ffs {arguments}: {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        )
        assert "Traceback" not in done.stderr
        if code not in (exits.OK, exits.USAGE):
            assert done.stderr.strip(), "it failed without a word"
        return done

    return run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    rng = random.Random(3)
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    for number in range(30):
        path = top / rng.choice(["sub", "sub/deep"]) / f"f{number}"
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 4096, 70_000])))
        path.chmod(rng.choice([0o600, 0o644, 0o755]))
    (top / "large").write_bytes(rng.randbytes(9_000_001))
    (top / "link").symlink_to("sub/f0")
    (top / "twin").hardlink_to(top / "large")
    with open(top / "sparse", "wb") as file:
        file.truncate(40 << 20)
        file.seek(30 << 20)
        file.write(b"end of a hole")
    (top / "sub").chmod(0o750)
    os.utime(top / "sub", ns=(10**18, 10**18 + 7))
    return top


def described(top: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for path in [top, *top.rglob("*")]:
        info = path.lstat()
        content: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        seen[str(path.relative_to(top))] = (info.st_mode, info.st_uid, info.st_mtime_ns, content)
    return seen


JSON_COMMANDS = [
    ("status",),
    ("nodes", "list"),
    ("targets", "list"),
    ("chains", "list"),
    ("chain-tables", "list"),
    ("config", "list"),
    ("config", "get", "storage"),
    ("sessions", "list"),
    ("space",),
    ("fsck",),
    ("space", "--targets"),
    ("ls", "-R", "/"),
    ("stat", "/"),
    ("bench", "--size", "4", "--files", "10", "--seconds", "0.1"),
    ("up",),
]


@pytest.mark.parametrize("arguments", JSON_COMMANDS, ids=" ".join)
def test_json_parses_and_the_table_is_readable(ffs: Ffs, arguments: tuple[str, ...]) -> None:
    json.loads(ffs("--json", *arguments).stdout)
    ffs(*arguments)


def test_changes_say_what_they_did_in_json(ffs: Ffs) -> None:
    assert json.loads(ffs("--json", "mkdir", "-p", "/json/a").stdout) == {"made": ["/json/a"]}
    assert json.loads(ffs("--json", "mv", "/json/a", "/json/b").stdout) == {"moved": {"/json/a": "/json/b"}}
    assert json.loads(ffs("--json", "rm", "-r", "/json").stdout) == {"removed": ["/json"]}


def test_status_says_healthy(cluster: LocalCluster, ffs: Ffs) -> None:
    facts = json.loads(ffs("--json", "status", "--wait", "30").stdout)
    assert facts["healthy"]
    assert facts["replicas"] == facts["replicas_serving"] == 3 * facts["chains"]
    assert {process["state"] for process in facts["processes"]} == {"up"}
    text = ffs("status").stdout
    assert f"at {cluster.mgmtd_addresses()[0]}: healthy" in text
    assert "storage-3" in text


def test_a_node_that_is_down_is_named(cluster: LocalCluster, ffs: Ffs) -> None:
    ffs("nodes", "register", 77, "--type", "storage")
    try:
        status = subprocess.run(command(cluster.root, "status"), capture_output=True, text=True, check=False)
        assert status.returncode == exits.FAILED
        assert "DEGRADED, down: node 77" in status.stdout
        assert "registered already, as a storage" in ffs("nodes", "register", 77, "--type", "meta", code=5).stderr
    finally:
        ffs("nodes", "unregister", 77, "--yes")


def test_a_server_that_was_killed_is_missed_at_once(cluster: LocalCluster, ffs: Ffs) -> None:
    cluster.kill("storage-2")
    status = subprocess.run(command(cluster.root, "status"), capture_output=True, text=True, check=False)
    assert status.returncode == exits.FAILED, "mgmtd misses it some seconds later"
    assert "DEGRADED, down: storage-2" in status.stdout
    ffs("up")
    ffs("status")


def test_a_command_that_waits_for_a_metadata_server_says_so(cluster: LocalCluster, ffs: Ffs) -> None:
    cluster.kill("meta")
    while cluster.routing().meta_servers():  # until mgmtd misses it
        time.sleep(0.1)
    try:
        done = ffs("--json", "ls", "/", code=exits.UNREACHABLE)
        assert done.stdout == ""
        waits, fails = done.stderr.splitlines()
        assert waits.startswith("ffs: waiting for a metadata server (none is up); `ffs status`")
        assert "metadata server is up" in fails
    finally:
        ffs("up")
    assert ffs("ls", "/").stderr == ""


def test_a_cluster_that_was_made_is_not_made_differently(ffs: Ffs) -> None:
    ffs("up", "--nodes", 3, "--replicas", 3)
    assert "was made with --nodes 3" in ffs("up", "--nodes", 4, code=exits.REFUSED).stderr
    assert "was made with --trash-hours 0" in ffs("up", "--trash-hours", 1, code=exits.REFUSED).stderr


def test_a_tree_goes_in_and_comes_out_the_same(ffs: Ffs, tree: Path, tmp_path: Path) -> None:
    before = described(tree)
    ffs("put", "-r", tree, "/roundtrip")
    facts = json.loads(ffs("--json", "get", "-r", "/roundtrip", tmp_path / "back").stdout)
    assert facts["failed"] == 0
    assert described(tmp_path / "back") == before
    assert (tmp_path / "back/twin").stat().st_ino == (tmp_path / "back/large").stat().st_ino
    assert (tmp_path / "back/sparse").stat().st_blocks * 512 < 4 << 20
    ffs("put", "-r", tree, "/roundtrip/again", "/roundtrip", code=exits.NOT_FOUND)  # no such local file
    ffs("rm", "-r", "/roundtrip")
    ffs("stat", "/roundtrip", code=exits.NOT_FOUND)


def test_extended_attributes_go_in_and_come_out_when_asked_for(ffs: Ffs, tmp_path: Path) -> None:
    path = tmp_path / "labelled"
    path.write_bytes(b"x")
    entries = ((1, 6, 0xFFFFFFFF), (2, 5, 7), (4, 0, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "user.label", b"1" * 1000)
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as exc:
        pytest.skip(f"the file system here has no extended attributes or ACLs: {exc}")
    path.chmod(0o440)
    ffs("put", path, "/bare")
    ffs("get", "--xattrs", "/bare", tmp_path / "bare")
    assert os.listxattr(tmp_path / "bare") == []
    ffs("put", "--xattrs", path, "/labelled")
    ffs("get", "--xattrs", "/labelled", tmp_path / "back")
    for name in os.listxattr(path):
        assert os.getxattr(tmp_path / "back", name) == os.getxattr(path, name)
    assert sorted(os.listxattr(tmp_path / "back")) == sorted(os.listxattr(path))
    assert (tmp_path / "back").stat().st_mode == path.stat().st_mode


def test_files(ffs: Ffs, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\n")
    ffs("mkdir", "/files", "--mode", "750")
    ffs("put", tmp_path / "x", "/files")
    ffs("put", tmp_path / "x", "/files/name with spaces\nand a newline")
    assert ffs("cat", "/files/x", "/files/x").stdout == "one\none\n"
    assert ffs("ls", "/files").stdout.splitlines()[-1] == "x"
    assert "drwxr-x---" in ffs("ls", "-l", "/").stdout
    row = json.loads(ffs("--json", "stat", "/files/x").stdout)[0]
    assert row["size"] == 4
    assert row["chains"]
    ffs("mv", "-n", "/files/x", "/files/name with spaces\nand a newline", code=exits.REFUSED)
    ffs("mv", "/files/x", "/files/y")
    ffs("rm", "/files/x", code=exits.NOT_FOUND)
    ffs("rm", "-f", "/files/x")
    ffs("rm", "/files", code=exits.USAGE)
    ffs("rm", "-r", "/", code=exits.USAGE)
    ffs("mkdir", "/files", code=exits.REFUSED)
    ffs("cat", "/files", code=exits.REFUSED)
    ffs("rm", "-r", "/files")


def test_of_several_paths_those_that_can_be_are_done(ffs: Ffs, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\n")
    ffs("mkdir", "-p", "/several/sub")
    made = json.loads(ffs("--json", "mkdir", "/several/sub", "/several/new", code=exits.REFUSED).stdout)
    assert made == {"made": ["/several/new"]}
    for name in ("a", "b", ".c"):
        ffs("put", tmp_path / "x", f"/several/{name}")
    listed = ffs("ls", "/nothing", "/several/a", "/nowhere", "/several", code=exits.NOT_FOUND)
    assert listed.stdout.splitlines() == ["a", "", "/several:", ".c", "a", "b", "new", "sub"]
    assert [line.split(": ")[1] for line in listed.stderr.splitlines()] == ["/nothing", "/nowhere"]
    rows = json.loads(ffs("--json", "stat", "/nothing", "/several/b", code=exits.NOT_FOUND).stdout)
    assert [row["path"] for row in rows] == ["/several/b"]
    read = ffs("cat", "/several/a", "/several", "/nothing", "/several/b", code=exits.REFUSED)
    assert read.stdout == "one\none\n"
    assert len(read.stderr.splitlines()) == 2
    moved = json.loads(ffs("--json", "mv", "/nothing", "/several/.c", "/several/sub", code=exits.NOT_FOUND).stdout)
    assert moved == {"moved": {"/several/.c": "/several/sub/.c"}}
    gone = ffs("--json", "rm", "/several/a", "/nothing", "/several/sub", "/several/b", code=exits.NOT_FOUND)
    assert json.loads(gone.stdout) == {"removed": ["/several/a", "/several/b"]}
    assert "/several/sub is a directory: remove it with -r" in gone.stderr
    ffs("rm", "-r", "/several", "/", code=exits.USAGE)
    assert ffs("ls", "-la1d", "/several").stdout.endswith(" several\n")
    ffs("rm", "-rf", "/several", "/nothing")


def test_a_symbolic_link_is_listed_as_ls_does(ffs: Ffs, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/file").write_bytes(b"x")
    (tmp_path / "links/to-file").symlink_to("file")
    (tmp_path / "links/to-nothing").symlink_to("nothing")
    ffs("put", "-r", tmp_path / "links", "/links")
    for name, target in (("to-file", "file"), ("to-nothing", "nothing")):
        assert ffs("ls", "-l", f"/links/{name}").stdout.endswith(f" {name} -> {target}\n")
    assert ffs("ls", "/links/to-file").stdout == "to-file\n"
    ffs("rm", "-r", "/links")


def test_a_reader_that_leaves_is_no_error_text(cluster: LocalCluster, ffs: Ffs, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 << 20))
    ffs("put", tmp_path / "large", "/pipe")
    with subprocess.Popen(
        command(cluster.root, "cat", "/pipe"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == exits.BROKEN_PIPE


def test_an_interrupt_ends_in_one_line(cluster: LocalCluster) -> None:
    def as_a_terminal() -> None:  # a shell's background jobs, as we may be one, ignore interrupts
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command(cluster.root, "bench", "--seconds", "60"), stderr=subprocess.PIPE, text=True, preexec_fn=as_a_terminal
    )
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == exits.INTERRUPTED
    assert said == "ffs: interrupted\n"


def test_configuration_versions(ffs: Ffs, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("")
    first = json.loads(ffs("--json", "config", "set", "client", file, "--description", "why").stdout)
    ffs("config", "set", "client", file, "--if-version", first["version"] + 7, code=exits.REFUSED)
    row = json.loads(ffs("--json", "config", "list", "client").stdout)[-1]
    assert (row["version"], row["description"]) == (first["version"], "why")
    file.write_text("not = [toml")
    assert "not valid TOML" in ffs("config", "set", "client", file, code=exits.USAGE).stderr


def test_nodes_are_disabled_and_come_back(ffs: Ffs) -> None:
    ffs("nodes", "disable", 3)
    node = next(row for row in json.loads(ffs("--json", "nodes", "list").stdout) if row["node"] == 3)
    assert node["state"] == "disabled"
    ffs("nodes", "enable", 3)
    ffs("status", "--wait", "60")
    ffs("nodes", "disable", 77, code=exits.NOT_FOUND)
    ffs("nodes", "unregister", 1, "--yes", code=exits.REFUSED)


def test_mount_and_umount(cluster: LocalCluster, ffs: Ffs, tmp_path: Path) -> None:
    point = tmp_path / "a mount"
    ffs("mount", point)
    try:
        (point / "seen").write_text("both ways")
        assert ffs("cat", "/seen").stdout == "both ways"
        assert str(point) in ffs("status").stdout
        assert "mounted already" in ffs("mount", "--strict", point).stdout
        with open(point / "seen"):
            assert "in use" in ffs("umount", point, code=exits.REFUSED).stderr
    finally:
        ffs("umount", point)
    assert not os.path.ismount(point)
    ffs("umount", point, code=exits.REFUSED)
    (point / "in the way").touch()
    assert "not empty" in ffs("mount", point, code=exits.REFUSED).stderr
    (point / "in the way").unlink()
    ffs("mount", "-o", "ro,noexec,nofail,threads=64", point)
    try:
        assert os.statvfs(point).f_flag & (os.ST_NOEXEC | os.ST_RDONLY) == os.ST_NOEXEC | os.ST_RDONLY
        assert (point / "seen").read_text() == "both ways"
        with pytest.raises(OSError, match="Read-only"):
            (point / "other").touch()
    finally:
        ffs("umount", point)


def test_a_mount_that_died_is_mounted_again(ffs: Ffs, tmp_path: Path) -> None:
    point = tmp_path / "dead"
    ffs("mount", point)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"mount\0{point}".encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    time.sleep(0.5)
    assert f"the mount at {point} has died" in ffs("status").stdout
    ffs("mount", point)
    assert f"mounted at {point}" in ffs("status").stdout
    assert os.path.ismount(point)
    ffs("umount", point)


def test_without_a_cluster(tmp_path: Path) -> None:
    for arguments, code in (
        (("status",), exits.UNREACHABLE),
        (("ls",), exits.UNREACHABLE),
        (("down",), exits.NOT_FOUND),
        (("--mgmtd", "127.0.0.1:1", "nodes", "list"), exits.UNREACHABLE),
    ):
        done = subprocess.run(
            command(tmp_path / "none", *arguments), capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_down_and_up_keep_the_data(ffs: Ffs, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(os.urandom(3_000_000))
    ffs("put", "--sync", tmp_path / "kept", "/kept")
    ffs("down")
    ffs("status", code=exits.UNREACHABLE)
    ffs("down")
    ffs("up")
    ffs("get", "/kept", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "kept").read_bytes()


def test_chains_are_made_of_new_targets(cluster_factory: Callable[..., LocalCluster], tmp_path: Path) -> None:
    # No worker serves these targets, so the cluster is degraded afterwards: a cluster of its own.
    ffs = runner(cluster_factory())
    tables = json.loads(ffs("--json", "chain-tables", "list").stdout)
    targets = {3001 + 90: 3, 2001 + 90: 2}
    for target, node in targets.items():
        ffs("targets", "create", target, "--node", node, "--path", tmp_path / str(target), "--format")
    out = tmp_path / "table.csv"
    ffs("chain-tables", "generate", "--replicas", "2", "--output", out)
    ffs("chain-tables", "upload", 9, out, "--dry-run")
    ffs("chain-tables", "upload", 9, out)
    ffs("chain-tables", "upload", 9, out)  # an upload that was cut off is repeated as it is
    now = json.loads(ffs("--json", "chain-tables", "list").stdout)
    assert [row["table"] for row in now] == [*(row["table"] for row in tables), 9]
    assert now[-1]["replicas"] == 2
    chain = now[-1]["chains"][0]
    ffs("chains", "update", "rotate", chain, code=exits.REFUSED)  # its targets do not serve
    ffs("chains", "update", "remove", chain, 1, code=exits.REFUSED)
    ffs("chains", "update", "rotate", 1)
    ffs("chains", "update", "rotate", 4711, code=exits.NOT_FOUND)
    ffs("chains", "list", "--unhealthy")


def test_a_full_cluster_is_not_called_healthy(cluster_factory: Callable[..., LocalCluster], tmp_path: Path) -> None:
    ffs = runner(cluster_factory(storage_nodes=1, replicas=1, targets_per_worker=1, capacity_bytes=64 << 20))
    (tmp_path / "large").write_bytes(os.urandom(8 << 20))
    assert "healthy" in ffs("status").stdout
    for number in range(8):
        ffs("put", tmp_path / "large", f"/{number}")
    assert "ffs space" in ffs("put", tmp_path / "large", "/8", code=exits.REFUSED).stderr
    deadline_s = time.monotonic() + 30
    while "FULL" not in (text := ffs("status").stdout):
        assert time.monotonic() < deadline_s, text
        time.sleep(0.5)
    assert "targets that are full" in text
    assert json.loads(ffs("--json", "status").stdout)["targets_full"] == [1001]


def test_the_helper_of_mount(cluster: LocalCluster, ffs: Ffs, tmp_path: Path) -> None:
    """As mount(8) runs it for `mount -t ffs`."""
    point = tmp_path / "helped"
    point.mkdir()
    addresses = ",".join(cluster.mgmtd_addresses())
    helper = [sys.executable, "-m", "fireflyfs.client.cli.mount_helper"]
    environment = {**os.environ, "FFS_ROOT": str(tmp_path / "logs")}
    command = [*helper, addresses, str(point), "-v", "-o", "rw,dev,_netdev,attr_timeout=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    try:
        (point / "helped").write_text("yes")
        assert ffs("cat", "/helped").stdout == "yes"
        assert not os.statvfs(point).f_flag & os.ST_NODEV, "which a mount is unless told otherwise"
        assert os.statvfs(point).f_flag & os.ST_NOSUID
    finally:
        subprocess.run(["umount", str(point)], check=True)
    done = subprocess.run(
        [*helper, "127.0.0.1:1", str(point)], capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 32
    assert "cluster" in done.stderr
