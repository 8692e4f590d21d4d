from fireflyfs.proto import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublicState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUBLIC_UNKNOWN: _ClassVar[PublicState]
    PUBLIC_SERVING: _ClassVar[PublicState]
    PUBLIC_LASTSRV: _ClassVar[PublicState]
    PUBLIC_SYNCING: _ClassVar[PublicState]
    PUBLIC_WAITING: _ClassVar[PublicState]
    PUBLIC_OFFLINE: _ClassVar[PublicState]

class LocalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCAL_UNKNOWN: _ClassVar[LocalState]
    LOCAL_OFFLINE: _ClassVar[LocalState]
    LOCAL_ONLINE: _ClassVar[LocalState]
    LOCAL_UPTODATE: _ClassVar[LocalState]

class UpdateChainKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPDATE_CHAIN_UNKNOWN: _ClassVar[UpdateChainKind]
    UPDATE_CHAIN_ADD: _ClassVar[UpdateChainKind]
    UPDATE_CHAIN_REMOVE: _ClassVar[UpdateChainKind]
    UPDATE_CHAIN_ROTATE: _ClassVar[UpdateChainKind]
    UPDATE_CHAIN_RESYNC: _ClassVar[UpdateChainKind]
PUBLIC_UNKNOWN: PublicState
PUBLIC_SERVING: PublicState
PUBLIC_LASTSRV: PublicState
PUBLIC_SYNCING: PublicState
PUBLIC_WAITING: PublicState
PUBLIC_OFFLINE: PublicState
LOCAL_UNKNOWN: LocalState
LOCAL_OFFLINE: LocalState
LOCAL_ONLINE: LocalState
LOCAL_UPTODATE: LocalState
UPDATE_CHAIN_UNKNOWN: UpdateChainKind
UPDATE_CHAIN_ADD: UpdateChainKind
UPDATE_CHAIN_REMOVE: UpdateChainKind
UPDATE_CHAIN_ROTATE: UpdateChainKind
UPDATE_CHAIN_RESYNC: UpdateChainKind

class NodeInfo(_message.Message):
    __slots__ = ("node_id", "type", "hostname", "alive", "disabled", "last_heartbeat_unix_ns", "config_version", "release", "workers")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    type: _common_pb2.NodeType
    hostname: str
    alive: bool
    disabled: bool
    last_heartbeat_unix_ns: int
    config_version: int
    release: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    def __init__(self, node_id: _Optional[int] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., hostname: _Optional[str] = ..., alive: _Optional[bool] = ..., disabled: _Optional[bool] = ..., last_heartbeat_unix_ns: _Optional[int] = ..., config_version: _Optional[int] = ..., release: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker", "endpoint", "generation", "alive")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    worker: int
    endpoint: _common_pb2.Endpoint
    generation: int
    alive: bool
    def __init__(self, worker: _Optional[int] = ..., endpoint: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., generation: _Optional[int] = ..., alive: _Optional[bool] = ...) -> None: ...

class TargetInfo(_message.Message):
    __slots__ = ("target_id", "node_id", "worker", "chain_id", "local_state", "public_state", "capacity_bytes", "free_bytes", "used_bytes", "path", "resync_done_chunks", "resync_total_chunks", "scrub", "disk_id", "note")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STATE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_STATE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RESYNC_DONE_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    RESYNC_TOTAL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    DISK_ID_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    node_id: int
    worker: int
    chain_id: int
    local_state: LocalState
    public_state: PublicState
    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    path: str
    resync_done_chunks: int
    resync_total_chunks: int
    scrub: _common_pb2.ScrubReport
    disk_id: str
    note: str
    def __init__(self, target_id: _Optional[int] = ..., node_id: _Optional[int] = ..., worker: _Optional[int] = ..., chain_id: _Optional[int] = ..., local_state: _Optional[_Union[LocalState, str]] = ..., public_state: _Optional[_Union[PublicState, str]] = ..., capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., path: _Optional[str] = ..., resync_done_chunks: _Optional[int] = ..., resync_total_chunks: _Optional[int] = ..., scrub: _Optional[_Union[_common_pb2.ScrubReport, _Mapping]] = ..., disk_id: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class ChainTarget(_message.Message):
    __slots__ = ("target_id", "state")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    state: PublicState
    def __init__(self, target_id: _Optional[int] = ..., state: _Optional[_Union[PublicState, str]] = ...) -> None: ...

class ChainInfo(_message.Message):
    __slots__ = ("chain_id", "chain_version", "targets", "preferred_order")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_ORDER_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    targets: _containers.RepeatedCompositeFieldContainer[ChainTarget]
    preferred_order: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[ChainTarget, _Mapping]]] = ..., preferred_order: _Optional[_Iterable[int]] = ...) -> None: ...

