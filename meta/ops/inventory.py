"""All files in id order, for a check of the whole cluster."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import BATCH_STAT_MAX, FRAME_BODY_BYTES_MAX
from fireflyfs.meta.core.records import Flags, Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.proto import meta_pb2

INODES_MAX = 1024  # inodes of any kind that one page looks at: the loop answers nobody else meanwhile
PAGE_BYTES_MAX = FRAME_BODY_BYTES_MAX // 2
FILE_BYTES = 48  # about what a file takes in a message, without its chains


def list_files(op: Op, request: meta_pb2.ListFilesRequest) -> meta_pb2.ListFilesReply:
    """Regular files with what is needed to judge their chunks. Raises NOT_PERMITTED for everybody but root."""
    if op.who.uid != 0:
        raise error(Code.NOT_PERMITTED, "only root may list all files")
    if request.inodes:
        return _named(op, request)
    reply = meta_pb2.ListFilesReply(last=request.after)
    limit = min(request.limit or INODES_MAX, INODES_MAX)
    size = 0
    files: list[Inode] = []
    for count, inode in enumerate(op.tree.inodes(after=request.after, limit=limit + 1)):
        if count == limit or size > PAGE_BYTES_MAX:
            reply.more = True
            break
        reply.last = inode.id
        if inode.is_file:
            files.append(inode)
            size += FILE_BYTES + 5 * len(inode.chains)
    writing = op.tree.open_for_writing(request.after + 1, reply.last)
    reply.files.extend(_state(inode, inode.id in writing) for inode in files)
    return reply


def _named(op: Op, request: meta_pb2.ListFilesRequest) -> meta_pb2.ListFilesReply:
    if len(request.inodes) > BATCH_STAT_MAX:
        raise error(Code.TOO_LARGE, f"{len(request.inodes)} inodes in one request, at most {BATCH_STAT_MAX}")
    found = (op.tree.find(inode_id) for inode_id in request.inodes)
    files = [_state(inode, op.tree.has_writers(inode.id)) for inode in found if inode is not None and inode.is_file]
    return meta_pb2.ListFilesReply(files=files)


def _state(inode: Inode, writing: bool) -> meta_pb2.FileState:
    return meta_pb2.FileState(
        inode=inode.id,
        length=inode.length,
        truncate_version=inode.truncate_version,
        chunk_size=inode.chunk_size,
        chains=inode.chains,
        writing=writing,
        trimming=bool(inode.flags & Flags.TRIMMING),
        removed=inode.nlink == 0,
    )
