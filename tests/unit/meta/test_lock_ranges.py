"""Locks of ranges against a model of single bytes, and who may go on when."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.common.lock_spans import Span, with_span, without
from fireflyfs.meta.core.locks import (
    FAIR_NS,
    RANGE_END,
    Held,
    Owner,
    Waiter,
    behind,
    blockers,
    closes_ring,
    grants,
)

BYTES = 12
A, B, C = (Owner(letter * 16, number) for number, letter in enumerate((b"a", b"b", b"c")))


def bytes_of(spans: tuple[Span, ...]) -> list[bool | None]:
    cells: list[bool | None] = [None] * BYTES
    for span in spans:
        for place in range(span.start, span.end + 1):
            assert cells[place] is None, "two locks of one owner overlap"
            cells[place] = span.write
    return cells


steps = st.lists(
    st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1), st.sampled_from([None, False, True])), max_size=30
)


@given(steps)
def test_any_sequence_gives_each_byte_its_last_lock(sequence: list[tuple[int, int, bool | None]]) -> None:
    spans: tuple[Span, ...] = ()
    model: list[bool | None] = [None] * BYTES
    for one, other, write in sequence:
        start, end = min(one, other), max(one, other)
        spans = without(spans, start, end) if write is None else with_span(spans, Span(start, end, write))
        model[start : end + 1] = [write] * (end + 1 - start)
        assert bytes_of(spans) == model
        assert list(spans) == sorted(spans)
        for left, right in itertools.pairwise(spans):
            assert left.end + 1 < right.start or left.write != right.write, "two that could be one"


def test_the_end_of_all_files_stays_the_end() -> None:
    whole = with_span((), Span(0, RANGE_END, True))
    assert without(whole, 10, RANGE_END) == (Span(0, 9, True),)
    assert without(whole, 0, 9) == (Span(10, RANGE_END, True),)
    assert with_span(whole, Span(5, 5, False)) == (Span(0, 4, True), Span(5, 5, False), Span(6, RANGE_END, True))


def test_readers_share_and_writers_do_not() -> None:
    held = [Held(A, 1, (Span(0, 9, False), Span(20, 29, True)))]
    assert blockers(held, B, Span(0, 19, False)) == []
    assert [span for _, span in blockers(held, B, Span(0, 19, True))] == [Span(0, 9, False)]
    assert [span for _, span in blockers(held, B, Span(29, 40, False))] == [Span(20, 29, True)]
    assert blockers(held, A, Span(0, RANGE_END, True)) == []


def waiter(ticket: int, owner: Owner, span: Span, since_ns: int = 0, pid: int = 0) -> Waiter:
    return Waiter(ticket, bytes(16), owner, pid, span, since_ns)


ALL_READ, ALL_WRITE = Span(0, RANGE_END, False), Span(0, RANGE_END, True)


def test_a_queue_is_served_in_its_order() -> None:
    queue = [waiter(1, A, ALL_WRITE), waiter(2, B, ALL_WRITE), waiter(3, C, ALL_READ)]
    assert [each.owner for each in grants([], queue, 0, 10).now] == [A]
    assert [each.owner for each in grants([], queue[2:], 0, 10).now] == [C]
    free = [waiter(1, A, Span(0, 0, True)), waiter(2, B, Span(1, 1, True)), waiter(3, C, Span(2, 2, True))]
    assert [each.owner for each in grants([], free, 0, 2).now] == [A, B]
    assert grants([], free, 0, 2).more
    assert not grants([], free, 0, 3).more


def test_readers_do_not_overtake_a_writer_for_a_while() -> None:
    held = [Held(A, 1, (ALL_READ,))]
    queue = [waiter(1, B, ALL_WRITE), waiter(2, C, ALL_READ, pid=7)]
    assert behind(queue[:1], {A: held[0]}, C, 7, ALL_READ)
    assert grants(held, queue, FAIR_NS - 1, 10).now == ()
    assert [each.owner for each in grants(held, queue, FAIR_NS, 10).now] == [C]


def test_who_has_locked_something_here_waits_for_locks_only() -> None:
    """The writer waits for it: to wait behind the writer would be for ever."""
    held = {A: Held(A, 5, (ALL_READ,))}
    queue = [waiter(1, B, ALL_WRITE)]
    assert not behind(queue, held, A, 5, ALL_READ)
    assert not behind(queue, held, Owner(A.client_id, 99), 5, ALL_READ)  # another open file of the same process
    assert behind(queue, held, Owner(C.client_id, 99), 5, ALL_READ)  # the same number of another client's process


def test_rings() -> None:
    waits = {A: [B], B: [C], C: []}
    assert not closes_ring(A, lambda owner: waits[owner], 64)
    waits[C] = [A]
    assert closes_ring(A, lambda owner: waits[owner], 64)
    many = {Owner(b"m" * 16, n): [Owner(b"m" * 16, n + 1)] for n in range(100)}
    assert not closes_ring(Owner(b"m" * 16, 0), lambda owner: many.get(owner, []), 64)
