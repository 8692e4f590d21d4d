"""Typed access to the records inside one transaction."""

from __future__ import annotations

from collections.abc import Iterator

from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.kv.interface import Transaction
from fireflyfs.meta.core import acl, delegations, keys, xattrs
from fireflyfs.meta.core.acl import Acl
from fireflyfs.meta.core.delegations import Holders
from fireflyfs.meta.core.records import Flags, Garbage, Inode, Session, Trash, Trim, pack_dentry, unpack_dentry

ANCESTORS_MAX = 4096  # deeper than any path reaches: a longer way up is a loop


class Tree:
    """The namespace as one transaction sees it. Everything read is in the transaction's conflict set.

    `stored` holds inode records as they were found first (None: there was none), `written` the inodes that were stored
    since (None: deleted): meta/store/accounts.py compares the two.
    """

    __slots__ = ("moved", "stored", "txn", "written")

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn
        self.stored: dict[int, bytes | None] = {}
        self.written: dict[int, Inode | None] = {}
        self.moved = False  # a directory came to a place, with what is below it

    def find(self, inode_id: int) -> Inode | None:
        data = self.txn.get(keys.inode(inode_id))
        return None if data is None else self._unpack(inode_id, data)

    def _unpack(self, inode_id: int, data: bytes) -> Inode:
        self.stored.setdefault(inode_id, data)
        inode = Inode.unpack(inode_id, data)
        if inode.flags & Flags.ACL:
            inode.acl, _ = self.acls(inode)
        return inode

    def inode(self, inode_id: int) -> Inode:
        """Raises STALE_HANDLE: whoever knows an inode by its id knew it when it existed."""
        data = self.txn.get(keys.inode(inode_id))
        if data is None:
            raise error(Code.STALE_HANDLE)
        return self._unpack(inode_id, data)

    def put(self, inode: Inode) -> None:
        self.txn.put(keys.inode(inode.id), inode.pack())
        self.written[inode.id] = inode
        self.stored.setdefault(inode.id, None)  # one that was not found before is new

    def delete(self, inode: Inode) -> None:
        """The inode, its extended attributes and its ACLs: up to three writes."""
        self.txn.delete(keys.inode(inode.id))
        self.written[inode.id] = None
        if inode.flags & Flags.XATTRS:
            self.txn.delete(keys.xattrs(inode.id))
        if inode.flags & (Flags.ACL | Flags.DEFAULT_ACL):
            self.txn.delete(keys.acls(inode.id))

    def acls(self, inode: Inode) -> tuple[Acl, Acl]:
        """(access, default); an empty one is none."""
        if not inode.flags & (Flags.ACL | Flags.DEFAULT_ACL):
            return (), ()
        data = self.txn.get(keys.acls(inode.id))
        if data is None:
            raise error(Code.IO_ERROR, f"the ACLs of inode {inode.id} are gone")
        return acl.unpack_record(data)

    def set_acls(self, inode: Inode, access: Acl, default: Acl) -> None:
        """Store both; the caller stores `inode`, whose flags change with them."""
        before = inode.flags & (Flags.ACL | Flags.DEFAULT_ACL)
        inode.flags &= ~(Flags.ACL | Flags.DEFAULT_ACL)
        inode.acl = access
        if access:
            inode.flags |= Flags.ACL
        if default:
            inode.flags |= Flags.DEFAULT_ACL
        if access or default:
            self.txn.put(keys.acls(inode.id), acl.pack_record(access, default))
        elif before:
            self.txn.delete(keys.acls(inode.id))

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """All but the ACLs, by name."""
        if not inode.flags & Flags.XATTRS:
            return {}
        data = self.txn.get(keys.xattrs(inode.id))
        if data is None:
            raise error(Code.IO_ERROR, f"the extended attributes of inode {inode.id} are gone")
        return xattrs.unpack(data)

    def set_xattrs(self, inode: Inode, values: dict[bytes, bytes]) -> None:
        """Store all of them; the caller stores `inode`, whose flags change with them."""
        before = inode.flags & Flags.XATTRS
        inode.flags &= ~(Flags.XATTRS | Flags.CAPABILITY)
        if values:
            inode.flags |= Flags.XATTRS
            if xattrs.CAPABILITY in values:
                inode.flags |= Flags.CAPABILITY
            self.txn.put(keys.xattrs(inode.id), xattrs.pack(values))
        elif before:
            self.txn.delete(keys.xattrs(inode.id))

    def child(self, parent: int, name: bytes) -> Inode | None:
        data = self.txn.get(keys.dentry(parent, name))
        if data is None:
            return None
        inode_id, _ = unpack_dentry(data)
        inode = self.find(inode_id)
        if inode is None:
            raise error(Code.IO_ERROR, f"directory {parent} has an entry for inode {inode_id}, which does not exist")
        return inode

    def link(self, parent: int, name: bytes, inode: Inode) -> None:
        self.txn.put(keys.dentry(parent, name), pack_dentry(inode.id, inode.mode))

    def unlink(self, parent: int, name: bytes) -> None:
        self.txn.delete(keys.dentry(parent, name))

    def children(self, parent: int, *, after: bytes = b"", limit: int = 0) -> Iterator[tuple[bytes, int, int]]:
        """(name, inode id, S_IFMT bits) in name order, after the name `after`."""
        begin, end = keys.dentries(parent)
        if after:
            begin = keys.dentry(parent, after) + b"\0"
        for key, value in self.txn.scan(begin, end, limit=limit):
            inode_id, kind = unpack_dentry(value)
            yield keys.dentry_name(key), inode_id, kind

    def ancestors(self, directory: Inode) -> Iterator[Inode]:
        """The directory itself, then one after another what it is in, up to the root. Raises NO_ENTRY, LINK_LOOP."""
        for _ in range(ANCESTORS_MAX):
            yield directory
            if directory.id == ROOT_INODE or directory.parent == directory.id:
                return
            parent = self.find(directory.parent)
            if parent is None:
                raise error(Code.NO_ENTRY, "the directory was removed")
            directory = parent
        raise error(Code.LINK_LOOP)

    def delegations(self, directory: int) -> Holders:
        """Who knows all names of the directory."""
        data = self.txn.get(keys.delegations(directory))
        return () if data is None else delegations.unpack(data)

    def put_delegations(self, directory: int, holders: Holders) -> None:
        if holders:
            self.txn.put(keys.delegations(directory), delegations.pack(holders))
        else:
            self.txn.delete(keys.delegations(directory))

    def is_empty(self, directory: int) -> bool:
        return not any(True for _ in self.children(directory, limit=1))

    def inodes(self, *, after: int, limit: int) -> Iterator[Inode]:
        """Inodes of every kind in id order, at most `limit`; not in the conflict set."""
        _, end = keys.table(b"I")
        for key, value in self.txn.scan(keys.inode(after) + b"\0", end, limit=limit, snapshot=True):
            yield Inode.unpack(keys.id_of(key), value)

    def open_for_writing(self, first: int, last: int) -> set[int]:
        """Inodes first to last that somebody has open for writing; not in the conflict set."""
        begin, end = keys.sessions(first)[0], keys.sessions(last)[1]
        found = self.txn.scan(begin, end, snapshot=True) if first <= last else ()
        return {keys.id_of(key) for key, value in found if Session.unpack(value).write}

    def sessions(self, inode_id: int) -> Iterator[tuple[bytes, Session]]:
        begin, end = keys.sessions(inode_id)
        for key, value in self.txn.scan(begin, end):
            yield keys.session_of(key), Session.unpack(value)

    def has_sessions(self, inode_id: int) -> bool:
        begin, end = keys.sessions(inode_id)
        return any(True for _ in self.txn.scan(begin, end, limit=1))

    def has_writers(self, inode_id: int) -> bool:
        return any(session.write for _, session in self.sessions(inode_id))

    def session(self, inode_id: int, session_id: bytes) -> Session | None:
        data = self.txn.get(keys.session(inode_id, session_id))
        return None if data is None else Session.unpack(data)

    def put_session(self, inode_id: int, session_id: bytes, session: Session) -> None:
        self.txn.put(keys.session(inode_id, session_id), session.pack())

    def delete_session(self, inode_id: int, session_id: bytes) -> None:
        self.txn.delete(keys.session(inode_id, session_id))

    def trim(self, inode_id: int) -> Trim | None:
        data = self.txn.get(keys.trim(inode_id))
        return None if data is None else Trim.unpack(data)

    def put_trim(self, inode_id: int, trim: Trim) -> None:
        self.txn.put(keys.trim(inode_id), trim.pack())

    def delete_trim(self, inode_id: int) -> None:
        self.txn.delete(keys.trim(inode_id))

    def garbage(self, inode_id: int) -> Garbage | None:
        data = self.txn.get(keys.garbage(inode_id))
        return None if data is None else Garbage.unpack(data)

    def put_garbage(self, inode_id: int, garbage: Garbage) -> None:
        self.txn.put(keys.garbage(inode_id), garbage.pack())

    def delete_garbage(self, inode_id: int) -> None:
        self.txn.delete(keys.garbage(inode_id))

    def trash(self, removed_ns: int, inode_id: int) -> Trash | None:
        data = self.txn.get(keys.trash(removed_ns, inode_id))
        return None if data is None else Trash.unpack(data)

    def put_trash(self, removed_ns: int, inode_id: int, trash: Trash) -> None:
        self.txn.put(keys.trash(removed_ns, inode_id), trash.pack())

    def delete_trash(self, removed_ns: int, inode_id: int) -> None:
        self.txn.delete(keys.trash(removed_ns, inode_id))

    def all_trash(self, after: tuple[int, int], until_ns: int, limit: int) -> Iterator[tuple[int, int, Trash]]:
        """(time of removal, inode id, record) in that order, strictly after `after` and before `until_ns`; not in the
        conflict set."""
        begin, end = keys.trash(*after) + b"\0", keys.trash(until_ns, 0)
        if begin < end:
            for key, value in self.txn.scan(begin, end, limit=limit, snapshot=True):
                yield *keys.trash_of(key), Trash.unpack(value)
