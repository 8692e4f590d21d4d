"""One run: files are prepared, clients work on them, something happens, and what they saw is judged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fault import cells, load
from fault.checker import check
from fault.cluster import CHUNK_BYTES
from fault.history import History, Recorder
from fault.history import load as load_history
from fault.names import check_names
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT

TESTS = Path(__file__).resolve().parents[1]
SETUP_WRITER = 1
STOP_S = 90.0  # clients finish what they are at: a little more than an operation may take


class Run:
    """Files `first_file` to `first_file + files`, and everything that was recorded of them in `folder`."""

    def __init__(self, folder: Path, mgmtd: str, *, first_file: int, files: int = 4, cells_each: int = 4095) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mgmtd = mgmtd
        self.first_file = first_file
        self.files = files
        self.cells_each = cells_each
        self.clients: list[subprocess.Popen[bytes]] = []
        self._next_writer = SETUP_WRITER + 1

    @property
    def numbers(self) -> range:
        return range(self.first_file, self.first_file + self.files)

    def prepare(self, fs: FileSystem) -> None:
        """The files are there, full of cells, and fsynced."""
        fs.makedirs(load.FOLDER, exist_ok=True)
        recorder = Recorder(self.folder / "prepare.jsonl")
        for place, number in enumerate(self.numbers):
            value = SETUP_WRITER << 28 | self.first_file << 8 | (place + 1)
            data = bytes(cells.shift_of(number)) + cells.encode(number, 0, self.cells_each, value)
            with fs.open_file(load.path_of(number), os.O_RDWR | os.O_CREAT) as file:
                mark = recorder.write(number, 0, self.cells_each, value)
                file.pwrite(data + bytes(cells.CELL_BYTES), 0)
                recorder.ok(mark)
                mark = recorder.sync(number)
                file.fsync()
                recorder.ok(mark)
        recorder.close()

    def start_client(
        self, *options: str, launcher: Sequence[str] = (), environment: Any = None, seed: str = "0"
    ) -> None:
        """One more process of load.py."""
        writer = self._next_writer
        self._next_writer += 1
        command = [*launcher, sys.executable, "-m", "fault.load", "--mgmtd", self.mgmtd, "--history", str(self.folder)]
        command += ["--writer", str(self.first_file + writer), "--first-file", str(self.first_file), "--seed", seed]
        command += ["--files", str(self.files), "--cells", str(self.cells_each), *options]
        with (self.folder / f"client-{writer}.out").open("wb") as out:
            self.clients.append(
                subprocess.Popen(
                    command, stdout=out, stderr=out, env={**os.environ, "PYTHONPATH": str(TESTS), **(environment or {})}
                )
            )

    def wait_operations(self, more: int, timeout_s: float = 60.0) -> None:
        """Until clients have recorded that many more lines: the load is under way, or goes on."""
        wanted = self._lines() + more
        deadline_s = time.monotonic() + timeout_s
        while self._lines() < wanted:
            self.assert_alive()
            assert time.monotonic() < deadline_s, f"the load stands still:\n{self.output()}"
            time.sleep(0.05)

    def _lines(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("*-t*.jsonl"))

    def assert_alive(self) -> None:
        assert all(client.poll() is None for client in self.clients), self.output()

    def output(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.out")))

    def stop_clients(self) -> None:
        """Let them finish. They must end well."""
        for client in self.clients:
            client.terminate()
        for client in self.clients:
            assert client.wait(STOP_S) == 0, self.output()
        self.clients.clear()

    def kill_clients(self) -> None:
        """SIGKILL, in the middle of whatever they do."""
        for client in self.clients:
            client.kill()
        for client in self.clients:
            client.wait()
        self.clients.clear()

    def read_all(self, fs: FileSystem, name: str, numbers: Sequence[int] | None = None) -> None:
        """Read every cell once more, chunk by chunk, as the history's last word."""
        recorder = Recorder(self.folder / f"{name}.jsonl")
        for number in numbers or self.numbers:
            with fs.open_file(load.path_of(number), os.O_RDONLY) as file:
                for first in range(0, self.cells_each, 256):
                    count = min(256, self.cells_each - first)
                    load.read(SimpleNamespace(tried=_plainly), recorder, file, number, first, count)
        recorder.close()

    def history(self) -> History:
        found = History()
        for path in sorted(self.folder.glob("*.jsonl")):
            found.add(load_history(path))
        return found

    def judge(self, *, errors_allowed: bool = False) -> History:
        """Raises AssertionError with everything that must not be."""
        history = self.history()
        problems = check(history, CHUNK_BYTES)
        for path in sorted(self.folder.glob("*-names.jsonl")):
            problems += check_names(path)
        if not errors_allowed:
            problems += [f"an operation failed: {told}" for told in history.errors[:10]]
        assert not problems, f"{len(problems)} violations; histories are in {self.folder}:\n" + "\n".join(problems)
        return history


