from fireflyfs.proto import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChunkId(_message.Message):
    __slots__ = ("inode", "index")
    INODE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    inode: int
    index: int
    def __init__(self, inode: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class ReadChunkRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "chunk", "offset", "length")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    chunk: ChunkId
    offset: int
    length: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class ReadChunkReply(_message.Message):
    __slots__ = ("data", "version", "crc32c")
    DATA_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    version: int
    crc32c: int
    def __init__(self, data: _Optional[bytes] = ..., version: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class WriteChunkRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "chunk", "offset", "data", "crc32c", "chunk_size", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    chunk: ChunkId
    offset: int
    data: bytes
    crc32c: int
    chunk_size: int
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ..., chunk_size: _Optional[int] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class WriteChunkReply(_message.Message):
    __slots__ = ("version", "length")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    version: int
    length: int
    def __init__(self, version: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class ChunkRange(_message.Message):
    __slots__ = ("chain_id", "chain_version", "inode", "begin", "end")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    inode: int
    begin: int
    end: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., inode: _Optional[int] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class QueryLastChunkRequest(_message.Message):
    __slots__ = ("ranges",)
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[ChunkRange]
    def __init__(self, ranges: _Optional[_Iterable[_Union[ChunkRange, _Mapping]]] = ...) -> None: ...

class LastChunk(_message.Message):
    __slots__ = ("status", "found", "index", "length", "chunks", "used_bytes")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    status: int
    found: bool
    index: int
    length: int
    chunks: int
    used_bytes: int
    def __init__(self, status: _Optional[int] = ..., found: _Optional[bool] = ..., index: _Optional[int] = ..., length: _Optional[int] = ..., chunks: _Optional[int] = ..., used_bytes: _Optional[int] = ...) -> None: ...

class QueryLastChunkReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[LastChunk]
    def __init__(self, results: _Optional[_Iterable[_Union[LastChunk, _Mapping]]] = ...) -> None: ...

class RemoveChunksRequest(_message.Message):
    __slots__ = ("range", "limit", "client_id", "channel", "sequence")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    range: ChunkRange
    limit: int
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, range: _Optional[_Union[ChunkRange, _Mapping]] = ..., limit: _Optional[int] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class RemoveChunksReply(_message.Message):
    __slots__ = ("removed", "more")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    removed: int
    more: bool
    def __init__(self, removed: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...

class ListRangeRequest(_message.Message):
    __slots__ = ("range", "limit")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    range: ChunkRange
    limit: int
    def __init__(self, range: _Optional[_Union[ChunkRange, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class ListRangeReply(_message.Message):
    __slots__ = ("indexes", "lengths", "more")
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    indexes: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    more: bool
    def __init__(self, indexes: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., more: _Optional[bool] = ...) -> None: ...

class CopyPiece(_message.Message):
    __slots__ = ("source", "source_chain", "source_offset", "target", "target_offset", "length")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGET_OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    source: ChunkId
    source_chain: int
    source_offset: int
    target: ChunkId
    target_offset: int
    length: int
    def __init__(self, source: _Optional[_Union[ChunkId, _Mapping]] = ..., source_chain: _Optional[int] = ..., source_offset: _Optional[int] = ..., target: _Optional[_Union[ChunkId, _Mapping]] = ..., target_offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class CopyChunksRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "chunk_size", "pieces", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    chunk_size: int
    pieces: _containers.RepeatedCompositeFieldContainer[CopyPiece]
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunk_size: _Optional[int] = ..., pieces: _Optional[_Iterable[_Union[CopyPiece, _Mapping]]] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class CopyChunksReply(_message.Message):
    __slots__ = ("statuses",)
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, statuses: _Optional[_Iterable[int]] = ...) -> None: ...

class RemoveFilesRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "inodes", "limit", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    inodes: _containers.RepeatedScalarFieldContainer[int]
    limit: int
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., inodes: _Optional[_Iterable[int]] = ..., limit: _Optional[int] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class RemoveFilesReply(_message.Message):
    __slots__ = ("removed", "left")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    removed: int
    left: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, removed: _Optional[int] = ..., left: _Optional[_Iterable[int]] = ...) -> None: ...

class TruncateChunkRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "chunk", "length", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    chunk: ChunkId
    length: int
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., length: _Optional[int] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class TruncateChunkReply(_message.Message):
    __slots__ = ("version", "length")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    version: int
    length: int
    def __init__(self, version: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class SyncChainsRequest(_message.Message):
    __slots__ = ("chains", "forwarded", "chain_versions")
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    FORWARDED_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    chains: _containers.RepeatedScalarFieldContainer[int]
    forwarded: bool
    chain_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chains: _Optional[_Iterable[int]] = ..., forwarded: _Optional[bool] = ..., chain_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class SyncChainsReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChunkState(_message.Message):
    __slots__ = ("chunk", "committed_version", "pending_version", "chain_version", "length", "crc32c", "chunk_size", "damaged", "named")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    PENDING_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkId
    committed_version: int
    pending_version: int
    chain_version: int
    length: int
    crc32c: int
    chunk_size: int
    damaged: bool
    named: bool
    def __init__(self, chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., committed_version: _Optional[int] = ..., pending_version: _Optional[int] = ..., chain_version: _Optional[int] = ..., length: _Optional[int] = ..., crc32c: _Optional[int] = ..., chunk_size: _Optional[int] = ..., damaged: _Optional[bool] = ..., named: _Optional[bool] = ...) -> None: ...

class SyncStartRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "after", "limit")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    after: ChunkId
    limit: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., after: _Optional[_Union[ChunkId, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class SyncStartReply(_message.Message):
    __slots__ = ("chunks", "more")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkState]
    more: bool
    def __init__(self, chunks: _Optional[_Iterable[_Union[ChunkState, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class SyncDoneRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ...) -> None: ...

class SyncDoneReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DoneChunk(_message.Message):
    __slots__ = ("chunk", "version", "chain_version", "length", "crc32c")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkId
    version: int
    chain_version: int
    length: int
    crc32c: int
    def __init__(self, chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., version: _Optional[int] = ..., chain_version: _Optional[int] = ..., length: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class DoneRequest(_message.Message):
    __slots__ = ("client_id", "channel", "sequence", "chunks")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    client_id: bytes
    channel: int
    sequence: int
    chunks: _containers.RepeatedCompositeFieldContainer[DoneChunk]
    def __init__(self, client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[DoneChunk, _Mapping]]] = ...) -> None: ...

class SyncWritersRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "done")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    done: _containers.RepeatedCompositeFieldContainer[DoneRequest]
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., done: _Optional[_Iterable[_Union[DoneRequest, _Mapping]]] = ...) -> None: ...

class SyncWritersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class QueryChunkRequest(_message.Message):
    __slots__ = ("chain_id", "chunk")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chunk: ChunkId
    def __init__(self, chain_id: _Optional[int] = ..., chunk: _Optional[_Union[ChunkId, _Mapping]] = ...) -> None: ...

class QueryChunkReply(_message.Message):
    __slots__ = ("found", "state")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    found: bool
    state: ChunkState
    def __init__(self, found: _Optional[bool] = ..., state: _Optional[_Union[ChunkState, _Mapping]] = ...) -> None: ...

class ChunkWriter(_message.Message):
    __slots__ = ("client_id", "channel", "sequence")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class ListedChunk(_message.Message):
    __slots__ = ("state", "busy", "writer", "pending_writer")
    STATE_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    PENDING_WRITER_FIELD_NUMBER: _ClassVar[int]
    state: ChunkState
    busy: bool
    writer: ChunkWriter
    pending_writer: ChunkWriter
    def __init__(self, state: _Optional[_Union[ChunkState, _Mapping]] = ..., busy: _Optional[bool] = ..., writer: _Optional[_Union[ChunkWriter, _Mapping]] = ..., pending_writer: _Optional[_Union[ChunkWriter, _Mapping]] = ...) -> None: ...

class ListChunksRequest(_message.Message):
    __slots__ = ("target_id", "after", "limit", "chunks")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    after: ChunkId
    limit: int
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkId]
    def __init__(self, target_id: _Optional[int] = ..., after: _Optional[_Union[ChunkId, _Mapping]] = ..., limit: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[ChunkId, _Mapping]]] = ...) -> None: ...

class ListChunksReply(_message.Message):
    __slots__ = ("serving", "chain_id", "chain_version", "chunks", "more")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    chain_id: int
    chain_version: int
    chunks: _containers.RepeatedCompositeFieldContainer[ListedChunk]
    more: bool
    def __init__(self, serving: _Optional[bool] = ..., chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[ListedChunk, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class SeenChunk(_message.Message):
    __slots__ = ("chunk", "version", "writer", "keep_bytes")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    KEEP_BYTES_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkId
    version: int
    writer: ChunkWriter
    keep_bytes: int
    def __init__(self, chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., version: _Optional[int] = ..., writer: _Optional[_Union[ChunkWriter, _Mapping]] = ..., keep_bytes: _Optional[int] = ...) -> None: ...

class DropChunksRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "chunks", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    chunks: _containers.RepeatedCompositeFieldContainer[SeenChunk]
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[SeenChunk, _Mapping]]] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class DropChunksReply(_message.Message):
    __slots__ = ("statuses",)
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, statuses: _Optional[_Iterable[int]] = ...) -> None: ...

class SeeChunksRequest(_message.Message):
    __slots__ = ("range", "keep_bytes", "limit")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    KEEP_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    range: ChunkRange
    keep_bytes: int
    limit: int
    def __init__(self, range: _Optional[_Union[ChunkRange, _Mapping]] = ..., keep_bytes: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class SeeChunksReply(_message.Message):
    __slots__ = ("chunks", "more")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[SeenChunk]
    more: bool
    def __init__(self, chunks: _Optional[_Iterable[_Union[SeenChunk, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class ReadBlockRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "inode", "key")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    inode: int
    key: bytes
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., inode: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class ReadBlockReply(_message.Message):
    __slots__ = ("data", "version", "crc32c")
    DATA_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    version: int
    crc32c: int
    def __init__(self, data: _Optional[bytes] = ..., version: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class WriteBlockRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "inode", "key", "data", "crc32c", "chunk_size", "expires_unix_s", "capacity_bytes", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    inode: int
    key: bytes
    data: bytes
    crc32c: int
    chunk_size: int
    expires_unix_s: int
    capacity_bytes: int
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., inode: _Optional[int] = ..., key: _Optional[bytes] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ..., chunk_size: _Optional[int] = ..., expires_unix_s: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class WriteBlockReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class FindBlocksRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "inode", "keys")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    inode: int
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., inode: _Optional[int] = ..., keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FindBlocksReply(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, found: _Optional[_Iterable[bool]] = ...) -> None: ...

class DropBlocksRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "inode", "keys", "client_id", "channel", "sequence")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    inode: int
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    client_id: bytes
    channel: int
    sequence: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., inode: _Optional[int] = ..., keys: _Optional[_Iterable[bytes]] = ..., client_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class DropBlocksReply(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: int
    def __init__(self, removed: _Optional[int] = ...) -> None: ...

class BlockStatsRequest(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockStats(_message.Message):
    __slots__ = ("inode", "target_id", "chain_id", "leads", "ready", "blocks", "bytes", "capacity_bytes", "hits", "misses", "hit_bytes", "puts", "evictions", "expired", "damaged")
    INODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    HIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PUTS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    inode: int
    target_id: int
    chain_id: int
    leads: bool
    ready: bool
    blocks: int
    bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    hit_bytes: int
    puts: int
    evictions: int
    expired: int
    damaged: int
    def __init__(self, inode: _Optional[int] = ..., target_id: _Optional[int] = ..., chain_id: _Optional[int] = ..., leads: _Optional[bool] = ..., ready: _Optional[bool] = ..., blocks: _Optional[int] = ..., bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., hit_bytes: _Optional[int] = ..., puts: _Optional[int] = ..., evictions: _Optional[int] = ..., expired: _Optional[int] = ..., damaged: _Optional[int] = ...) -> None: ...

class BlockStatsReply(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: _containers.RepeatedCompositeFieldContainer[BlockStats]
    def __init__(self, stats: _Optional[_Iterable[_Union[BlockStats, _Mapping]]] = ...) -> None: ...

class SpaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetSpace(_message.Message):
    __slots__ = ("target_id", "chain_id", "path", "capacity_bytes", "free_bytes", "used_bytes", "chunks", "damaged_chunks")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    chain_id: int
    path: str
    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    chunks: int
    damaged_chunks: int
    def __init__(self, target_id: _Optional[int] = ..., chain_id: _Optional[int] = ..., path: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., damaged_chunks: _Optional[int] = ...) -> None: ...

class SpaceReply(_message.Message):
    __slots__ = ("targets",)
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[TargetSpace]
    def __init__(self, targets: _Optional[_Iterable[_Union[TargetSpace, _Mapping]]] = ...) -> None: ...

class CreateTargetRequest(_message.Message):
    __slots__ = ("cluster_id", "target_id", "path")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    target_id: int
    path: str
    def __init__(self, cluster_id: _Optional[str] = ..., target_id: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class CreateTargetReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScrubRequest(_message.Message):
    __slots__ = ("targets", "start")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedScalarFieldContainer[int]
    start: bool
    def __init__(self, targets: _Optional[_Iterable[int]] = ..., start: _Optional[bool] = ...) -> None: ...

class DamagedChunk(_message.Message):
    __slots__ = ("chunk", "version", "length", "reason")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkId
    version: int
    length: int
    reason: str
    def __init__(self, chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., version: _Optional[int] = ..., length: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class TargetScrub(_message.Message):
    __slots__ = ("target_id", "report", "damaged")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    report: _common_pb2.ScrubReport
    damaged: _containers.RepeatedCompositeFieldContainer[DamagedChunk]
    def __init__(self, target_id: _Optional[int] = ..., report: _Optional[_Union[_common_pb2.ScrubReport, _Mapping]] = ..., damaged: _Optional[_Iterable[_Union[DamagedChunk, _Mapping]]] = ...) -> None: ...

class ScrubReply(_message.Message):
    __slots__ = ("targets",)
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[TargetScrub]
    def __init__(self, targets: _Optional[_Iterable[_Union[TargetScrub, _Mapping]]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsReply(_message.Message):
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
