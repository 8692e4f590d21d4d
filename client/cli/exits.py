"""Exit codes, and how an error becomes one line that says what to do."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

from fireflyfs.common.errors import Code, FfsError, from_oserror

OK = 0
FAILED = 1
USAGE = 2  # wrong usage or configuration
NOT_FOUND = 3
UNREACHABLE = 4  # no answer from the cluster, or not in time
REFUSED = 5  # understood, and declined: permissions, state, limits
FINDINGS = 6  # `ffs fsck`: something is wrong and was not mended
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away

_WORST_FIRST = (FAILED, UNREACHABLE, REFUSED, NOT_FOUND, USAGE)  # of a command in which several things failed

_NOT_FOUND = {Code.NO_ENTRY, Code.UNKNOWN_NODE, Code.NO_CHAIN, Code.CHUNK_NOT_FOUND, Code.NO_DATA}
_UNREACHABLE = {
    Code.UNAVAILABLE,
    Code.TIMEOUT,
    Code.TARGET_OFFLINE,
    Code.FENCED,
    Code.NOT_PRIMARY,
    Code.OVERLOADED,
}
_FAILED = {Code.IO_ERROR, Code.INTERNAL, Code.CHECKSUM, Code.DISK_FAILED, Code.CANCELLED}
_HINTS = {
    Code.UNAVAILABLE: "is the cluster running? try `ffs status`, start it with `ffs up`, or name it with --mgmtd",
    Code.TIMEOUT: "the cluster is away, slow or partly down: `ffs status` shows what is missing, `ffs up` starts it",
    Code.TARGET_OFFLINE: "a storage node is down: `ffs status` shows which",
    Code.WRONG_CLUSTER: "--mgmtd names another cluster than the one expected",
    Code.VERSION_MISMATCH: "client and servers are of different releases: upgrade the older one",
    Code.NO_SPACE: "`ffs space` shows what is full",
    Code.INTERNAL: "a bug: the server's log has the trace",
}
_UNREACHABLE_ERRNO = {errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET}


def exit_code(exc: BaseException) -> int:
    """The exit code that an error ends the command with."""
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(exc, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(exc, click.ClickException):
        return exc.exit_code
    if isinstance(exc, FfsError):
        if exc.code == Code.CONFIG:
            return USAGE
        for codes, number in ((_NOT_FOUND, NOT_FOUND), (_UNREACHABLE, UNREACHABLE), (_FAILED, FAILED)):
            if exc.code in codes:
                return number
        return REFUSED
    if isinstance(exc, OSError) and exc.errno:
        if isinstance(exc.__cause__, FfsError):  # the library's: the errno says less
            return exit_code(exc.__cause__)
        if exc.errno in _UNREACHABLE_ERRNO:
            return UNREACHABLE
        return exit_code(from_oserror(exc))
    return FAILED


def describe(exc: BaseException) -> str:
    """One line: what went wrong and, where it is known, what to do."""
    if isinstance(exc, FfsError):
        text, hint = exc.message, _HINTS.get(exc.code, "")
    elif isinstance(exc, OSError) and exc.strerror:
        name = exc.filename.decode(errors="replace") if isinstance(exc.filename, bytes) else exc.filename
        text, hint = f"{name}: {exc.strerror}" if name else exc.strerror, ""
        if isinstance(exc.__cause__, FfsError):
            hint = _HINTS.get(exc.__cause__.code, "")
        elif exc.errno in _UNREACHABLE_ERRNO:
            hint = _HINTS[Code.UNAVAILABLE]
    else:
        text, hint = str(exc) or type(exc).__name__, ""
        if not isinstance(exc, ValueError | click.ClickException):
            text, hint = f"{type(exc).__name__}: {text}", "this is a bug; --verbose shows the trace"
    text = " ".join(text.split())
    if "`ffs " in text:  # it says itself what to do
        return text
    return f"{text} ({hint})" if hint else text


def report(exc: BaseException, *, verbose: bool = False) -> int:
    """Print the error's line on stderr (usage errors with click's own help line) and return the exit code."""
    code = exit_code(exc)
    if isinstance(exc, click.exceptions.Exit):
        return code
    if isinstance(exc, BrokenPipeError):
        # What is still buffered for the reader that left must not raise again while the interpreter closes.
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, ValueError):
            pass
        return code
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        # On a terminal the cursor stands behind ^C.
        print("\n" if sys.stderr.isatty() else "", "ffs: interrupted", sep="", file=sys.stderr)
        return code
    if isinstance(exc, click.UsageError):
        exc.show()
        return code
    if verbose:
        traceback.print_exception(exc, file=sys.stderr)
    message = exc.format_message() if isinstance(exc, click.ClickException) else describe(exc)
    print(f"ffs: {message}", file=sys.stderr)
    return code


def worst(codes: Iterable[int]) -> int:
    """Of the exit codes of several errors, the one that the command ends with."""
    return min(codes, key=_WORST_FIRST.index)


class Failures:
    """What failed of a command's several paths: each is told at once, the others are gone on with."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._codes: list[int] = []

    @contextmanager
    def told(self) -> Iterator[None]:
        """An error of the cluster's in this block is reported, and goes no further; one of our own output does."""
        try:
            yield
        except click.UsageError as exc:
            self._codes.append(exit_code(exc))
            print(f"ffs: {exc.format_message()}", file=sys.stderr)
        except (FfsError, OSError) as exc:
            if isinstance(exc, OSError) and exc.filename is None and not isinstance(exc.__cause__, FfsError):
                raise
            self._codes.append(report(exc, verbose=self._verbose))

    @property
    def count(self) -> int:
        """How many there are so far."""
        return len(self._codes)

    def end(self, others: Iterable[BaseException] = ()) -> None:
        """Ends the command with the worst exit code, if anything failed; `others` were told elsewhere."""
        codes = [*self._codes, *map(exit_code, others)]
        if codes:
            sys.exit(worst(codes))
