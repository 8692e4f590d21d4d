"""Disks that were wiped or swapped, and machines that lost power, as mgmtd hears of them."""

from __future__ import annotations

from typing import Any

from fireflyfs.mgmtd.core import operator
from fireflyfs.mgmtd.core.chain import Local
from fireflyfs.mgmtd.core.cluster import ANOTHER_DISK
from fireflyfs.proto import mgmtd_pb2

OFF, ON, UP = Local.OFFLINE, Local.ONLINE, Local.UPTODATE


def two_replicas(harness: Any) -> None:
    for node in (1, 2):
        harness.register(node, [node * 100 + 1])
        harness.beat(node, {node * 100 + 1: OFF}, disk_id=f"disk {node}")
        harness.beat(node, {node * 100 + 1: ON}, disk_id=f"disk {node}")
    harness.do(operator.set_chains(harness.cluster, [mgmtd_pb2.ChainSpec(chain_id=7, targets=[101, 201])]))
    for node in (1, 2):
        harness.beat(node, {node * 100 + 1: UP}, disk_id=f"disk {node}")


def come_back(harness: Any, node: int, disk_id: str, *, lost_power: bool = False) -> None:
    """A new process reports its target, and again once it knows the chain."""
    target = node * 100 + 1
    for local in (OFF, ON, ON):
        harness.beat(node, {target: local}, generation=2, disk_id=disk_id, lost_power=lost_power)
        harness.settle()


def test_a_new_disk_among_others_that_serve_is_brought_up_to_date(harness: Any) -> None:
    two_replicas(harness)
    come_back(harness, 2, "new disk")
    assert harness.states(7) == [(101, "SERVING"), (201, "SYNCING")]
    assert harness.cluster.targets[201].disk_id == "new disk"
    assert harness.cluster.targets[201].note == ""


def test_a_new_disk_where_the_last_replica_was_is_refused(harness: Any) -> None:
    two_replicas(harness)
    harness.beat(2, {201: UP}, stopping=True, disk_id="disk 2")
    harness.beat(1, {101: UP}, stopping=True, disk_id="disk 1")
    assert harness.states(7) == [(101, "LASTSRV"), (201, "OFFLINE")]
    come_back(harness, 1, "new disk")
    assert harness.states(7)[0] == (101, "LASTSRV"), "an empty disk is not believed"
    assert harness.cluster.targets[101].note == ANOTHER_DISK
    # The other one left before, and misses what was written since.
    come_back(harness, 2, "disk 2")
    assert harness.states(7) == [(101, "LASTSRV"), (201, "WAITING")]
    # The old disk is put back.
    harness.beat(1, {101: OFF}, generation=3, disk_id="disk 1")
    harness.beat(1, {101: ON}, generation=3, disk_id="disk 1")
    harness.settle()
    assert harness.states(7)[0] == (101, "SERVING")
    assert harness.cluster.targets[101].note == ""


def test_the_loss_of_the_old_disk_can_be_accepted(harness: Any) -> None:
    two_replicas(harness)
    harness.beat(2, {201: UP}, stopping=True, disk_id="disk 2")
    harness.beat(1, {101: UP}, stopping=True, disk_id="disk 1")
    come_back(harness, 1, "new disk")
    harness.do(harness.cluster.register_target(101, 1, 0, "", accept_new_disk=True))
    harness.beat(1, {101: ON}, generation=2, disk_id="new disk")
    harness.settle()
    assert harness.states(7)[0] == (101, "SERVING")
    assert harness.cluster.targets[101].disk_id == "new disk"


def test_which_disk_it_was_survives_a_restart_of_mgmtd(harness: Any) -> None:
    two_replicas(harness)
    harness.beat(2, {201: UP}, stopping=True, disk_id="disk 2")
    harness.beat(1, {101: UP}, stopping=True, disk_id="disk 1")
    harness.load()
    come_back(harness, 1, "new disk")
    assert harness.states(7)[0] == (101, "LASTSRV")


def test_a_machine_that_lost_power_does_not_lead_while_another_may_come(harness: Any) -> None:
    two_replicas(harness)
    harness.tick(6.0)  # both silent: lost together
    assert {state for _, state in harness.states(7)} == {"LASTSRV"}
    come_back(harness, 1, "disk 1", lost_power=True)
    assert {state for _, state in harness.states(7)} == {"LASTSRV"}
    come_back(harness, 2, "disk 2")
    assert harness.states(7)[0] == (201, "SERVING")
    assert harness.states(7)[1] == (101, "SYNCING")


def test_a_machine_that_lost_power_leads_when_the_other_stays_away(harness: Any) -> None:
    two_replicas(harness)
    harness.tick(6.0)
    come_back(harness, 1, "disk 1", lost_power=True)
    for _ in range(40):
        harness.beat(1, {101: ON}, generation=2, disk_id="disk 1", lost_power=True)
        harness.tick(1.0)
    assert harness.states(7) == [(101, "SERVING"), (201, "OFFLINE")]
