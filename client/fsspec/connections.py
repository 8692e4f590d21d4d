"""One connection for each cluster and process, shared by all fsspec instances: fsspec makes one for each thread.

Connections are made when first used, so an instance that was pickled or inherited by a fork connects by itself. In a
forked child the parent's connections are left alone, never closed: their sockets and leases are the parent's.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import NamedTuple

from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.forkguard import leave_to_parent
from fireflyfs.client.fsspec import urls
from fireflyfs.client.scratch import Scratch
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import MiB

WINDOW_BYTES = 4 * MiB  # of shared memory for a file that is read in order; longer windows are private memory
WINDOWS_MAX = 64  # of shared memory for each connection; more readers at a time have private ones
CONNECTIONS_MAX = 64  # clusters, or ways to connect to one, of a process


class Where(NamedTuple):
    """A cluster and how to connect to it. Without `mgmtd`: FFS_MGMTD, or else the local cluster in `root`."""

    mgmtd: tuple[str, ...] = ()
    root: str = ""
    cluster_id: str = ""
    shared_memory: bool = True
    umask: int | None = None
    connect_timeout_s: float = 30.0


class Connection(NamedTuple):
    """A client, and the memory that its readers' windows are in."""

    client: FileSystem
    windows: Scratch

    def close(self) -> None:
        self.windows.close()
        self.client.close()


class _Connections:
    """Of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[Where, Connection] = {}


_mine = _Connections()


class Connected:
    """Part of `FireflyFileSystem`: its connection, by where the cluster is. Nothing here is lost by pickling."""

    _where: Where

    @property
    def client(self) -> FileSystem:
        """The library's file system, connected now if need be. Raises OSError."""
        return get(self._where).client

    @property
    def windows(self) -> Scratch:
        """Memory for files that are read in order."""
        return get(self._where).windows

    def disconnect(self) -> None:
        """Close this process's connection to the cluster; the next call makes a new one. Close files before."""
        disconnect(self._where)


def get(where: Where) -> Connection:
    """The connection, made now if there is none. Raises OSError when no manager answers in time."""
    found = _mine.made.get(where)
    if found is not None:
        return found
    with _mine.lock:  # others wait: they want the same connection, as a rule
        found = _mine.made.get(where)
        if found is None:
            if len(_mine.made) >= CONNECTIONS_MAX:
                raise OSError(f"this process has {CONNECTIONS_MAX} connections to FireflyFS: disconnect some")
            found = _mine.made[where] = _connect(where)
    return found


def disconnect(where: Where) -> None:
    """Close the connection for all that use it; their next call makes a new one. Files must be closed before."""
    with _mine.lock:
        found = _mine.made.pop(where, None)
    if found is not None:
        found.close()


def disconnect_all() -> None:
    """Close every connection of this process. Files must be closed before."""
    for where in list(_mine.made):
        disconnect(where)


def managers(where: Where) -> tuple[str, ...]:
    """Addresses of the cluster's managers. Raises OSError when none is named and there is no local cluster."""
    if where.mgmtd:
        return where.mgmtd
    named = os.environ.get("FFS_MGMTD", "")
    if named and not where.root:
        return urls.addresses(named)
    # As the command line finds it: the code that knows where local clusters lie is its own.
    from pathlib import Path

    from fireflyfs.client.cli.connect import mgmtd_addresses
    from fireflyfs.client.cli.settings import Settings, default_root

    root = where.root or os.environ.get("FFS_ROOT", "")
    try:
        return tuple(mgmtd_addresses(Settings(root=Path(root) if root else default_root())))
    except FfsError as exc:
        raise FileNotFoundError(f"{exc}: name the cluster as ffs://host:port/path, or set FFS_MGMTD") from exc


def _connect(where: Where) -> Connection:
    client = FileSystem.connect(
        managers(where),
        umask=where.umask,
        connect_timeout_s=where.connect_timeout_s,
        cluster_id=where.cluster_id,
        shared_memory=where.shared_memory,
        description=f"fsspec, pid {os.getpid()}",
    )
    return Connection(client, Scratch(client.context.pool, WINDOW_BYTES, WINDOWS_MAX))


def _begin_anew() -> None:
    global _mine
    leave_to_parent(_mine)
    _mine = _Connections()


os.register_at_fork(after_in_child=_begin_anew)
atexit.register(disconnect_all)
