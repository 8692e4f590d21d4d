"""The same work on any mounted directory: reads, writes and metadata through the kernel, one row each.

    python bench/fsrows.py DIR [--seconds 5] [--files 1000] [--json]

fio does the data rows; caches are dropped before the first read, so run it as root. Nothing stays in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

FILE_MIB = 512
# name: (fio options, which figure is the row's)
DATA_ROWS: dict[str, tuple[list[str], str]] = {
    "seq_write_1M": (["--rw=write", "--bs=1M", "--end_fsync=1", "--filename=a", "--create_on_open=1"], "MiB/s"),
    "seq_read_1M": (["--rw=read", "--bs=1M", "--filename=b", "--readonly"], "MiB/s"),
    "seq_read_1M_direct": (["--rw=read", "--bs=1M", "--direct=1", "--filename=b", "--readonly"], "MiB/s"),
    "seq_read_1M_4jobs": (["--rw=read", "--bs=1M", "--direct=1", "--numjobs=4", "--filename=b", "--readonly"], "MiB/s"),
    "rand_read_4k_direct": (["--rw=randread", "--bs=4k", "--direct=1", "--filename=b", "--readonly"], "/s"),
    "rand_read_4k_direct_16jobs": (
        ["--rw=randread", "--bs=4k", "--direct=1", "--numjobs=16", "--filename=b", "--readonly"],
        "/s",
    ),
    "rand_read_128k_direct_8jobs": (
        ["--rw=randread", "--bs=128k", "--direct=1", "--numjobs=8", "--filename=b", "--readonly"],
        "MiB/s",
    ),
    "rand_write_4k": (["--rw=randwrite", "--bs=4k", "--direct=1", "--filename=b"], "/s"),
    "rand_write_64k_4jobs": (["--rw=randwrite", "--bs=64k", "--direct=1", "--numjobs=4", "--filename=b"], "/s"),
}


def fio(folder: Path, seconds: float, options: list[str], unit: str) -> tuple[float, float]:
    """(rate, 99th percentile of the latency in microseconds)."""
    command = ["fio", "--name=x", f"--directory={folder}", f"--size={FILE_MIB}M", "--ioengine=psync"]
    command += [f"--runtime={seconds}", "--time_based", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds * 4 + 90)
    if done.returncode != 0:
        raise RuntimeError(f"fio failed: {done.stderr.strip()[-300:]}")
    jobs = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    sides = [job[side] for job in jobs for side in ("read", "write") if job[side]["iops"]]
    rate = sum(side["bw_bytes"] / 2**20 if unit == "MiB/s" else side["iops"] for side in sides)
    p99 = max((side["clat_ns"].get("percentile", {}).get("99.000000", 0) for side in sides), default=0)
    return rate, p99 / 1000


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def data_rows(folder: Path, seconds: float, report: Callable[[str, float, str, float], None]) -> None:
    for name, (options, unit) in DATA_ROWS.items():
        if name == "seq_read_1M":
            with open(folder / "b", "wb") as file:
                for _ in range(FILE_MIB):
                    file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            drop_caches()
        report(name, *_with_unit(fio(folder, seconds, options, unit), unit))
    for name in ("a", "b"):
        (folder / name).unlink(missing_ok=True)


def _with_unit(result: tuple[float, float], unit: str) -> tuple[float, str, float]:
    return result[0], unit, result[1]


def metadata_rows(folder: Path, files: int, report: Callable[[str, float, str, float], None]) -> None:
    base = str(folder / "md")
    os.makedirs(base, exist_ok=True)

    def timed(name: str, function: Callable[[int], object]) -> None:
        started = time.perf_counter()
        for number in range(files):
            function(number)
        report(name, files / (time.perf_counter() - started), "/s", 0)

    def write_file(number: int) -> None:
        with open(f"{base}/w{number}", "wb") as file:
            file.write(b"x" * 4096)

    def read_file(number: int) -> None:
        with open(f"{base}/w{number}", "rb") as file:
            file.read()

    timed("md_create", lambda n: os.close(os.open(f"{base}/f{n}", os.O_CREAT | os.O_WRONLY | os.O_EXCL)))
    timed("md_write_4k_file", write_file)
    drop_caches()
    timed("md_stat", lambda n: os.stat(f"{base}/f{n}"))
    timed("md_read_4k_file", read_file)
    started = time.perf_counter()
    entries = sum(1 for entry in os.scandir(base) if entry.stat())
    report("md_scandir_stat", entries / (time.perf_counter() - started), "/s", 0)
    timed("md_rename", lambda n: os.rename(f"{base}/f{n}", f"{base}/g{n}"))
    timed("md_unlink", lambda n: os.unlink(f"{base}/g{n}"))


def run(
    directory: Path, seconds: float, files: int, report: Callable[[str, float, str, float], None], only: str = ""
) -> None:
    """All rows in a folder of `directory`, which is removed afterwards."""
    folder = directory / "fsrows"
    folder.mkdir(exist_ok=True)
    try:
        if only in ("", "data"):
            data_rows(folder, seconds, report)
        if only in ("", "meta"):
            metadata_rows(folder, files, report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--only", choices=["data", "meta"], default="")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it drops the kernel's caches")

    def report(name: str, rate: float, unit: str, p99_us: float) -> None:
        if options.json:
            print(json.dumps({"row": name, "rate": rate, "unit": unit, "p99_us": p99_us}), flush=True)
        else:
            tail = f"  p99 {p99_us:,.0f} µs" if p99_us else ""
            print(f"{name:<28} {rate:>10,.0f} {unit}{tail}", flush=True)

    run(options.directory, options.seconds, options.files, report, options.only)


if __name__ == "__main__":
    main()
