"""One target directory of this worker: its engine, its threads, its state in its chain.

It belongs to the worker's event loop; only `LocalTarget.call` leaves that, for one of the target's threads.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fireflyfs.client.routing import Chain
from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.to_its_end import to_its_end
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import ScrubReport
from fireflyfs.storage.core import forward, target
from fireflyfs.storage.core.exactly_once import ExactlyOnce
from fireflyfs.storage.core.scrub import Progress, Suspects
from fireflyfs.storage.core.target import Public, TargetState
from fireflyfs.storage.engine.interface import (
    ChunkEngine,
    ChunkKey,
    Done,
    DoneChunk,
    Space,
    Version,
    WouldBlock,
    Writer,
)
from fireflyfs.storage.service.locks import KeyLocks
from fireflyfs.storage.service.target_cache import TargetCache
from fireflyfs.storage.service.wire import Result

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# Work on so few bytes costs less than handing it to a thread and back, as long as the disk does not make it wait: each
# system call in a thread gives the interpreter to another one, and waits to have it back.
INLINE_BYTES_MAX = 2 << 20
INLINE_ITEMS_MAX = 64
INLINE_SLOW_S = 0.02  # a call on the loop that waits, and takes longer, sends the next ones to threads,
INLINE_REST_S = 0.5  # for so long
REMOVED_MAX = 32_768
HEAD_REMOVED_MAX = 4 * REMOVED_MAX
DONE_PAGE = 1024  # channels read or sent at a time
NO_ROOM_REST_S = 30.0


def _waits_of_this_thread() -> int:
    """How often it has slept until something was there, a disk or a lock; not: how often others ran in its place."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class LocalTarget:
    """One target directory: its engine, its threads, its state in its chain."""

    def __init__(
        self,
        target_id: int,
        engine: ChunkEngine,
        *,
        path: Path | None = None,
        threads: int = 4,
        clock: Clock | None = None,
        waits: Callable[[], int] = _waits_of_this_thread,
    ) -> None:
        self.target_id = target_id
        self.engine = engine
        self.path = path
        self.state = TargetState()
        self.public = Public.UNKNOWN
        self.chain: Chain | None = None
        # Chunks removed under this version of the chain, with the version that removed them: the newest ones.
        self.removed: OrderedDict[ChunkKey, int] = OrderedDict()
        self.term = 0  # grows when it stops serving: an update that began before then may not end as one of a replica
        self.locks = KeyLocks()
        self.cache = TargetCache(engine)
        self.once: ExactlyOnce[Result] = ExactlyOnce()
        self._recall()
        self.space = Space(0, 0, 0, 0)
        self.resync_done = 0  # chunks of the resync of the successor that runs; 0 of 0: none does
        self.resync_total = 0
        self.suspects = Suspects()
        self.suspected = asyncio.Event()
        self.repaired = 0  # chunks, since the process began
        self.scrub = Progress()
        self.scrub_asked = asyncio.Event()
        self._running: set[_UnderWay] = set()
        self._drains: list[tuple[set[_UnderWay], asyncio.Future[None]]] = []  # what each still waits for
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"target-{target_id}")
        self._threads_until_s = 0.0
        self._rests_until_s = 0.0
        self._clock = clock or SystemClock()
        self._waits = waits
        self.on_change: Callable[[], None] = lambda: None

    def _recall(self) -> None:
        """Requests that were done before this process."""
        after: Writer | None = None
        while page := self.engine.done(after, DONE_PAGE):
            self.know(page)
            after = page[-1].writer

    def know(self, done: Sequence[Done]) -> None:
        """These requests were done: repeated ones are answered so."""
        for writer, chunks in done:
            self.once.note(writer, [(chunk.key, Result(Code.OK, *_as_result(chunk))) for chunk in chunks])

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking engine work in a thread of this target. A failed disk takes the target offline.

        A cancelled caller still waits for the thread: it works on memory and chunks that the caller gives back.
        """
        work = asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))
        try:
            return await to_its_end(work)
        except (FfsError, OSError) as exc:
            self.note_failure(exc)
            raise

    async def call_short(self, size: int, items: int, function: Callable[..., T], *args: Any) -> T:
        """As `call`, for work on `size` bytes of `items` chunks: on the event loop when it is little and need not wait.

        `function` takes `nowait`, raises WouldBlock where it would wait, and may be called again after that.
        """
        if size <= INLINE_BYTES_MAX and items <= INLINE_ITEMS_MAX:
            began_s = self._clock.monotonic_s()
            waits = self._waits()
            if began_s >= self._threads_until_s:
                try:
                    return function(*args, nowait=True)
                except WouldBlock:
                    pass
                except (FfsError, OSError) as exc:
                    self.note_failure(exc)
                    raise
                finally:
                    ended_s = self._clock.monotonic_s()
                    # One that did not wait was kept from running: it would be in a thread as well.
                    if ended_s - began_s > INLINE_SLOW_S and self._waits() != waits:
                        self._threads_until_s = ended_s + INLINE_REST_S
        return await self.call(function, *args)

    def note_failure(self, exc: FfsError | OSError) -> None:
        """What work on the engine or its disk raised. Raises DISK_FAILED for an error of the system."""
        if isinstance(exc, OSError):
            self.fail(str(exc))
            raise error(Code.DISK_FAILED, str(exc)) from exc
        if exc.code is Code.DISK_FAILED:
            self.fail(exc.message)

    async def finish_anyway(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, to its end even when the caller is cancelled: it holds locks, and the caller's memory."""
        with self.under_way():
            return await to_its_end(asyncio.get_running_loop().create_task(work))

    def under_way(self) -> _UnderWay:
        """An update that `drain` waits for."""
        return _UnderWay(self._running, self._drains)

    async def drain(self, timeout_s: float) -> bool:
        """Wait for the updates that are under way now, not for later ones. False when some did not end in time."""
        if not self._running:
            return True
        drain = (set(self._running), asyncio.get_running_loop().create_future())
        self._drains.append(drain)
        try:
            _, late = await asyncio.wait([drain[1]], timeout=timeout_s)
        finally:
            self._drains.remove(drain)
        return not late

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def serves(self) -> bool:
        """Whether it is a full replica now."""
        return target.may_serve(self.state, self.public)

    def place(self, chain: Chain | None, public: Public) -> None:
        """mgmtd's newest word on this target."""
        served = self.serves()
        if chain is None or self.chain is None or chain.version != self.chain.version:
            self.removed.clear()  # what was sent under another version is refused
        self.chain = chain
        self.public = public
        if served and not self.serves():
            self.term += 1
        if self._clock.monotonic_s() >= self._rests_until_s:
            self.set_state(target.on_routing(self.state, public))
        if self.serves():
            self.vouch()

    def look_again(self) -> None:
        """One that rests (`run_out_of_room`) comes back when its time is over, whether there is news of it or not."""
        if self._rests_until_s and self._clock.monotonic_s() >= self._rests_until_s:
            self._rests_until_s = 0.0
            self.set_state(target.on_routing(self.state, self.public))

    def vouch(self) -> None:
        """It serves, so what it holds is the truth."""
        if self.engine.lost_power:
            try:
                self.engine.vouch()
            except FfsError as exc:
                self.fail(exc.message)

    def note_removed(self, committed: Mapping[ChunkKey, Version | Code], chain_version: int) -> None:
        """Remember which of these commits, under `chain_version`, were removals."""
        for key, found in committed.items():
            if isinstance(found, Version) and found.removed:
                self.note_version(key, found.version, chain_version)

    def note_version(self, key: ChunkKey, version: int, chain_version: int) -> None:
        """`version` removed the chunk here, or would have."""
        if self.chain is None or self.chain.version != chain_version:
            return  # it took so long that the chain has changed
        self.removed[key] = max(version, self.removed.pop(key, 0))
        # The head numbers, so it must not forget before the others do.
        leads = self.chain is not None and forward.is_head(self.chain, self.target_id)
        while len(self.removed) > (HEAD_REMOVED_MAX if leads else REMOVED_MAX):
            self.removed.popitem(last=False)

    def set_state(self, state: TargetState) -> None:
        served = self.serves()
        if state != self.state:
            log.info("target %d: %s, was %s: %s", self.target_id, state.local.name, self.state.local.name, state.why)
            changed = state.local is not self.state.local
            self.state = state
            if served and not self.serves():
                self.term += 1
            if changed:
                self.on_change()

    def fail(self, why: str) -> None:
        """The disk cannot be used: out until the process starts again."""
        if not self.state.failed:
            log.error("target %d goes offline: %s", self.target_id, why)
        self.set_state(target.on_failure(self.state, why))

    def diverge(self, why: str) -> None:
        """This replica lacks what its successors have committed: it leaves the chain and returns by a resync."""
        log.error("target %d leaves its chain: %s", self.target_id, why)
        self.set_state(target.on_divergence(self.state, why))

    def stall(self, why: str) -> None:
        """Its disk hangs: its chain goes on without it until `answers_again`."""
        self._rests_until_s = float("inf")
        self.diverge(why)

    def answers_again(self) -> None:
        """After `stall`: it may come back, by a resync."""
        if self._rests_until_s == float("inf"):
            self._rests_until_s = 0.0
            self.set_state(target.on_routing(self.state, self.public))

    def run_out_of_room(self) -> None:
        """Its chain goes on without it, instead of refusing what the replicas that serve have room for."""
        if self.public is not Public.SYNCING or self.state.failed:
            return
        self._rests_until_s = max(self._rests_until_s, self._clock.monotonic_s() + NO_ROOM_REST_S)
        self.diverge(f"no room for what it lacks; next attempt in {NO_ROOM_REST_S:g} s")

    def suspect(self, key: ChunkKey) -> None:
        """Somebody met bytes of the chunk that do not match: it is looked at, and mended, soon."""
        if self.suspects.add(key, self._clock.monotonic_s()):
            self.suspected.set()

    def scrub_report(self) -> ScrubReport:
        progress = self.scrub
        return ScrubReport(
            passes=progress.passes,
            running=progress.running,
            done_chunks=progress.chunks,
            total_chunks=progress.total,
            done_bytes=progress.bytes,
            ended_unix_ns=int(progress.ended_unix_s * 1e9),
            found_chunks=progress.damaged,
            lost_chunks=progress.lost,
            repaired_chunks=self.repaired,
            damaged_chunks=self.space.damaged,
        )

    def report(self) -> mgmtd_pb2.TargetReport:
        return mgmtd_pb2.TargetReport(
            target_id=self.target_id,
            local_state=mgmtd_pb2.LocalState.Name(int(self.state.local)),
            chain_version=self.chain.version if self.chain is not None else 0,
            capacity_bytes=self.space.capacity_bytes,
            free_bytes=self.space.free_bytes,
            used_bytes=self.space.used_bytes,
            path=str(self.path or ""),
            resync_done_chunks=self.resync_done,
            resync_total_chunks=self.resync_total,
            scrub=self.scrub_report(),
            disk_id=self.engine.disk_id,
            lost_power=self.engine.lost_power,
        )

    def close(self) -> None:
        """Waits for the threads, then closes the engine."""
        self._pool.shutdown(wait=True)
        self.engine.close()


class _UnderWay:
    """`LocalTarget.under_way`; a class, because each update enters it and a generator costs three times as much."""

    __slots__ = ("_drains", "_running")

    def __init__(self, running: set[_UnderWay], drains: list[tuple[set[_UnderWay], asyncio.Future[None]]]) -> None:
        self._running = running
        self._drains = drains

    def __enter__(self) -> None:
        self._running.add(self)

    def __exit__(self, *_: object) -> None:
        self._running.discard(self)
        for waited_for, end in self._drains:
            waited_for.discard(self)
            if not waited_for and not end.done():
                end.set_result(None)


def _as_result(chunk: DoneChunk) -> tuple[int, int, int, int]:
    return chunk.chain_version, chunk.version, chunk.length, chunk.crc32c
