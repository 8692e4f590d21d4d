"""Metadata calls per second through both lanes: the service with RocksDB in a child process, clients in this one.

    python bench/meta.py [--seconds 2] [--clients 1] [--lane unix tcp grpc] [--profile FILE]

Prints one line for each lane and call.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from metacalls import Load, measure, sender, serving

ROWS = ("create", "create_and_close", "stat", "lookup", "set_mode", "list_64", "unlink")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--clients", type=int, default=1, help="threads, each with its own directory")
    parser.add_argument("--lane", nargs="+", choices=["unix", "tcp", "grpc"], default=["unix", "tcp", "grpc"])
    parser.add_argument("--profile", default="", help="write the server's cProfile data here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ffs-bench-meta-") as folder, serving(folder, options.profile) as doors:
        for lane in options.lane:
            send = sender(lane, doors)
            loads = [Load(send, f"{lane}{number}") for number in range(options.clients)]
            for row in ROWS:
                rate = measure(loads, row, options.seconds)
                results[f"{lane}.{row}"] = rate
                if not options.json:
                    print(f"{lane:5} {row:17} {rate:10,.0f} /s", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
