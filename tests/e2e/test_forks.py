"""Processes that fork while they use a cluster, as loaders of training data do: the children connect anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e

# In a process of its own: pytest's has threads of other libraries. Its client waits for news of the routing in gRPC all
# the time; before calls ended for a fork, one child of forty died or hung there.
PROGRAM = """
import os, sys
from fireflyfs.client.filesystem import FileSystem

def child():
    failed = 1
    try:
        with FileSystem.connect(sys.argv[1]) as own:
            failed = 0 if own.read_bytes("/forked") == b"hello" else 2
    finally:
        os._exit(failed)

with FileSystem.connect(sys.argv[1]) as fs:
    fs.write_bytes("/forked", b"hello")
    for turn in range(50):
        children = [os.fork() or child() for _ in range(2)]
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        assert statuses == [0, 0], f"turn {turn}: {statuses}"
        assert fs.read_bytes("/forked") == b"hello"
    fs.remove("/forked")
"""


def test_children_connect_anew(cluster: LocalCluster) -> None:
    command = [sys.executable, "-c", PROGRAM, ",".join(cluster.mgmtd_addresses())]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        out, _ = running.communicate(timeout=120)
    finally:
        if running.poll() is None:  # a child hangs: none of the group may stay
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert running.returncode == 0, out[-3000:]
