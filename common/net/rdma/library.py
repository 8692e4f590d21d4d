"""pyverbs as far as it is needed, and what everything that is made with it has in common.

pyverbs is imported when a device is first asked for: a machine without it, or without a device, has none and nothing
fails. rdma-core 44 keeps its constants flat in `pyverbs.enums`, 57 and newer only inside the enum classes of
`pyverbs.libibverbs_enums`; both are read here.

pyverbs never releases the interpreter's lock, so nothing made with it blocks: channels are non-blocking. Using a verbs
object after its `close` would end the process, so every wrapper forgets its object first and refuses afterwards.
Every failure is an OSError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import enum
import errno
import importlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
_fd_lock = threading.Lock()


class _Library:
    """pyverbs' modules and constants."""

    def __init__(self) -> None:
        def load(name: str) -> ModuleType:
            return importlib.import_module(f"pyverbs.{name}")

        self.addr, self.cq, self.device, self.mr = load("addr"), load("cq"), load("device"), load("mr")
        self.pd, self.qp, self.srq, self.wr = load("pd"), load("qp"), load("srq"), load("wr")
        self.errors = load("pyverbs_error")
        try:
            module = load("libibverbs_enums")
        except ImportError:
            module = load("enums")
        self.constants = constants_of(module)


def constants_of(module: ModuleType) -> dict[str, int]:
    """Names and numbers of either layout."""
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if isinstance(value, enum.EnumMeta):
            members: dict[str, Any] = dict(value.__members__)
            found.update({key: int(member.value) for key, member in members.items()})
        elif name.startswith("IBV_"):
            found[name] = int(value)
    return found


_library: _Library | None = None


def library() -> _Library:
    """Raises ImportError where pyverbs is not installed."""
    global _library
    if _library is None:
        _library = _Library()
    return _library


class as_os_error:  # used as a function; a generator would cost a microsecond for each transfer
    """pyverbs' errors as OSError with the errno that it names."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, Exception) and not isinstance(exc, OSError):
            code = getattr(exc, "error_code", 0) or errno.EIO
            raise OSError(abs(code), f"{self._what}: {exc}") from exc


def device_names() -> list[str]:
    """Names of this machine's devices; empty without pyverbs, kernel support or devices."""
    try:
        return [device.name.decode() for device in library().device.get_device_list()]
    except ImportError as exc:
        log.debug("no rdma: pyverbs cannot be imported: %s", exc)
    except Exception as exc:  # a kernel without ib_uverbs answers with an error of pyverbs
        log.debug("no rdma: %s", exc)
    return []


_alive: weakref.WeakSet[Owned] = weakref.WeakSet()


def abandon_all() -> None:
    """Let go of every verbs object without destroying it.

    In a forked child they are the parent's, and destroying the copies would destroy those. At the end of a process the
    kernel does it, while pyverbs' destructors fail on modules that are gone already.
    """
    for owned in list(_alive):
        owned.abandon()


def _after_fork() -> None:
    global _fd_lock
    _fd_lock = threading.Lock()  # a thread of the parent's may have held it
    abandon_all()


atexit.register(abandon_all)
os.register_at_fork(after_in_child=_after_fork)


class Owned:
    """Holds one verbs object; `close` forgets it before it destroys it."""

    _raw: Any = None  # of one that could not be made

    def __init__(self, what: str, raw: Any) -> None:
        self._what = what
        self._raw = raw
        _alive.add(self)

    @property
    def raw(self) -> Any:
        if self._raw is None:
            raise OSError(errno.EBADF, f"the {self._what} is closed")
        return self._raw

    @property
    def closed(self) -> bool:
        return self._raw is None

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with as_os_error(f"closing the {self._what}"):
                raw.close()

    def __del__(self) -> None:
        """Dropped without `close`, be it in a cycle: the collector would destroy a device before what was made on it,
        and the process would end."""
        if self._raw is not None:
            self.abandon()

    def abandon(self) -> None:
        """Never destroy it: the object lives as long as the process, and the kernel ends it then."""
        raw, self._raw = self._raw, None
        if raw is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))


def event_descriptor(make: Callable[[], T]) -> tuple[T, int]:
    """What `make` returns, and the descriptor that its events come from, non-blocking, or -1: pyverbs does not tell."""
    with _fd_lock:
        before = _event_fds()
        made = make()
        new = _event_fds() - before
    fd = new.pop() if len(new) == 1 else -1
    if fd >= 0:
        os.set_blocking(fd, False)
    return made, fd


def _event_fds() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found
