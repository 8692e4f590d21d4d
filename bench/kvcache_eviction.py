"""How often the cache's order of eviction hits on a trace of block requests, beside LRU and Belady's optimum.

    python bench/kvcache_eviction.py TRACE.jsonl [--sizes 0.01,0.05,0.1,0.25,0.5] [--json]

A line of the trace is a request: JSON with `hash_ids`, the ids of its blocks in order (as in the traces of Mooncake).
All blocks count as one size. A miss stores the block. Belady's optimum knows the future: nothing can do better.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import OrderedDict
from pathlib import Path

from fireflyfs.common.cache_hash import Keys
from fireflyfs.storage.core.cache_index import CacheIndex
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, NamedBlock

BLOCK_BYTES = 4096
NEVER = 1 << 62
BATCH = 64  # victims at a time, as a target evicts


def accesses_of(path: Path) -> list[int]:
    with path.open(encoding="utf-8") as lines:
        return [block for line in lines for block in json.loads(line)["hash_ids"]]


def ours(accesses: list[int], capacity: int) -> float:
    """The very index and order of eviction that a storage target uses."""
    index = CacheIndex()
    index.set_capacity(1, capacity * BLOCK_BYTES)
    keys = {block: Keys([block.to_bytes(8, "little")]) for block in set(accesses)}
    hits = 0
    for block in accesses:
        key = keys[block]
        if index.present(1, key.index, key.check, 0)[0]:
            hits += 1
            continue
        place, check = int(key.index[0]), int(key.check[0])
        name = CacheName(block.to_bytes(8, "little"), 0)
        index.store(NamedBlock(ChunkKey(1, place), name, BLOCK_BYTES, 0, (12, 0)), check)
        if index.over_bytes(1):
            batch = min(BATCH, max(1, capacity // 64))
            for victim in index.evict(1, batch * BLOCK_BYTES, batch):
                index.drop(victim)
    return hits / len(accesses)


def lru(accesses: list[int], capacity: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in accesses:
        if block in kept:
            hits += 1
            kept.move_to_end(block)
            continue
        kept[block] = None
        if len(kept) > capacity:
            kept.popitem(last=False)
    return hits / len(accesses)


def optimum(accesses: list[int], capacity: int) -> float:
    """Belady: whoever is asked for again last goes."""
    following = [NEVER] * len(accesses)
    seen: dict[int, int] = {}
    for at in range(len(accesses) - 1, -1, -1):
        following[at] = seen.get(accesses[at], NEVER)
        seen[accesses[at]] = at
    kept: dict[int, int] = {}
    queue: list[tuple[int, int]] = []
    hits = 0
    for at, block in enumerate(accesses):
        if block in kept:
            hits += 1
        elif len(kept) >= capacity:
            while True:
                turn, victim = heapq.heappop(queue)
                if kept.get(victim) == -turn:
                    del kept[victim]
                    break
        kept[block] = following[at]
        heapq.heappush(queue, (-following[at], block))
    return hits / len(accesses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--sizes", default="0.01,0.05,0.1,0.25,0.5", help="of the cache, as parts of the unique blocks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    accesses = accesses_of(options.trace)
    unique = len(set(accesses))
    rows = []
    for part in map(float, options.sizes.split(",")):
        capacity = max(1, int(unique * part))
        row = {
            "size": part,
            "blocks": capacity,
            "ours": ours(accesses, capacity),
            "lru": lru(accesses, capacity),
            "optimum": optimum(accesses, capacity),
        }
        rows.append(row)
        if not options.json:
            print(
                f"{part:6.0%} {capacity:8,d} blocks   ours {row['ours']:6.1%}   LRU {row['lru']:6.1%}   "
                f"optimum {row['optimum']:6.1%}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"accesses": len(accesses), "unique": unique, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
