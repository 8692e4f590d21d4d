from fireflyfs.proto import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RemoveKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REMOVE_UNLINK: _ClassVar[RemoveKind]
    REMOVE_RMDIR: _ClassVar[RemoveKind]
    REMOVE_RECURSIVE: _ClassVar[RemoveKind]

class UsageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USAGE_DIRECTORY: _ClassVar[UsageKind]
    USAGE_USER: _ClassVar[UsageKind]
    USAGE_GROUP: _ClassVar[UsageKind]

class LockKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCK_RANGE: _ClassVar[LockKind]
    LOCK_FLOCK: _ClassVar[LockKind]

class LockType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCK_READ: _ClassVar[LockType]
    LOCK_WRITE: _ClassVar[LockType]
    LOCK_UNLOCK: _ClassVar[LockType]
REMOVE_UNLINK: RemoveKind
REMOVE_RMDIR: RemoveKind
REMOVE_RECURSIVE: RemoveKind
USAGE_DIRECTORY: UsageKind
USAGE_USER: UsageKind
USAGE_GROUP: UsageKind
LOCK_RANGE: LockKind
LOCK_FLOCK: LockKind
LOCK_READ: LockType
LOCK_WRITE: LockType
LOCK_UNLOCK: LockType

class PathAt(_message.Message):
    __slots__ = ("dir", "path", "follow")
    DIR_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    dir: int
    path: bytes
    follow: bool
    def __init__(self, dir: _Optional[int] = ..., path: _Optional[bytes] = ..., follow: _Optional[bool] = ...) -> None: ...

class Timestamp(_message.Message):
    __slots__ = ("ns",)
    NS_FIELD_NUMBER: _ClassVar[int]
    ns: int
    def __init__(self, ns: _Optional[int] = ...) -> None: ...

class Inode(_message.Message):
    __slots__ = ("id", "mode", "nlink", "uid", "gid", "length", "atime_ns", "mtime_ns", "ctime_ns", "btime_ns", "rdev", "layout", "truncate_version", "symlink_target", "parent", "xattrs", "acl", "default_acl", "capability", "end_max")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    NLINK_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    BTIME_NS_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    ACL_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_ACL_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    END_MAX_FIELD_NUMBER: _ClassVar[int]
    id: int
    mode: int
    nlink: int
    uid: int
    gid: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    rdev: int
    layout: _common_pb2.Layout
    truncate_version: int
    symlink_target: bytes
    parent: int
    xattrs: bool
    acl: bool
    default_acl: bool
    capability: bool
    end_max: int
    def __init__(self, id: _Optional[int] = ..., mode: _Optional[int] = ..., nlink: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., length: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., btime_ns: _Optional[int] = ..., rdev: _Optional[int] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ..., truncate_version: _Optional[int] = ..., symlink_target: _Optional[bytes] = ..., parent: _Optional[int] = ..., xattrs: _Optional[bool] = ..., acl: _Optional[bool] = ..., default_acl: _Optional[bool] = ..., capability: _Optional[bool] = ..., end_max: _Optional[int] = ...) -> None: ...

class Mutation(_message.Message):
    __slots__ = ("request_id", "retry")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    retry: bool
    def __init__(self, request_id: _Optional[bytes] = ..., retry: _Optional[bool] = ...) -> None: ...

class InodeReply(_message.Message):
    __slots__ = ("inode", "directory")
    INODE_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    directory: Inode
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ..., directory: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("caller", "at")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class BatchStatRequest(_message.Message):
    __slots__ = ("caller", "inodes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class BatchStatReply(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedCompositeFieldContainer[Inode]
    def __init__(self, inodes: _Optional[_Iterable[_Union[Inode, _Mapping]]] = ...) -> None: ...

class BatchStatPathRequest(_message.Message):
    __slots__ = ("caller", "paths")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    paths: _containers.RepeatedCompositeFieldContainer[PathAt]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., paths: _Optional[_Iterable[_Union[PathAt, _Mapping]]] = ...) -> None: ...

class BatchStatPathReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[InodeOrError]
    def __init__(self, results: _Optional[_Iterable[_Union[InodeOrError, _Mapping]]] = ...) -> None: ...

