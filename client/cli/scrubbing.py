"""`ffs targets scrub`: a pass of the scrubber over targets, now."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import click

from fireflyfs.client.cli import connect, output, views
from fireflyfs.client.cli.settings import Settings
from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.control import ControlClient
from fireflyfs.proto import storage_pb2

POLL_S = 0.5
AWAY_S = 60.0  # a worker that does not answer for so long is given up

COLUMNS = [
    ("target", "target"),
    ("state", "state"),
    ("chunks", "chunks"),
    ("read", "read"),
    ("found", "did not match"),
    ("lost", "lost"),
    ("damaged", "damaged now"),
    ("repaired", "repaired"),
]
DAMAGED_COLUMNS = [
    ("target", "target"),
    ("inode", "inode"),
    ("chunk", "chunk"),
    ("version", "version"),
    ("length", "length"),
    ("reason", "reason"),
]
_SERVICE = storage_pb2.DESCRIPTOR.services_by_name["Storage"]


class Workers:
    """The storage workers that serve some targets."""

    def __init__(self, routing: Routing, target_ids: Iterable[int]) -> None:
        """Raises NO_ENTRY for a target that mgmtd does not know, UNAVAILABLE for one whose worker never reported."""
        self._stack = ExitStack()
        self._targets: dict[str, list[int]] = {}
        for target_id in target_ids:
            if target_id not in routing.targets:
                raise error(Code.NO_ENTRY, f"there is no target {target_id}")
            endpoint = routing.endpoints.get(target_id)
            if endpoint is None or not endpoint.grpc:
                raise error(Code.UNAVAILABLE, f"the worker of target {target_id} has not said where it listens")
            self._targets.setdefault(endpoint.grpc, []).append(target_id)
        self._clients = {address: ControlClient(_SERVICE, address) for address in self._targets}

    def ask(self, *, start: bool) -> dict[int, storage_pb2.TargetScrub]:
        """How each target stands. Raises FfsError when a worker does not answer."""
        found: dict[int, storage_pb2.TargetScrub] = {}
        for address, targets in self._targets.items():
            request = storage_pb2.ScrubRequest(targets=targets, start=start)
            reply = self._clients[address].call("Scrub", request)
            found.update((row.target_id, row) for row in reply.targets)
        return found

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def scrub(settings: Settings, target_ids: list[int], every: bool, wait: bool) -> None:
    """Start a pass over these targets, or all that serve; with `wait`, show it until it ends. Raises FfsError."""
    with connect.mgmtd(settings) as client:
        routing = connect.routing_of(client)
    if every:
        serving = {target_id for chain in routing.chains.values() for target_id in chain.serving}
        target_ids = sorted(serving & routing.targets.keys())
        if not target_ids:
            raise error(Code.NO_ENTRY, "no target serves")
    workers = Workers(routing, target_ids)
    try:
        before = {target_id: row.report.passes for target_id, row in workers.ask(start=False).items()}
        found = workers.ask(start=True)
        if wait:
            found = _until_done(settings, workers, before)
    finally:
        workers.close()
    _show(settings, found, before)


def _until_done(settings: Settings, workers: Workers, before: dict[int, int]) -> dict[int, storage_pb2.TargetScrub]:
    answered_s = time.monotonic()
    shown = ""
    while True:
        time.sleep(POLL_S)
        try:
            found = workers.ask(start=False)
            answered_s = time.monotonic()
        except FfsError:
            if time.monotonic() - answered_s > AWAY_S:
                raise
            continue
        reports = [row.report for row in found.values()]
        done = sum(report.done_chunks for report in reports)
        total = sum(max(report.total_chunks, report.done_chunks) for report in reports)
        text = f"{done} of {total} chunks, {views.share(done, total)}"
        if text != shown and not settings.json:
            click.echo(text, err=True)
            shown = text
        if all(row.report.passes > before.get(target_id, 0) for target_id, row in found.items()):
            return found


def _show(settings: Settings, found: dict[int, storage_pb2.TargetScrub], before: dict[int, int]) -> None:
    rows: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    for target_id, row in sorted(found.items()):
        report = row.report
        ended = report.passes > before.get(target_id, 0)
        rows.append(
            {
                "target": target_id,
                "state": "done" if ended else "running" if report.running else "started",
                "chunks": f"{report.done_chunks} of {report.total_chunks}",
                "done_chunks": report.done_chunks,
                "total_chunks": report.total_chunks,
                "read": output.bytes_text(report.done_bytes),
                "read_bytes": report.done_bytes,
                "found": report.found_chunks,
                "lost": report.lost_chunks,
                "damaged": report.damaged_chunks,
                "repaired": report.repaired_chunks,
            }
        )
        damaged += [
            {
                "target": target_id,
                "inode": each.chunk.inode,
                "chunk": each.chunk.index,
                "version": each.version,
                "length": each.length,
                "reason": each.reason,
            }
            for each in row.damaged
        ]
    if settings.json:
        output.show_json({"targets": rows, "damaged": damaged})
        return
    output.show_rows(settings, rows, COLUMNS)
    if damaged:
        output.show_rows(settings, damaged, DAMAGED_COLUMNS, title="damaged chunks")
