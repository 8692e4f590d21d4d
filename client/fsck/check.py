"""The check of a whole cluster: scan, look again at what seems wrong, report it, and mend it if asked to.

The order of the looks is what makes a check of a cluster in use sound; see `core/judge.py` and docs/ARCHITECTURE.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol

from fireflyfs.client.fsck.core.facts import Copy, File, Finding, Key, Kind, Look, Suspect
from fireflyfs.client.fsck.core.judge import Memory, Verdict, judge
from fireflyfs.client.fsck.core.resync_order import next_to_resync
from fireflyfs.client.fsck.core.scan import Lost, Tally, chain_rows, suspects
from fireflyfs.common.errors import Code, FfsError

BATCH = 4096  # suspects that are looked at again together
LOOKS_MAX = 8  # at a chunk that is in use all the time
DROP_AFTER_S = 10.0  # from the beginning: an inode id given out before it has its inode by then, or never
RESYNC_TIMEOUT_S = 3600.0
PAUSE_S_DEFAULT = 2.0
SHOWN_DEFAULT = 50
_DROPPED = (Kind.ORPHAN, Kind.MISPLACED, Kind.BEYOND_END)
_RESYNCED = (Kind.MISSING, Kind.DIFFERS, Kind.PENDING)


class ClusterView(Protocol):
    """What the check needs of a cluster; `client/fsck/cluster.py` has it."""

    def monotonic_s(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    def chains(self) -> Mapping[int, tuple[int, ...]]: ...
    def next_inode(self) -> int: ...
    def files(self) -> Iterator[File]: ...
    def listed(self, target_id: int, lists: int) -> Iterator[tuple[Key, Copy]]: ...
    def look(self, suspects: Sequence[Suspect]) -> Sequence[Look | None]: ...
    def drop(self, chain_id: int, findings: Sequence[Finding]) -> Sequence[Code]: ...
    def resync(self, chain_id: int, target_id: int, timeout_s: float) -> None: ...


@dataclass(slots=True)
class Report:
    """What was found: all of it counted, the first of each kind kept."""

    tally: Tally = field(default_factory=Tally)
    found: Counter[Kind] = field(default_factory=Counter)
    repaired: Counter[Kind] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    unsettled: int = 0  # suspects that changed at each look, or whose chain did: no findings, and not cleared either
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Findings that were not mended."""
        return sum(self.found.values()) - sum(self.repaired.values())


@dataclass(slots=True)
class _Chain:
    """What is wrong with a chain's replicas. `sample`: for each wrong target one chunk that shows it."""

    findings: Counter[Kind] = field(default_factory=Counter)
    sample: dict[int, Suspect] = field(default_factory=dict)
    undecided: bool = False


