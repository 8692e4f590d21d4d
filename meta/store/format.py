"""The first start: the root directory and the format's version."""

from __future__ import annotations

import stat

from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import ROOT_INODE
from fireflyfs.common.kv.interface import KvEngine, Transaction, run
from fireflyfs.meta.core import keys
from fireflyfs.meta.core.layout import LayoutRule, checked
from fireflyfs.meta.core.records import Inode
from fireflyfs.meta.store.tree import Tree

FORMAT_VERSION = 3  # docs/format/meta_records.md has the history
FIRST_WITH_USAGE = 3


def prepare(engine: KvEngine, now_ns: int, *, uid: int, gid: int, mode: int, layout: LayoutRule) -> bool:
    """Make the root if there is none; whether it was made. An older store becomes one of this version.

    Raises VERSION_MISMATCH on a newer store.
    """
    checked(layout)

    def body(txn: Transaction) -> bool:
        stored = txn.get(keys.FORMAT)
        if stored is not None:
            version = int.from_bytes(stored, "big")
            if version > FORMAT_VERSION:
                raise error(
                    Code.VERSION_MISMATCH,
                    f"the metadata store has format {version}, this release reads up to {FORMAT_VERSION}",
                )
            if version < FORMAT_VERSION:  # all that is in it stays as it is; older releases must not open it any more
                if version < FIRST_WITH_USAGE:
                    txn.put(keys.UNCOUNTED, keys.table(b"D")[0])
                txn.put(keys.FORMAT, FORMAT_VERSION.to_bytes(4, "big"))
            return False
        txn.put(keys.FORMAT, FORMAT_VERSION.to_bytes(4, "big"))
        Tree(txn).put(
            Inode(
                ROOT_INODE,
                stat.S_IFDIR | mode & 0o7777,
                nlink=2,
                uid=uid,
                gid=gid,
                atime_ns=now_ns,
                mtime_ns=now_ns,
                ctime_ns=now_ns,
                btime_ns=now_ns,
                parent=ROOT_INODE,
                chunk_size=layout.chunk_size,
                stripe_size=layout.stripe_size,
                chain_table=layout.chain_table,
            )
        )
        return True

    made = run(engine, body)
    if made:
        engine.sync()
    return made
