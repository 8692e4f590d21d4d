"""The deciding part of the check: lists merged, looks judged, replicas told right from wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from fireflyfs.client.fsck.core.facts import ABSENT, Content, Copy, File, Finding, Key, Kind, Look, Row, Suspect, Writer
from fireflyfs.client.fsck.core.judge import (
    PENDING_SETTLE_S,
    UNDECIDED,
    Memory,
    Verdict,
    judge,
    problem_of,
    right_content,
)
from fireflyfs.client.fsck.core.resync_order import next_to_resync
from fireflyfs.client.fsck.core.scan import ChainUse, Lost, Tally, chain_rows, suspects

CHUNK = 65536
KEY = Key(7, 1)
FILE = File(7, 2 * CHUNK, 0, CHUNK, (1, 2))
ALICE, BOB = Writer(b"a" * 16, 1, 1), Writer(b"b" * 16, 1, 1)


def copy(version: int = 1, length: int = CHUNK, crc: int = 5, writer: Writer | None = ALICE, **more: object) -> Copy:
    return Copy(Content(version, length, crc, CHUNK), writer, **more)  # type: ignore[arg-type]


def look(*copies: Copy, at_s: float = 0.0, version: int = 1, file: File | None = FILE) -> Look:
    return Look(at_s, version, {(place + 1) * 10: one for place, one in enumerate(copies)}, file)


def judged(*looks: Look | None, key: Key = KEY, chain_id: int = 2) -> Finding | Verdict:
    memory = Memory()
    for one in looks[:-1]:
        assert judge(key, chain_id, memory, one) is Verdict.AGAIN
    return judge(key, chain_id, memory, looks[-1])


# Merging


def test_replicas_lists_become_one_and_a_lost_one_is_no_difference() -> None:
    def lost_after(*keys: Key) -> Iterator[tuple[Key, Copy]]:
        for key in keys:
            yield key, copy()
        raise Lost("away")

    told: list[tuple[int, str]] = []
    lists = {10: iter([(Key(1, 0), copy()), (Key(3, 0), copy())]), 20: lost_after(Key(1, 0), Key(2, 0))}
    rows = list(chain_rows(4, lists, lambda target, exc: told.append((target, str(exc)))))
    assert [row.key for row in rows] == [Key(1, 0), Key(2, 0), Key(3, 0)]
    assert rows[0].copies == {10: copy(), 20: copy()}
    assert rows[1].copies == {10: ABSENT, 20: copy()}
    assert rows[2].copies == {10: copy()}
    assert told == [(20, "away")]


def test_generated_lists_give_exactly_what_was_planted() -> None:
    for seed in range(30):
        _plant_and_scan(random.Random(seed))


def _plant_and_scan(chance: random.Random) -> None:
    """Whole files on three chains of three replicas; then some chunks are harmed, each in one way."""
    chains = (1, 2, 3)
    replicas = {chain: [chain * 10 + place for place in range(3)] for chain in chains}
    held: dict[int, dict[Key, Copy]] = {target: {} for members in replicas.values() for target in members}
    files, holes = [], 0
    for inode in sorted(chance.sample(range(2, 500), 60)):
        length = chance.choice([0, 1, CHUNK, 5 * CHUNK + 3])
        file = File(inode, length, 0, CHUNK, tuple(chance.sample(chains, 2)), removed=chance.random() < 0.1)
        files.append(file)
        hole = False
        for index in range(file.chunks):
            if chance.random() < 0.05:
                hole = True
                continue
            one = copy(chance.randint(1, 9), min(CHUNK, length - index * CHUNK), chance.getrandbits(32))
            for target in replicas[file.chain_of(index)]:
                held[target][Key(inode, index)] = one
        holes += hole and not file.removed
    wrong: set[Suspect] = set()
    live = [file for file in files if not file.removed and file.length]
    for _ in range(chance.randint(0, 8)):
        file = chance.choice(live)
        index = chance.randrange(file.chunks)
        key, chain = Key(file.inode, index), file.chain_of(index)
        other = next(each for each in chains if each != chain)
        harm = chance.randrange(5)
        if harm == 0:
            key, chain = Key(1000 + chance.randrange(100), index), chance.choice(chains)
            for target in replicas[chain]:
                held[target][key] = copy()
        elif harm == 1:
            chain = other
            for target in replicas[chain]:
                held[target][key] = copy()
        elif harm == 2:
            key = Key(file.inode, file.chunks + 7)
            chain = file.chain_of(key.chunk_index)
            for target in replicas[chain]:
                held[target][key] = copy()
        elif key not in held[replicas[chain][0]]:
            continue
        elif harm == 3:
            if not held[replicas[chain][0]].keys() >= {key} or Suspect(key, chain) in wrong:
                continue
            del held[chance.choice(replicas[chain])][key]
        else:
            if Suspect(key, chain) in wrong:
                continue
            held[chance.choice(replicas[chain])][key] = copy(77)
        wrong.add(Suspect(key, chain))
    tally = Tally()
    rows = [
        chain_rows(chain, {target: iter(sorted(held[target].items())) for target in members}, lambda *_: None)
        for chain, members in replicas.items()
    ]
    assert set(suspects(rows, iter(files), frozenset(chains), tally)) == wrong
    assert tally.files == len(files)
    assert tally.copies == sum(map(len, held.values()))
    assert tally.files_with_holes == holes


def test_memory_does_not_grow_with_the_lists() -> None:
    """Lists and files are taken as they are needed: never more than one row of each chain ahead."""
    taken = {"chunks": 0, "files": 0}
    count = 3000

    def rows() -> Iterator[Row]:
        for inode in range(count):
            taken["chunks"] += 1
            yield Row(Key(inode, 0), 1, {10: copy()})

    def files() -> Iterator[File]:
        for inode in range(0, count, 2):
            taken["files"] += 1
            yield File(inode, CHUNK, 0, CHUNK, (1,))

    for seen, suspect in enumerate(suspects([rows()], files(), frozenset({1}), Tally())):
        assert suspect.key.inode == 2 * seen + 1
        assert taken["chunks"] <= suspect.key.inode + 2
        assert taken["files"] <= seen + 2


def test_files_on_chains_that_nobody_serves_are_counted() -> None:
    tally = Tally()
    files = [File(inode, CHUNK, 0, CHUNK, (1, inode % 2 + 8)) for inode in range(2, 12)]
    assert not list(suspects([], iter(files), frozenset({1, 8}), tally))
    assert tally.unserved == {9: ChainUse(5, 3)}
    assert tally.files_with_holes == 5


# One look


@pytest.mark.parametrize(
    ("key", "chain_id", "copies", "file", "kind"),
    [
        (KEY, 2, [copy(), copy()], FILE, None),
        (KEY, 2, [ABSENT, ABSENT], None, None),
        (KEY, 2, [copy(), copy()], None, Kind.ORPHAN),
        (KEY, 1, [copy()], FILE, Kind.MISPLACED),
        (KEY, 1, [copy()], FILE._replace(writing=True), Kind.MISPLACED),
        (KEY, 2, [copy()], FILE._replace(removed=True, length=0), None),
        (KEY, 2, [copy()], FILE._replace(length=CHUNK), Kind.BEYOND_END),
        (KEY, 2, [copy()], FILE._replace(length=2 * CHUNK - 1), Kind.BEYOND_END),
        (KEY, 2, [copy(length=9)], FILE._replace(length=CHUNK + 9), None),
        (KEY, 2, [copy(length=0)], FILE._replace(length=0, chunk_size=CHUNK), Kind.BEYOND_END),
        (KEY, 2, [copy()], FILE._replace(length=0, writing=True), None),
        (KEY, 2, [copy()], FILE._replace(length=0, trimming=True), None),
        (KEY, 2, [copy(), ABSENT], FILE, Kind.MISSING),
        (KEY, 2, [copy(), copy(crc=6), copy()], FILE, Kind.DIFFERS),
        (KEY, 2, [copy(), copy(2), ABSENT], FILE, Kind.DIFFERS),
    ],
)
def test_one_look(key: Key, chain_id: int, copies: list[Copy], file: File | None, kind: Kind | None) -> None:
    assert problem_of(key, chain_id, dict(enumerate(copies)), file) is kind


# Several looks


def test_a_finding_needs_two_looks_that_saw_the_same() -> None:
    orphan = look(copy(), copy(), file=None)
    found = judged(orphan, orphan)
    assert isinstance(found, Finding)
    assert (found.kind, found.version, found.writer, found.keep_bytes) == (Kind.ORPHAN, 1, ALICE, 0)
    assert judged(orphan, look(copy(), copy())) is Verdict.FINE
    assert judged(orphan, look(ABSENT, ABSENT, file=None)) is Verdict.FINE
    # Written anew in between, under the same number and with the same bytes.
    assert judged(orphan, look(copy(writer=BOB), copy(writer=BOB), file=None)) is Verdict.AGAIN
    assert judged(orphan, None) is Verdict.AGAIN
    assert judged(orphan, None, orphan) is Verdict.AGAIN, "a look that was not whole proves nothing"
    assert judged(orphan, look(copy(), copy(), version=2, file=None)) is Verdict.AGAIN


def test_a_file_that_changes_between_the_looks_is_looked_at_again() -> None:
    short = FILE._replace(length=CHUNK + 5)
    found = judged(look(copy(), file=short), look(copy(), file=short))
    assert isinstance(found, Finding)
    assert (found.kind, found.keep_bytes) == (Kind.BEYOND_END, 5)
    for change in ({"length": CHUNK + 6}, {"truncate_version": 1}):
        assert judged(look(copy(), file=short), look(copy(), file=short._replace(**change))) is Verdict.AGAIN
    assert judged(look(copy(), file=short), look(copy(), file=short._replace(writing=True))) is Verdict.FINE


def test_nothing_is_found_while_an_update_is_under_way() -> None:
    before = look(copy(2), copy(1))
    busy = look(copy(2), copy(1, busy=True))
    assert judged(busy, busy) is Verdict.AGAIN
    assert judged(before, busy) is Verdict.AGAIN
    assert judged(look(copy(1), copy(1, pending=2, pending_writer=BOB)), before) is Verdict.AGAIN
    found = judged(before, before)
    assert isinstance(found, Finding)
    assert found.kind is Kind.DIFFERS


def test_a_version_that_stays_pending_is_found_after_a_while() -> None:
    def pending(at_s: float, version: int = 2, head: bool = False) -> Look:
        held = copy(1, pending=version, pending_writer=BOB)
        return look(held if head else copy(1), copy(1) if head else held, at_s=at_s)

    late = PENDING_SETTLE_S + 1
    found = judged(pending(0), pending(10), pending(late))
    assert isinstance(found, Finding)
    assert (found.kind, found.targets, found.decided) == (Kind.PENDING, (20,), True)
    assert judged(pending(0), pending(10, version=3), pending(late, version=3)) is Verdict.AGAIN
    assert judged(pending(0), look(copy(1), copy(1))) is Verdict.FINE
    found = judged(pending(0, head=True), pending(late, head=True))
    assert isinstance(found, Finding)
    assert (found.targets, found.decided) == ((), False)


# Who is right


def content(version: int, crc: int = 5) -> Content:
    return Content(version, CHUNK, crc, CHUNK)


A, B = content(5), content(5, crc=6)
OLD, NEW = content(4), content(6)


@pytest.mark.parametrize(
    ("held", "right"),
    [
        # The majority, whichever replica is the odd one.
        ([A, A, B], A),
        ([B, A, A], A),
        ([A, OLD, A], A),
        ([NEW, A, A], A),
        ([A, A, OLD], A),
        # A newer version at the tail was committed: the others follow.
        ([A, A, NEW], NEW),
        ([OLD, A], A),
        ([OLD, OLD, A], A),
        # Lost there.
        ([A, None], A),
        ([None, A], A),
        ([None, A, A], A),
        ([None, None, A], A),
        ([A, None, None], A),
        # No majority and one number: the tail's.
        ([A, B], B),
        # The tail is behind, or the rest do not agree either.
        ([A, OLD], UNDECIDED),
        ([A, B, None], UNDECIDED),
        ([NEW, A, OLD], UNDECIDED),
    ],
)
def test_which_content_is_right(held: list[Content | None], right: object) -> None:
    assert right_content([Copy(one) for one in held], wanted=True) == right


def test_a_chunk_that_no_file_wants_goes_where_some_have_it() -> None:
    assert right_content([Copy(A), Copy(None), Copy(A)], wanted=False) is None
    assert right_content([Copy(A), Copy(B), Copy(A)], wanted=False) == A
    orphan = look(copy(), ABSENT, copy(), file=None)
    found = judged(orphan, orphan)
    assert isinstance(found, Finding)
    assert (found.kind, found.targets) == (Kind.MISSING, (10, 30))


def test_what_cannot_be_told_names_no_target() -> None:
    unclear = look(copy(5), copy(4))
    found = judged(unclear, unclear)
    assert isinstance(found, Finding)
    assert (found.targets, found.decided) == ((), False)


@pytest.mark.parametrize(
    ("serving", "wrong", "target"),
    [
        ((1, 2, 3), {1}, 1),
        ((1, 2, 3), {3}, 3),
        ((1, 2, 3), {1, 3}, 3),
        ((1, 2, 3), {1, 2}, 2),
        ((1, 2, 3), {2, 3}, None),
        ((1, 2), {1, 2}, None),
        ((1,), {1}, None),
        ((), {1}, None),
        ((1, 2), {9}, None),
    ],
)
def test_a_replica_is_resynced_only_from_a_right_one(
    serving: tuple[int, ...], wrong: set[int], target: int | None
) -> None:
    assert next_to_resync(serving, wrong) == target


# Blocks of the KV cache


def test_a_block_of_the_kv_cache_has_no_place_in_a_file_that_could_be_wrong() -> None:
    """Its index is a hash and its file is empty: only its chain and its replicas can be wrong."""
    empty = FILE._replace(length=0)
    key = Key(7, 0xFEDCBA9876543211)
    block = Copy(Content(1, CHUNK, 5, CHUNK, named=True), ALICE)
    assert problem_of(key, 2, {10: block, 20: block}, empty) is None
    assert problem_of(key, 1, {10: block}, empty) is Kind.MISPLACED
    assert problem_of(key, 2, {10: block}, None) is Kind.ORPHAN
    found = judged(look(block, ABSENT, file=empty), look(block, ABSENT, file=empty), key=key)
    assert isinstance(found, Finding)
    assert (found.kind, found.targets) == (Kind.MISSING, (20,))  # it was lost there, not left over here