class ChainTableInfo(_message.Message):
    __slots__ = ("table_id", "version", "chains", "description", "replicas")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    version: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    description: str
    replicas: int
    def __init__(self, table_id: _Optional[int] = ..., version: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., description: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class RoutingDelta(_message.Message):
    __slots__ = ("version", "since_version", "full", "nodes", "targets", "chains", "chain_tables", "removed_nodes", "removed_targets", "removed_chains", "removed_chain_tables")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SINCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    CHAIN_TABLES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TARGETS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_CHAINS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_CHAIN_TABLES_FIELD_NUMBER: _ClassVar[int]
    version: int
    since_version: int
    full: bool
    nodes: _containers.RepeatedCompositeFieldContainer[NodeInfo]
    targets: _containers.RepeatedCompositeFieldContainer[TargetInfo]
    chains: _containers.RepeatedCompositeFieldContainer[ChainInfo]
    chain_tables: _containers.RepeatedCompositeFieldContainer[ChainTableInfo]
    removed_nodes: _containers.RepeatedScalarFieldContainer[int]
    removed_targets: _containers.RepeatedScalarFieldContainer[int]
    removed_chains: _containers.RepeatedScalarFieldContainer[int]
    removed_chain_tables: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., since_version: _Optional[int] = ..., full: _Optional[bool] = ..., nodes: _Optional[_Iterable[_Union[NodeInfo, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[TargetInfo, _Mapping]]] = ..., chains: _Optional[_Iterable[_Union[ChainInfo, _Mapping]]] = ..., chain_tables: _Optional[_Iterable[_Union[ChainTableInfo, _Mapping]]] = ..., removed_nodes: _Optional[_Iterable[int]] = ..., removed_targets: _Optional[_Iterable[int]] = ..., removed_chains: _Optional[_Iterable[int]] = ..., removed_chain_tables: _Optional[_Iterable[int]] = ...) -> None: ...

class TargetReport(_message.Message):
    __slots__ = ("target_id", "local_state", "chain_version", "capacity_bytes", "free_bytes", "used_bytes", "path", "resync_done_chunks", "resync_total_chunks", "scrub", "disk_id", "lost_power")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STATE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RESYNC_DONE_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    RESYNC_TOTAL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SCRUB_FIELD_NUMBER: _ClassVar[int]
    DISK_ID_FIELD_NUMBER: _ClassVar[int]
    LOST_POWER_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    local_state: LocalState
    chain_version: int
    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    path: str
    resync_done_chunks: int
    resync_total_chunks: int
    scrub: _common_pb2.ScrubReport
    disk_id: str
    lost_power: bool
    def __init__(self, target_id: _Optional[int] = ..., local_state: _Optional[_Union[LocalState, str]] = ..., chain_version: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., path: _Optional[str] = ..., resync_done_chunks: _Optional[int] = ..., resync_total_chunks: _Optional[int] = ..., scrub: _Optional[_Union[_common_pb2.ScrubReport, _Mapping]] = ..., disk_id: _Optional[str] = ..., lost_power: _Optional[bool] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("cluster_id", "node_id", "type", "worker", "generation", "sequence", "endpoint", "hostname", "targets", "routing_version", "config_version", "stopping", "release")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node_id: int
    type: _common_pb2.NodeType
    worker: int
    generation: int
    sequence: int
    endpoint: _common_pb2.Endpoint
    hostname: str
    targets: _containers.RepeatedCompositeFieldContainer[TargetReport]
    routing_version: int
    config_version: int
    stopping: bool
    release: str
    def __init__(self, cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., worker: _Optional[int] = ..., generation: _Optional[int] = ..., sequence: _Optional[int] = ..., endpoint: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., hostname: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[TargetReport, _Mapping]]] = ..., routing_version: _Optional[int] = ..., config_version: _Optional[int] = ..., stopping: _Optional[bool] = ..., release: _Optional[str] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("routing", "config", "server_unix_ns")
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SERVER_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    routing: RoutingDelta
    config: ConfigInfo
    server_unix_ns: int
    def __init__(self, routing: _Optional[_Union[RoutingDelta, _Mapping]] = ..., config: _Optional[_Union[ConfigInfo, _Mapping]] = ..., server_unix_ns: _Optional[int] = ...) -> None: ...

class ConfigInfo(_message.Message):
    __slots__ = ("type", "version", "content", "description", "created_unix_ns")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    type: _common_pb2.NodeType
    version: int
    content: str
    description: str
    created_unix_ns: int
    def __init__(self, type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., version: _Optional[int] = ..., content: _Optional[str] = ..., description: _Optional[str] = ..., created_unix_ns: _Optional[int] = ...) -> None: ...

class GetRoutingRequest(_message.Message):
    __slots__ = ("cluster_id", "since_version", "wait_ms")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    since_version: int
    wait_ms: int
    def __init__(self, cluster_id: _Optional[str] = ..., since_version: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class RegisterNodeRequest(_message.Message):
    __slots__ = ("cluster_id", "node_id", "type", "hostname")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node_id: int
    type: _common_pb2.NodeType
    hostname: str
    def __init__(self, cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., hostname: _Optional[str] = ...) -> None: ...

class UnregisterNodeRequest(_message.Message):
    __slots__ = ("cluster_id", "node_id")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node_id: int
    def __init__(self, cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ...) -> None: ...

class SetNodeDisabledRequest(_message.Message):
    __slots__ = ("cluster_id", "node_id", "disabled")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node_id: int
    disabled: bool
    def __init__(self, cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., disabled: _Optional[bool] = ...) -> None: ...

class SetConfigRequest(_message.Message):
    __slots__ = ("cluster_id", "type", "content", "description", "expected_version")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    type: _common_pb2.NodeType
    content: str
    description: str
    expected_version: int
    def __init__(self, cluster_id: _Optional[str] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., content: _Optional[str] = ..., description: _Optional[str] = ..., expected_version: _Optional[int] = ...) -> None: ...

class GetConfigRequest(_message.Message):
    __slots__ = ("cluster_id", "type", "version")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    type: _common_pb2.NodeType
    version: int
    def __init__(self, cluster_id: _Optional[str] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., version: _Optional[int] = ...) -> None: ...

class ListConfigsRequest(_message.Message):
    __slots__ = ("cluster_id", "type")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    type: _common_pb2.NodeType
    def __init__(self, cluster_id: _Optional[str] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ...) -> None: ...

class ListConfigsReply(_message.Message):
    __slots__ = ("configs",)
    CONFIGS_FIELD_NUMBER: _ClassVar[int]
    configs: _containers.RepeatedCompositeFieldContainer[ConfigInfo]
    def __init__(self, configs: _Optional[_Iterable[_Union[ConfigInfo, _Mapping]]] = ...) -> None: ...

class ChainSpec(_message.Message):
    __slots__ = ("chain_id", "targets")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, chain_id: _Optional[int] = ..., targets: _Optional[_Iterable[int]] = ...) -> None: ...

class SetChainsRequest(_message.Message):
    __slots__ = ("cluster_id", "chains", "set_preferred_order")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    SET_PREFERRED_ORDER_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    chains: _containers.RepeatedCompositeFieldContainer[ChainSpec]
    set_preferred_order: bool
    def __init__(self, cluster_id: _Optional[str] = ..., chains: _Optional[_Iterable[_Union[ChainSpec, _Mapping]]] = ..., set_preferred_order: _Optional[bool] = ...) -> None: ...

class SetChainTableRequest(_message.Message):
    __slots__ = ("cluster_id", "table_id", "chains", "description")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    table_id: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    description: str
    def __init__(self, cluster_id: _Optional[str] = ..., table_id: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ..., description: _Optional[str] = ...) -> None: ...

class SetChainTableReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class UpdateChainRequest(_message.Message):
    __slots__ = ("cluster_id", "chain_id", "target_id", "kind", "expected_version")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    chain_id: int
    target_id: int
    kind: UpdateChainKind
    expected_version: int
    def __init__(self, cluster_id: _Optional[str] = ..., chain_id: _Optional[int] = ..., target_id: _Optional[int] = ..., kind: _Optional[_Union[UpdateChainKind, str]] = ..., expected_version: _Optional[int] = ...) -> None: ...

class RegisterTargetRequest(_message.Message):
    __slots__ = ("cluster_id", "target_id", "node_id", "worker", "path", "accept_new_disk")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_NEW_DISK_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    target_id: int
    node_id: int
    worker: int
    path: str
    accept_new_disk: bool
    def __init__(self, cluster_id: _Optional[str] = ..., target_id: _Optional[int] = ..., node_id: _Optional[int] = ..., worker: _Optional[int] = ..., path: _Optional[str] = ..., accept_new_disk: _Optional[bool] = ...) -> None: ...

class ClientSession(_message.Message):
    __slots__ = ("client_id", "type", "hostname", "description", "start_unix_ns", "last_seen_unix_ns", "links")
    class LinksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    client_id: bytes
    type: _common_pb2.NodeType
    hostname: str
    description: str
    start_unix_ns: int
    last_seen_unix_ns: int
    links: _containers.ScalarMap[str, int]
    def __init__(self, client_id: _Optional[bytes] = ..., type: _Optional[_Union[_common_pb2.NodeType, str]] = ..., hostname: _Optional[str] = ..., description: _Optional[str] = ..., start_unix_ns: _Optional[int] = ..., last_seen_unix_ns: _Optional[int] = ..., links: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ExtendSessionRequest(_message.Message):
    __slots__ = ("cluster_id", "session", "config_version", "closing")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    session: ClientSession
    config_version: int
    closing: bool
    def __init__(self, cluster_id: _Optional[str] = ..., session: _Optional[_Union[ClientSession, _Mapping]] = ..., config_version: _Optional[int] = ..., closing: _Optional[bool] = ...) -> None: ...

class ExtendSessionReply(_message.Message):
    __slots__ = ("lease_ms", "config")
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    config: ConfigInfo
    def __init__(self, lease_ms: _Optional[int] = ..., config: _Optional[_Union[ConfigInfo, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("cluster_id",)
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    def __init__(self, cluster_id: _Optional[str] = ...) -> None: ...

class ListSessionsReply(_message.Message):
    __slots__ = ("sessions", "complete")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[ClientSession]
    complete: bool
    def __init__(self, sessions: _Optional[_Iterable[_Union[ClientSession, _Mapping]]] = ..., complete: _Optional[bool] = ...) -> None: ...

class ClusterRequest(_message.Message):
    __slots__ = ("cluster_id",)
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    def __init__(self, cluster_id: _Optional[str] = ...) -> None: ...

class ClusterInfo(_message.Message):
    __slots__ = ("cluster_id", "release", "routing_version", "primary", "start_unix_ns")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    release: str
    routing_version: int
    primary: bool
    start_unix_ns: int
    def __init__(self, cluster_id: _Optional[str] = ..., release: _Optional[str] = ..., routing_version: _Optional[int] = ..., primary: _Optional[bool] = ..., start_unix_ns: _Optional[int] = ...) -> None: ...
