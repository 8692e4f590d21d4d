"""Where in its chain a target stands, and how the next one is sent an update."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from fireflyfs.client.routing import SERVING, SYNCING, Chain
from fireflyfs.common.errors import Code


class Form(Enum):
    """In what form the successor gets an update."""

    NONE = "no successor: this is the tail"
    SAME = "the update itself, with its version"
    REPLACE = "the whole chunk: the successor is syncing and may lack what the update builds on"


class Hop(NamedTuple):
    """The next step of an update."""

    form: Form
    target_id: int  # 0 with NONE


TAIL = Hop(Form.NONE, 0)


def public_state(chain: Chain, target_id: int) -> int:
    """mgmtd's word on `target_id`; 0 when it is not in the chain."""
    for target, state in chain.targets:
        if target == target_id:
            return state
    return 0


def is_head(chain: Chain, target_id: int) -> bool:
    serving = chain.serving
    return bool(serving) and serving[0] == target_id


def tail(chain: Chain) -> int:
    """The last SERVING target: what it has committed is committed. 0 when nobody serves."""
    serving = chain.serving
    return serving[-1] if serving else 0


def next_hop(chain: Chain, target_id: int) -> Hop | None:
    """Where an update goes from `target_id`; None when that target no longer takes part in the chain."""
    if public_state(chain, target_id) not in (SERVING, SYNCING):
        return None
    successor = chain.successor(target_id)
    if successor is None:
        return TAIL
    return Hop(Form.REPLACE if successor[1] == SYNCING else Form.SAME, successor[0])


_AGAIN = frozenset(
    {
        Code.UNAVAILABLE,
        Code.TIMEOUT,
        Code.OVERLOADED,
        Code.CHAIN_VERSION,
        Code.NOT_HEAD,
        Code.TARGET_OFFLINE,
        Code.NO_CHAIN,
        Code.FENCED,
        Code.CHUNK_BUSY,
        Code.DISK_FAILED,
        Code.CANCELLED,
    }
)


def try_again(code: Code) -> bool:
    """Whether an update refused with `code` may succeed along the newest chain. Its outcome is open until then."""
    return code in _AGAIN


BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0
FORWARD_TOTAL_S = 60.0


def backoff_s(attempt: int) -> float:
    """How long to wait before attempt `attempt` (from 1); a change of routing ends the wait earlier."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * float(1 << min(attempt - 1, 16)))
