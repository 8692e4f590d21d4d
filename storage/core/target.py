"""What a worker says of its own target, as a pure state machine over the public state that mgmtd published.

A target that was just loaded reports OFFLINE until mgmtd shows that it has demoted it: only then is it certain that
every write since was refused or is known to be missing, so that coming ONLINE leads through a resync.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from fireflyfs.proto import mgmtd_pb2


class Public(IntEnum):
    """mgmtd's decision; the numbers of the message."""

    UNKNOWN = mgmtd_pb2.PUBLIC_UNKNOWN  # in no chain
    SERVING = mgmtd_pb2.PUBLIC_SERVING
    LASTSRV = mgmtd_pb2.PUBLIC_LASTSRV
    SYNCING = mgmtd_pb2.PUBLIC_SYNCING
    WAITING = mgmtd_pb2.PUBLIC_WAITING
    OFFLINE = mgmtd_pb2.PUBLIC_OFFLINE


class Local(IntEnum):
    """The worker's report; the numbers of the message."""

    OFFLINE = mgmtd_pb2.LOCAL_OFFLINE
    ONLINE = mgmtd_pb2.LOCAL_ONLINE
    UPTODATE = mgmtd_pb2.LOCAL_UPTODATE


class TargetState(NamedTuple):
    """One target. `failed` is for good: until the process starts again."""

    local: Local = Local.OFFLINE
    returning: bool = True  # loaded, and mgmtd has not shown the demotion yet
    failed: bool = False
    why: str = "just loaded"


ACTIVE = (Public.SERVING, Public.SYNCING, Public.WAITING)


def on_routing(state: TargetState, public: Public) -> TargetState:
    """mgmtd's newest word on this target."""
    if state.failed:
        return state
    if state.returning:
        if public in ACTIVE:
            return state
        return TargetState(Local.ONLINE, False, False, f"loaded, and mgmtd shows it {public.name}")
    if state.local is Local.ONLINE and public is Public.SERVING:
        return TargetState(Local.UPTODATE, False, False, "mgmtd lets it serve")
    if state.local is Local.UPTODATE and public in (Public.OFFLINE, Public.LASTSRV, Public.WAITING):
        # It was serving and has been demoted: what it holds may be old, and only a resync says otherwise.
        return TargetState(Local.ONLINE, False, False, f"mgmtd has demoted it to {public.name}")
    return state


def on_sync_done(state: TargetState, public: Public) -> TargetState:
    """Its predecessor says that it has everything."""
    if state.failed or state.returning or state.local is not Local.ONLINE or public is not Public.SYNCING:
        return state
    return TargetState(Local.UPTODATE, False, False, "resync is done")


def on_failure(state: TargetState, why: str) -> TargetState:
    """The disk failed, or the process is stopping: out until the process starts again."""
    return TargetState(Local.OFFLINE, state.returning, True, why)


def on_divergence(state: TargetState, why: str) -> TargetState:
    """It lacks an update that its successors have committed: out until mgmtd has demoted it, then back by a resync."""
    if state.failed:
        return state
    return TargetState(Local.OFFLINE, True, False, why)


def may_serve(state: TargetState, public: Public) -> bool:
    """Whether it answers reads and leads or follows writes as a full replica."""
    return state.local is Local.UPTODATE and public is Public.SERVING


def may_receive(state: TargetState, public: Public) -> bool:
    """Whether it takes forwarded updates: a full replica, or one being brought up to date."""
    return may_serve(state, public) or (
        public is Public.SYNCING and state.local is not Local.OFFLINE and not state.returning
    )
