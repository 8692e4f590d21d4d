"""Delegations of a directory's names: who has one, and what must be done before somebody else makes a name."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.meta.core import delegations
from fireflyfs.meta.core.delegations import HELD_MAX, NAMES_MAX, TERM_S
from fireflyfs.meta.core.keys import ID_BYTES
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.needs import RecallFirst
from fireflyfs.proto import meta_pb2

TERM_MS = int(TERM_S * 1000)


def before_new_name(op: Op, directory: Inode) -> None:
    """Raises RecallFirst when other clients rely on knowing all names of the directory."""
    if delegations.hinders(op.tree.delegations(directory.id), op.who.client_id):
        raise RecallFirst(directory.id)


def delegate(op: Op, request: meta_pb2.DelegateRequest) -> meta_pb2.DelegateReply:
    """All names with it, unless they are more than the client wants, or this server gives out."""
    _check_client(op)
    tree = op.tree
    directory = tree.inode(request.directory)
    if not directory.is_dir:
        raise error(Code.NOT_DIRECTORY)
    number = op.now_ns
    holders = delegations.granted(tree.delegations(directory.id), op.who.client_id, number)
    limit = min(request.names_max, NAMES_MAX)
    if holders is None or not directory.nlink:
        return meta_pb2.DelegateReply()
    names = [name for name, _, _ in tree.children(directory.id, limit=limit + 1)]
    if len(names) > limit:
        return meta_pb2.DelegateReply()
    tree.put_delegations(directory.id, holders)
    grant = meta_pb2.Delegation(directory=directory.id, number=number)
    return meta_pb2.DelegateReply(granted=grant, names=names, term_ms=TERM_MS)


def _check_client(op: Op) -> None:
    if len(op.who.client_id) != ID_BYTES:
        raise error(Code.INVALID, f"a client id has {ID_BYTES} bytes")


def lost(op: Op, request: meta_pb2.AwaitRecallsRequest) -> meta_pb2.AwaitRecallsReply:
    """Which of `request.held` the client must give back, or does not have."""
    client_id = op.who.client_id
    gone = [
        held.directory
        for held in request.held
        if not delegations.still(op.tree.delegations(held.directory), client_id, held.number)
    ]
    return meta_pb2.AwaitRecallsReply(recalled=gone, term_ms=TERM_MS)


def give_back(op: Op, request: meta_pb2.AwaitRecallsRequest) -> None:
    _check_client(op)
    for returned in request.returned:
        holders = op.tree.delegations(returned.directory)
        left = delegations.without(holders, op.who.client_id, returned.number)
        if len(left) < len(holders):
            op.tree.put_delegations(returned.directory, left)


def check_size(request: meta_pb2.AwaitRecallsRequest) -> None:
    if len(request.held) > HELD_MAX or len(request.returned) > HELD_MAX:
        raise error(Code.TOO_LARGE, f"at most {HELD_MAX} directories are renewed or given back at once")


def recall(op: Op, inode_id: int) -> delegations.Holders:
    """Mark everybody as told, so that nobody renews; who that is."""
    holders = op.tree.delegations(inode_id)
    told = delegations.recalled(holders)
    if told != holders:
        op.tree.put_delegations(inode_id, told)
    return told


def end(op: Op, inode_id: int, told: delegations.Holders) -> None:
    """Their time is up: whoever was told is not asked any more."""
    holders = op.tree.delegations(inode_id)
    left = tuple(each for each in holders if each not in told)
    if len(left) < len(holders):
        op.tree.put_delegations(inode_id, left)
