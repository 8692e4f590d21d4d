"""Programs that use fsspec: pandas, pyarrow, DuckDB, zarr, dask, datasets, torch, on a real local cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from fireflyfs.client.fsspec import FireflyFileSystem
from fireflyfs.deploy.local import LocalCluster

pytestmark = pytest.mark.e2e

ROWS = 20_000


@pytest.fixture
def url(mgmtd: str, folder: str) -> str:
    """Of `folder`, with the cluster in it."""
    return f"ffs://{mgmtd}{folder}"


def frame(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(11)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "year": 2020 + np.arange(rows) % 3,
            "value": rng.random(rows),
            "name": [f"name {number % 97}" for number in range(rows)],
        }
    )


def test_pandas(url: str) -> None:
    table = frame()
    table.to_parquet(f"{url}/table.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(f"{url}/table.parquet"), table)
    some = pd.read_parquet(f"{url}/table.parquet", columns=["id"], filters=[("id", "<", 10)])
    assert some["id"].tolist() == list(range(10))
    table.to_csv(f"{url}/table.csv.gz", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(f"{url}/table.csv.gz"), table)
    table[:100].to_json(f"{url}/table.jsonl", orient="records", lines=True)
    assert pd.read_json(f"{url}/table.jsonl", lines=True)["name"].tolist() == table[:100]["name"].tolist()


def test_pandas_partitions(fs: FireflyFileSystem, folder: str, url: str) -> None:
    table = frame()
    table.to_parquet(f"{url}/parts", partition_cols=["year"], index=False)
    assert sorted(fs.ls(f"{folder}/parts", detail=False)) == [
        f"{folder}/parts/year={year}" for year in range(2020, 2023)
    ]
    found = pd.read_parquet(f"{url}/parts", filters=[("year", "==", 2021)])
    assert sorted(found["id"]) == table[table.year == 2021]["id"].tolist()


def test_pyarrow_datasets_and_pushdown(fs: FireflyFileSystem, folder: str) -> None:
    table = pa.Table.from_pandas(frame())
    flavour = pa.dataset.partitioning(pa.schema([("year", pa.int64())]), flavor="hive")
    pa.dataset.write_dataset(
        table, f"{folder}/set", filesystem=fs, format="parquet", partitioning=flavour, max_rows_per_group=1000,
        max_rows_per_file=5000,
    )  # fmt: skip
    found = pa.dataset.dataset(f"{folder}/set", filesystem=fs, format="parquet", partitioning=flavour)
    wanted = (pa.dataset.field("year") == 2022) & (pa.dataset.field("id") < 300)
    assert sorted(found.to_table(columns=["id"], filter=wanted)["id"].to_pylist()) == list(range(2, 300, 3))
    assert len(list(found.get_fragments(filter=pa.dataset.field("year") == 2022))) == 2
    assert found.count_rows() == ROWS


def test_parquet_column_chunks_in_one_batch(fs: FireflyFileSystem, folder: str) -> None:
    path = f"{folder}/wide.parquet"
    pa.parquet.write_table(pa.Table.from_pandas(frame()), path, filesystem=fs, row_group_size=1000)
    found = pa.parquet.read_metadata(path, filesystem=fs)
    chunks = [found.row_group(group).column(2) for group in range(found.num_row_groups)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
    whole = fs.cat_file(path)
    got = fs.cat_ranges([path] * len(chunks), starts, ends)
    assert got == [whole[start:end] for start, end in zip(starts, ends, strict=True)]
    with fs.open(path, "rb") as file:
        column = pa.parquet.ParquetFile(file, pre_buffer=True).read(columns=["value"])["value"]
    np.testing.assert_array_equal(column.to_numpy(), frame()["value"].to_numpy())


def test_duckdb(fs: FireflyFileSystem, folder: str) -> None:
    import duckdb

    fs.makedirs(f"{folder}/set")
    for part in range(3):
        rows = frame().iloc[part::3]
        rows.to_parquet(fs.open(f"{folder}/set/{part}.parquet", "wb"), index=False)
    with duckdb.connect() as db:
        db.register_filesystem(fs)
        query = f"SELECT count(*), sum(id), count(DISTINCT name) FROM read_parquet('ffs://{folder}/set/*.parquet')"
        assert db.execute(query).fetchone() == (ROWS, ROWS * (ROWS - 1) // 2, 97)
        db.execute(f"COPY (SELECT id FROM read_parquet('ffs://{folder}/set/0.parquet') WHERE id < 30) "
               f"TO 'ffs://{folder}/out.parquet'")  # fmt: skip
    assert pa.parquet.read_table(f"{folder}/out.parquet", filesystem=fs)["id"].to_pylist() == list(range(0, 30, 3))


def test_duckdb_on_the_mount(
    cluster: LocalCluster, fs: FireflyFileSystem, folder: str, mount_of: Callable[..., Any]
) -> None:
    """Its own files too: a database with its write-ahead log, and what fsspec wrote."""
    import duckdb

    frame().to_parquet(fs.open(f"{folder}/table.parquet", "wb"), index=False)
    place = Path(str(mount_of(cluster).point) + folder)
    with duckdb.connect(place / "base.duckdb") as db:
        db.execute(f"CREATE TABLE rows AS SELECT * FROM '{place}/table.parquet'")
        db.execute("UPDATE rows SET value = 0 WHERE year = 2020")
        db.execute(f"COPY rows TO '{place}/out.parquet'")
    with duckdb.connect(place / "base.duckdb", read_only=True) as db:
        assert db.execute("SELECT count(*), sum(id) FROM rows WHERE value = 0").fetchone() == (6667, 66_663_333)
    assert pa.parquet.read_table(f"{folder}/out.parquet", filesystem=fs).num_rows == ROWS


def test_zarr(url: str) -> None:
    import zarr
    from zarr.storage import FsspecStore

    data = np.random.default_rng(3).integers(0, 1000, (300, 400), dtype=np.int32)
    group = zarr.open_group(FsspecStore.from_url(f"{url}/group.zarr"), mode="w")
    array = group.create_array("a/b", shape=data.shape, dtype=data.dtype, chunks=(64, 64), shards=(128, 128))
    array[:] = data
    array.attrs["unit"] = "m"
    again = zarr.open_group(FsspecStore.from_url(f"{url}/group.zarr", read_only=True), mode="r")
    found = again["a/b"]
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(found[100:200, 3:399], data[100:200, 3:399])
    assert found.attrs["unit"] == "m"
    assert [name for name, _ in again.groups()] == ["a"]


def test_asyncio_through_the_wrapper(fs: FireflyFileSystem, folder: str) -> None:
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    async def main() -> None:
        wrapped = AsyncFileSystemWrapper(fs, asynchronous=True)
        await asyncio.gather(*(wrapped._pipe_file(f"{folder}/{n}", b"%d" % n) for n in range(20)))
        found = await asyncio.gather(*(wrapped._cat_file(f"{folder}/{n}") for n in range(20)))
        assert found == [b"%d" % n for n in range(20)]

    asyncio.run(main())


def test_dask(url: str) -> None:
    import dask
    import dask.dataframe as dd

    table = frame()
    with dask.config.set(scheduler="threads", num_workers=2):
        dd.from_pandas(table, npartitions=4).to_parquet(f"{url}/set", write_index=False)
        found = dd.read_parquet(f"{url}/set", columns=["id", "year"])
        assert found.npartitions == 4
        assert found.groupby("year").id.sum().compute().to_dict() == table.groupby("year").id.sum().to_dict()
        dd.from_pandas(table, npartitions=2).to_csv(f"{url}/csv/*.csv", index=False)
        assert len(dd.read_csv(f"{url}/csv/*.csv")) == ROWS


def test_dask_in_processes(url: str) -> None:
    import dask
    import dask.bag

    with dask.config.set({"scheduler": "processes", "num_workers": 2, "multiprocessing.context": "spawn"}):
        dask.bag.from_sequence([f"line {n}" for n in range(100)], npartitions=2).to_textfiles(f"{url}/text/*.txt")
        assert dask.bag.read_text(f"{url}/text/*.txt").count().compute() == 100


def test_datasets(url: str, mgmtd: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets

    rows = frame(1000)
    datasets.Dataset.from_pandas(rows).save_to_disk(f"{url}/saved", num_shards=2)
    found = datasets.load_from_disk(f"ffs://{folder}/saved", storage_options={"mgmtd": mgmtd})
    assert found.num_rows == 1000
    assert found[17]["name"] == rows["name"][17]


def test_torch_distributed_checkpoint(fs: FireflyFileSystem, folder: str, url: str) -> None:
    import torch
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    state = {"model": model.state_dict(), "step": 7}
    writer = FsspecWriter(url + "/step7", thread_count=2, single_file_per_rank=False, sync_files=False)
    checkpoint.save(state, storage_writer=writer, no_dist=True)
    assert fs.exists(f"{folder}/step7/.metadata")
    assert len(fs.glob(f"{folder}/step7/*.distcp")) > 1
    fresh = {"model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()}, "step": 0}
    checkpoint.load(fresh, storage_reader=FsspecReader(url + "/step7"), no_dist=True)
    assert fresh["step"] == 7
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fresh["model"][name], value, rtol=0, atol=0)


def test_workers_of_a_data_loader(fs: FireflyFileSystem, folder: str) -> None:
    from torch.utils.data import DataLoader

    paths = [f"{folder}/{number}" for number in range(16)]
    fs.pipe({path: path.encode() * 100 for path in paths})
    loader: Any = DataLoader(paths, batch_size=4, num_workers=2, collate_fn=_Fetch(fs), multiprocessing_context="fork")  # type: ignore[arg-type]
    assert [data for batch in loader for data in batch] == [path.encode() * 100 for path in paths]


class _Fetch:
    """Reads a batch of files in a worker."""

    def __init__(self, fs: FireflyFileSystem) -> None:
        self.fs = fs

    def __call__(self, paths: list[str]) -> list[bytes]:
        found = self.fs.cat(paths)
        return [found[path] for path in paths]
