"""Our mount beside MooseFS: the same rows (fsrows.py) on both in one run, with the ratio row by row.

    python bench/mount.py [--seconds 5] [--rounds 1] [--base DIR] [--only data|meta] [--no-moosefs] [--libfuse]
                          [--replicas 3] [--json FILE]

Starts a cluster of its own (3 storage nodes, 3 replicas) and a MooseFS (3 chunkservers, goal 2: two copies) under one
folder on one disk, one after the other so that they do not take each other's cores. Rounds alternate, and the median of
each row counts. As root; MooseFS is Debian's (deploy/debian-packages.sh bench).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import fsrows  # noqa: E402

FFS = [sys.executable, "-m", "fireflyfs.client.cli.main"]
# What each row must reach of MooseFS: 1 for the read rows, half for the others.
READ_ROWS = {"seq_read_1M", "seq_read_1M_direct", "seq_read_1M_4jobs", "md_stat", "md_read_4k_file", "md_scandir_stat"}
READ_ROWS |= {"rand_read_4k_direct", "rand_read_4k_direct_16jobs", "rand_read_128k_direct_8jobs"}

Results = dict[str, list[float]]


@contextmanager
def fireflyfs(base: Path, replicas: int, *options: str) -> Iterator[Path]:
    """A local cluster and its mount, with these options of `ffs mount`."""
    root, mountpoint = base / "ffs", base / "ffs-mnt"
    subprocess.run([*FFS, "--root", root, "up", "--replicas", str(replicas)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*FFS, "--root", root, "mount", mountpoint, *options], check=True, stdout=subprocess.DEVNULL)
    try:
        yield mountpoint
    finally:
        subprocess.run([*FFS, "--root", root, "down"], check=False, stdout=subprocess.DEVNULL)


@contextmanager
def moosefs(base: Path) -> Iterator[Path]:
    folder = base / "moosefs"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier round's: chunkservers refuse a master that is new
    with open(base / "moosefs.log", "ab") as log:
        try:
            subprocess.run([HERE / "moosefs.sh", "start", folder], check=True, stdout=log, stderr=log)
            yield folder / "mnt"
        except subprocess.CalledProcessError:
            sys.exit(f"MooseFS does not start:\n{(base / 'moosefs.log').read_text()[-1500:]}")
        finally:
            subprocess.run([HERE / "moosefs.sh", "stop", folder], check=False, stdout=log, stderr=log)


def measure(name: str, mountpoint: Path, options: argparse.Namespace, results: Results, units: dict[str, str]) -> None:
    def report(row: str, rate: float, unit: str, _: float) -> None:
        results.setdefault(row, []).append(rate)
        units[row] = unit
        print(f"  {name:<10} {row:<28} {rate:>10,.0f} {unit}", file=sys.stderr, flush=True)

    fsrows.run(mountpoint, options.seconds, options.files, report, options.only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--base", type=Path, help="a folder on the disk to measure; removed afterwards is only what is made"
    )
    parser.add_argument("--only", choices=["data", "meta"], default="")
    parser.add_argument("--no-moosefs", action="store_true")
    parser.add_argument("--libfuse", action="store_true", help="also our mount as libfuse serves it")
    parser.add_argument("--replicas", type=int, default=3, help="of ours; 2 are as many copies as MooseFS keeps")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it mounts, and drops the kernel's caches")
    base = Path(tempfile.mkdtemp(prefix="ffs-bench-", dir=options.base))
    base.chmod(0o755)
    ours: Results = {}
    theirs: Results = {}
    libfuse: Results = {}
    units: dict[str, str] = {}
    try:
        for _ in range(options.rounds):
            with fireflyfs(base, options.replicas) as mountpoint:
                measure("fireflyfs", mountpoint, options, ours, units)
            if options.libfuse:
                with fireflyfs(base, options.replicas, "--libfuse") as mountpoint:
                    measure("libfuse", mountpoint, options, libfuse, units)
            if not options.no_moosefs:
                with moosefs(base) as mountpoint:
                    measure("moosefs", mountpoint, options, theirs, units)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    show(ours, theirs, units)
    if libfuse:
        show_libfuse(ours, libfuse, units)
    if options.json:
        options.json.write_text(
            json.dumps({"fireflyfs": ours, "moosefs": theirs, "libfuse": libfuse, "units": units}, indent=2) + "\n"
        )


def show(ours: Results, theirs: Results, units: dict[str, str]) -> None:
    print(f"\n{'row':<28} {'FireflyFS':>11} {'MooseFS':>11}        {'ratio':>6}  {'at least':>8}")
    for row, rates in ours.items():
        us = statistics.median(rates)
        line = f"{row:<28} {us:>11,.0f}"
        if row in theirs:
            them = statistics.median(theirs[row])
            goal = 1.0 if row in READ_ROWS else 0.5
            verdict = "" if us >= goal * them else "  below"
            line += f" {them:>11,.0f} {units[row]:<6} {us / them:>6.2f}  {goal:>8.2f}{verdict}"
        else:
            line += f" {'-':>11} {units[row]}"
        print(line)


def show_libfuse(ours: Results, libfuse: Results, units: dict[str, str]) -> None:
    print(f"\n{'row':<28} {'our loop':>11} {'libfuse':>11}        {'ratio':>6}")
    for row, rates in libfuse.items():
        us, them = statistics.median(ours[row]), statistics.median(rates)
        print(f"{row:<28} {us:>11,.0f} {them:>11,.0f} {units[row]:<6} {us / them:>6.2f}")


if __name__ == "__main__":
    main()
