from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class NodeType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_TYPE_UNKNOWN: _ClassVar[NodeType]
    NODE_TYPE_MGMTD: _ClassVar[NodeType]
    NODE_TYPE_META: _ClassVar[NodeType]
    NODE_TYPE_STORAGE: _ClassVar[NodeType]
    NODE_TYPE_CLIENT: _ClassVar[NodeType]
    NODE_TYPE_FUSE: _ClassVar[NodeType]
NODE_TYPE_UNKNOWN: NodeType
NODE_TYPE_MGMTD: NodeType
NODE_TYPE_META: NodeType
NODE_TYPE_STORAGE: NodeType
NODE_TYPE_CLIENT: NodeType
NODE_TYPE_FUSE: NodeType

class Endpoint(_message.Message):
    __slots__ = ("grpc", "tcp", "unix", "host_id", "rdma")
    GRPC_FIELD_NUMBER: _ClassVar[int]
    TCP_FIELD_NUMBER: _ClassVar[int]
    UNIX_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    RDMA_FIELD_NUMBER: _ClassVar[int]
    grpc: str
    tcp: str
    unix: str
    host_id: str
    rdma: str
    def __init__(self, grpc: _Optional[str] = ..., tcp: _Optional[str] = ..., unix: _Optional[str] = ..., host_id: _Optional[str] = ..., rdma: _Optional[str] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("uid", "gid", "gids", "client_id")
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GIDS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    uid: int
    gid: int
    gids: _containers.RepeatedScalarFieldContainer[int]
    client_id: bytes
    def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ..., gids: _Optional[_Iterable[int]] = ..., client_id: _Optional[bytes] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("chunk_size", "stripe_size", "chain_table", "chains")
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_TABLE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    chunk_size: int
    stripe_size: int
    chain_table: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chunk_size: _Optional[int] = ..., stripe_size: _Optional[int] = ..., chain_table: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScrubReport(_message.Message):
    __slots__ = ("passes", "running", "done_chunks", "total_chunks", "done_bytes", "ended_unix_ns", "found_chunks", "lost_chunks", "repaired_chunks", "damaged_chunks")
    PASSES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    DONE_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENDED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    FOUND_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    LOST_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    passes: int
    running: bool
    done_chunks: int
    total_chunks: int
    done_bytes: int
    ended_unix_ns: int
    found_chunks: int
    lost_chunks: int
    repaired_chunks: int
    damaged_chunks: int
    def __init__(self, passes: _Optional[int] = ..., running: _Optional[bool] = ..., done_chunks: _Optional[int] = ..., total_chunks: _Optional[int] = ..., done_bytes: _Optional[int] = ..., ended_unix_ns: _Optional[int] = ..., found_chunks: _Optional[int] = ..., lost_chunks: _Optional[int] = ..., repaired_chunks: _Optional[int] = ..., damaged_chunks: _Optional[int] = ...) -> None: ...
