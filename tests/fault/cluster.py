"""A local cluster that is done harm to: processes that are started again when they die, as an init system would."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fireflyfs.client.routing import Routing
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import GiB
from fireflyfs.common.net.host import BOOT_ID_ENV, host_id
from fireflyfs.deploy.local import ClusterSpec, LocalCluster
from fireflyfs.deploy.process import ServerProcess
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.store import Engine, create_target, open_engine

CHUNK_BYTES = 1 << 17
SPEC = ClusterSpec(replicas=3, targets_per_worker=2, capacity_bytes=2 * GiB, chunk_size=CHUNK_BYTES)
SCAN_PAGE = 1024


class FaultCluster(LocalCluster):
    """`launchers` and `boot_ids` are by process name: how it is started, and the boot id that it believes in."""

    def __init__(
        self,
        root: Path,
        *,
        launchers: Mapping[str, Sequence[str]] | None = None,
        boot_ids: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(root)
        self.launchers = dict(launchers or {})
        self.boot_ids = dict(boot_ids or {})
        self._making = threading.Lock()

    def _process(self, name: str) -> ServerProcess:
        with self._making:
            if name not in self._processes:
                config = str(self.root / "config" / f"{name}.toml")
                boot = self.boot_ids.get(name)
                self._processes[name] = ServerProcess(
                    self.root,
                    name,
                    ["run", name.partition("-")[0], "--config", config],
                    launcher=self.launchers.get(name, ()),
                    environment={BOOT_ID_ENV: boot} if boot else None,
                )
            return self._processes[name]

    def make_targets(self) -> None:
        """Make the target folders, on disks that are mounted already: LocalCluster makes them with their disk."""
        plan = self.plan()
        for target_id, (_, path) in self.target_paths().items():
            create_target(path, plan.spec.cluster_id, target_id)

    def reboot(self, boot_ids: Mapping[str, str]) -> None:
        """Processes that are started from now on believe that their machine was started anew."""
        self.boot_ids.update(boot_ids)
        with self._making:
            self._processes.clear()

    def pid(self, name: str) -> int:
        """0 when it does not run."""
        return self._process(name).pid()

    def workers(self, name: str) -> list[int]:
        """Process ids of a storage node's workers."""
        pid = self.pid(name)
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def signal(self, name: str, number: int, *, worker: bool = False) -> bool:
        """To a process and all of its group, or to a storage node's workers alone. False: it does not run."""
        if not worker:
            return self._process(name).send(number)
        pids = self.workers(name)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return False
        return bool(pids)

    def kill_all(self, names: Iterable[str] | None = None) -> None:
        """SIGKILL, as close together as can be, and wait until they are gone."""
        chosen = list(names or self.names())
        for name in chosen:
            self.signal(name, signal.SIGKILL)
        for name in chosen:
            self._process(name).wait_gone(30)

    @contextmanager
    def kept_running(self, chance: random.Random, delay_s_max: float = 1.5) -> Iterator[set[str]]:
        """Starts what dies, after a while. Names in the set that this gives are left alone."""
        stop = threading.Event()
        left_alone: set[str] = set()
        due_s: dict[str, float] = {}

        def keep() -> None:
            while not stop.wait(0.1):
                for name in self.names():
                    if name in left_alone or self.pid(name):
                        due_s.pop(name, None)
                    elif time.monotonic() >= due_s.setdefault(name, time.monotonic() + chance.uniform(0, delay_s_max)):
                        self._process(name).start()

        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield left_alone
        finally:
            stop.set()
            keeper.join()

    def wait_healed(self, timeout_s: float) -> float:
        """Until every process runs and every replica serves; how long that took."""
        began_s = time.monotonic()
        told = "nothing is known"
        while True:
            try:
                routing = self.routing()
                away = [f"target {t} is {s}" for c in routing.chains.values() for t, s in c.targets if s != 1]
                away += [f"{name} does not run" for name in self.names() if not self.pid(name)]
                if not away and routing.meta_servers():
                    return time.monotonic() - began_s
                told = ", ".join(away)
            except FfsError as exc:
                told = exc.message
            took_s = time.monotonic() - began_s
            assert took_s < timeout_s, f"not healed after {took_s:.0f} s: {told}"
            time.sleep(0.1)

    def wait_routing(self, accepts: Callable[[Routing], bool], timeout_s: float) -> float:
        """Until mgmtd's picture is accepted; how long that took."""
        began_s = time.monotonic()
        while not accepts(self.routing()):
            assert time.monotonic() - began_s < timeout_s, self.routing().chains
            time.sleep(0.05)
        return time.monotonic() - began_s

    def engine(self, name: str, path: Path) -> Engine:
        """The store of a target of a cluster that is down. The caller closes it."""
        return open_engine(path, checkpoint_interval_s=0, boot_id=self.boot_ids.get(name) or host_id())

    def target_paths(self) -> dict[int, tuple[str, Path]]:
        """(process, folder) of each target."""
        plan = self.plan()
        return {
            target_id: (name, self.root / "data" / name / str(target_id))
            for node, name in enumerate(plan.storage_names, 1)
            for _, target_id in plan.targets(node)
        }

    def compare_replicas(self) -> int:
        """Stop the cluster, and look at every byte of every replica: all of a chain are equal. How many chunks.

        A pending version is no difference: nobody was told of it. There is none when clients ended well.
        """
        chains = self.routing().chains.values()
        paths = self.target_paths()
        self.down()
        compared = 0
        for chain in chains:
            stores = {target_id: self.engine(*paths[target_id]) for target_id, _ in chain.targets}
            try:
                contents = {target_id: _content(store) for target_id, store in stores.items()}
            finally:
                for store in stores.values():
                    store.close()
            first = next(iter(contents.values()))
            for target_id, content in contents.items():
                different = [key for key in {*first, *content} if first.get(key) != content.get(key)]
                assert not different, (
                    f"chain {chain.chain_id}: target {target_id} differs in {len(different)} chunks, one of them "
                    f"{different[0]}: {first.get(different[0])} and {content.get(different[0])}"
                )
            compared += len(first)
        return compared


def _content(store: Engine) -> dict[ChunkKey, tuple[int, int, int]]:
    """(version, length, checksum) of each chunk, every byte of it read and verified."""
    found: dict[ChunkKey, tuple[int, int, int]] = {}
    after: ChunkKey | None = None
    while page := store.scan(after, SCAN_PAGE):
        for state in page:
            if state.committed is not None:
                into = memoryview(bytearray(state.committed.length))
                if state.committed.length:
                    read = store.read(state.key, 0, into)
                    assert (read.length, read.crc32c) == (state.committed.length, state.committed.crc32c), state
                found[state.key] = (state.committed.version, state.committed.length, state.committed.crc32c)
        after = page[-1].key
    return found