class InodeOrError(_message.Message):
    __slots__ = ("status", "inode")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    status: int
    inode: Inode
    def __init__(self, status: _Optional[int] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("caller", "parent", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    parent: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "flags", "mode", "session", "layout", "umask")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    flags: int
    mode: int
    session: bytes
    layout: _common_pb2.Layout
    umask: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., flags: _Optional[int] = ..., mode: _Optional[int] = ..., session: _Optional[bytes] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ..., umask: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("inode", "created", "directory")
    INODE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    created: bool
    directory: Inode
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ..., created: _Optional[bool] = ..., directory: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class LengthHint(_message.Message):
    __slots__ = ("length", "truncate_version")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    length: int
    truncate_version: int
    def __init__(self, length: _Optional[int] = ..., truncate_version: _Optional[int] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("caller", "mutation", "inode", "session", "hint", "mtime", "atime", "privileges_taken")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    MTIME_FIELD_NUMBER: _ClassVar[int]
    ATIME_FIELD_NUMBER: _ClassVar[int]
    PRIVILEGES_TAKEN_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    inode: int
    session: bytes
    hint: LengthHint
    mtime: Timestamp
    atime: Timestamp
    privileges_taken: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., inode: _Optional[int] = ..., session: _Optional[bytes] = ..., hint: _Optional[_Union[LengthHint, _Mapping]] = ..., mtime: _Optional[_Union[Timestamp, _Mapping]] = ..., atime: _Optional[_Union[Timestamp, _Mapping]] = ..., privileges_taken: _Optional[bool] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("caller", "mutation", "inode", "hint", "mtime", "atime", "durable", "privileges_taken", "wanted_end")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    MTIME_FIELD_NUMBER: _ClassVar[int]
    ATIME_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    PRIVILEGES_TAKEN_FIELD_NUMBER: _ClassVar[int]
    WANTED_END_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    inode: int
    hint: LengthHint
    mtime: Timestamp
    atime: Timestamp
    durable: bool
    privileges_taken: bool
    wanted_end: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., inode: _Optional[int] = ..., hint: _Optional[_Union[LengthHint, _Mapping]] = ..., mtime: _Optional[_Union[Timestamp, _Mapping]] = ..., atime: _Optional[_Union[Timestamp, _Mapping]] = ..., durable: _Optional[bool] = ..., privileges_taken: _Optional[bool] = ..., wanted_end: _Optional[int] = ...) -> None: ...

class MakeNodeRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "mode", "rdev", "parents", "layout", "umask")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    mode: int
    rdev: int
    parents: bool
    layout: _common_pb2.Layout
    umask: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., mode: _Optional[int] = ..., rdev: _Optional[int] = ..., parents: _Optional[bool] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ..., umask: _Optional[int] = ...) -> None: ...

class SymlinkRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "target")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    target: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., target: _Optional[bytes] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("caller", "mutation", "old", "new")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    old: PathAt
    new: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., old: _Optional[_Union[PathAt, _Mapping]] = ..., new: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class ReadlinkRequest(_message.Message):
    __slots__ = ("caller", "at")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class ReadlinkReply(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: bytes
    def __init__(self, target: _Optional[bytes] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "kind")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    kind: RemoveKind
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., kind: _Optional[_Union[RemoveKind, str]] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("caller", "mutation", "old", "new", "flags")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    old: PathAt
    new: PathAt
    flags: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., old: _Optional[_Union[PathAt, _Mapping]] = ..., new: _Optional[_Union[PathAt, _Mapping]] = ..., flags: _Optional[int] = ...) -> None: ...

