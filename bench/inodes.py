"""Metadata calls on a store of ten million inodes, beside the same calls on an empty one.

    python bench/inodes.py [--inodes 10000000] [--seconds 3] [--rounds 3] [--folder DIR] [--json]

The inodes are files of one level of directories, 10,000 in each, as records of meta's own form written past the
service (through it they would take half an hour); the service is then started on them, as after a start of the machine,
with no file of the store in the page cache, and reads them ahead as it does. `stat` asks for files all over the store,
one look-up of a path each; `create` makes files in a new directory. Prints what the store takes on disk for each inode,
and the service's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from metacalls import CHAINS, Doors, Load, measure, sender, serving

from fireflyfs.common.kv.interface import Transaction, read, run
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.records import Inode, pack_dentry
from fireflyfs.proto import meta_pb2

DIRECTORY_FILES = 10_000
BATCH = 50  # files written in one transaction: as many as the store takes
ROOT = 1
KEPT = 0.7  # of the speed on an empty store, at least
NOW_NS = 1_750_000_000 * 10**9


def file_name(number: int) -> bytes:
    return b"train-%08d.safetensors" % number


def directory_name(number: int) -> bytes:
    return b"shard-%06d" % number


def fill(store: Path, inodes: int) -> int:
    """Write so many files into a store that the service has made; how many directories they are in."""
    kv = RocksKv(store)
    try:
        numbers = random.Random(1)  # lengths and times as real files have them: no two alike
        first = int.from_bytes(read(kv, lambda txn: txn.get(keys.NEXT_INODE)) or b"\2", "big")
        directories = -(-inodes // DIRECTORY_FILES)

        def directory(number: int, files: int) -> None:
            inode_id = first + number * (DIRECTORY_FILES + 1)

            def put(begin: int, end: int) -> None:
                def write(txn: Transaction) -> None:
                    if begin == 0:
                        made = Inode(inode_id, 0o040755, 2, 1000, 1000, parent=ROOT, btime_ns=NOW_NS, mtime_ns=NOW_NS)
                        txn.put(keys.inode(inode_id), made.pack())
                        txn.put(keys.dentry(ROOT, directory_name(number)), pack_dentry(inode_id, made.mode))
                    for place in range(begin, end):
                        file_id = inode_id + 1 + place
                        chains = tuple((file_id + step) % CHAINS + 1 for step in range(4))
                        age_ns, later_ns = numbers.getrandbits(54), numbers.getrandbits(40)
                        made = Inode(
                            file_id, 0o100644, 1, 1000, 1000, 0, 1, numbers.getrandbits(30), 0, NOW_NS - age_ns,
                            NOW_NS - age_ns + later_ns, NOW_NS - age_ns + later_ns, NOW_NS - age_ns,
                            0, 1 << 20, 4, 1, chains,
                        )  # fmt: skip
                        txn.put(keys.inode(file_id), made.pack())
                        txn.put(keys.dentry(inode_id, file_name(place)), pack_dentry(file_id, made.mode))

                run(kv, write)

            for begin in range(0, files, BATCH):
                put(begin, min(begin + BATCH, files))

        for number in range(directories):
            directory(number, min(DIRECTORY_FILES, inodes - number * DIRECTORY_FILES))
        end = first + directories * (DIRECTORY_FILES + 1)
        run(kv, lambda txn: txn.put(keys.NEXT_INODE, end.to_bytes(8, "big")))
        kv.sync()
    finally:
        kv.close()
    settle(store)
    return directories


def settle(store: Path) -> None:
    """Let RocksDB finish what so fast a fill has left to do: no store grows so fast that it is always behind."""
    kv = RocksKv(store)
    database = kv._database()
    database.flush()
    while database.property_int_value("rocksdb.estimate-pending-compaction-bytes") or database.property_int_value(
        "rocksdb.num-running-compactions"
    ):
        time.sleep(0.5)
    kv.close()


class Spread(Load):
    """Stats of files all over the store; of those that this client made where there are no others."""

    def __init__(self, doors: Doors, name: str, inodes: int) -> None:
        super().__init__(sender("unix", doors), name)
        self._name = name.encode()
        self._inodes = inodes
        self._random = random.Random(7)

    def stat(self) -> None:
        if self._inodes:
            number, place = divmod(self._random.randrange(self._inodes), DIRECTORY_FILES)
            path = directory_name(number) + b"/" + file_name(place)
        else:
            path = self._name + b"/file%08d" % self._random.randrange(self.made)
        self.send("Stat", meta_pb2.StatRequest(caller=self.caller, at=meta_pb2.PathAt(dir=ROOT, path=path)))


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def memory_bytes(pid: int) -> int:
    """Anonymous memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inodes", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one figure of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ffs-bench-inodes-", dir=options.folder) as base:
        folders = {"empty": Path(base) / "empty", "full": Path(base) / "full"}
        for folder in folders.values():
            folder.mkdir()
            with serving(str(folder)):
                pass
        began = time.perf_counter()
        fill(folders["full"] / "kv", options.inodes)
        fill_s = time.perf_counter() - began
        drop_caches()
        with serving(str(folders["empty"])) as empty, serving(str(folders["full"])) as full:
            # One of each kind of store is asked after the other, round by round: the machine is the same for both.
            loads = {"empty": Spread(empty, "new", 0), "full": Spread(full, "new", options.inodes)}
            rates: dict[str, dict[str, list[float]]] = {row: {"empty": [], "full": []} for row in ("create", "stat")}
            cold = 0.0
            for number in range(options.rounds):
                for row, by_store in rates.items():
                    for store, load in loads.items():
                        by_store[store].append(measure([load], row, options.seconds))
                        if not number and row == "stat" and store == "full":
                            cold = by_store[store].pop()  # the store may still be being read ahead: shown beside
                            by_store[store].append(measure([load], row, options.seconds))
            memory = {"empty": memory_bytes(empty.pid), "full": memory_bytes(full.pid)}
        stored = disk_bytes(folders["full"])
    found: dict[str, float] = {"inodes": options.inodes, "fill_s": fill_s, "stat_cold": cold}
    for row, by_store in rates.items():
        for store, several in by_store.items():
            found[f"{row}_{store}"] = statistics.median(several)
        found[f"{row}_ratio"] = found[f"{row}_full"] / found[f"{row}_empty"]
    found |= {"disk_bytes_per_inode": stored / options.inodes}
    found |= {f"memory_mib_{store}": size / (1 << 20) for store, size in memory.items()}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    on_disk, memory_full, memory_empty = (
        found[name] for name in ("disk_bytes_per_inode", "memory_mib_full", "memory_mib_empty")
    )
    print(f"{options.inodes:,} inodes, written in {fill_s:,.0f} s; {on_disk:,.0f} bytes each on disk")
    print(f"memory of the service: {memory_full:,.0f} MiB, on an empty store {memory_empty:,.0f}")
    for row in rates:
        ratio = found[f"{row}_ratio"]
        met = "met" if ratio >= KEPT else "MISSED"
        print(
            f"{row:7s} {found[row + '_full']:9,.0f} /s, on an empty store {found[row + '_empty']:9,.0f} /s: "
            f"{ratio:4.2f}, at least {KEPT} {met}"
        )
    print(f"stat of {options.seconds:g} s soon after the start: {cold:,.0f} /s")


if __name__ == "__main__":
    main()
