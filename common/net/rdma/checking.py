"""Whether rdma works on this machine, and what to do where it does not: what `ffs rdma check` prints.

Each active port is tried with two queue pairs of this process: a WRITE and a READ of `TRIED_BYTES` and a message
through a shared receive queue, compared byte by byte. Nothing leaves the machine and no server is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fireflyfs.common.limits import MiB
from fireflyfs.common.net.rdma.adapters import Adapters, parameters
from fireflyfs.common.net.rdma.choice import Choice, pick_gid
from fireflyfs.common.net.rdma.credits import BLOCK, RECEIVE_BYTES
from fireflyfs.common.net.rdma.library import device_names
from fireflyfs.common.net.rdma.plan import Verb, Work
from fireflyfs.common.net.rdma.queues import SUCCESS, Completions, QueuePair, SharedReceives
from fireflyfs.common.net.rdma.settings import RdmaSettings
from fireflyfs.common.net.rdma.verbs import Device, Domain, Gid, Port

TRIED_BYTES: Final = MiB
TRIED_S_MAX: Final = 5.0
LOCKED_BYTES_MIN: Final = 1024 * MiB  # a server's registered buffers, and room for as much again


@dataclass(slots=True)
class PortReport:
    """One port of one device."""

    device: str
    number: int
    active: bool
    allowed: bool
    mtu_bytes: int
    gids: list[Gid]
    gid: Gid | None  # that a connection takes
    outcome: str = "not tried"  # "ok", or what went wrong


@dataclass(slots=True)
class Report:
    """All that was found. `problems` are sentences, each with what to do."""

    pyverbs: str  # its version, or why there is none
    locked_bytes: int | None  # the limit of locked memory; None: no limit
    ports: list[PortReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def works(self) -> bool:
        return any(port.outcome == "ok" for port in self.ports)


def check(settings: RdmaSettings) -> Report:
    """Look at everything and try each port that may be used."""
    report = Report(_pyverbs_version(), _locked_bytes())
    if report.locked_bytes is not None and report.locked_bytes < LOCKED_BYTES_MIN and os.geteuid():
        report.problems.append(
            f"only {report.locked_bytes} bytes of memory may be locked: raise it with `ulimit -l unlimited`, "
            "LimitMEMLOCK=infinity of the service, or --ulimit memlock=-1 of the container"
        )
    adapters = Adapters(settings)
    names = device_names()
    if not names:
        report.problems.append(_why_no_device(report.pyverbs))
    for wanted in settings.devices:
        if wanted.split(":")[0] not in names:
            report.problems.append(f"FFS_RDMA_DEVICES names {wanted}, which this machine does not have")
    for name in names:
        try:
            device = adapters.device(name)
            report.ports += [_look_at(device, port, settings) for port in device.ports()]
        except OSError as exc:
            report.problems.append(f"{name} cannot be opened: {exc}; a container needs --device /dev/infiniband")
    for found in report.ports:
        _try(adapters, found, report.problems)
    return report


def _look_at(device: Device, port: Port, settings: RdmaSettings) -> PortReport:
    gids = device.gids(port.number)
    gid = pick_gid(gids, ethernet=port.ethernet, index=settings.gid_index)
    allowed = settings.allows(device.name, port.number)
    return PortReport(device.name, port.number, port.active, allowed, 128 << port.mtu, gids, gid)


def _try(adapters: Adapters, found: PortReport, problems: list[str]) -> None:
    where = f"{found.device} port {found.number}"
    if not found.allowed:
        return
    if not found.active:
        problems.append(f"{where} is not active: plug it in, or set its network interface up")
    elif found.gid is None:
        problems.append(
            f"{where} has no GID that can be used: give its network interface an IPv4 address, "
            "or name an index in FFS_RDMA_GID_INDEX"
        )
    else:
        device = adapters.device(found.device)
        port = next(port for port in device.ports() if port.number == found.number)
        try:
            move_in_a_loop(device, Choice(found.device, port, found.gid))
            found.outcome = "ok"
        except OSError as exc:
            found.outcome = str(exc)
            problems.append(f"{where}: {exc}")


def move_in_a_loop(device: Device, choice: Choice) -> None:
    """WRITE, then READ back, then SEND, between two queue pairs of this process. Raises OSError."""
    source, peer, back = bytearray(os.urandom(TRIED_BYTES)), bytearray(TRIED_BYTES), bytearray(TRIED_BYTES)
    message = bytearray(RECEIVE_BYTES)
    with contextlib.ExitStack() as stack:  # closes in the opposite order: queue pairs first, then what they reach
        domain = Domain(device)
        stack.callback(domain.close)
        regions = []
        for buffer, remote in ((source, False), (peer, True), (back, False), (message, False)):
            regions.append(domain.register(memoryview(buffer), remote=remote))
            stack.callback(regions[-1].close)
        completions = Completions(device, 8, watched=False)
        stack.callback(completions.close)
        receives = SharedReceives(domain, BLOCK)
        stack.callback(receives.close)
        pairs = []
        for _ in range(2):
            pairs.append(QueuePair(domain, completions, 4, 1, remote=True, receives=receives))
            stack.callback(pairs[-1].close)
        ours, theirs = (parameters(pair, choice, device) for pair in pairs)
        pairs[0].connect(choice.port.number, choice.gid.number, ours, theirs)
        pairs[1].connect(choice.port.number, choice.gid.number, theirs, ours)
        here, there, landing, inbox = regions
        local = ((here.address, TRIED_BYTES, here.lkey),)
        _complete(pairs[0], completions, Work(Verb.WRITE, there.address, there.rkey, TRIED_BYTES, local), "WRITE")
        local = ((landing.address, TRIED_BYTES, landing.lkey),)
        _complete(pairs[0], completions, Work(Verb.READ, there.address, there.rkey, TRIED_BYTES, local), "READ")
        receives.post(receives.request(0, inbox.address, RECEIVE_BYTES, inbox.lkey))
        local = ((here.address, RECEIVE_BYTES, here.lkey),)
        # Its end is told at both ends.
        _complete(pairs[0], completions, Work(Verb.SEND, 0, 0, RECEIVE_BYTES, local), "SEND", told=2)
    if peer != source or back != source or message != source[:RECEIVE_BYTES]:
        raise OSError("the bytes that came back are not those that were sent")


def _complete(pair: QueuePair, completions: Completions, work: Work, what: str, told: int = 1) -> None:
    pair.post([(1, work, True)])
    end_s = time.monotonic() + TRIED_S_MAX
    while time.monotonic() < end_s:
        for _, status, _, _ in completions.poll():
            if status != SUCCESS:
                raise OSError(f"a {what} of {work.length} bytes to itself ended with status {status}")
            told -= 1
        if not told:
            return
        time.sleep(0)
    raise OSError(f"a {what} of {work.length} bytes to itself did not end within {TRIED_S_MAX:.0f} s")


def _pyverbs_version() -> str:
    """How pyverbs names its constants tells the generations apart; it has no version of its own."""
    try:
        importlib.import_module("pyverbs.device")
    except ImportError as exc:
        return f"none: {exc}"
    try:
        importlib.import_module("pyverbs.libibverbs_enums")
    except ImportError:
        return "with rdma-core before 57"
    return "with rdma-core 57 or newer"


def _locked_bytes() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def _why_no_device(pyverbs: str) -> str:
    if pyverbs.startswith("none"):
        return (
            "pyverbs cannot be imported: install python3-pyverbs (Debian, Ubuntu) and run "
            "`deploy/pyverbs-link.sh .venv`, or install the package pyverbs of your rdma-core's version"
        )
    if not os.path.isdir("/sys/class/infiniband") or not os.listdir("/sys/class/infiniband"):
        return (
            "the kernel has no rdma device: load the adapter's driver, or make one of a network interface with "
            "`modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0`"
        )
    return (
        "devices exist but /dev/infiniband cannot be used: load ib_uverbs; a container needs --device /dev/infiniband"
    )


def rows(ports: Sequence[PortReport]) -> list[dict[str, object]]:
    """For a table or JSON."""
    return [
        {
            "device": port.device,
            "port": port.number,
            "state": "active" if port.active else "down",
            "used": port.allowed,
            "mtu_bytes": port.mtu_bytes,
            "gid_index": port.gid.number if port.gid is not None else None,
            "gid": port.gid.gid if port.gid is not None else "",
            "gids": [f"{gid.number} {'RoCE v2' if gid.roce_v2 else 'v1 or IB'} {gid.gid}" for gid in port.gids],
            "loop": port.outcome,
        }
        for port in ports
    ]
