"""A whole cluster on this host: mgmtd, meta and storage nodes as processes, with everything they keep in one folder.

<root>/cluster.toml   the plan: identity, sizes, ports
<root>/config/        configuration of each process, written at each start
<root>/data/          mgmtd/, meta/, storage-N/<target id>/
<root>/log/           NAME.log (rotated), NAME.err (stderr of the last starts)
<root>/run/           pid files, sockets, the lock
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fireflyfs.client.cli.placement import spread
from fireflyfs.client.mgmtd_client import MgmtdClient
from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.deploy import plan as planning
from fireflyfs.deploy.plan import META_NODE_ID, ClusterSpec, Plan
from fireflyfs.deploy.process import ProcessStatus, ServerProcess
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_META, NODE_TYPE_STORAGE, NodeType

if TYPE_CHECKING:
    from fireflyfs.storage.server import StorageConfig

READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 25.0  # a storage node waits for its workers
LOCK_TIMEOUT_S = 120.0
POLL_S = 0.05
PORT_GRACE_S = 2.0
CHAIN_TABLE = 1

__all__ = ["ClusterSpec", "LocalCluster", "ProcessStatus"]


class LocalCluster:
    """The cluster in the folder `root`. Several processes may use one: what changes it runs under a lock."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self._processes: dict[str, ServerProcess] = {}

    # What there is

    def exists(self) -> bool:
        """Whether `create` was done."""
        return (self.root / planning.PLAN_FILE).is_file()

    def plan(self) -> Plan:
        """Raises CONFIG when there is no cluster here."""
        return planning.load_plan(self.root)

    @property
    def cluster_id(self) -> str:
        return self.plan().spec.cluster_id

    def mgmtd_addresses(self) -> list[str]:
        """Where mgmtd listens, whether it runs or not."""
        return [self.plan().mgmtd_address]

    def names(self) -> list[str]:
        """The processes, in the order in which they start."""
        return ["mgmtd", *self.plan().storage_names, "meta"]

    def status(self) -> list[ProcessStatus]:
        return [self._process(name).status() for name in self.names()]

    def mgmtd(self) -> MgmtdClient:
        """A client of this cluster's mgmtd; the caller closes it."""
        plan = self.plan()
        return MgmtdClient([plan.mgmtd_address], plan.spec.cluster_id)

    def routing(self) -> Routing:
        """All of routing, as mgmtd has it now."""
        with contextlib.closing(self.mgmtd()) as client:
            return apply_delta(Routing(), client.routing())

    # What changes it

    def create(self, spec: ClusterSpec | None = None) -> None:
        """Plan a new cluster; nothing runs yet. Raises EXISTS when there is one already."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if self.exists():
                raise error(Code.EXISTS, f"there is a cluster in {self.root} already")
            data = self.root / "data"
            if data.exists():
                raise error(Code.EXISTS, f"{data} holds data, but {planning.PLAN_FILE} is missing: not made a cluster")
            planning.save(self.root / planning.PLAN_FILE, planning.new_plan(spec or ClusterSpec(), self.root))

    def up(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start what does not run, make the chains the first time, and wait until everything serves.

        Raises UNAVAILABLE with the end of the log of whatever did not come up; what runs is left running.
        """
        with self._lock():
            deadline_s = time.monotonic() + timeout_s
            plan = self._ready_plan()
            self._start("mgmtd")
            with contextlib.closing(MgmtdClient([plan.mgmtd_address], plan.spec.cluster_id, patience_s=0)) as client:
                self._wait(["mgmtd"], deadline_s, "mgmtd does not answer", lambda: bool(client.get_cluster_info()))
                self._register(client, plan)
                servers = [*plan.storage_names, "meta"]
                since_ns = time.time_ns()
                started = [name for name in servers if self._start(name)]
                if not self._current(client).chain_tables:
                    self._make_chains(client, plan, deadline_s)
                self._wait_serving(client, servers, deadline_s, started=started, since_ns=since_ns)

    def down(self) -> None:
        """Stop everything in good order: meta, which needs storage; storage; mgmtd last, which is told by all."""
        with self._lock():
            self._stop(["meta"])
            self._stop(self.plan().storage_names)
            self._stop(["mgmtd"])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process (SIGKILL, SIGSTOP and the like: to its workers too).

        Raises NO_ENTRY when it does not run. After SIGKILL, returns when it is gone.
        """
        process = self._process(name)
        if not process.send(number):
            raise error(Code.NO_ENTRY, f"{name} does not run")
        if number == signal.SIGKILL and not process.wait_gone(STOP_GRACE_S):
            raise error(Code.BUSY, f"{name} does not go, even by SIGKILL")

    def restart(self, name: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Stop a process if it runs, start it, and wait until mgmtd hears of it. Replicas may still be resyncing."""
        with self._lock():
            self._stop([name])
            self._ready_plan()
            since_ns = time.time_ns()
            self._start(name)
            self._wait_alive(name, since_ns, time.monotonic() + timeout_s)

    def wait_serving(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when every process lives and every replica serves. Raises UNAVAILABLE naming what does not."""
        plan = self.plan()
        with contextlib.closing(self.mgmtd()) as client:
            self._wait_serving(client, [*plan.storage_names, "meta"], time.monotonic() + timeout_s)

    # How

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        run = self.root / "run"
        run.mkdir(parents=True, exist_ok=True)
        with (run / "lock").open("w") as file:
            deadline_s = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline_s:
                        raise error(Code.BUSY, f"another command is changing the cluster in {self.root}") from None
                    time.sleep(POLL_S)
            yield  # the lock goes with the file

    def _process(self, name: str) -> ServerProcess:
        if name not in self._processes:
            if name not in self.names():
                raise error(Code.NO_ENTRY, f"there is no process {name}: {', '.join(self.names())}")
            role = name.partition("-")[0]
            config = str(self.root / "config" / f"{name}.toml")
            self._processes[name] = self._server(name, ["run", role, "--config", config])
        return self._processes[name]

    def _server(self, name: str, arguments: list[str]) -> ServerProcess:
        return ServerProcess(self.root, name, arguments)

    def _ready_plan(self) -> Plan:
        """The plan, with another port where someone took one meanwhile; configurations and targets made from it.

        mgmtd tells everybody the ports of the others. Mounts and other machines know the cluster by its own, which
        stays from its first start on. Raises BUSY when another program holds it.
        """
        plan = self.plan()
        down = [name for name in self.names() if not self._process(name).pid()]
        # The threads of a process that was killed may hold its sockets for a moment after it is gone.
        deadline_s = time.monotonic() + PORT_GRACE_S
        while (taken := _taken_ports(plan, down)) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        if "mgmtd_grpc" in taken and (self.root / "data" / "mgmtd").exists():
            port = plan.ports["mgmtd_grpc"]
            raise error(
                Code.BUSY,
                f"another program listens on port {port}, by which mounts and other machines know the cluster manager: "
                f"`ss -ltnp sport = :{port}` shows which. Stop it, or, when nothing of this cluster runs or is mounted "
                f"any more, set another mgmtd_grpc in {self.root / planning.PLAN_FILE}, and start again with `ffs up`",
            )
        if taken:
            ports = plan.ports | dict(zip(sorted(taken), planning.free_ports(plan.spec.host, len(taken)), strict=True))
            plan = replace(plan, ports=ports)
            planning.save(self.root / planning.PLAN_FILE, plan)
        config = self.root / "config"
        planning.save(config / "mgmtd.toml", planning.mgmtd_config(plan, self.root))
        planning.save(config / "meta.toml", planning.meta_config(plan, self.root))
        for node, name in enumerate(plan.storage_names, 1):
            storage = planning.storage_config(plan, self.root, node)
            planning.save(config / f"{name}.toml", storage)
            if name in down and not (self.root / "data" / name).exists():
                self._make_targets(name, storage, plan.spec.cluster_id)
        return plan

    def _make_targets(self, name: str, storage: StorageConfig, cluster_id: str) -> None:
        """All targets of a node or none: one that is missing where others are is never made, its disk was lost."""
        from fireflyfs.storage.engine.identity import create_target, sync_directory

        made = self.root / "data" / name
        new = made.with_name(f"{name}.new")
        if new.exists():
            shutil.rmtree(new)  # a start that was killed here
        for worker in storage.workers:
            for target in worker.targets:
                create_target(new / Path(target.path).relative_to(made), cluster_id, target.target_id)
        sync_directory(new)
        new.rename(made)
        sync_directory(made.parent)

    def _start(self, name: str) -> bool:
        """Whether it had to be started."""
        process = self._process(name)
        if process.pid():
            return False
        process.start()
        return True

    def _stop(self, names: list[str]) -> None:
        running = [process for name in names if (process := self._process(name)).send(signal.SIGTERM)]
        for process in running:
            # A stopped process (SIGSTOP) takes SIGTERM only when it goes on.
            process.send(signal.SIGCONT)
        deadline_s = time.monotonic() + STOP_GRACE_S
        for process in running:
            if not process.wait_gone(max(0.0, deadline_s - time.monotonic())):
                process.send(signal.SIGKILL)
                process.wait_gone(STOP_GRACE_S)

    def _register(self, client: MgmtdClient, plan: Plan) -> None:
        def node(node_id: int, node_type: NodeType) -> None:
            client.register_node(mgmtd_pb2.RegisterNodeRequest(node_id=node_id, type=node_type))

        node(META_NODE_ID, NODE_TYPE_META)
        for storage in range(1, plan.spec.storage_nodes + 1):
            node(storage, NODE_TYPE_STORAGE)
            for worker, target_id in plan.targets(storage):
                client.register_target(
                    mgmtd_pb2.RegisterTargetRequest(target_id=target_id, node_id=storage, worker=worker)
                )

    def _make_chains(self, client: MgmtdClient, plan: Plan, deadline_s: float) -> None:
        """Chains and table 1, once all targets are up: then their replicas serve at once, with nothing to resync."""
        nodes = range(1, plan.spec.storage_nodes + 1)
        targets = {node: [target_id for _, target_id in plan.targets(node)] for node in nodes}
        everyone = {target_id for ids in targets.values() for target_id in ids}

        def all_online() -> bool:
            known = self._current(client).targets
            return all(known[t].local_state >= mgmtd_pb2.LOCAL_ONLINE for t in everyone if t in known)

        self._wait(plan.storage_names, deadline_s, "not all of its targets came online", all_online)
        chains = spread(targets, plan.spec.replicas)
        specs = [mgmtd_pb2.ChainSpec(chain_id=row.chain_id, targets=row.targets) for row in chains]
        client.set_chains(mgmtd_pb2.SetChainsRequest(chains=specs))
        client.set_chain_table(
            mgmtd_pb2.SetChainTableRequest(
                table_id=CHAIN_TABLE,
                chains=[row.chain_id for row in chains],
                description=f"local, {plan.spec.replicas} replicas",
            )
        )

    def _wait_serving(
        self,
        client: MgmtdClient,
        names: list[str],
        deadline_s: float,
        *,
        started: Sequence[str] = (),
        since_ns: int = 0,
    ) -> None:
        """`started` are processes that were started after `since_ns`: what mgmtd believed of them before is no news."""

        def serving() -> bool:
            routing = self._current(client)
            chains = routing.chains.values()
            if not all(_heard(routing, name, since_ns) for name in started) or not chains or not routing.meta_servers():
                return False
            if away := [target for chain in chains for target, _ in chain.targets if target not in chain.serving]:
                raise error(Code.TARGET_OFFLINE, f"these targets do not: {', '.join(map(str, away))}")
            return True

        self._wait(names, deadline_s, "not everything serves", serving)

    def _wait_alive(self, name: str, since_ns: int, deadline_s: float) -> None:
        with contextlib.closing(self.mgmtd()) as client:
            if name == "mgmtd":
                self._wait([name], deadline_s, "mgmtd does not answer", lambda: bool(client.get_cluster_info()))
            else:
                heard = lambda: _heard(self._current(client), name, since_ns)  # noqa: E731
                self._wait([name], deadline_s, "mgmtd does not hear of it", heard)

    def _wait(self, names: list[str], deadline_s: float, what: str, ready: Callable[[], bool]) -> None:
        """Until `ready()`. Raises the failure of a process of `names` that ended, or of the first when time is up."""
        last = ""
        while True:
            try:
                if ready():
                    return
            except FfsError as exc:
                last = f" ({exc.message})"
            for name in names:
                if not self._process(name).pid():
                    raise self._process(name).failure("it ended while it was waited for")
            if time.monotonic() >= deadline_s:
                raise self._process(self._culprit(names)).failure(what + last)
            time.sleep(POLL_S)

    def _culprit(self, names: list[str]) -> str:
        """The process whose log tells most: one that mgmtd does not hear of, else the first."""
        try:
            routing = self.routing()
        except FfsError:
            return "mgmtd"
        for name in names:
            node = routing.nodes.get(_node_id(name))
            if node is not None and not node.alive:
                return name
        return names[0]

    @staticmethod
    def _current(client: MgmtdClient) -> Routing:
        return apply_delta(Routing(), client.routing())


def _taken_ports(plan: Plan, down: list[str]) -> set[str]:
    """Which ports of processes that do not run are held by someone."""
    return {
        key
        for key, port in plan.ports.items()
        if key.partition("_")[0] in down and not planning.port_is_free(plan.spec.host, port)
    }


def _node_id(name: str) -> int:
    """The node id of a process; 0 for mgmtd."""
    return META_NODE_ID if name == "meta" else int(name.rpartition("-")[2]) if "-" in name else 0


def _heard(routing: Routing, name: str, since_ns: int) -> bool:
    """Whether mgmtd has heard of a start of `name` after `since_ns`: generations are start times."""
    node = routing.nodes.get(_node_id(name))
    return (
        node is not None
        and bool(node.workers)
        and all(worker.alive and worker.generation > since_ns for worker in node.workers)
    )
