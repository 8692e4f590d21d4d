"""Training samples from files of FireflyFS, for torch's DataLoader: whole batches of records at random places.

    dataset = RecordDataset.fixed("host:7700", ["/data/a.bin", "/data/b.bin"], record_bytes=4096)
    loader = DataLoader(dataset, batch_size=256, shuffle=True, num_workers=4)

torch is not imported: this is any map-style dataset. A batch is one request to each storage worker that has some of it.
The dataset goes to workers by fork or by pickling; each process connects on its own when it first reads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fireflyfs.client.file import File
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.forkguard import leave_to_parent

FILES_OPEN_MAX = 1024  # of one dataset in one process; the one not used for longest is closed
RECORD_BYTES_MAX = 1 << 30

Decode = Callable[[npt.NDArray[np.uint8]], Any]
Numbers = npt.NDArray[np.int64]


class _Gate:
    """Readers go in and out; who shuts it waits until none is inside, and keeps others out."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._shut = True
            self._changed.wait_for(lambda: not self._inside)

    def open(self) -> None:
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class RecordDataset:
    """Records of files that do not change while they are read. Safe to use from several threads.

    A sample is what `decode` makes of a record's bytes, or the bytes as a numpy array that nothing else uses.
    """

    _fs: FileSystem | None
    _files: OrderedDict[int, File]

    def __init__(
        self,
        mgmtd: str,
        paths: Sequence[str],
        index: npt.ArrayLike,
        *,
        decode: Decode | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """`index`: a row of (file number, offset, length) for each record. `options` go to `FileSystem.connect`.

        `decode` and `options` must be such that they can be pickled, where workers are spawned.
        """
        rows = np.ascontiguousarray(index, dtype=np.int64)
        if rows.ndim != 2 or rows.shape[1] != 3:
            raise ValueError(f"an index of shape {rows.shape}: rows of (file number, offset, length) are wanted")
        if len(rows) and (
            rows.min() < 0 or int(rows[:, 0].max()) >= len(paths) or int(rows[:, 2].max()) > RECORD_BYTES_MAX
        ):
            raise ValueError(f"the index names files 0 to {len(paths) - 1} and records up to {RECORD_BYTES_MAX} bytes")
        self._mgmtd = mgmtd
        self._paths = list(paths)
        self._index = rows
        self._record_bytes: int | None = None
        self._ends = np.empty(0, np.int64)
        self._decode = decode
        self._options = dict(options or {})
        self._begin()

    @classmethod
    def fixed(
        cls,
        mgmtd: str,
        paths: Sequence[str],
        record_bytes: int,
        *,
        decode: Decode | None = None,
        options: dict[str, Any] | None = None,
    ) -> Self:
        """All whole records of `record_bytes` in `paths`, in order. Asks for the files' lengths, once."""
        if not 0 < record_bytes <= RECORD_BYTES_MAX:
            raise ValueError(f"records of {record_bytes} bytes; they have 1 to {RECORD_BYTES_MAX}")
        dataset = cls(mgmtd, paths, np.empty((0, 3), np.int64), decode=decode, options=options)
        with FileSystem.connect(mgmtd, **dataset._options) as fs:
            lengths = [fs.getsize(path) for path in dataset._paths]
        dataset._record_bytes = record_bytes
        dataset._ends = np.cumsum([length // record_bytes for length in lengths], dtype=np.int64)
        return dataset

    def __len__(self) -> int:
        if self._record_bytes is None:
            return len(self._index)
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Many samples in one go: what DataLoader calls for each batch."""
        files, offsets, lengths = self._places(np.asarray(numbers, dtype=np.int64))
        starts = np.concatenate(([0], np.cumsum(lengths)))
        memory = np.empty(int(starts[-1]), np.uint8)
        with self._gate.inside():
            counts = self._read(files, offsets, lengths, starts, memory)
        short = np.flatnonzero(counts != lengths)
        if len(short):
            first = int(short[0])
            raise EOFError(
                f"{self._paths[int(files[first])]} ends before the record of {int(lengths[first])} bytes at "
                f"{int(offsets[first])}"
            )
        parts = (memory[start:stop] for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        return [self._decode(part) for part in parts] if self._decode is not None else list(parts)

    def _read(
        self, files: Numbers, offsets: Numbers, lengths: Numbers, starts: Numbers, memory: npt.NDArray[np.uint8]
    ) -> Numbers:
        """Land record i at starts[i]; how many bytes each got."""
        fs = self._connected()
        if self._record_bytes is not None and len(files) and int(files.min()) == int(files.max()):
            with self._lock:
                file = self._opened(fs, int(files[0]))
            return fs.read_blocks(file, offsets, self._record_bytes, memory)
        with self._lock:
            requests = [
                (self._opened(fs, number), offset, memory[start : start + length])
                for number, offset, start, length in zip(
                    files.tolist(), offsets.tolist(), starts[:-1].tolist(), lengths.tolist(), strict=True
                )
            ]
        return np.asarray(fs.read_batch(requests), np.int64)

    def close(self) -> None:
        """Close this process's connection when the reads under way are over; the next read makes another one."""
        self._gate.shut()
        try:
            self._disconnect()
        finally:
            self._gate.open()

    def _disconnect(self) -> None:
        fs, files = self._fs, self._files
        self._fs, self._files = None, OrderedDict()
        for file in files.values():
            file.close()
        if fs is not None:
            fs.close()

    # A pickled or forked dataset begins without a connection.

    def __getstate__(self) -> dict[str, Any]:
        here = ("_gate", "_lock", "_fs", "_files")
        return {name: value for name, value in vars(self).items() if name not in here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        self._gate = _Gate()
        self._lock = threading.Lock()  # guards the two below, within the gate
        self._fs = None
        self._files = OrderedDict()
        _datasets.add(self)

    def _connected(self) -> FileSystem:
        with self._lock:
            if self._fs is None:
                self._fs = FileSystem.connect(self._mgmtd, **self._options)
            return self._fs

    def _opened(self, fs: FileSystem, number: int) -> File:
        file = self._files.get(number)
        if file is None:
            if len(self._files) >= FILES_OPEN_MAX:
                self._files.popitem(last=False)  # open for reading without a session: nothing is to be told
            file = self._files[number] = fs.open_file(self._paths[number], hold=False)
        self._files.move_to_end(number)
        return file

    def _places(self, numbers: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """File number, offset and length of each record; numbers count from the end where they are negative."""
        count = len(self)
        numbers = np.where(numbers < 0, numbers + count, numbers)
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= count):
            raise IndexError(f"the dataset has {count} records")
        if self._record_bytes is None:
            rows = self._index[numbers]
            return rows[:, 0], rows[:, 1], rows[:, 2]
        files = np.searchsorted(self._ends, numbers, side="right")
        before = np.concatenate(([0], self._ends))[files]
        offsets = (numbers - before) * self._record_bytes
        return files, offsets, np.full(len(numbers), self._record_bytes, np.int64)


_datasets: weakref.WeakSet[RecordDataset] = weakref.WeakSet()  # of this process


def _after_fork() -> None:
    for dataset in list(_datasets):
        leave_to_parent(dataset._fs, dataset._files)
        dataset._begin()  # new locks: who held the old ones was not forked along


os.register_at_fork(after_in_child=_after_fork)
