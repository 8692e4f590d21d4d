"""A network that comes apart: every process on a machine of its own, as network namespaces on one bridge.

The bridge is in a namespace too, and drops frames from one port to another as it is told: cuts may be one-way. Nothing
on the host itself is changed, apart from one interface through which a test reaches all of them ("test").
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterable
from dataclasses import replace

from fault.cluster import FaultCluster
from fault.disks import run
from fireflyfs.deploy import plan as planning
from fireflyfs.deploy.plan import ClusterSpec, Plan

TEST = "test"  # the host's own place in the network
_TABLE = "add table bridge ffs; add chain bridge ffs forward { type filter hook forward priority 0; policy accept; }"


class Network:
    """Namespaces by name, each with an address. `close` takes all of it away."""

    def __init__(self, names: Iterable[str]) -> None:
        self._tag = f"ffs{random.SystemRandom().randrange(1 << 20):05x}"
        self._subnet = f"198.18.{random.SystemRandom().randrange(256)}"
        self._ports: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self._spaces: list[str] = []
        try:
            self._switch = self._space("switch")
            self._ip(self._switch, "link", "add", "bridge0", "type", "bridge")
            self._ip(self._switch, "link", "set", "bridge0", "up")
            run("ip", "netns", "exec", self._switch, "nft", _TABLE)
            for name in [*names, TEST]:
                self._plug_in(name)
        except BaseException:
            self.close()
            raise

    def launcher(self, name: str) -> list[str]:
        """The command that runs another one on the machine `name`."""
        return ["ip", "netns", "exec", f"{self._tag}-{name}"]

    def cut(self, sender: str, *receivers: str, both_ways: bool = True) -> None:
        """Frames from `sender` do not arrive at `receivers` any more (none: nobody), nor the other way round."""
        for receiver in receivers or [name for name in self._ports if name not in (sender, TEST)]:
            self._drop(sender, receiver)
            if both_ways:
                self._drop(receiver, sender)

    def heal(self) -> None:
        """Every frame arrives again."""
        run("ip", "netns", "exec", self._switch, "nft", "flush chain bridge ffs forward")

    def close(self) -> None:
        for space in self._spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
        self._spaces.clear()

    def _drop(self, sender: str, receiver: str) -> None:
        rule = f'add rule bridge ffs forward iifname "{self._ports[sender]}" oifname "{self._ports[receiver]}" drop'
        run("ip", "netns", "exec", self._switch, "nft", rule)

    def _space(self, name: str) -> str:
        space = f"{self._tag}-{name}"
        run("ip", "netns", "add", space)
        self._spaces.append(space)
        self._ip(space, "link", "set", "lo", "up")
        return space

    def _plug_in(self, name: str) -> None:
        place = len(self._ports) + 1
        port = self._ports[name] = f"{self._tag}p{place}"
        self.addresses[name] = f"{self._subnet}.{place}"
        address = f"{self._subnet}.{place}/24"
        if name == TEST:
            inside = f"{self._tag}h"
            run("ip", "link", "add", inside, "type", "veth", "peer", "name", port, "netns", self._switch)
            run("ip", "address", "add", address, "dev", inside)
            run("ip", "link", "set", inside, "up")
        else:
            space = self._space(name)
            run(
                "ip", "link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", port, "netns", self._switch
            )
            self._ip(space, "address", "add", address, "dev", "eth0")
            self._ip(space, "link", "set", "eth0", "up")
        self._ip(self._switch, "link", "set", port, "master", "bridge0")
        self._ip(self._switch, "link", "set", port, "up")

    @staticmethod
    def _ip(space: str, *words: str) -> None:
        run("ip", "-n", space, *words)


class NetworkCluster(FaultCluster):
    """A cluster with each process on a machine of its own: no shared memory between them, and cables in between."""

    network: Network

    def create(self, spec: ClusterSpec | None = None) -> None:
        super().create(spec)
        plan = self.plan()
        self.network = Network([*self.names(), "client"])
        addresses = self.network.addresses
        planning.save(self.root / planning.PLAN_FILE, replace(plan, spec=replace(plan.spec, host=addresses["mgmtd"])))
        for name in self.names():
            self.launchers[name] = self.network.launcher(name)
            self.boot_ids[name] = f"boot of {name}"

    def _ready_plan(self) -> Plan:
        plan = self.plan()
        addresses = self.network.addresses
        folder = self.root / "config"
        planning.save(folder / "mgmtd.toml", planning.mgmtd_config(plan, self.root))
        planning.save(
            folder / "meta.toml", replace(planning.meta_config(plan, self.root), listen_host=addresses["meta"])
        )
        for node, name in enumerate(plan.storage_names, 1):
            storage = replace(planning.storage_config(plan, self.root, node), listen_host=addresses[name])
            planning.save(folder / f"{name}.toml", storage)
        self.make_targets()
        return plan
