"""Many files at once: small ones are read in batches and written by several threads, large ones go one by one.

A small file costs a few requests and hardly any bytes, so what counts is how many are under way; a large one keeps all
its chains busy by itself. Which file goes where is worked out by fsspec's own rules.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from fireflyfs.client.fsspec.transfers import Transfers
from fireflyfs.client.range_reads import Range
from fireflyfs.common.limits import MiB

T = TypeVar("T")

THREADS = 16  # more gained nothing
SMALL_BYTES = 1 * MiB
GROUP_BYTES = 32 * MiB  # of small files that are in memory at a time
GROUP_FILES = 1024


class ManyFiles(Transfers):
    """Part of `FireflyFileSystem`."""

    def pipe(self, path: Any, value: Any = None, **kwargs: Any) -> None:
        """`value` into the file `path`; or each value of a dictionary into the file that its key names.

        Other values may have been written when one fails.
        """
        if not isinstance(path, dict):
            self.pipe_file(self._strip_protocol(path), value, **kwargs)
            return
        paths = list(path)
        self._several(paths, lambda name: len(path[name]), lambda name: self.pipe_file(name, path[name], **kwargs))

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """To local files, as fsspec has it. What was copied before an error stays."""
        plan = _Plan(self)
        AbstractFileSystem.get(plan, rpath, lpath, recursive=recursive, maxdepth=maxdepth, **kwargs)
        pairs = plan.pairs
        callback.set_size(len(pairs))
        inodes = self.client.inode_batch([self._strip_protocol(source) for source, _ in pairs])
        length_of = self.client.context.inodes.length_of
        group: list[tuple[str, str]] = []
        nbytes = 0
        for (source, target), inode in zip(pairs, inodes, strict=True):
            if isinstance(inode, OSError):
                self._get_group(group, callback)
                raise inode
            length = length_of(inode)
            if not stat.S_ISREG(inode.mode) or length > SMALL_BYTES or isfilelike(target):
                with callback.branched(source, target) as child:
                    self.get_file(source, target, callback=child, **kwargs)
                callback.relative_update()
                continue
            if len(group) == GROUP_FILES or nbytes + length > GROUP_BYTES:
                self._get_group(group, callback)
                group, nbytes = [], 0
            group.append((source, target))
            nbytes += length
        self._get_group(group, callback)

    def put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Local files, as fsspec has it. Others may have been copied when one fails."""
        plan = _Plan(self)
        AbstractFileSystem.put(plan, lpath, rpath, recursive=recursive, maxdepth=maxdepth, **kwargs)
        callback.set_size(len(plan.pairs))
        files: list[tuple[str, str]] = []
        for source, target in plan.pairs:
            if os.path.isdir(source):
                self.put_file(source, target, **kwargs)
                callback.relative_update()
            else:
                files.append((source, target))

        def one(pair: tuple[str, str]) -> None:
            if os.path.getsize(pair[0]) <= SMALL_BYTES:
                self.put_file(*pair, **kwargs)
                return
            with callback.branched(*pair) as child:
                self.put_file(*pair, callback=child, **kwargs)

        self._several(files, lambda pair: os.path.getsize(pair[0]), one, callback)

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Inside the cluster, as fsspec has it. `on_error="ignore"`, as for a tree, passes over what is gone."""
        plan = _Plan(self)
        AbstractFileSystem.copy(plan, path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
        ignored = (FileNotFoundError,) if (on_error or ("ignore" if recursive else "raise")) != "raise" else ()

        def one(pair: tuple[str, str]) -> None:
            with contextlib.suppress(*ignored):
                self.cp_file(*pair, **kwargs)

        self._several(plan.pairs, lambda _: 0, one)

    def _get_group(self, group: Sequence[tuple[str, str]], callback: Any) -> None:
        """Read small files at once, write them one by one."""
        found = self.client.read_ranges(
            [Range(self._strip_protocol(source), 0, SMALL_BYTES + 1) for source, _ in group]
        )
        for (source, target), data in zip(group, found, strict=True):
            if isinstance(data, OSError):
                raise data
            with callback.branched(source, target) as child:
                if len(data) > SMALL_BYTES:  # it grew meanwhile
                    self.get_file(source, target, callback=child)
                else:
                    child.set_size(len(data))
                    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
                    with open(target, "wb", buffering=0) as local:
                        local.write(data)
                    child.relative_update(len(data))
            callback.relative_update()

    def _several(
        self,
        items: Sequence[T],
        size: Callable[[T], int],
        do: Callable[[T], None],
        callback: Any = DEFAULT_CALLBACK,
    ) -> None:
        """`do` each: those of small size by threads, all others by this one.

        Raises the first error, when nothing is under way any more. A transaction keeps the order that it was given.
        """
        here: list[T] = []
        small: list[T] = []
        for item in items:
            (here if self._intrans or size(item) > SMALL_BYTES else small).append(item)
        if len(small) == 1:
            here, small = small + here, []
        for _ in _by_threads(small, do):
            callback.relative_update()
        for item in here:
            do(item)
            callback.relative_update()


class _Plan(AbstractFileSystem):  # type: ignore[misc]
    """Stands in for a filesystem where fsspec works out which file goes where; notes it instead of copying."""

    cachable = False

    def __init__(self, fs: Any) -> None:
        super().__init__()
        self._fs = fs
        self._dirs: dict[str, bool] = {}
        self.pairs: list[tuple[str, str]] = []

    def _strip_protocol(self, path: Any) -> Any:
        return self._fs._strip_protocol(path)

    def expand_path(self, path: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> list[str]:
        found: list[str] = self._fs.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        if not recursive or maxdepth is not None:  # then fsspec asks of each whether it is a directory
            for name, inode in zip(found, self._fs.client.inode_batch(found), strict=True):
                self._dirs[name] = not isinstance(inode, OSError) and stat.S_ISDIR(inode.mode)
        return found

    def isdir(self, path: str) -> bool:
        known = self._dirs.get(path)
        return bool(self._fs.isdir(path)) if known is None else known

    def _note(self, source: str, target: str, **_: Any) -> None:
        self.pairs.append((stringify_path(source), stringify_path(target)))

    get_file = put_file = cp_file = _note


def _by_threads(items: Sequence[T], do: Callable[[T], None]) -> Iterator[T]:
    """`do` each; they come out in order as they are done."""
    if not items:
        return
    with ThreadPoolExecutor(min(THREADS, len(items)), thread_name_prefix="ffs-files") as pool:
        waiting = [pool.submit(do, item) for item in items]
        try:
            for item, future in zip(items, waiting, strict=True):
                future.result()
                yield item
        finally:
            for future in waiting:
                future.cancel()
