"""Operations that make something new: nodes, directories, symbolic and hard links."""

from __future__ import annotations

import stat

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import LINKS_MAX, PATH_BYTES_MAX
from fireflyfs.meta.core import acl
from fireflyfs.meta.core.acl import Acl
from fireflyfs.meta.core.layout import LayoutRule, merged
from fireflyfs.meta.core.paths import check_new_name, components
from fireflyfs.meta.core.permission import EXECUTE, WRITE, child_ownership, require
from fireflyfs.meta.core.records import Flags, Inode
from fireflyfs.meta.ops.context import Op
from fireflyfs.meta.ops.delegations import before_new_name
from fireflyfs.meta.ops.reply import inode_reply
from fireflyfs.meta.ops.resolve import Place, resolve, target
from fireflyfs.meta.store import names
from fireflyfs.proto import common_pb2, meta_pb2

WHITEOUT = (
    stat.S_IFCHR,
    0,
)  # no device at all: an overlay's mark of a removed name, which anybody may make (Linux 5.8)
TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
PARENTS_MAX = 28  # directories that one request makes; each takes four of a transaction's writes


def rule_of(layout: common_pb2.Layout) -> LayoutRule:
    return LayoutRule(layout.chunk_size, layout.stripe_size, layout.chain_table)


def vacant(op: Op, place: Place) -> Inode:
    """The directory that takes a new name, after every check. Raises EXISTS, NO_ENTRY, ACCESS_DENIED, INVALID."""
    if place.inode is not None:
        raise error(Code.EXISTS)
    parent = place.parent
    assert parent is not None  # a missing entry always has a directory that it is missing from
    check_new_name(place.name)
    if parent.nlink == 0:
        raise error(Code.NO_ENTRY, "the directory was removed")
    require(parent, op.who, WRITE | EXECUTE)
    return parent


def new_inode(
    op: Op, parent: Inode, mode: int, *, umask: int = 0, layout: LayoutRule | None = None, rdev: int = 0
) -> Inode:
    """A fresh inode for `parent`, not stored yet; ACLs that it inherits are. `umask` is for directories without a
    default ACL."""
    access: Acl = ()
    default: Acl = ()
    if parent.flags & Flags.DEFAULT_ACL and not stat.S_ISLNK(mode):
        _, default = op.tree.acls(parent)
        access, mode = acl.inherited(default, mode)
    else:
        mode &= ~(umask & 0o777)
    gid, mode = child_ownership(parent, op.who, mode)
    inode = Inode(
        op.new_id(), mode, uid=op.who.uid, gid=gid, rdev=rdev, atime_ns=op.now_ns, mtime_ns=op.now_ns,
        ctime_ns=op.now_ns, btime_ns=op.now_ns, parent=parent.id,
    )  # fmt: skip
    if inode.is_dir or inode.is_file:
        inherited = LayoutRule(parent.chunk_size, parent.stripe_size, parent.chain_table)
        rule = inherited if layout is None else merged(layout, inherited)
        inode.chunk_size, inode.stripe_size, inode.chain_table = rule.chunk_size, rule.stripe_size, rule.chain_table
        if inode.is_file:
            inode.chains = op.choose_chains(rule.chain_table, rule.stripe_size, inode.id)
        elif layout is not None and layout.chain_table:
            op.choose_chains(rule.chain_table, 1, inode.id)  # files could not be made in it
    if inode.is_dir:
        inode.nlink = 2
    if default:
        op.tree.set_acls(inode, () if acl.is_minimal(access) else access, default if inode.is_dir else ())
    return inode


def attach(op: Op, parent: Inode, name: bytes, inode: Inode) -> None:
    """Store `inode` under a new name in `parent`. Raises RecallFirst."""
    before_new_name(op, parent)
    parent.mtime_ns = parent.ctime_ns = op.now_ns
    if inode.is_dir:
        parent.nlink += 1
    op.tree.put(parent)
    op.tree.put(inode)
    op.tree.link(parent.id, name, inode)


