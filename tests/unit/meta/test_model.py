"""Random namespace operations against a model of POSIX that is a dictionary of dictionaries.

The model says what must happen: which errno, and which tree. After every step the whole tree, all link counts and the
records that nobody may leave behind are compared.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.proto import meta_pb2

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)


@dataclass(eq=False)
class Node:
    """A directory (with entries) or a file (without)."""

    entries: dict[bytes, Node] | None = None
    nlink: int = 1
    ids: list[int] = field(default_factory=list)


class Refused(Exception):
    """What the model expects to fail, and how."""

    def __init__(self, *codes: Code) -> None:
        self.codes = codes


class Machine(RuleBasedStateMachine):
    """One step is one operation on both."""

    fresh: Callable[[], Any]

    @initialize()
    def start(self) -> None:
        self.meta = self.fresh()
        self.root = Node({}, 2)
        self.sessions = 0

    def _find(self, path: bytes) -> tuple[Node, bytes, Node | None]:
        *directories, name = path.split(b"/")
        node = self.root
        for step in directories:
            if node.entries is None:
                raise Refused(Code.NOT_DIRECTORY)
            if step not in node.entries:
                raise Refused(Code.NO_ENTRY)
            node = node.entries[step]
        if node.entries is None:
            raise Refused(Code.NOT_DIRECTORY)
        return node, name, node.entries.get(name)

    def _both(self, expected: Callable[[], None], body: Callable[[], object]) -> None:
        codes: tuple[Code, ...] = ()
        try:
            expected()
        except Refused as refused:
            codes = refused.codes
        found: Code | None = None
        try:
            body()
        except FfsError as exc:
            found = exc.code
        assert (found in codes) if codes else (found is None)

    @rule(path=PATHS)
    def mkdir(self, path: bytes) -> None:
        def expected() -> None:
            parent, name, node = self._find(path)
            if node is not None:
                raise Refused(Code.EXISTS)
            assert parent.entries is not None
            parent.entries[name] = Node({}, 2)
            parent.nlink += 1

        self._both(expected, lambda: self.meta.mkdir(path))

    @rule(path=PATHS, exclusive=st.booleans())
    def create(self, path: bytes, exclusive: bool) -> None:
        def expected() -> None:
            parent, name, node = self._find(path)
            if node is None:
                assert parent.entries is not None
                parent.entries[name] = Node()
            elif exclusive:
                raise Refused(Code.EXISTS)
            elif node.entries is not None:
                raise Refused(Code.IS_DIRECTORY)

        def body() -> None:
            self.sessions += 1
            session = self.sessions.to_bytes(16, "big")
            flags = os.O_CREAT | os.O_RDWR | (os.O_EXCL if exclusive else 0)
            inode = self.meta.open(path, flags, session=session).inode
            self.meta.storage.chunks[inode.id, 0] = 10
            self.meta.close(inode.id, session, 10, inode.truncate_version)

        self._both(expected, body)

    @rule(old=PATHS, new=PATHS)
    def link(self, old: bytes, new: bytes) -> None:
        def expected() -> None:
            node = self._find(old)[2]
            if node is None:
                raise Refused(Code.NO_ENTRY)
            parent, name, there = self._find(new)
            if there is not None:
                raise Refused(Code.EXISTS)
            if node.entries is not None:
                raise Refused(Code.NOT_PERMITTED)
            assert parent.entries is not None
            parent.entries[name] = node
            node.nlink += 1

        self._both(expected, lambda: self.meta.link(old, new))

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        def expected() -> None:
            parent, name, node = self._find(path)
            if node is None:
                raise Refused(Code.NO_ENTRY)
            if node.entries is not None:
                raise Refused(Code.IS_DIRECTORY)
            assert parent.entries is not None
            del parent.entries[name]
            node.nlink -= 1

        self._both(expected, lambda: self.meta.remove(path))

    @rule(path=PATHS, recursive=st.booleans())
    def rmdir(self, path: bytes, recursive: bool) -> None:
        def expected() -> None:
            parent, name, node = self._find(path)
            if node is None:
                raise Refused(Code.NO_ENTRY)
            assert parent.entries is not None
            if node.entries is None:
                if not recursive:
                    raise Refused(Code.NOT_DIRECTORY)
                node.nlink -= 1
            else:
                if node.entries and not recursive:
                    raise Refused(Code.NOT_EMPTY)
                _forget(node)
                parent.nlink -= 1
            del parent.entries[name]

        kind = meta_pb2.REMOVE_RECURSIVE if recursive else meta_pb2.REMOVE_RMDIR
        self._both(expected, lambda: self.meta.remove(path, kind))
        self.meta.collect()

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self._both(lambda: self._rename(old, new, flags), lambda: self.meta.rename(old, new, flags))

    def _rename(self, old: bytes, new: bytes, flags: int) -> None:
        source, old_name, node = self._find(old)
        goal, new_name, other = self._find(new)
        if node is None or (flags == 2 and other is None):
            raise Refused(Code.NO_ENTRY)
        if flags == 1 and other is not None:
            raise Refused(Code.EXISTS)
        if source is not goal and (_below(node, goal) or (other is not None and _below(other, source))):
            raise Refused(Code.INVALID, Code.NOT_EMPTY)
        if node is other:
            return
        assert source.entries is not None
        assert goal.entries is not None
        if flags == 2:
            assert other is not None
            source.entries[old_name], goal.entries[new_name] = other, node
            _move(node, source, goal)
            _move(other, goal, source)
            return
        if other is not None:
            if node.entries is not None and other.entries is None:
                raise Refused(Code.NOT_DIRECTORY)
            if node.entries is None and other.entries is not None:
                raise Refused(Code.IS_DIRECTORY)
            if other.entries:
                raise Refused(Code.NOT_EMPTY)
            if other.entries is None:
                other.nlink -= 1
            else:
                goal.nlink -= 1
        del source.entries[old_name]
        goal.entries[new_name] = node
        _move(node, source, goal)

    @invariant()
    def same_tree(self) -> None:
        if not hasattr(self, "meta"):
            return
        seen: dict[int, Node] = {}
        self._compare(self.root, self.meta.fstat(1), seen, 1)
        self.meta.collect()
        assert self.meta.records(b"I") == len(seen)
        assert [self.meta.records(letter) for letter in (b"G", b"S", b"T")] == [0, 0, 0]
        files = {inode_id for inode_id, node in seen.items() if node.entries is None}
        assert {inode_id for inode_id, _ in self.meta.storage.chunks} == files

    def teardown(self) -> None:
        if hasattr(self, "meta"):
            self.meta.loop.close()

    def _compare(self, node: Node, inode: Any, seen: dict[int, Node], parent: int) -> None:
        assert seen.setdefault(inode.id, node) is node
        assert inode.nlink == node.nlink
        assert stat.S_ISDIR(inode.mode) == (node.entries is not None)
        if node.entries is None:
            return
        assert inode.parent == parent
        request = meta_pb2.ListRequest(at=meta_pb2.PathAt(dir=inode.id), attributes=True)
        entries = self.meta.call("list", request).entries
        assert [entry.name for entry in entries] == sorted(node.entries)
        for entry in entries:
            self._compare(node.entries[entry.name], entry.attributes, seen, inode.id)


def _forget(node: Node) -> None:
    for child in (node.entries or {}).values():
        if child.entries is None:
            child.nlink -= 1
        _forget(child)


def _below(top: Node, node: Node) -> bool:
    return top is node or any(_below(child, node) for child in (top.entries or {}).values())


def _move(node: Node, source: Node, goal: Node) -> None:
    if node.entries is not None and source is not goal:
        source.nlink -= 1
        goal.nlink += 1


def test_namespace_against_the_model(new_meta: Callable[[], Any]) -> None:
    machine = type("Bound", (Machine,), {"fresh": staticmethod(new_meta)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
