"""The checker of histories finds what is planted, and nothing in histories that are right."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from fault import cells
from fault.checker import check, check_durable
from fault.history import NEVER, History, Read, Recorder, Sync, Write, load
from fault.names import check_names

CHUNK = 64 * cells.CELL_BYTES


def history(*events: Write | Read | Sync) -> History:
    found = History()
    for event in events:
        {Write: found.writes, Read: found.reads, Sync: found.syncs}[type(event)].append(event)  # type: ignore[attr-defined]
    return found


def w(value: int, began_s: float, ended_s: float, first: int = 0, count: int = 4) -> Write:
    return Write(0, first, count, value, began_s, ended_s)


def r(began_s: float, ended_s: float, *runs: tuple[int, int], first: int = 0) -> Read:
    return Read(0, first, runs, began_s, ended_s, "test")


def test_cells_say_who_wrote_them() -> None:
    data = cells.encode(3, 10, 2, 77) + bytes(512) + cells.encode(3, 13, 1, 78)
    assert cells.decode(3, 10, data) == [(77, 2), (0, 1), (78, 1)]
    assert cells.decode(3, 11, data[:512]) == [(cells.DAMAGED, 1)]  # the bytes of another place
    assert cells.decode(4, 10, data[:512]) == [(cells.DAMAGED, 1)]  # and of another file
    for place in (0, 100, 511):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        assert cells.decode(3, 10, bytes(flipped))[0] == (cells.DAMAGED, 1), place
    assert cells.decode(3, 12, bytes(511) + b"\1") == [(cells.DAMAGED, 1)]


def test_places_of_cells() -> None:
    assert cells.straddles(1, CHUNK // 512 - 1, CHUNK)
    assert not cells.straddles(1, CHUNK // 512 - 2, CHUNK)
    assert not cells.straddles(0, CHUNK // 512 - 1, CHUNK)
    assert cells.chunk_of(1, CHUNK // 512 - 1, CHUNK) == 0
    assert cells.chunk_of(1, CHUNK // 512, CHUNK) == 1


WRONG = {
    "damaged": history(w(1, 0, 1), r(2, 3, (cells.DAMAGED, 1))),
    "never written": history(w(1, 0, 1), r(2, 3, (9, 1))),
    "written elsewhere": history(w(1, 0, 1, first=5), r(2, 3, (1, 1))),
    "before it was written": history(w(1, 5, 6), r(2, 3, (1, 1))),
    "acknowledged and lost": history(w(1, 0, 1), r(2, 3, (0, 1))),
    "stale": history(w(1, 0, 1), w(2, 2, 3), r(4, 5, (1, 4))),
    "went back": history(w(1, 0, 1), w(2, 2, NEVER), r(3, 4, (2, 4)), r(5, 6, (1, 4))),
    "done twice": history(w(1, 0, NEVER), w(2, 3, 4), r(1, 2, (1, 4)), r(5, 6, (2, 4)), r(7, 8, (1, 4))),
    "older of two readers": history(w(1, 0, 1), w(2, 2, 20), r(3, 4, (2, 4)), r(5, 6, (1, 4))),
    "torn to zeros": history(w(1, 0, NEVER), r(1, 2, (1, 2), (0, 2))),
    "torn, old bytes": history(w(1, 0, 1), w(2, 2, NEVER), r(3, 4, (2, 2), (1, 2))),
    "torn, two at once": history(w(1, 0, NEVER), w(2, 0, NEVER), r(3, 4, (2, 2), (1, 2))),
    "two readers see two orders": history(
        w(1, 0, NEVER),
        w(2, 0, NEVER, first=2),
        r(1, 9, (1, 2), (2, 2)),  # 2 came after 1
        r(1, 9, (1, 2), (2, 2), first=2),  # 1 came after 2
    ),
}
RIGHT = {
    "nothing": history(),
    "concurrent, old": history(w(1, 0, 1), w(2, 2, 9), r(3, 4, (1, 4)), r(5, 6, (1, 4))),
    "concurrent, new": history(w(1, 0, 1), w(2, 2, 9), r(3, 4, (2, 4)), r(5, 6, (2, 4))),
    "failed, happened late": history(w(1, 0, 1), w(2, 2, NEVER), r(3, 4, (1, 4)), r(5, 6, (2, 4))),
    "failed, never happened": history(w(1, 0, 1), w(2, 2, NEVER), r(3, 4, (1, 4)), r(50, 60, (1, 4))),
    "parts of two": history(w(1, 0, 1), w(2, 2, 3, first=2), r(4, 5, (1, 2), (2, 4))),
    "long read": history(w(1, 0, 1), w(2, 2, 3), w(3, 4, 5), r(1, 6, (2, 4))),
    "a new one after it": history(w(1, 0, 1), r(2, 3, (1, 4)), w(2, 4, 5), r(6, 7, (2, 4))),
    "two chunks of one write": History([Write(0, 62, 4, 1, 0, NEVER)], [Read(0, 62, ((1, 2), (0, 2)), 1, 2)]),
    "a cell in two chunks": History([Write(1, 62, 2, 1, 0, NEVER)], [Read(1, 62, ((1, 1), (cells.DAMAGED, 1)), 1, 2)]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_planted_is_found(name: str) -> None:
    assert check(WRONG[name], CHUNK)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str) -> None:
    assert check(RIGHT[name], CHUNK) == []


def test_what_stood_there_before() -> None:
    seen = history(w(1, 0, 1), r(2, 3, (7, 4)))
    assert check(seen, CHUNK, {(0, cell): 7 for cell in range(4)})  # 1 was acknowledged before
    seen = history(w(1, 5, 6), r(2, 3, (7, 4)))
    assert check(seen, CHUNK, {(0, cell): 7 for cell in range(4)}) == []
    assert check(seen, CHUNK)


def store(seed: int) -> History:
    """What clients of a store that is right may see: every operation happens at one moment between its ends."""
    chance = random.Random(seed)
    kept = [0] * 48
    found = History()
    moments: list[tuple[float, object]] = []
    for value in range(1, 60):
        began_s = chance.uniform(0, 100)
        ended_s = began_s + chance.choice([0.1, 3, 20])
        first = chance.randrange(40)
        write = w(value, began_s, ended_s, first, chance.randrange(1, 48 - first))
        moments.append((chance.uniform(began_s, ended_s), write))
        found.writes.append(write if chance.random() < 0.8 else replace(write, ended_s=NEVER))
    for _ in range(100):
        began_s = chance.uniform(0, 120)
        read = r(began_s, began_s + chance.choice([0.1, 2, 15]))
        moments.append((chance.uniform(began_s, read.ended_s), read))
    for _, event in sorted(moments, key=lambda moment: moment[0]):
        if isinstance(event, Write):
            kept[event.first : event.first + event.count] = [event.value] * event.count
        else:
            assert isinstance(event, Read)
            found.reads.append(replace(event, runs=tuple((value, 1) for value in kept)))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_a_right_store_passes_and_one_stale_replica_does_not(seed: int) -> None:
    found = store(seed)
    assert check(found, CHUNK) == []
    # A replica that stands still at a moment answers one more read, later than everything: stale as soon as anything
    # that was acknowledged since then covers a cell of it.
    early = min(found.reads, key=lambda read: read.ended_s)
    last = replace(early, began_s=200.0, ended_s=201.0)
    stale = any(write.began_s > early.ended_s and write.ended_s < 200 and write.first < 48 for write in found.writes)
    assert stale
    found.reads.append(last)
    assert check(found, CHUNK)


def test_what_a_power_cut_may_leave() -> None:
    before = history(w(1, 0, 1), Sync(0, 2, 3), w(2, 4, 5), w(3, 6, NEVER))
    for value in (1, 2, 3):
        assert check_durable(before, 10, [r(20, 21, (value, 4))], CHUNK) == []
    for runs in ([(0, 4)], [(9, 4)], [(cells.DAMAGED, 4)], [(2, 2), (1, 2)], [(2, 2), (0, 2)]):
        assert check_durable(before, 10, [r(20, 21, *runs)], CHUNK), runs
    assert check_durable(before, 2.5, [r(20, 21, (0, 4))], CHUNK) == []  # the fsync had not returned
    before.syncs.append(Sync(0, 5.5, 9))
    assert check_durable(before, 10, [r(20, 21, (1, 4))], CHUNK)


def test_a_history_file_says_what_was_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "one")
    first = recorder.write(2, 5, 3, 11)
    second = recorder.read(2, 5, 3)
    recorder.got(second, [(11, 2), (0, 1)])
    recorder.ok(first)
    third = recorder.sync(2)
    recorder.ok(third)
    recorder.no(recorder.write(2, 9, 1, 12), OSError("no"))
    recorder.write(2, 9, 1, 13)
    recorder.close()
    with (tmp_path / "one").open("ab") as file:
        file.write(b'["w",77,1')
    found = load(tmp_path / "one")
    assert [(write.value, write.ended_s == NEVER) for write in found.writes] == [(11, False), (12, True), (13, True)]
    assert found.reads[0].runs == ((11, 2), (0, 1))
    assert found.syncs[0].file == 2
    assert len(found.errors) == 1
    assert found.writes[0].began_s < found.reads[0].began_s < found.reads[0].ended_s < found.writes[0].ended_s


def names(path: Path, *steps: tuple[str, list[object], object]) -> list[str]:
    """What is wrong with these (operation, arguments, answer); the answer is True, a list, or what failed."""
    recorder = Recorder(path)
    for op, args, answer in steps:
        number = recorder.own(op, args)
        if isinstance(answer, OSError):
            recorder.no(number, answer)
        elif isinstance(answer, list):
            recorder.got(number, answer)
        else:
            recorder.ok(number)
    recorder.close()
    return check_names(path)


MADE: list[tuple[str, list[object], object]] = [("create", ["a", 4, 1], True), ("write", ["a", 6, 2, 2], True)]
NAMES_RIGHT: list[list[tuple[str, list[object], object]]] = [
    [("read", ["a"], [(1, 4), (0, 2), (2, 2)]), ("list", [], ["a"])],
    [("truncate", ["a", 2], True), ("truncate", ["a", 3], True), ("read", ["a"], [(1, 2), (0, 1)])],
    [("rename", ["a", "b"], True), ("list", [], ["b"]), ("read", ["b"], [(1, 4), (0, 2), (2, 2)])],
    [("remove", ["a"], True), ("list", [], [])],
    [("remove", ["a"], OSError()), ("list", [], ["a"])],
    [("remove", ["a"], OSError()), ("list", [], [])],
    [("write", ["a", 0, 4, 3], OSError()), ("read", ["a"], [(3, 1), (1, 3), (0, 2), (2, 2)])],
    [("sync", ["a"], True), ("create", ["a", 1, 5], True), ("read", ["a"], [(5, 1)])],
]
NAMES_WRONG: list[list[tuple[str, list[object], object]]] = [
    [("read", ["a"], [(1, 4)])],
    [("read", ["a"], [(1, 4), (0, 2), (1, 2)])],
    [("list", [], [])],
    [("truncate", ["a", 2], True), ("truncate", ["a", 4], True), ("read", ["a"], [(1, 4)])],  # what was cut came back
    [("rename", ["a", "b"], True), ("list", [], ["a", "b"])],
    [("rename", ["a", "b"], True), ("read", ["a"], [(1, 4), (0, 2), (2, 2)])],
    [("remove", ["a"], OSError()), ("list", [], ["a"]), ("list", [], [])],
    [("remove", ["a"], True), ("read", ["a"], [(1, 4), (0, 2), (2, 2)])],
    [("create", ["a", 1, 5], True), ("read", ["a"], [(5, 1), (1, 3)])],
]


@pytest.mark.parametrize("place", range(len(NAMES_RIGHT)))
def test_names_that_are_right_pass(place: int, tmp_path: Path) -> None:
    assert names(tmp_path / "names", *MADE, *NAMES_RIGHT[place]) == []


@pytest.mark.parametrize("place", range(len(NAMES_WRONG)))
def test_names_that_are_wrong_are_found(place: int, tmp_path: Path) -> None:
    assert names(tmp_path / "names", *MADE, *NAMES_WRONG[place])
