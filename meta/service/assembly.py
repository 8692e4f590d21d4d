"""Puts the service together from a store, a clock, storage and routing; no sockets, so tests use the same."""

from __future__ import annotations

from dataclasses import dataclass

from fireflyfs.client.routing import Routing
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, error
from fireflyfs.common.kv.interface import KvEngine
from fireflyfs.meta.background.garbage import GarbageCollector
from fireflyfs.meta.background.trash import TrashCleaner
from fireflyfs.meta.background.trims import Trimmer
from fireflyfs.meta.background.usage import Counter, UsageFolder
from fireflyfs.meta.core.layout import LayoutRule, choose_chains
from fireflyfs.meta.ops.needs import AskRouting
from fireflyfs.meta.service.accounting import Accounting
from fireflyfs.meta.service.handlers import MetaHandlers
from fireflyfs.meta.service.lock_news import LockNews
from fireflyfs.meta.service.recalls import Recalls
from fireflyfs.meta.service.runner import GroupSync, Runner
from fireflyfs.meta.service.space import Space
from fireflyfs.meta.service.storage import ChunkStore, RoutingNow
from fireflyfs.meta.store.format import prepare
from fireflyfs.meta.store.ids import InodeIds

TABLES_SHOWN_MAX = 16
UNKNOWN_TABLE_WAIT_S = 1.0  # for news of a chain table that somebody names; mgmtd tells everybody within moments


@dataclass(frozen=True, slots=True)
class MetaParts:
    """One metadata server without its doors."""

    runner: Runner
    handlers: MetaHandlers
    trimmer: Trimmer
    collector: GarbageCollector
    sync: GroupSync
    space: Space
    trash: TrashCleaner
    folder: UsageFolder
    counter: Counter
    accounting: Accounting


class ChainChooser:
    """Chains for new files from the newest routing; the answer for one routing version is worked out once."""

    def __init__(self, routing: RoutingNow) -> None:
        self._routing = routing
        self._version = -1
        self._usable: dict[int, tuple[int, ...]] = {}
        self._confirmed = -1  # the version that nothing newer came after when a table was missing in it

    def __call__(self, table_id: int, stripe_size: int, inode_id: int) -> tuple[int, ...]:
        """Raises NO_CHAIN while the cluster has no chain tables at all: it is being set up, and waiting helps.

        Raises AskRouting for a table that is not in routing, and INVALID once that routing is known to be the newest.
        """
        routing = self._routing.current()
        if routing.version != self._version:
            self._usable.clear()
            self._version = routing.version
        usable = self._usable.get(table_id)
        if usable is None:
            table = routing.chain_tables.get(table_id)
            if table is None or not table.chains:
                self._refuse(table_id, routing)
                raise AskRouting(routing.version)
            # Chains that nobody serves now are left out, unless that leaves nothing: then files wait for them.
            serving = [number for number in table.chains if number in routing.chains and routing.chain(number).serving]
            usable = self._usable[table_id] = tuple(serving or table.chains)
        return choose_chains(usable, stripe_size, inode_id)

    def _refuse(self, table_id: int, routing: Routing) -> None:
        if not routing.chain_tables:
            raise error(Code.NO_CHAIN, f"no chain table is known in routing version {routing.version}")
        if routing.version == self._confirmed:
            known = ", ".join(str(number) for number in sorted(routing.chain_tables)[:TABLES_SHOWN_MAX])
            raise error(Code.INVALID, f"there is no chain table {table_id}; known in this cluster: {known}")

    async def confirm(self, version: int) -> None:
        """Wait a moment for routing newer than `version`; without any, that version's word counts."""
        newest = await self._routing.wait_newer(version, UNKNOWN_TABLE_WAIT_S)
        if newest.version == version:
            self._confirmed = version


def assemble(
    engine: KvEngine,
    clock: Clock,
    storage: ChunkStore,
    routing: RoutingNow,
    *,
    root: tuple[int, int, int],
    layout: LayoutRule,
    garbage_at_once: int = 256,
    garbage_files_per_s: float = 10_000.0,
    trash_keep_s: float = 0.0,
) -> MetaParts:
    """`root`: uid, gid and mode of the root directory if this is the first start; `layout`: what it hands down."""
    uid, gid, mode = root
    prepare(engine, clock.unix_ns(), uid=uid, gid=gid, mode=mode, layout=layout)
    chooser = ChainChooser(routing)
    runner = Runner(
        engine, clock, InodeIds(engine), chooser, storage, confirm_routing=chooser.confirm, trash=trash_keep_s > 0
    )
    trimmer = Trimmer(runner)
    runner.trims = trimmer
    folder = UsageFolder(runner)
    runner.fold = folder.catch_up
    accounting = Accounting(runner)
    collector = GarbageCollector(runner, at_once=garbage_at_once, files_per_s=garbage_files_per_s)
    sync = GroupSync(engine)
    space = Space(runner, routing)
    cleaner = TrashCleaner(runner, trash_keep_s)
    recalls = Recalls(runner)
    runner.recall = recalls.clear
    runner.recall_clients = recalls.clear_clients
    handlers = MetaHandlers(runner, sync, space, LockNews(runner), accounting, recalls)
    counter = Counter(runner)
    return MetaParts(runner, handlers, trimmer, collector, sync, space, cleaner, folder, counter, accounting)
