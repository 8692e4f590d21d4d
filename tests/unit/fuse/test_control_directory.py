"""The mount's control directory on a real kernel mount over a file system in memory."""

from __future__ import annotations

import errno
import json
import os
import stat
import time

import pytest
from click.testing import CliRunner

from fireflyfs.client.cli.main import app
from fireflyfs.proto import meta_pb2 as m

pytestmark = pytest.mark.e2e


@pytest.fixture
def root(backend, mounts):
    return mounts(backend).mountpoint


def test_it_is_found_and_not_listed(root):
    control = root / ".ffs"
    assert sorted(os.listdir(control)) == ["config", "stats", "version"]
    assert ".ffs" not in os.listdir(root)
    assert stat.S_IMODE(control.stat().st_mode) == 0o500
    assert {entry.name: entry.stat().st_uid for entry in os.scandir(control)} == dict.fromkeys(
        ("config", "stats", "version"), os.geteuid()
    )
    assert (control / "version").read_text().strip()
    assert json.loads((control / "config").read_text())["attr_timeout_s"] == 1.0
    (root / "d").mkdir()
    assert not (root / "d/.ffs").exists()
    assert not (control / "nothing").exists()


def test_nothing_in_it_can_be_changed(root):
    control = root / ".ffs"
    (root / "f").write_bytes(b"x")
    for body in (
        lambda: (control / "new").write_bytes(b""),
        lambda: (control / "stats").write_bytes(b""),
        lambda: (control / "stats").unlink(),
        lambda: control.rmdir(),
        lambda: os.chmod(control / "stats", 0o777),
        lambda: os.rename(control / "stats", control / "other"),
        lambda: os.rename(root / "f", control / "f"),
        lambda: os.rename(control, root / "elsewhere"),
        lambda: os.link(control / "stats", root / "link"),
        lambda: os.setxattr(control / "stats", "user.x", b"y"),
        control.mkdir,
    ):
        with pytest.raises(OSError, match=r"\[Errno (1|2|13|17|18|116|5)\]") as caught:
            body()
        assert caught.value.errno not in (errno.ENOSYS, errno.EIO)
    # Refusing here must not teach the kernel that the mount cannot do it elsewhere.
    os.setxattr(root / "f", "user.x", b"y")
    os.rename(root / "f", root / "g")
    assert sorted(os.listdir(root)) == ["g"]


def test_a_real_name_is_shown_instead(root, backend):
    at = m.PathAt(dir=1, path=b".ffs")
    backend.meta.make_node(m.MakeNodeRequest(at=at, mode=stat.S_IFDIR | 0o755))
    assert os.listdir(root / ".ffs") == []
    (root / ".ffs/mine").touch()
    assert os.listdir(root) == [".ffs"]


def test_it_says_what_was_done(root):
    (root / "f").write_bytes(bytes(100_000))
    assert len((root / "f").read_bytes()) == 100_000
    with pytest.raises(FileNotFoundError):
        os.stat(root / "missing")
    with pytest.raises(FileExistsError):
        os.mkdir(root / "f")
    deadline_s = time.monotonic() + 30
    while True:  # a request is counted when its answer is out already
        facts = json.loads((root / ".ffs/stats").read_text())
        operations = facts["operations"]
        if {"create", "write", "lookup", "read"} <= operations.keys() and operations["lookup"]["errors"]:
            break
        assert time.monotonic() < deadline_s
    assert operations["write"]["bytes"] == 100_000
    assert operations["create"]["count"] == 1
    assert operations["lookup"]["errors"] >= 1
    assert operations["write"]["p50_us"] <= operations["write"]["p99_us"]
    assert facts["server_waits"] == 0
    assert facts["dirty_bytes"] == 0


def test_the_command_shows_it(root, tmp_path):
    (root / "f").write_bytes(b"x")
    shown = CliRunner().invoke(app, ["stats", str(root)])
    assert "create" in shown.output
    facts = json.loads(CliRunner().invoke(app, ["--json", "stats", str(root)]).stdout)
    assert facts["operations"]["create"]["count"] == 1
    elsewhere = CliRunner().invoke(app, ["stats", str(tmp_path)])
    assert elsewhere.exit_code == 3