def _plainly(recorder: Recorder, number: int, work: Any) -> Any:
    result = work()
    recorder.got(number, result)
    return result


@contextmanager
def probing(run: Run, fs: FileSystem, *, every_s: float = 0.02, seed: int = 0) -> Iterator[None]:
    """Reads directed at every single replica, all the time, whatever routing says of it.

    They name no chain version, as a client with old routing would: it is the replica's own business to know when it
    must not answer. What it answers goes into the history like any other read.
    """
    layouts = {number: fs.inode(load.path_of(number)) for number in run.numbers}
    stop = threading.Event()
    failures: list[BaseException] = []

    def probe(target_id: int, address: Address, chain_id: int) -> None:
        chance = random.Random(f"{seed}/{target_id}")
        recorder = Recorder(run.folder / f"probe-{target_id}.jsonl")
        while not stop.wait(every_s):
            number = chance.choice(run.numbers)
            inode = layouts[number]
            file = FileLayout.of(inode.id, inode.layout)
            chunk = chance.randrange(run.cells_each * cells.CELL_BYTES // CHUNK_BYTES)
            if file.chain_of(chunk) != chain_id:
                continue
            first = -(-(chunk * CHUNK_BYTES - cells.shift_of(number)) // cells.CELL_BYTES)
            count = CHUNK_BYTES // cells.CELL_BYTES - 1  # whole cells, whatever the shift
            offset = cells.offset_of(number, first) - chunk * CHUNK_BYTES
            into = memoryview(bytearray(count * cells.CELL_BYTES))
            ios = np.array([(inode.id, chunk, chain_id, 0, offset, len(into))], READ_IO)
            mark = recorder.read(number, first, count)
            try:
                reply = fs.context.link.call(
                    address, Call(Method.STORAGE_READ, ios.tobytes(), into=[into], deadline_s=20.0)
                )
            except FfsError:
                continue  # it is away; an unanswered read says nothing
            status, length, _, _, _ = np.frombuffer(reply.body, READ_RESULT).tolist()[0]
            if status == Code.CHUNK_NOT_FOUND:
                length = 0
            elif status:
                continue
            recorder.got(mark, cells.decode(number, first, bytes(into[:length]) + bytes(len(into) - length)))
        recorder.close()

    def guarded(*args: Any) -> None:
        try:
            probe(*args)
        except BaseException as exc:
            failures.append(exc)

    routing = fs.context.routing.current()
    threads = [
        threading.Thread(target=guarded, args=(target_id, routing.addresses[target_id], chain.chain_id))
        for chain in routing.chains.values()
        for target_id, _ in chain.targets
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


@contextmanager
def mounted(mgmtd: str, point: Path, log: Path) -> Iterator[Path]:
    """The file system on `point`, by a mount process of its own."""
    point.mkdir()
    ffs = [sys.executable, "-m", "fireflyfs.client.cli.main"]
    subprocess.run([*ffs, "--mgmtd", mgmtd, "mount", f"--log-file={log}", str(point)], check=True, cwd="/")
    try:
        yield point
    finally:
        subprocess.run([*ffs, "umount", str(point)], check=True, cwd="/")