def make_node(op: Op, request: meta_pb2.MakeNodeRequest) -> meta_pb2.InodeReply:
    mode = request.mode & 0o177777
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    mode = kind | stat.S_IMODE(mode)
    if kind not in TYPES:
        raise error(Code.INVALID, f"mode {request.mode:o} is nothing that can be made")
    if request.parents and kind == stat.S_IFDIR:
        return _make_directories(op, request, mode)
    place = resolve(op.tree, op.who, request.at, entry=True)
    if place.must_be_dir and kind != stat.S_IFDIR and place.inode is None:
        raise error(Code.NO_ENTRY)
    parent = vacant(op, place)
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and op.who.uid != 0 and (kind, request.rdev) != WHITEOUT:
        raise error(Code.NOT_PERMITTED)
    layout = rule_of(request.layout) if request.HasField("layout") else None
    device = request.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    inode = new_inode(op, parent, mode, umask=request.umask, layout=layout, rdev=device)
    attach(op, parent, place.name, inode)
    op.files_delta += 1
    return inode_reply(inode, parent)


def _make_directories(op: Op, request: meta_pb2.MakeNodeRequest, mode: int) -> meta_pb2.InodeReply:
    """Every missing directory of the path; one that exists is no error."""
    steps, _ = components(request.at.path)
    if not request.at.path:
        raise error(Code.NO_ENTRY)
    start = meta_pb2.PathAt(dir=request.at.dir, path=b"/" if request.at.path[:1] == b"/" else b"")
    current = target(op.tree, op.who, start)
    layout = rule_of(request.layout) if request.HasField("layout") else None
    for number, name in enumerate(steps):
        place = resolve(op.tree, op.who, meta_pb2.PathAt(dir=current.id, path=name, follow=True))
        if place.inode is None:
            if op.files_delta == PARENTS_MAX:
                raise error(Code.TOO_LARGE, f"more than {PARENTS_MAX} missing directories in one path")
            parent = vacant(op, place)
            last = number + 1 == len(steps)
            # The owner may go on below a directory that was made on the way, whatever the umask says.
            umask = request.umask if last else request.umask & ~0o300
            inode = new_inode(op, parent, mode if last else mode | 0o300, umask=umask, layout=layout if last else None)
            attach(op, parent, place.name, inode)
            op.files_delta += 1
            current = inode
        elif place.inode.is_dir:
            current = place.inode
        else:
            raise error(Code.EXISTS if number + 1 == len(steps) else Code.NOT_DIRECTORY)
    return inode_reply(current)


def symlink(op: Op, request: meta_pb2.SymlinkRequest) -> meta_pb2.InodeReply:
    if not request.target:
        raise error(Code.NO_ENTRY)
    if len(request.target) > PATH_BYTES_MAX:
        raise error(Code.NAME_TOO_LONG)
    if b"\0" in request.target:
        raise error(Code.INVALID, "a path holds no NUL byte")
    place = resolve(op.tree, op.who, request.at, entry=True)
    if place.must_be_dir and place.inode is None:
        raise error(Code.NO_ENTRY)
    parent = vacant(op, place)
    inode = new_inode(op, parent, stat.S_IFLNK | 0o777)
    inode.target = bytes(request.target)
    inode.length = len(inode.target)
    attach(op, parent, place.name, inode)
    op.files_delta += 1
    return inode_reply(inode, parent)


def link(op: Op, request: meta_pb2.LinkRequest) -> meta_pb2.InodeReply:
    inode = target(op.tree, op.who, request.old)
    place = resolve(op.tree, op.who, request.new, entry=True)
    if place.must_be_dir and place.inode is None:
        raise error(Code.NO_ENTRY)
    parent = vacant(op, place)
    if inode.is_dir:
        raise error(Code.NOT_PERMITTED)
    if inode.nlink == 0:
        _require_open(op, inode)
        op.tree.delete_garbage(inode.id)
        op.files_delta += 1
    if inode.nlink >= LINKS_MAX:
        raise error(Code.TOO_MANY_LINKS)
    inode.nlink += 1
    inode.ctime_ns = op.now_ns
    names.added(op.tree, inode, parent.id)
    op.further_names.append((inode.id, parent.id, 0))
    attach(op, parent, place.name, inode)
    return inode_reply(inode, parent)


def _require_open(op: Op, inode: Inode) -> None:
    """A file without a name, as O_TMPFILE makes it, can be given one by the client that has it open."""
    held = any(session.client_id == op.who.client_id for _, session in op.tree.sessions(inode.id))
    if not held or inode.flags & (Flags.COLLECTING | Flags.TRASHED):  # what is in the trash comes back by restoring
        raise error(Code.NO_ENTRY, "the file was removed")
