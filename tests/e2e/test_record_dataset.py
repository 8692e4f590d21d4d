"""Training samples from a real cluster, through torch's DataLoader with workers that are forked and spawned."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engines.samples import sample
from fireflyfs.client.connectors import records
from fireflyfs.client.connectors.records import RecordDataset
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e

RECORD = 1536
COUNTS = (700, 0, 1, 1300)  # records in each file


@pytest.fixture(scope="module")
def mgmtd(cluster: LocalCluster) -> Iterator[str]:
    address = ",".join(cluster.mgmtd_addresses())
    with FileSystem.connect(address) as fs:
        fs.makedirs("/records")
        number = 0
        for name, count in enumerate(COUNTS):
            rows = np.zeros((count, RECORD), np.uint8)
            rows[:, :8] = np.arange(number, number + count, dtype=np.int64)[:, None].view(np.uint8)
            rows[:, 8:] = (np.arange(number, number + count) % 251)[:, None]
            fs.write_bytes(f"/records/{name}", rows.tobytes() + b"rest" * (name % 2))
            number += count
    yield address
    with FileSystem.connect(address) as fs:
        fs.rmtree("/records")


PATHS = [f"/records/{name}" for name in range(len(COUNTS))]
TOTAL = sum(COUNTS)


LOADER = """
import os, sys
from engines.samples import sample
from fireflyfs.client.connectors.records import RecordDataset
from torch.utils.data import DataLoader

if __name__ == "__main__":
    mgmtd, context, record, total, *paths = sys.argv[1:]
    dataset = RecordDataset.fixed(mgmtd, paths, int(record), decode=sample)
    assert len(dataset) == int(total)
    assert dataset[3][0] == 3, "the parent may have read before it forks"
    loader = DataLoader(dataset, 64, shuffle=True, num_workers=2, multiprocessing_context=context, timeout=60)
    seen, readers = [], set()
    for numbers, pids, rest in loader:
        assert rest.shape == (len(numbers), int(record) - 8)
        assert bool((rest == (numbers % 251)[:, None]).all())
        seen += numbers.tolist()
        readers |= set(pids.tolist())
    assert sorted(seen) == list(range(int(total)))
    assert len(readers) == 2 and os.getpid() not in readers
    assert dataset[-1][0] == int(total) - 1, "and reads after it"
    dataset.close()
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loaders_see_every_record_once(mgmtd: str, context: str, tmp_path: Path) -> None:
    """A program of its own: in pytest's process other libraries have threads too."""
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    command = [sys.executable, "-P", str(script), mgmtd, context, str(RECORD), str(TOTAL), *PATHS]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_index_names_records_of_any_length(mgmtd: str) -> None:
    rng = random.Random(7)
    rows = []
    for _ in range(300):
        name = rng.choice([0, 3])
        offset = rng.randrange(0, COUNTS[name] * RECORD - 5000)
        rows.append((name, offset, rng.randrange(0, 5000)))
    dataset = RecordDataset(mgmtd, PATHS, rows)
    with FileSystem.connect(mgmtd) as fs:
        whole = [fs.read_bytes(path) for path in PATHS]
    picked = [rng.randrange(-300, 300) for _ in range(128)]
    for number, part in zip(picked, dataset.__getitems__(picked), strict=True):
        name, offset, length = rows[number]
        assert part.tobytes() == whole[name][offset : offset + length]
    dataset.close()


def test_a_pickled_dataset_and_threads(mgmtd: str) -> None:
    original = RecordDataset.fixed(mgmtd, PATHS, RECORD)
    assert original[1][:8].view(np.int64)[0] == 1
    copy = pickle.loads(pickle.dumps(original))

    def read(seed: int) -> bool:
        numbers = [random.Random(seed).randrange(TOTAL) for _ in range(50)]
        return [int(part[:8].view(np.int64)[0]) for part in copy.__getitems__(numbers)] == numbers

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(read, range(30)))
    for dataset in (original, copy):
        dataset.close()
    assert int(copy[5][:8].view(np.int64)[0]) == 5, "a closed dataset connects again"
    copy.close()


def test_few_files_are_open_at_a_time(mgmtd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FILES_OPEN_MAX", 1)
    dataset = RecordDataset.fixed(mgmtd, PATHS, RECORD, decode=sample)
    numbers = [0, TOTAL - 1, 700, 1]
    assert [found[0] for found in dataset.__getitems__(numbers)] == numbers
    assert len(dataset._files) == 1
    dataset.close()


def test_wrong_numbers_files_and_indexes(mgmtd: str) -> None:
    dataset = RecordDataset.fixed(mgmtd, PATHS, RECORD)
    for wrong in (TOTAL, -TOTAL - 1):
        with pytest.raises(IndexError, match=f"has {TOTAL} records"):
            dataset[wrong]
    assert dataset.__getitems__([]) == []
    dataset.close()
    with pytest.raises(FileNotFoundError):
        RecordDataset.fixed(mgmtd, ["/records/none"], RECORD)
    with pytest.raises(ValueError, match="records of 0 bytes"):
        RecordDataset.fixed(mgmtd, PATHS, 0)
    for index in ([(4, 0, 1)], [(0, -1, 1)], [(0, 0, 1 << 31)], [(0, 0)]):
        with pytest.raises(ValueError, match="index"):
            RecordDataset(mgmtd, PATHS, index)
    beyond = RecordDataset(mgmtd, PATHS, [(2, 1000, RECORD)])
    with pytest.raises(EOFError, match=r"/records/2 ends before the record of 1536 bytes at 1000"):
        beyond[0]
    beyond.close()
    assert len(RecordDataset(mgmtd, PATHS, np.empty((0, 3)))) == 0
