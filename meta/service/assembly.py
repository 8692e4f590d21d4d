"""Puts the service together from a store, a clock, storage and routing; no sockets, so tests use the same."""

from __future__ import annotations

from dataclasses import dataclass

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import KvEngine
from fireflyfs.meta.background.garbage import GarbageCollector
from fireflyfs.meta.background.trims import Trimmer
from fireflyfs.meta.core.layout import LayoutRule, choose_chains
from fireflyfs.meta.service.handlers import MetaHandlers
from fireflyfs.meta.service.runner import GroupSync, Runner
from fireflyfs.meta.service.space import Space
from fireflyfs.meta.service.storage import ChunkStore, RoutingNow
from fireflyfs.meta.store.format import prepare
from fireflyfs.meta.store.ids import InodeIds


@dataclass(frozen=True, slots=True)
class MetaParts:
    """One metadata server without its doors."""

    runner: Runner
    handlers: MetaHandlers
    trimmer: Trimmer
    collector: GarbageCollector
    sync: GroupSync
    space: Space


class ChainChooser:
    """Chains for new files from the newest routing; the answer for one routing version is worked out once."""

    def __init__(self, routing: RoutingNow) -> None:
        self._routing = routing
        self._version = -1
        self._usable: dict[int, tuple[int, ...]] = {}

    def __call__(self, table_id: int, stripe_size: int, inode_id: int) -> tuple[int, ...]:
        """Raises NO_CHAIN when the table is unknown or empty."""
        routing = self._routing.current()
        if routing.version != self._version:
            self._usable.clear()
            self._version = routing.version
        usable = self._usable.get(table_id)
        if usable is None:
            table = routing.chain_tables.get(table_id)
            if table is None or not table.chains:
                raise error(Code.NO_CHAIN, f"chain table {table_id} has no chains in routing {routing.version}")
            # Chains that nobody serves now are left out, unless that leaves nothing: then files wait for them.
            serving = [number for number in table.chains if number in routing.chains and routing.chain(number).serving]
            usable = self._usable[table_id] = tuple(serving or table.chains)
        return choose_chains(usable, stripe_size, inode_id)


def assemble(
    engine: KvEngine,
    clock: Clock,
    storage: ChunkStore,
    routing: RoutingNow,
    *,
    root: tuple[int, int, int],
    layout: LayoutRule,
    garbage_at_once: int = 16,
    garbage_files_per_s: float = 2000.0,
) -> MetaParts:
    """`root`: uid, gid and mode of the root directory if this is the first start; `layout`: what it hands down."""
    uid, gid, mode = root
    prepare(engine, clock.unix_ns(), uid=uid, gid=gid, mode=mode, layout=layout)
    runner = Runner(engine, clock, InodeIds(engine), ChainChooser(routing), storage)
    trimmer = Trimmer(runner)
    runner.trims = trimmer
    collector = GarbageCollector(runner, at_once=garbage_at_once, files_per_s=garbage_files_per_s)
    sync = GroupSync(engine)
    space = Space(runner, routing)
    return MetaParts(runner, MetaHandlers(runner, sync, space), trimmer, collector, sync, space)
