"""What every KV driver must keep. A new driver joins by adding itself to `open_engine`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule, run_state_machine_as_test

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.kv.interface import (
    KEY_BYTES_MAX,
    TRANSACTION_WRITES_MAX,
    VALUE_BYTES_MAX,
    KvEngine,
    Transaction,
    read,
    run,
)
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.kv.rocksdb import RocksKv

KEYS = st.binary(min_size=1, max_size=2)
VALUES = st.binary(max_size=3)
Engines = Callable[[], KvEngine]


@pytest.fixture(params=["memory", "rocksdb"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engines]:
    """Opens fresh stores of one driver; closes them at the end."""
    with contextlib.ExitStack() as stack:

        def fresh() -> KvEngine:
            if request.param == "memory":
                engine: KvEngine = MemoryKv()
            else:
                folder = tempfile.mkdtemp(dir=tmp_path)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                engine = RocksKv(Path(folder) / "kv")
            stack.callback(engine.close)
            return engine

        yield fresh


@pytest.fixture
def kv(engines: Engines) -> KvEngine:
    return engines()


def put(engine: KvEngine, key: bytes, value: bytes) -> None:
    run(engine, lambda txn: txn.put(key, value))


def everything(engine: KvEngine) -> list[tuple[bytes, bytes]]:
    return read(engine, lambda txn: list(txn.scan(b"", b"\xff" * 8)))


def code_of(body: Callable[[], object]) -> Code:
    with pytest.raises(FfsError) as caught:
        body()
    return caught.value.code


def test_a_commit_is_seen_whole_and_a_cancel_not_at_all(kv: KvEngine) -> None:
    with kv.transaction() as txn:
        txn.put(b"a", b"1")
        txn.put(b"b", b"2")
        txn.delete(b"never")
        assert everything(kv) == []
        txn.commit()
    assert everything(kv) == [(b"a", b"1"), (b"b", b"2")]
    with kv.transaction() as txn:
        txn.put(b"c", b"3")
    assert len(everything(kv)) == 2


def test_reads_see_one_snapshot_and_own_writes(kv: KvEngine) -> None:
    put(kv, b"b", b"old")
    put(kv, b"d", b"old")
    with kv.transaction() as txn:
        assert txn.get(b"b") == b"old"
        put(kv, b"b", b"new")
        put(kv, b"c", b"new")
        assert txn.get(b"b") == b"old"
        assert txn.get(b"c") is None
        txn.put(b"a", b"mine")
        txn.delete(b"d")
        assert list(txn.scan(b"a", b"z")) == [(b"a", b"mine"), (b"b", b"old")]
        assert list(txn.scan(b"a", b"z", reverse=True)) == [(b"b", b"old"), (b"a", b"mine")]
        assert list(txn.scan(b"a", b"z", limit=1)) == [(b"a", b"mine")]
        assert txn.get(b"d") is None


def _conflict(kv: KvEngine, reads: Callable[[Transaction], object], other: Callable[[Transaction], object]) -> bool:
    with kv.transaction() as txn:
        reads(txn)
        txn.put(b"unrelated", b"")
        run(kv, other)
        try:
            txn.commit()
        except FfsError as exc:
            if exc.code is not Code.TXN_CONFLICT or read(kv, lambda txn: txn.get(b"unrelated")) is not None:
                raise
            return True
        return False


def test_what_conflicts_and_what_does_not(kv: KvEngine) -> None:
    for key in (b"k1", b"k2", b"k3", b"k4"):
        put(kv, key, b"x")

    def writes(key: bytes) -> Callable[[Transaction], object]:
        return lambda txn: txn.put(key, b"y")

    assert _conflict(kv, lambda txn: txn.get(b"k1"), writes(b"k1"))
    assert _conflict(kv, lambda txn: txn.get(b"absent"), writes(b"absent"))
    assert _conflict(kv, lambda txn: txn.get(b"k1"), lambda txn: txn.delete(b"k1"))
    assert _conflict(kv, lambda txn: txn.add_read_conflict(b"k3"), writes(b"k3"))
    assert _conflict(kv, lambda txn: txn.add_read_conflict_range(b"k3", b"k5"), writes(b"k4"))
    assert _conflict(kv, lambda txn: list(txn.scan(b"k2", b"k4")), writes(b"k22"))
    assert _conflict(kv, lambda txn: list(txn.scan(b"k2", b"k4", limit=1)), writes(b"k2"))
    assert _conflict(kv, lambda txn: list(txn.scan(b"k2", b"k5", limit=1, reverse=True)), writes(b"k4"))


def test_what_was_not_read_does_not_conflict(kv: KvEngine) -> None:
    for key in (b"k1", b"k2", b"k3", b"k4"):
        put(kv, key, b"x")
    cases: list[tuple[Callable[[Transaction], object], bytes]] = [
        (lambda txn: txn.get(b"k1"), b"k2"),
        (lambda txn: txn.get(b"k1", snapshot=True), b"k1"),
        (lambda txn: list(txn.scan(b"k1", b"k9", snapshot=True)), b"k2"),
        (lambda txn: list(txn.scan(b"k1", b"k9", limit=1)), b"k2"),
        (lambda txn: list(txn.scan(b"k1", b"k9", limit=1, reverse=True)), b"k2"),
        (lambda txn: list(txn.scan(b"k1", b"k3")), b"k3"),
        (lambda txn: txn.put(b"k1", b"blind"), b"k1"),
    ]
    for reads, written in cases:
        assert not _conflict(kv, reads, lambda txn, key=written: txn.put(key, b"y"))  # type: ignore[misc]
        run(kv, lambda txn: txn.delete(b"unrelated"))


def test_a_transaction_older_than_the_window_conflicts() -> None:
    kv = MemoryKv(window_keys_max=4)
    with kv.transaction() as txn:
        txn.get(b"a")
        txn.put(b"b", b"")
        for number in range(10):
            put(kv, b"other%d" % number, b"")
        assert code_of(txn.commit) is Code.TXN_CONFLICT


def test_run_tries_again_after_a_conflict_and_gives_up_at_its_bound(kv: KvEngine) -> None:
    attempts: list[int] = []

    def body(txn: Transaction) -> int:
        value = int(txn.get(b"n") or b"0")
        attempts.append(value)
        if len(attempts) == 1:
            put(kv, b"n", b"41")
        txn.put(b"n", b"%d" % (value + 1))
        return value + 1

    assert run(kv, body) == 42
    assert attempts == [0, 41]

    def never(txn: Transaction) -> None:
        value = int(txn.get(b"n") or b"0")
        put(kv, b"n", b"%d" % (value + 1))
        txn.put(b"m", b"")

    assert code_of(lambda: run(kv, never, attempts_max=3)) is Code.TXN_CONFLICT


def test_an_error_in_the_body_commits_nothing(kv: KvEngine) -> None:
    def body(txn: Transaction) -> None:
        txn.put(b"a", b"")
        raise error(Code.NO_ENTRY)

    assert code_of(lambda: run(kv, body)) is Code.NO_ENTRY
    assert everything(kv) == []


def test_bounds(kv: KvEngine) -> None:
    with kv.transaction() as txn:
        assert code_of(lambda: txn.put(b"", b"")) is Code.TOO_LARGE
        assert code_of(lambda: txn.put(b"k" * (KEY_BYTES_MAX + 1), b"")) is Code.TOO_LARGE
        assert code_of(lambda: txn.put(b"k", b"v" * (VALUE_BYTES_MAX + 1))) is Code.TOO_LARGE
        for number in range(TRANSACTION_WRITES_MAX):
            txn.put(b"%d" % number, b"")
        txn.put(b"1", b"again")
        assert code_of(lambda: txn.put(b"more", b"")) is Code.TOO_LARGE
        txn.commit()
    assert len(everything(kv)) == TRANSACTION_WRITES_MAX


def test_use_after_the_end_is_a_bug_that_says_so(kv: KvEngine) -> None:
    with kv.transaction() as txn:
        txn.put(b"a", b"")
        txn.commit()
        assert code_of(lambda: txn.get(b"a")) is Code.INTERNAL
        assert code_of(lambda: txn.put(b"a", b"")) is Code.INTERNAL
        assert code_of(txn.commit) is Code.INTERNAL
        txn.cancel()
    with kv.transaction(read_only=True) as txn:
        assert code_of(lambda: txn.put(b"a", b"")) is Code.INTERNAL
        txn.commit()


def test_a_closed_store_is_unavailable(kv: KvEngine) -> None:
    kv.close()
    kv.close()
    assert code_of(lambda: put(kv, b"a", b"")) is Code.UNAVAILABLE


class KvMachine(RuleBasedStateMachine):
    """Open transactions side by side, against a dictionary and the rule that conflicts only come from changes."""

    open_engine: Engines

    transactions = Bundle("transactions")

    @initialize()
    def start(self) -> None:
        self.kv = self.open_engine()
        self.model: dict[bytes, bytes] = {}
        self.commits: list[set[bytes]] = []

    @rule(target=transactions)
    def begin(self) -> dict[str, object]:
        txn = self.kv.transaction().__enter__()
        txn.get(b"pin", snapshot=True)  # takes the snapshot now
        return {"txn": txn, "view": dict(self.model), "at": len(self.commits), "reads": [], "writes": {}}

    @rule(state=transactions, key=KEYS)
    def get(self, state: dict, key: bytes) -> None:
        assert state["txn"].get(key) == self._seen(state).get(key)
        if key not in state["writes"]:
            state["reads"].append((key, key + b"\0"))

    @rule(state=transactions, begin=KEYS, end=KEYS, limit=st.integers(0, 3), reverse=st.booleans())
    def scan(self, state: dict, begin: bytes, end: bytes, limit: int, reverse: bool) -> None:
        expected = sorted(((k, v) for k, v in self._seen(state).items() if begin <= k < end), reverse=reverse)
        found = list(state["txn"].scan(begin, end, limit=limit, reverse=reverse))
        assert found == (expected[:limit] if limit else expected)
        if begin < end:
            walked = (begin, end)
            if limit and len(found) == limit:
                walked = (found[-1][0], end) if reverse else (begin, found[-1][0] + b"\0")
            state["reads"].append(walked)

    @rule(state=transactions, key=KEYS, value=st.none() | VALUES)
    def write(self, state: dict, key: bytes, value: bytes | None) -> None:
        if value is None:
            state["txn"].delete(key)
        else:
            state["txn"].put(key, value)
        state["writes"][key] = value

    @rule(state=consumes(transactions))
    def commit(self, state: dict) -> None:
        changed = set().union(*self.commits[state["at"] :])
        conflict = bool(state["writes"]) and any(b <= key < e for b, e in state["reads"] for key in changed)
        if conflict:
            assert code_of(state["txn"].commit) is Code.TXN_CONFLICT
        else:
            state["txn"].commit()
            self._apply(state["writes"])
        assert everything(self.kv) == sorted(self.model.items())

    @rule(state=consumes(transactions))
    def cancel(self, state: dict) -> None:
        state["txn"].cancel()

    def _seen(self, state: dict) -> dict[bytes, bytes]:
        merged = state["view"] | state["writes"]
        return {key: value for key, value in merged.items() if value is not None}

    def _apply(self, writes: dict[bytes, bytes | None]) -> None:
        for key, value in writes.items():
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value
        if writes:
            self.commits.append(set(writes))

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            self.kv.close()


def test_against_a_model(engines: Engines, request: pytest.FixtureRequest) -> None:
    machine = type("Machine", (KvMachine,), {"open_engine": staticmethod(engines)})
    rocks = "rocksdb" in request.node.name
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25 if rocks else 100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_rocksdb_keeps_commits_over_kill_9_and_refuses_a_second_owner(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from fireflyfs.common.kv.rocksdb import RocksKv\n"
        "from fireflyfs.common.kv.interface import run\n"
        "kv = RocksKv(Path(sys.argv[1]))\n"
        "n = 0\n"
        "while True:\n"
        "    run(kv, lambda t: (t.put(b'a%08d' % n, b'x' * 100), t.put(b'b%08d' % n, b'')))\n"
        "    n += 1\n"
        "    if n % 100 == 0: print(n, flush=True)\n"
    )
    folder = tmp_path / "kv"
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(20):
            acknowledged = int(child.stdout.readline())
        assert code_of(lambda: RocksKv(folder)) is Code.IO_ERROR
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
    kv = RocksKv(folder)
    try:
        pairs = dict(everything(kv))
    finally:
        kv.close()
    for number in range(acknowledged):
        assert b"a%08d" % number in pairs
    assert {key[1:] for key in pairs if key[:1] == b"a"} == {key[1:] for key in pairs if key[:1] == b"b"}


def test_rocksdb_refuses_a_newer_format(tmp_path: Path) -> None:
    kv = RocksKv(tmp_path)
    put(kv, b"a", b"1")
    kv._database().get_column_family("ffs-format").put(b"version", b"99")
    kv.sync()
    kv.close()
    assert code_of(lambda: RocksKv(tmp_path)) is Code.VERSION_MISMATCH