class RemoveReply(_message.Message):
    __slots__ = ("directory", "inode")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    directory: Inode
    inode: Inode
    def __init__(self, directory: _Optional[_Union[Inode, _Mapping]] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class RenameReply(_message.Message):
    __slots__ = ("old_directory", "new_directory", "inode", "other")
    OLD_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NEW_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    old_directory: Inode
    new_directory: Inode
    inode: Inode
    other: Inode
    def __init__(self, old_directory: _Optional[_Union[Inode, _Mapping]] = ..., new_directory: _Optional[_Union[Inode, _Mapping]] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ..., other: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("caller", "at", "after", "limit", "attributes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    after: bytes
    limit: int
    attributes: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ..., attributes: _Optional[bool] = ...) -> None: ...

class DirEntry(_message.Message):
    __slots__ = ("name", "inode", "mode", "attributes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    inode: int
    mode: int
    attributes: Inode
    def __init__(self, name: _Optional[bytes] = ..., inode: _Optional[int] = ..., mode: _Optional[int] = ..., attributes: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("entries", "more", "parent")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[DirEntry]
    more: bool
    parent: int
    def __init__(self, entries: _Optional[_Iterable[_Union[DirEntry, _Mapping]]] = ..., more: _Optional[bool] = ..., parent: _Optional[int] = ...) -> None: ...

class SetAttrRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "mode", "uid", "gid", "length", "atime_ns", "mtime_ns", "atime_now", "mtime_now", "session", "layout", "kill_privileges", "kill_capability")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NOW_FIELD_NUMBER: _ClassVar[int]
    MTIME_NOW_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    KILL_PRIVILEGES_FIELD_NUMBER: _ClassVar[int]
    KILL_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    mode: int
    uid: int
    gid: int
    length: int
    atime_ns: int
    mtime_ns: int
    atime_now: bool
    mtime_now: bool
    session: bytes
    layout: _common_pb2.Layout
    kill_privileges: bool
    kill_capability: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., length: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., atime_now: _Optional[bool] = ..., mtime_now: _Optional[bool] = ..., session: _Optional[bytes] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ..., kill_privileges: _Optional[bool] = ..., kill_capability: _Optional[bool] = ...) -> None: ...

class GetXattrRequest(_message.Message):
    __slots__ = ("caller", "at", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    name: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., name: _Optional[bytes] = ...) -> None: ...

class GetXattrReply(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class ListXattrRequest(_message.Message):
    __slots__ = ("caller", "at")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class ListXattrReply(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, names: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SetXattrRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "name", "value", "flags")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    name: bytes
    value: bytes
    flags: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class RemoveXattrRequest(_message.Message):
    __slots__ = ("caller", "mutation", "at", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    at: PathAt
    name: bytes
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., name: _Optional[bytes] = ...) -> None: ...

class StatFsRequest(_message.Message):
    __slots__ = ("caller", "inode")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ...) -> None: ...

class StatFsReply(_message.Message):
    __slots__ = ("capacity_bytes", "free_bytes", "files", "garbage_files", "block_bytes", "free_files")
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    GARBAGE_FILES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_FILES_FIELD_NUMBER: _ClassVar[int]
    capacity_bytes: int
    free_bytes: int
    files: int
    garbage_files: int
    block_bytes: int
    free_files: int
    def __init__(self, capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., files: _Optional[int] = ..., garbage_files: _Optional[int] = ..., block_bytes: _Optional[int] = ..., free_files: _Optional[int] = ...) -> None: ...

class QuotaLimits(_message.Message):
    __slots__ = ("bytes_max", "inodes_max")
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    INODES_MAX_FIELD_NUMBER: _ClassVar[int]
    bytes_max: int
    inodes_max: int
    def __init__(self, bytes_max: _Optional[int] = ..., inodes_max: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("kind", "id", "bytes", "inodes", "quota", "path")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    kind: UsageKind
    id: int
    bytes: int
    inodes: int
    quota: QuotaLimits
    path: bytes
    def __init__(self, kind: _Optional[_Union[UsageKind, str]] = ..., id: _Optional[int] = ..., bytes: _Optional[int] = ..., inodes: _Optional[int] = ..., quota: _Optional[_Union[QuotaLimits, _Mapping]] = ..., path: _Optional[bytes] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("caller", "kind", "id", "at")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    kind: UsageKind
    id: int
    at: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., kind: _Optional[_Union[UsageKind, str]] = ..., id: _Optional[int] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class GetUsageReply(_message.Message):
    __slots__ = ("usage", "above", "counting")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    usage: Usage
    above: _containers.RepeatedCompositeFieldContainer[Usage]
    counting: bool
    def __init__(self, usage: _Optional[_Union[Usage, _Mapping]] = ..., above: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., counting: _Optional[bool] = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("caller", "mutation", "kind", "id", "at", "quota")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    kind: UsageKind
    id: int
    at: PathAt
    quota: QuotaLimits
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., kind: _Optional[_Union[UsageKind, str]] = ..., id: _Optional[int] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., quota: _Optional[_Union[QuotaLimits, _Mapping]] = ...) -> None: ...

class SetQuotaReply(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: Usage
    def __init__(self, usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class ListQuotasRequest(_message.Message):
    __slots__ = ("caller", "begun", "after_kind", "after_id", "limit")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_KIND_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    begun: bool
    after_kind: UsageKind
    after_id: int
    limit: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., begun: _Optional[bool] = ..., after_kind: _Optional[_Union[UsageKind, str]] = ..., after_id: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListQuotasReply(_message.Message):
    __slots__ = ("quotas", "more", "counting")
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[Usage]
    more: bool
    counting: bool
    def __init__(self, quotas: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., more: _Optional[bool] = ..., counting: _Optional[bool] = ...) -> None: ...

class CheckUsageRequest(_message.Message):
    __slots__ = ("caller", "owners", "after", "repair")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    owners: bool
    after: int
    repair: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., owners: _Optional[bool] = ..., after: _Optional[int] = ..., repair: _Optional[bool] = ...) -> None: ...

class UsageDifference(_message.Message):
    __slots__ = ("kind", "id", "bytes", "inodes", "path")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    kind: UsageKind
    id: int
    bytes: int
    inodes: int
    path: bytes
    def __init__(self, kind: _Optional[_Union[UsageKind, str]] = ..., id: _Optional[int] = ..., bytes: _Optional[int] = ..., inodes: _Optional[int] = ..., path: _Optional[bytes] = ...) -> None: ...

class CheckUsageReply(_message.Message):
    __slots__ = ("differences", "looked_at", "last", "more", "counting")
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    differences: _containers.RepeatedCompositeFieldContainer[UsageDifference]
    looked_at: int
    last: int
    more: bool
    counting: bool
    def __init__(self, differences: _Optional[_Iterable[_Union[UsageDifference, _Mapping]]] = ..., looked_at: _Optional[int] = ..., last: _Optional[int] = ..., more: _Optional[bool] = ..., counting: _Optional[bool] = ...) -> None: ...

class RealPathRequest(_message.Message):
    __slots__ = ("caller", "at")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class RealPathReply(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class EndedSession(_message.Message):
    __slots__ = ("inode", "session")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    inode: int
    session: bytes
    def __init__(self, inode: _Optional[int] = ..., session: _Optional[bytes] = ...) -> None: ...

class EndSessionsRequest(_message.Message):
    __slots__ = ("caller", "mutation", "sessions")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    sessions: _containers.RepeatedCompositeFieldContainer[EndedSession]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., sessions: _Optional[_Iterable[_Union[EndedSession, _Mapping]]] = ...) -> None: ...

class EndSessionsReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListFilesRequest(_message.Message):
    __slots__ = ("caller", "after", "limit", "inodes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    after: int
    limit: int
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ..., inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class FileState(_message.Message):
    __slots__ = ("inode", "length", "truncate_version", "chunk_size", "chains", "writing", "trimming", "removed")
    INODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    WRITING_FIELD_NUMBER: _ClassVar[int]
    TRIMMING_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    inode: int
    length: int
    truncate_version: int
    chunk_size: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    writing: bool
    trimming: bool
    removed: bool
    def __init__(self, inode: _Optional[int] = ..., length: _Optional[int] = ..., truncate_version: _Optional[int] = ..., chunk_size: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., writing: _Optional[bool] = ..., trimming: _Optional[bool] = ..., removed: _Optional[bool] = ...) -> None: ...

class ListFilesReply(_message.Message):
    __slots__ = ("files", "last", "more", "next_inode")
    FILES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    NEXT_INODE_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileState]
    last: int
    more: bool
    next_inode: int
    def __init__(self, files: _Optional[_Iterable[_Union[FileState, _Mapping]]] = ..., last: _Optional[int] = ..., more: _Optional[bool] = ..., next_inode: _Optional[int] = ...) -> None: ...

class TrashRef(_message.Message):
    __slots__ = ("removed_ns", "inode")
    REMOVED_NS_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    removed_ns: int
    inode: int
    def __init__(self, removed_ns: _Optional[int] = ..., inode: _Optional[int] = ...) -> None: ...

class TrashEntry(_message.Message):
    __slots__ = ("ref", "name", "directory", "uid", "mode", "length")
    REF_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ref: TrashRef
    name: bytes
    directory: bytes
    uid: int
    mode: int
    length: int
    def __init__(self, ref: _Optional[_Union[TrashRef, _Mapping]] = ..., name: _Optional[bytes] = ..., directory: _Optional[bytes] = ..., uid: _Optional[int] = ..., mode: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class ListTrashRequest(_message.Message):
    __slots__ = ("caller", "after", "limit")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    after: TrashRef
    limit: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., after: _Optional[_Union[TrashRef, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class ListTrashReply(_message.Message):
    __slots__ = ("entries", "after", "more")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[TrashEntry]
    after: TrashRef
    more: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[TrashEntry, _Mapping]]] = ..., after: _Optional[_Union[TrashRef, _Mapping]] = ..., more: _Optional[bool] = ...) -> None: ...

class RestoreTrashRequest(_message.Message):
    __slots__ = ("caller", "mutation", "ref", "to")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    ref: TrashRef
    to: PathAt
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., ref: _Optional[_Union[TrashRef, _Mapping]] = ..., to: _Optional[_Union[PathAt, _Mapping]] = ...) -> None: ...

class EmptyTrashRequest(_message.Message):
    __slots__ = ("caller", "mutation", "refs")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    refs: _containers.RepeatedCompositeFieldContainer[TrashRef]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., refs: _Optional[_Iterable[_Union[TrashRef, _Mapping]]] = ...) -> None: ...

class EmptyTrashReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AccessRequest(_message.Message):
    __slots__ = ("caller", "at", "mask")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    at: PathAt
    mask: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., at: _Optional[_Union[PathAt, _Mapping]] = ..., mask: _Optional[int] = ...) -> None: ...

class Lock(_message.Message):
    __slots__ = ("kind", "type", "start", "end", "owner", "pid")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    kind: LockKind
    type: LockType
    start: int
    end: int
    owner: int
    pid: int
    def __init__(self, kind: _Optional[_Union[LockKind, str]] = ..., type: _Optional[_Union[LockType, str]] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., owner: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class GetLockRequest(_message.Message):
    __slots__ = ("caller", "inode", "lock")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    inode: int
    lock: Lock
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., lock: _Optional[_Union[Lock, _Mapping]] = ...) -> None: ...

class GetLockReply(_message.Message):
    __slots__ = ("conflict",)
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    conflict: Lock
    def __init__(self, conflict: _Optional[_Union[Lock, _Mapping]] = ...) -> None: ...

class SetLockRequest(_message.Message):
    __slots__ = ("caller", "mutation", "inode", "lock", "wait")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    inode: int
    lock: Lock
    wait: bool
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., inode: _Optional[int] = ..., lock: _Optional[_Union[Lock, _Mapping]] = ..., wait: _Optional[bool] = ...) -> None: ...

class SetLockReply(_message.Message):
    __slots__ = ("granted", "conflict", "ticket", "inode")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    conflict: Lock
    ticket: int
    inode: Inode
    def __init__(self, granted: _Optional[bool] = ..., conflict: _Optional[_Union[Lock, _Mapping]] = ..., ticket: _Optional[int] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class QueuedLock(_message.Message):
    __slots__ = ("inode", "kind", "ticket", "request_id")
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    inode: int
    kind: LockKind
    ticket: int
    request_id: bytes
    def __init__(self, inode: _Optional[int] = ..., kind: _Optional[_Union[LockKind, str]] = ..., ticket: _Optional[int] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class AwaitLocksRequest(_message.Message):
    __slots__ = ("caller", "heard", "waiting", "wait_ms", "held")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    heard: _containers.RepeatedScalarFieldContainer[bytes]
    waiting: _containers.RepeatedCompositeFieldContainer[QueuedLock]
    wait_ms: int
    held: _containers.RepeatedCompositeFieldContainer[HeldRange]
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., heard: _Optional[_Iterable[bytes]] = ..., waiting: _Optional[_Iterable[_Union[QueuedLock, _Mapping]]] = ..., wait_ms: _Optional[int] = ..., held: _Optional[_Iterable[_Union[HeldRange, _Mapping]]] = ...) -> None: ...

class HeldRange(_message.Message):
    __slots__ = ("inode", "kind", "owner", "start", "end")
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    inode: int
    kind: LockKind
    owner: int
    start: int
    end: int
    def __init__(self, inode: _Optional[int] = ..., kind: _Optional[_Union[LockKind, str]] = ..., owner: _Optional[int] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class AwaitLocksReply(_message.Message):
    __slots__ = ("granted", "lost", "dropped")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    granted: _containers.RepeatedScalarFieldContainer[bytes]
    lost: _containers.RepeatedScalarFieldContainer[bytes]
    dropped: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, granted: _Optional[_Iterable[bytes]] = ..., lost: _Optional[_Iterable[bytes]] = ..., dropped: _Optional[_Iterable[int]] = ...) -> None: ...

class CancelLockRequest(_message.Message):
    __slots__ = ("caller", "mutation", "queued")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    queued: QueuedLock
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., queued: _Optional[_Union[QueuedLock, _Mapping]] = ...) -> None: ...

class CancelLockReply(_message.Message):
    __slots__ = ("granted",)
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    def __init__(self, granted: _Optional[bool] = ...) -> None: ...

class DelegateRequest(_message.Message):
    __slots__ = ("caller", "directory", "names_max")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NAMES_MAX_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    directory: int
    names_max: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., directory: _Optional[int] = ..., names_max: _Optional[int] = ...) -> None: ...

