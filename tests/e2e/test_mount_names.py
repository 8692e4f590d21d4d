"""Directories whose names a mount knows: what others make there is seen at once, also while the mount hangs."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.meta.core.delegations import MARGIN_S, TERM_S

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]


@pytest.fixture
def name() -> str:
    return f"d{time.time_ns()}"


def facts(point: Path) -> dict[str, int]:
    return json.loads((point / ".ffs/stats").read_text())


def known_here(point: Path, folder: str) -> None:
    """The mount knows the folder: it answers by itself."""
    for number in range(3):
        assert not (point / folder / f"missing{number}").exists()
    before = facts(point)
    assert before["names_delegated"]
    assert not (point / folder / "missing").exists()
    assert facts(point)["absent_known"] > before.get("absent_known", 0)


def test_names_made_elsewhere_are_seen_at_once(cluster: Any, mount_of: Any, name: str) -> None:
    one, two = mount_of(cluster).point, mount_of(cluster).point
    (one / name).mkdir()
    (one / "outside").write_text("x")
    known_here(one, name)
    (two / name / "file").touch()
    assert (one / name / "file").exists()
    for number, make in enumerate((os.mkdir, lambda path: os.symlink("x", path), os.mkfifo)):
        other = one / f"{name}.{number}"
        other.mkdir()
        known_here(one, other.name)
        make(two / other.name / "new")
        assert os.path.lexists(other / "new")


def look(folder: Path, made: list[str], missed: list[str], over: threading.Event) -> None:
    """For the newest name, and for many that are not there."""
    count = 0
    while not over.is_set():
        count += 1
        newest = made[-1] if made else ""
        if newest and not os.path.exists(folder / newest):
            missed.append(newest)
        os.path.exists(folder / f"none{count}")


@pytest.mark.parametrize("strict", [(), ("--strict",)], ids=["usual", "strict"])
def test_two_mounts_that_make_and_look_miss_nothing(
    cluster: Any, mount_of: Any, name: str, strict: tuple[str, ...]
) -> None:
    """Each makes names in turn and looks for the other's newest; in fresh directories, which are delegated anew."""
    points = [mount_of(cluster, *strict).point, mount_of(cluster, *strict).point]
    with FileSystem.connect(cluster.mgmtd_addresses()) as library:
        for round_ in range(6):
            folder = f"{name}.{round_}"
            (points[round_ % 2] / folder).mkdir()
            made: list[str] = []
            missed: list[str] = []
            over = threading.Event()
            looking = [threading.Thread(target=look, args=(point / folder, made, missed, over)) for point in points]
            for each in looking:
                each.start()
            try:
                for number in range(60):
                    if number == 40:
                        library.open(f"{folder}/library", "wb").close()
                        made.append("library")
                    (points[number % 2 if number > 20 else 0] / folder / f"f{number}").touch()
                    made.append(f"f{number}")
            finally:
                over.set()
                for each in looking:
                    each.join()
            assert not missed
            assert sorted(os.listdir(points[0] / folder)) == sorted(made)


def test_a_mount_that_hangs_delays_others_and_does_not_miss_what_they_made(
    cluster: Any, mount_of: Any, name: str
) -> None:
    one, two = mount_of(cluster), mount_of(cluster)
    (one.point / name).mkdir()
    known_here(one.point, name)
    one.process.send_signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        (two.point / name / "file").touch()
        took_s = time.monotonic() - began_s
        assert took_s >= TERM_S
        began_s = time.monotonic()
        (two.point / name / "more").touch()
        assert time.monotonic() - began_s < TERM_S, "the second name waits for nobody"
        looking = subprocess.Popen(["stat", "-t", one.point / name / "file", one.point / name / "more"], cwd="/")
    finally:
        one.process.send_signal(signal.SIGCONT)
    assert looking.wait(20) == 0
    assert took_s < TERM_S + MARGIN_S + 10


def test_a_mount_that_was_killed_is_forgotten_after_its_term(cluster: Any, mount_of: Any, name: str) -> None:
    one, two = mount_of(cluster), mount_of(cluster)
    (one.point / name).mkdir()
    known_here(one.point, name)
    one.kill()
    (two.point / name / "file").touch()
    assert os.listdir(two.point / name) == ["file"]


def test_an_unmount_gives_back(cluster: Any, mount_of: Any, name: str) -> None:
    one, two = mount_of(cluster), mount_of(cluster)
    (one.point / name).mkdir()
    known_here(one.point, name)
    one.end()
    began_s = time.monotonic()
    (two.point / name / "file").touch()
    assert time.monotonic() - began_s < TERM_S


def test_a_restart_of_the_metadata_server_keeps_what_is_known_right(
    cluster_factory: Any, mount_of: Any, name: str
) -> None:
    cluster = cluster_factory(storage_nodes=1, replicas=1)
    one, two = mount_of(cluster).point, mount_of(cluster).point
    (one / name).mkdir()
    known_here(one, name)
    cluster.restart("meta")
    (two / name / "file").touch()
    assert (one / name / "file").exists()


def test_what_this_mount_changed_is_seen_by_whoever_looks_names_up(cluster: Any, mount_of: Any, name: str) -> None:
    """Times are short, so that the kernel looks up all the time, while two threads look many names up ahead."""
    point = mount_of(cluster, "--entry-timeout", "0.05", "--attr-timeout", "0.05").point
    folder = point / name
    folder.mkdir()
    rng = random.Random(3)
    there = {f"f{number}": 0 for number in range(200)}  # lengths
    modes = dict.fromkeys(there, 0o644)
    for each in there:
        (folder / each).touch()
        (folder / each).chmod(0o644)
    over = threading.Event()

    def walk() -> None:
        while not over.is_set():
            for each in sorted(there):
                os.path.lexists(folder / each)

    walking = [threading.Thread(target=walk) for _ in range(2)]
    for each in walking:
        each.start()
    try:
        for step in range(1500):
            old = rng.choice(list(there))
            what = rng.randrange(6)
            if what == 0:
                modes[old] = rng.choice((0o600, 0o640, 0o755))
                (folder / old).chmod(modes[old])
            elif what == 1:
                there[old] = rng.randrange(1, 9000)
                (folder / old).write_bytes(bytes(there[old]))
            elif what == 2:
                there[old] = rng.randrange(9000)
                os.truncate(folder / old, there[old])
            elif what == 3 and len(there) > 150:
                (folder / old).unlink()
                del there[old]
                assert not os.path.lexists(folder / old)
                continue
            else:
                new = rng.choice((f"f{step}", rng.choice(list(there))))
                os.rename(folder / old, folder / new)
                if new != old:
                    there[new], modes[new] = there.pop(old), modes[old]
                    assert not os.path.lexists(folder / old)
                old = new
            found = os.stat(folder / old)
            assert (found.st_size, stat.S_IMODE(found.st_mode)) == (there[old], modes[old]), (step, what)
    finally:
        over.set()
        for each in walking:
            each.join()
    assert facts(point)["names_ahead"] > 100
    assert sorted(os.listdir(folder)) == sorted(there)
