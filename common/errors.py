"""What can go wrong, in one table: code, gRPC status, errno, and what the caller may do about it.

Codes below 1000 are Linux errno values: what a namespace operation answers, and what a program sees. Codes from
1000 are FireflyFS's own. The numbers travel in both lanes and never change their meaning.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import Enum, IntEnum

import grpc


class Code(IntEnum):
    """Outcome of a request. Codes below 1000 are errno values."""

    OK = 0
    NOT_PERMITTED = errno.EPERM
    NO_ENTRY = errno.ENOENT
    IO_ERROR = errno.EIO
    BAD_HANDLE = errno.EBADF
    ACCESS_DENIED = errno.EACCES
    BUSY = errno.EBUSY
    EXISTS = errno.EEXIST
    CROSS_DEVICE = errno.EXDEV
    NOT_DIRECTORY = errno.ENOTDIR
    IS_DIRECTORY = errno.EISDIR
    INVALID = errno.EINVAL
    TOO_BIG = errno.EFBIG
    NO_SPACE = errno.ENOSPC
    READ_ONLY = errno.EROFS
    DEADLOCK = errno.EDEADLK
    NO_LOCKS = errno.ENOLCK
    TOO_MANY_LINKS = errno.EMLINK
    NAME_TOO_LONG = errno.ENAMETOOLONG
    NOT_EMPTY = errno.ENOTEMPTY
    LINK_LOOP = errno.ELOOP
    NO_DATA = errno.ENODATA
    OUT_OF_RANGE = errno.ERANGE
    TOO_BIG_ARGUMENT = errno.E2BIG
    NOT_SUPPORTED = errno.EOPNOTSUPP
    STALE_HANDLE = errno.ESTALE
    QUOTA_EXCEEDED = errno.EDQUOT

    UNAVAILABLE = 1000  # the peer cannot be reached, or is not ready
    TIMEOUT = 1001  # no answer before the deadline; it may have happened
    OVERLOADED = 1002  # a bound on requests or bytes in flight is reached
    PROTOCOL = 1003  # a frame or message that makes no sense
    VERSION_MISMATCH = 1004  # no protocol version in common, or a stored format newer than this release
    WRONG_CLUSTER = 1005
    UNKNOWN_METHOD = 1006
    TOO_LARGE = 1007  # over a stated limit
    CANCELLED = 1008
    INTERNAL = 1009  # a bug of ours: logged with its trace where it happened
    CONFIG = 1010  # configuration that cannot be used

    TXN_CONFLICT = 1100  # the transaction did not happen
    TXN_UNKNOWN = 1101  # the transaction may have happened

    CHAIN_VERSION = 1200  # sender and receiver know different versions of the chain
    NOT_HEAD = 1201  # a client's write reached another replica than the head
    TARGET_OFFLINE = 1202  # the target does not serve now
    NO_CHAIN = 1203
    FENCED = 1204  # the storage worker lost mgmtd for too long and does not serve
    CHUNK_NOT_FOUND = 1205
    CHECKSUM = 1206  # bytes that do not match their checksum; never delivered
    CHUNK_BUSY = 1207  # another update of the chunk or channel is under way
    STALE_UPDATE = 1208  # an older sequence number of the channel than one already seen
    MISSING_UPDATE = 1209  # the replica has not seen the update before this one
    DISK_FAILED = 1210
    CHUNK_PENDING = 1211  # a version is pending here: the tail must be asked

    NOT_PRIMARY = 1300  # this mgmtd does not hold the lease
    STALE_HEARTBEAT = 1301  # an older generation or sequence than one already seen
    NODE_DISABLED = 1302
    UNKNOWN_NODE = 1303


class Reaction(Enum):
    """What the caller may do on an error."""

    GIVE_UP = "give up"
    RETRY = "retry after a pause"
    REFRESH = "refresh routing, then retry"
    OTHER_REPLICA = "ask another replica"


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table."""

    grpc_status: grpc.StatusCode
    errno: int
    reaction: Reaction


