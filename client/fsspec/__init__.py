"""FireflyFS for fsspec: what pandas, pyarrow, DuckDB, dask, zarr and others open as `ffs://host:port/path`."""

from fireflyfs.client.fsspec.connections import disconnect_all
from fireflyfs.client.fsspec.filesystem import FireflyFileSystem

__all__ = ["FireflyFileSystem", "disconnect_all"]
