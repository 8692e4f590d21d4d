"""One client process under load: `python -m fault.load ...`, until SIGTERM. Says nothing of right or wrong: it records.

Threads write and read cells of files that all processes share, and fsync them; one more thread works on names in a
folder of its own (see names.py). Through the library, or through a mount.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fault import cells
from fault.history import Recorder
from fireflyfs.client.filesystem import FileSystem

FOLDER = "/load"
CELLS_AT_ONCE_MAX = 2047  # a MiB
OWN_CELLS_MAX = 600
OWN_NAMES = 6


class Library:
    """Files through the client library."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self.listdir = fs.listdir
        self.rename = fs.rename
        self.remove = fs.unlink
        self.mkdir = fs.mkdir

    def open(self, path: str, flags: int = os.O_RDWR) -> Any:
        return self._fs.open_file(path, flags)


class MountedFile:
    """The methods of the library's file on a descriptor."""

    def __init__(self, path: str, flags: int) -> None:
        self._fd = os.open(path, flags, 0o644)

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)
        return done

    def truncate(self, length: int) -> None:
        os.ftruncate(self._fd, length)

    def fsync(self) -> None:
        os.fsync(self._fd)

    def readall(self) -> bytes:
        # A little from the kernel's cache, mostly from the file system itself.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return self.pread(os.fstat(self._fd).st_size, 0)

    def close(self) -> None:
        os.close(self._fd)


