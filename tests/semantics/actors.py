"""Programs that run as other users: each call is a child process with that user's ids, as a shell would start it."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Actor:
    """`actor(function, *args)` runs it as this user and returns its result, or raises its OSError here."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = (), umask: int = 0o022) -> None:
        self.uid, self.gid, self.groups, self.umask = uid, gid, groups, umask

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(read_end)
                os.umask(self.umask)
                os.setgroups(self.groups)
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
                try:
                    outcome: tuple[Any, Any] = (function(*args, **kwargs), None)
                except OSError as exc:
                    outcome = (None, (exc.errno, str(exc)))
                except BaseException as exc:
                    outcome = (None, (None, f"{type(exc).__name__}: {exc}"))
                with os.fdopen(write_end, "wb") as pipe:
                    pickle.dump(outcome, pipe)
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        assert data, "the child died"
        result, failed = pickle.loads(data)
        if failed is not None:
            number, text = failed
            assert number is not None, f"in the child: {text}"
            raise OSError(number, text)
        return result  # type: ignore[no-any-return]

    def fails(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """The name of the errno it fails with, or "OK"."""
        try:
            self(function, *args, **kwargs)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        return "OK"


def fails(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The same in this process, as root."""
    try:
        function(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "OK"