_S = grpc.StatusCode
_SYSTEM: dict[Code, Meaning] = {
    Code.UNAVAILABLE: Meaning(_S.UNAVAILABLE, errno.EIO, Reaction.REFRESH),
    Code.TIMEOUT: Meaning(_S.DEADLINE_EXCEEDED, errno.ETIMEDOUT, Reaction.REFRESH),
    Code.OVERLOADED: Meaning(_S.RESOURCE_EXHAUSTED, errno.EAGAIN, Reaction.RETRY),
    Code.PROTOCOL: Meaning(_S.INVALID_ARGUMENT, errno.EPROTO, Reaction.GIVE_UP),
    Code.VERSION_MISMATCH: Meaning(_S.FAILED_PRECONDITION, errno.EPROTONOSUPPORT, Reaction.GIVE_UP),
    Code.WRONG_CLUSTER: Meaning(_S.FAILED_PRECONDITION, errno.EXDEV, Reaction.GIVE_UP),
    Code.UNKNOWN_METHOD: Meaning(_S.UNIMPLEMENTED, errno.ENOSYS, Reaction.GIVE_UP),
    Code.TOO_LARGE: Meaning(_S.INVALID_ARGUMENT, errno.EMSGSIZE, Reaction.GIVE_UP),
    Code.CANCELLED: Meaning(_S.CANCELLED, errno.ECANCELED, Reaction.GIVE_UP),
    Code.INTERNAL: Meaning(_S.INTERNAL, errno.EIO, Reaction.GIVE_UP),
    Code.CONFIG: Meaning(_S.FAILED_PRECONDITION, errno.EINVAL, Reaction.GIVE_UP),
    Code.TXN_CONFLICT: Meaning(_S.ABORTED, errno.EAGAIN, Reaction.RETRY),
    Code.TXN_UNKNOWN: Meaning(_S.UNKNOWN, errno.EAGAIN, Reaction.RETRY),
    Code.CHAIN_VERSION: Meaning(_S.FAILED_PRECONDITION, errno.EAGAIN, Reaction.REFRESH),
    Code.NOT_HEAD: Meaning(_S.FAILED_PRECONDITION, errno.EAGAIN, Reaction.REFRESH),
    Code.TARGET_OFFLINE: Meaning(_S.UNAVAILABLE, errno.EIO, Reaction.REFRESH),
    Code.NO_CHAIN: Meaning(_S.NOT_FOUND, errno.EIO, Reaction.REFRESH),
    Code.FENCED: Meaning(_S.UNAVAILABLE, errno.EIO, Reaction.REFRESH),
    Code.CHUNK_NOT_FOUND: Meaning(_S.NOT_FOUND, errno.ENODATA, Reaction.GIVE_UP),
    Code.CHECKSUM: Meaning(_S.DATA_LOSS, errno.EIO, Reaction.OTHER_REPLICA),
    Code.CHUNK_BUSY: Meaning(_S.ABORTED, errno.EAGAIN, Reaction.RETRY),
    Code.STALE_UPDATE: Meaning(_S.ABORTED, errno.EIO, Reaction.GIVE_UP),
    Code.MISSING_UPDATE: Meaning(_S.FAILED_PRECONDITION, errno.EAGAIN, Reaction.RETRY),
    Code.DISK_FAILED: Meaning(_S.UNAVAILABLE, errno.EIO, Reaction.REFRESH),
    Code.CHUNK_PENDING: Meaning(_S.ABORTED, errno.EAGAIN, Reaction.OTHER_REPLICA),
    Code.NOT_PRIMARY: Meaning(_S.UNAVAILABLE, errno.EAGAIN, Reaction.RETRY),
    Code.STALE_HEARTBEAT: Meaning(_S.ABORTED, errno.EINVAL, Reaction.GIVE_UP),
    Code.NODE_DISABLED: Meaning(_S.PERMISSION_DENIED, errno.EPERM, Reaction.GIVE_UP),
    Code.UNKNOWN_NODE: Meaning(_S.NOT_FOUND, errno.ENOENT, Reaction.GIVE_UP),
}
_ERRNO_STATUS: dict[Code, grpc.StatusCode] = {
    Code.OK: _S.OK,
    Code.NOT_PERMITTED: _S.PERMISSION_DENIED,
    Code.ACCESS_DENIED: _S.PERMISSION_DENIED,
    Code.NO_ENTRY: _S.NOT_FOUND,
    Code.EXISTS: _S.ALREADY_EXISTS,
    Code.NO_SPACE: _S.RESOURCE_EXHAUSTED,
    Code.QUOTA_EXCEEDED: _S.RESOURCE_EXHAUSTED,
    Code.INVALID: _S.INVALID_ARGUMENT,
    Code.IO_ERROR: _S.INTERNAL,
    Code.NOT_SUPPORTED: _S.UNIMPLEMENTED,
}
MEANINGS: dict[Code, Meaning] = _SYSTEM | {
    code: Meaning(_ERRNO_STATUS.get(code, _S.FAILED_PRECONDITION), int(code), Reaction.GIVE_UP)
    for code in Code
    if code < 1000
}


class FfsError(Exception):
    """A request that did not succeed. The subclass says what the caller may do; `code` says why."""

    def __init__(self, code: Code, message: str = "") -> None:
        super().__init__(message or code.name.lower().replace("_", " "))
        self.code = code

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def errno(self) -> int:
        return MEANINGS[self.code].errno

    @property
    def reaction(self) -> Reaction:
        return MEANINGS[self.code].reaction

    @property
    def _says_what_is_invalid(self) -> bool:
        """EINVAL alone tells a user nothing, of all codes."""
        return self.code is Code.INVALID and self.message != "invalid"

    def to_oserror(self, path: str | bytes | None = None) -> OSError:
        """The same as what Python's own file functions raise."""
        text = os.strerror(self.errno) if self.code < 1000 and not self._says_what_is_invalid else self.message
        return OSError(self.errno, text, path) if path is not None else OSError(self.errno, text)


class GiveUp(FfsError):
    """Asking again would bring the same answer. Nothing changed unless the operation says so."""


class RetryLater(FfsError):
    """Nothing is wrong with the request: ask again after a pause."""


class RefreshRouting(FfsError):
    """The caller's routing is old or a server is gone: refresh routing, then ask again."""


class DamagedData(FfsError):
    """This replica's bytes cannot be used: ask another."""


_CLASSES: dict[Reaction, type[FfsError]] = {
    Reaction.GIVE_UP: GiveUp,
    Reaction.RETRY: RetryLater,
    Reaction.REFRESH: RefreshRouting,
    Reaction.OTHER_REPLICA: DamagedData,
}


def error(code: Code | int, message: str = "") -> FfsError:
    """The error of the class that `code` calls for. An unknown number becomes INTERNAL and keeps it in the text."""
    try:
        known = Code(code)
    except ValueError:
        return GiveUp(Code.INTERNAL, f"unknown error code {int(code)}: {message}")
    return _CLASSES[MEANINGS[known].reaction](known, message)


def from_oserror(exc: OSError) -> FfsError:
    """An error of the local system as one of ours; an errno without a code of its own becomes IO_ERROR."""
    number = exc.errno or errno.EIO
    code = Code(number) if number in Code._value2member_map_ and number < 1000 else Code.IO_ERROR
    return error(code, f"{os.strerror(number)}: {exc.filename}" if exc.filename else os.strerror(number))