class DelegateReply(_message.Message):
    __slots__ = ("granted", "names", "term_ms")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TERM_MS_FIELD_NUMBER: _ClassVar[int]
    granted: Delegation
    names: _containers.RepeatedScalarFieldContainer[bytes]
    term_ms: int
    def __init__(self, granted: _Optional[_Union[Delegation, _Mapping]] = ..., names: _Optional[_Iterable[bytes]] = ..., term_ms: _Optional[int] = ...) -> None: ...

class Delegation(_message.Message):
    __slots__ = ("directory", "number")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    directory: int
    number: int
    def __init__(self, directory: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class AwaitRecallsRequest(_message.Message):
    __slots__ = ("caller", "held", "returned", "wait_ms")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    held: _containers.RepeatedCompositeFieldContainer[Delegation]
    returned: _containers.RepeatedCompositeFieldContainer[Delegation]
    wait_ms: int
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., held: _Optional[_Iterable[_Union[Delegation, _Mapping]]] = ..., returned: _Optional[_Iterable[_Union[Delegation, _Mapping]]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class AwaitRecallsReply(_message.Message):
    __slots__ = ("recalled", "term_ms")
    RECALLED_FIELD_NUMBER: _ClassVar[int]
    TERM_MS_FIELD_NUMBER: _ClassVar[int]
    recalled: _containers.RepeatedScalarFieldContainer[int]
    term_ms: int
    def __init__(self, recalled: _Optional[_Iterable[int]] = ..., term_ms: _Optional[int] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("caller", "mutation", "inode", "session", "size", "hint")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    MUTATION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    mutation: Mutation
    inode: int
    session: bytes
    size: int
    hint: LengthHint
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ..., mutation: _Optional[_Union[Mutation, _Mapping]] = ..., inode: _Optional[int] = ..., session: _Optional[bytes] = ..., size: _Optional[int] = ..., hint: _Optional[_Union[LengthHint, _Mapping]] = ...) -> None: ...

class AppendReply(_message.Message):
    __slots__ = ("offset", "inode")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    inode: Inode
    def __init__(self, offset: _Optional[int] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class MetaStatsRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: _common_pb2.Caller
    def __init__(self, caller: _Optional[_Union[_common_pb2.Caller, _Mapping]] = ...) -> None: ...

class MetaStatsReply(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, float]
    def __init__(self, values: _Optional[_Mapping[str, float]] = ...) -> None: ...