class Check:
    """One run. `on_progress` is called with what is being done, now and then."""

    def __init__(
        self,
        cluster: ClusterView,
        *,
        repair: bool = False,
        pause_s: float = PAUSE_S_DEFAULT,
        shown_max: int = SHOWN_DEFAULT,
        on_progress: Callable[[str, Report], None] = lambda *_: None,
    ) -> None:
        self._cluster = cluster
        self._repair = repair
        self._pause_s = pause_s
        self._shown_max = shown_max
        self._on_progress = on_progress
        self._report = Report()
        self._chains: dict[int, _Chain] = {}
        self._reading: dict[int, set[int]] = {}  # chain id to the replicas whose lists are whole so far
        self._began_s = 0.0
        self._next_inode = 0

    def run(self) -> Report:
        """Raises FfsError when meta does not answer, or refuses (NOT_PERMITTED)."""
        cluster, report = self._cluster, self._report
        report.tally.on_progress = lambda: self._progress("scanning")
        self._began_s = cluster.monotonic_s()
        self._next_inode = cluster.next_inode()
        known = cluster.chains()
        serving = {chain_id: targets for chain_id, targets in known.items() if targets}
        self._reading = {chain_id: set(targets) for chain_id, targets in serving.items()}
        lists = sum(map(len, serving.values()))
        rows = [
            chain_rows(
                chain_id, {target: cluster.listed(target, lists) for target in targets}, partial(self._lost, chain_id)
            )
            for chain_id, targets in serving.items()
        ]
        doubtful = suspects(rows, cluster.files(), frozenset(serving), report.tally)
        while batch := list(islice(doubtful, BATCH)):
            self._settle(batch)
        self._judge_chains({chain_id for chain_id in known if chain_id not in serving})
        if self._repair:
            self._resync()
        self._progress("done")
        return report

    def _progress(self, doing: str) -> None:
        self._on_progress(doing, self._report)

    def _lost(self, chain_id: int, target_id: int, exc: Lost) -> None:
        """A replica could not be listed to the end. One that serves, or the last one being read, leaves a gap."""
        reading = self._reading[chain_id]
        reading.discard(target_id)
        serves = target_id in self._cluster.chains().get(chain_id, ())
        text = f"target {target_id} was not looked at to the end: {exc}"
        if serves or not reading:
            self._add(Finding(Kind.UNREAD, chain_id, text, targets=(target_id,)))
        else:
            self._report.notes.append(text)

    # Looking again

    def _settle(self, batch: list[Suspect]) -> None:
        """Look at each until it is a finding, or nothing is wrong; mend what can be mended at once."""
        memories = {suspect: Memory() for suspect in batch}
        found: list[Finding] = []
        looks = 0
        while memories:
            waiting = list(memories)
            self._progress(f"looking again at {len(waiting)} chunks")
            for suspect, look in zip(waiting, self._cluster.look(waiting), strict=True):
                verdict = judge(suspect.key, suspect.chain_id, memories[suspect], look)
                if verdict is Verdict.AGAIN:
                    continue
                del memories[suspect]
                if isinstance(verdict, Finding):
                    found.append(verdict)
            looks += 1
            if looks >= LOOKS_MAX:
                for suspect in self._given_up(memories):
                    del memories[suspect]
                    self._report.unsettled += 1
            if memories:
                self._cluster.sleep(self._pause_s)
        self._mend(found)

    def _given_up(self, memories: Mapping[Suspect, Memory]) -> list[Suspect]:
        """What changes all the time. A version that has been pending through several looks is watched to the end."""
        now_s = self._cluster.monotonic_s()
        return [
            suspect
            for suspect, memory in memories.items()
            if not memory.pending or now_s - memory.pending_since_s < 2 * self._pause_s
        ]

    def _mend(self, found: list[Finding]) -> None:
        for finding in found:
            if finding.kind in _RESYNCED:
                self._remember(finding)
        if self._repair:
            self._drop([finding for finding in found if finding.kind in _DROPPED])
        for finding in found:
            self._add(finding)

    def _remember(self, finding: Finding) -> None:
        assert finding.key is not None
        chain = self._chains.setdefault(finding.chain_id, _Chain())
        chain.findings[finding.kind] += 1
        chain.undecided = chain.undecided or not finding.decided
        for target in finding.targets:
            chain.sample.setdefault(target, Suspect(finding.key, finding.chain_id))

    def _add(self, finding: Finding) -> None:
        self._report.found[finding.kind] += 1
        if finding.repaired:
            self._report.repaired[finding.kind] += 1
        if self._report.found[finding.kind] <= self._shown_max:
            self._report.findings.append(finding)

    def _judge_chains(self, away: set[int]) -> None:
        """Chains without a serving replica at the beginning (`away`), and those of files that were no chain then."""
        unserved = self._report.tally.unserved
        if not away and not unserved:
            return
        self._cluster.sleep(self._pause_s)
        now = self._cluster.chains()
        for chain_id in sorted(away | unserved.keys()):
            use = unserved.get(chain_id)
            if not now.get(chain_id):
                text = f"{use.files} files need it, the first is inode {use.first}" if use else "no file needs it"
                self._add(Finding(Kind.NOT_SERVING if chain_id in now else Kind.NO_CHAIN, chain_id, text))
            elif chain_id in away:
                self._add(Finding(Kind.UNREAD, chain_id, "it began to serve while the check ran: check again"))
            else:
                self._report.notes.append(f"chain {chain_id} was made while the check ran and was not looked at")

    # Repair

    def _drop(self, findings: list[Finding]) -> None:
        """Drop superfluous chunks, each while it is what was seen twice."""
        cluster = self._cluster
        due: dict[int, list[Finding]] = {}
        for finding in findings:
            assert finding.key is not None
            if finding.kind is Kind.ORPHAN and finding.key.inode >= self._next_inode:
                finding.text += "; this inode id was not given out when the check began: left alone"
                continue
            due.setdefault(finding.chain_id, []).append(finding)
        wait_s = self._began_s + DROP_AFTER_S - cluster.monotonic_s()
        if due and wait_s > 0:
            cluster.sleep(wait_s)
        for chain_id, members in due.items():
            self._progress(f"dropping {len(members)} chunks")
            for finding, code in zip(members, cluster.drop(chain_id, members), strict=True):
                if code is Code.OK:
                    finding.repaired = f"shortened to {finding.keep_bytes} bytes" if finding.keep_bytes else "removed"
                elif code is Code.STALE_UPDATE:
                    finding.text += "; written since: left alone"
                else:
                    finding.text += f"; could not be dropped: {code.name.lower()}"

    def _resync(self) -> None:
        """Bring wrong replicas up to date, one by one, each only from one that is right in all that was found."""
        for chain_id, chain in sorted(self._chains.items()):
            if chain.undecided:
                self._report.notes.append(
                    f"chain {chain_id}: no replica is resynced while it cannot be told who is right"
                )
                continue
            problem = self._resync_chain(chain_id, set(chain.sample))
            if not problem and any(map(self._still_wrong, chain.sample.values())):
                problem = "its replicas still differ after a resync"
            if problem:
                self._report.notes.append(f"chain {chain_id}: not mended: {problem}")
                continue
            self._report.repaired.update(chain.findings)
            for finding in self._report.findings:
                if finding.chain_id == chain_id and finding.kind in _RESYNCED:
                    finding.repaired = f"resynced {', '.join(map(str, finding.targets))}"

    def _resync_chain(self, chain_id: int, wrong: set[int]) -> str:
        """Empty when all of `wrong` were resynced, else why not."""
        while wrong:
            target = next_to_resync(self._cluster.chains().get(chain_id, ()), wrong)
            if target is None:
                return "no right replica stands where a wrong one could be resynced from it"
            self._progress(f"resyncing target {target} of chain {chain_id}")
            try:
                self._cluster.resync(chain_id, target, RESYNC_TIMEOUT_S)
            except FfsError as exc:
                return exc.message
            wrong.discard(target)
        return ""

    def _still_wrong(self, suspect: Suspect) -> bool:
        """Whether a chunk is a finding of replicas again. One that changes at each look is not."""
        memory = Memory()
        for _ in range(LOOKS_MAX):
            verdict = judge(suspect.key, suspect.chain_id, memory, self._cluster.look([suspect])[0])
            if verdict is not Verdict.AGAIN:
                return isinstance(verdict, Finding) and verdict.kind in _RESYNCED
            self._cluster.sleep(self._pause_s)
        return False
