"""Identifiers, and the few that have a fixed value."""

from __future__ import annotations

import secrets
from typing import NewType

NodeId = NewType("NodeId", int)  # 1 to 2**32 - 1, chosen by the operator
WorkerId = NewType("WorkerId", int)  # 0-based, a process of one node
TargetId = NewType("TargetId", int)  # 64 bits: by convention node_id * 1000 + disk * 100 + n
ChainId = NewType("ChainId", int)  # 32 bits, never 0
ChainVersion = NewType("ChainVersion", int)  # 32 bits, grows by one with every change of the chain
ChainTableId = NewType("ChainTableId", int)
InodeId = NewType("InodeId", int)  # 64 bits, never used twice
ClientId = NewType("ClientId", bytes)  # 16 random bytes, one for each client process
SessionId = NewType("SessionId", bytes)  # 16 random bytes, one for each open file
RequestId = NewType("RequestId", bytes)  # 16 random bytes, one for each mutation, kept over its retries

ROOT_INODE = InodeId(1)


def new_client_id() -> ClientId:
    return ClientId(secrets.token_bytes(16))


def new_session_id() -> SessionId:
    return SessionId(secrets.token_bytes(16))


def new_request_id() -> RequestId:
    return RequestId(secrets.token_bytes(16))