class Mounted:
    """Files through a mount."""

    def __init__(self, point: str) -> None:
        self._point = point

    def _path(self, path: str) -> str:
        return self._point + path

    def open(self, path: str, flags: int = os.O_RDWR) -> MountedFile:
        return MountedFile(self._path(path), flags)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(self._path(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._path(old), self._path(new))

    def remove(self, path: str) -> None:
        os.unlink(self._path(path))

    def mkdir(self, path: str) -> None:
        os.mkdir(self._path(path))


class Load:
    """The threads of this process and what they share."""

    def __init__(self, surface: Any, options: argparse.Namespace) -> None:
        self.surface = surface
        self.options = options
        self.stopping = threading.Event()
        self.failures: list[BaseException] = []
        self._counter = itertools.count(1)

    def value(self) -> int:
        return int(self.options.writer) << 28 | next(self._counter)

    def run(self) -> None:
        works: list[tuple[Callable[[Recorder, random.Random], None], str]] = [
            (partial(self.shared, n), f"t{n}") for n in range(self.options.threads)
        ]
        if self.options.names:
            works.append((self.names, "names"))
        threads = [threading.Thread(target=self.guarded, args=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def guarded(self, work: Callable[[Recorder, random.Random], None], name: str) -> None:
        options = self.options
        recorder = Recorder(Path(options.history) / f"{options.writer}-{name}.jsonl")
        try:
            work(recorder, random.Random(f"{options.seed}/{options.writer}/{name}"))
        except BaseException as exc:
            self.failures.append(exc)
            self.stopping.set()
            raise
        finally:
            recorder.close()

    def tried(self, recorder: Recorder, number: int, work: Callable[[], Any]) -> Any:
        """Carry out one operation and record how it ended; what it gave, or None."""
        try:
            result = work()
        except OSError as exc:
            recorder.no(number, exc)
            self.stopping.wait(0.05)
            return None
        if not isinstance(result, list):
            recorder.ok(number)
        else:
            recorder.got(number, result)
        return result

    def shared(self, index: int, recorder: Recorder, chance: random.Random) -> None:
        options = self.options
        numbers = range(options.first_file, options.first_file + options.files)
        files = {number: self.surface.open(path_of(number)) for number in numbers}
        made = itertools.count()
        while not self.stopping.is_set():
            number = chance.choice(numbers)
            file = files[number]
            count = min(options.cells, int(2 ** chance.uniform(0, 11)), CELLS_AT_ONCE_MAX)
            first = chance.randrange(options.cells - count + 1)
            what = chance.random()
            if what < options.writes:
                write(self, recorder, file, number, first, count)
            elif what < 1 - options.syncs:
                read(self, recorder, file, number, first, count)
            elif what < 1 - options.syncs / 2:
                self.tried(recorder, recorder.sync(number), file.fsync)
            else:
                self.make(recorder, options.writer * 100_000 + index * 10_000 + next(made))
            if options.pause:
                self.stopping.wait(options.pause)
        for file in files.values():
            file.close()

    def make(self, recorder: Recorder, number: int) -> None:
        """A new file, written and fsynced."""
        try:
            file = self.surface.open(path_of(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError:
            return  # nothing is claimed of it
        write(self, recorder, file, number, 0, 40)
        self.tried(recorder, recorder.sync(number), file.fsync)
        file.close()

    def names(self, recorder: Recorder, chance: random.Random) -> None:
        """Operations on names and lengths, one after the other."""
        options = self.options
        folder = f"{FOLDER}/own-{options.writer}"
        self.surface.mkdir(folder)
        own = options.writer * 512  # as file number: its shift is 0
        lengths: dict[str, int] = {}  # what this client believes; only to choose sensible operations
        doubtful = False

        def step(op: str, args: list[Any], work: Callable[..., Any], *given: Any) -> None:
            nonlocal doubtful

            def carry_out() -> Any:
                result = work(*given)
                return True if result is None else result

            if self.tried(recorder, recorder.own(op, args), carry_out) is None:
                doubtful = True

        def opened(name: str, flags: int, method: str, *given: Any) -> Any:
            file = self.surface.open(f"{folder}/{name}", flags)
            try:
                return getattr(file, method)(*given)
            finally:
                file.close()

        def content(name: str) -> list[tuple[int, int]]:
            data = opened(name, os.O_RDONLY, "readall")
            return cells.decode(own, 0, data) if len(data) % cells.CELL_BYTES == 0 else [(cells.DAMAGED, len(data))]

        while not self.stopping.is_set() and not doubtful:
            name = chance.choice("abcdef"[:OWN_NAMES])
            value = self.value()
            what = chance.random()
            if name not in lengths or what < 0.1:
                count = chance.randrange(1, OWN_CELLS_MAX)
                data = cells.encode(own, 0, count, value)
                step(
                    "create", [name, count, value], opened, name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, "pwrite", data, 0
                )
                lengths[name] = count
            elif what < 0.35:
                first = chance.randrange(OWN_CELLS_MAX)
                count = chance.randrange(1, OWN_CELLS_MAX)
                data = cells.encode(own, first, count, value)
                at = first * cells.CELL_BYTES
                step("write", [name, first, count, value], opened, name, os.O_RDWR, "pwrite", data, at)
                lengths[name] = max(lengths[name], first + count)
            elif what < 0.5:
                count = chance.randrange(OWN_CELLS_MAX)
                step("truncate", [name, count], opened, name, os.O_RDWR, "truncate", count * cells.CELL_BYTES)
                lengths[name] = count
            elif what < 0.6:
                other = chance.choice("abcdef"[:OWN_NAMES])
                if other != name:
                    step("rename", [name, other], self.surface.rename, f"{folder}/{name}", f"{folder}/{other}")
                    lengths[other] = lengths.pop(name)
            elif what < 0.65:
                step("remove", [name], self.surface.remove, f"{folder}/{name}")
                del lengths[name]
            elif what < 0.72:
                step("list", [], lambda: sorted(self.surface.listdir(folder)))
            elif what < 0.8:
                step("sync", [name], opened, name, os.O_RDWR, "fsync")
            else:
                step("read", [name], content, name)
            if options.pause:
                self.stopping.wait(options.pause)


def path_of(number: int) -> str:
    """The path of a file that is known by its number."""
    return f"{FOLDER}/{number}"


def write(load: Any, recorder: Recorder, file: Any, number: int, first: int, count: int) -> None:
    value = load.value()
    data = cells.encode(number, first, count, value)
    offset = cells.offset_of(number, first)
    load.tried(recorder, recorder.write(number, first, count, value), lambda: file.pwrite(data, offset))


def read(load: Any, recorder: Recorder, file: Any, number: int, first: int, count: int) -> None:
    def work() -> list[tuple[int, int]]:
        length = count * cells.CELL_BYTES
        data = file.pread(length, cells.offset_of(number, first))
        return cells.decode(number, first, data) if len(data) == length else [(cells.DAMAGED, count)]

    load.tried(recorder, recorder.read(number, first, count), work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mgmtd", required=True)
    parser.add_argument("--mount", default="")
    parser.add_argument("--history", required=True, help="folder")
    parser.add_argument("--writer", type=int, required=True)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-file", type=int, required=True)
    parser.add_argument("--files", type=int, required=True)
    parser.add_argument("--cells", type=int, required=True, help="of each file")
    parser.add_argument("--writes", type=float, default=0.45, help="share of writes")
    parser.add_argument("--syncs", type=float, default=0.06, help="share of fsyncs, half of them of new files")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between the operations of a thread")
    parser.add_argument("--no-names", dest="names", action="store_false")
    parser.add_argument("--tcp", action="store_true", help="no shared memory")
    options = parser.parse_args()
    if options.mount:
        load = Load(Mounted(options.mount), options)
    else:
        load = Load(Library(FileSystem.connect(options.mgmtd, shared_memory=not options.tcp)), options)
    signal.signal(signal.SIGTERM, lambda *_: load.stopping.set())
    began_s = time.monotonic()
    load.run()
    print(
        f"load {options.writer} ended after {time.monotonic() - began_s:.1f} s: {load.failures or 'well'}", flush=True
    )
    sys.exit(1 if load.failures else 0)


if __name__ == "__main__":
    main()
