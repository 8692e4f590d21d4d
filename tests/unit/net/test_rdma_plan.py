"""Work requests out of pieces, and which of them may be posted when: the pure half of the rdma link."""

from __future__ import annotations

import random

import pytest

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.rdma.choice import Candidate, choose, ipv4_gid, pick_gid
from fireflyfs.common.net.rdma.plan import Piece, Verb, Work, plan
from fireflyfs.common.net.rdma.sending import Grants, Operation, SendQueue, Silence
from fireflyfs.common.net.rdma.verbs import Gid, Port

PORT = Port(1, active=True, mtu=5, message_bytes_max=1 << 20, lid=0, ethernet=True)
LINK_LOCAL = Gid(0, "fe80:0000:0000:0000:0000:0000:0000:0001", roce_v2=True)
OLD = Gid(1, "0000:0000:0000:0000:0000:ffff:0a4d:0001", roce_v2=False)
FIRST = Gid(2, "0000:0000:0000:0000:0000:ffff:0a4d:0001", roce_v2=True)
SECOND = Gid(3, "0000:0000:0000:0000:0000:ffff:0a4d:0002", roce_v2=True)


def moved(works: list[Work]) -> list[tuple[int, int, int, int]]:
    """(peer's address, rkey, our address, lkey) of every byte, in order."""
    found = []
    for work in works:
        at = work.address
        for address, length, lkey in work.local:
            found += [(at + i, work.rkey, address + i, lkey) for i in range(length)]
            at += length
        assert at - work.address == work.length
    return found


def test_neighbours_join_and_others_do_not() -> None:
    joined = plan([Piece(100, 1, 10, 500, 9), Piece(110, 1, 5, 510, 9)], read=True, sges_max=4, message_bytes_max=1000)
    assert joined == [Work(True, 100, 1, 15, ((500, 15, 9),))]
    scattered = plan([Piece(100, 1, 10, 500, 9), Piece(110, 1, 5, 600, 9)], read=True, sges_max=4, message_bytes_max=99)
    assert scattered == [Work(True, 100, 1, 15, ((500, 10, 9), (600, 5, 9)))]
    apart = plan([Piece(100, 1, 10, 500, 9), Piece(200, 1, 5, 510, 9)], read=False, sges_max=4, message_bytes_max=99)
    assert [work.address for work in apart] == [100, 200]
    other_region = plan(
        [Piece(100, 1, 10, 500, 9), Piece(110, 2, 5, 510, 9)], read=False, sges_max=4, message_bytes_max=99
    )
    assert [work.rkey for work in other_region] == [1, 2]


def test_no_piece_is_lost_whatever_the_limits() -> None:
    rng = random.Random(11)
    for _ in range(300):
        pieces, at, here = [], 1000, 50_000
        for _ in range(rng.randrange(1, 12)):
            at += rng.choice([0, 0, 7])
            here += rng.choice([0, 0, 13])
            length = rng.choice([0, 1, 3, 40])
            pieces.append(Piece(at, rng.choice([1, 1, 2]), length, here, rng.choice([8, 8, 9])))
            at += length
            here += length
        sges_max, message_bytes_max = rng.randrange(1, 4), rng.randrange(1, 60)
        works = plan(pieces, read=True, sges_max=sges_max, message_bytes_max=message_bytes_max)
        assert all(0 < work.length <= message_bytes_max and 1 <= len(work.local) <= sges_max for work in works)
        assert moved(works) == [
            (p.address + i, p.rkey, p.local_address + i, p.lkey) for p in pieces for i in range(p.length)
        ]


def works_of(count: int, length: int = 10) -> list[Work]:
    return [Work(False, 0, 1, length, ((0, length, 1),)) for _ in range(count)]


def test_a_queue_never_holds_more_than_its_depth_and_always_moves_on() -> None:
    rng = random.Random(5)
    for depth in (1, 2, 3, 16):
        queue = SendQueue(depth, bytes_max=55, whole_chains=rng.random() < 0.5)
        done: list[int] = []
        total = 0
        signalled: list[int] = []
        for number in range(40):
            count = rng.randrange(1, 3 * depth + 1)
            total += count
            queue.submit(Operation(works_of(count), lambda exc, n=number, to=done: to.append(n)))
            chain = queue.take()
            signalled += [n for n, _, signal in chain if signal]
            assert queue.in_flight <= depth
            assert queue.bytes_in_flight <= 55 or queue.in_flight == 1
        while signalled:  # the device completes in order, and tells only of those that are signalled
            for operation in queue.completed(signalled.pop(0)):
                operation.finish(None)
            signalled += [n for n, _, signal in queue.take() if signal]
        assert done == list(range(40))
        assert queue.in_flight == queue.bytes_in_flight == 0


def test_long_operations_are_bounded_before_any_of_them_is_signalled() -> None:
    queue = SendQueue(128, bytes_max=100)
    queue.submit(Operation(works_of(40, 60), lambda exc: None))
    queue.submit(Operation(works_of(1, 30), lambda exc: None))
    for number in range(1, 40):
        [(posted, _, signal)] = queue.take()
        assert (posted, signal, queue.bytes_in_flight) == (number, True, 60)
        queue.completed(number)


def test_silent_work_keeps_nobody_waiting() -> None:
    """What was posted without a signal is finished by what comes later, however much that is."""
    rng = random.Random(6)
    for seed in range(200):
        rng.seed(seed)
        queue = SendQueue(
            rng.choice([1, 4, 16]), bytes_max=100, read_bytes_max=50, silence=Silence(60, 30),
            whole_chains=rng.random() < 0.5,
        )  # fmt: skip
        done: list[int] = []
        signalled: list[int] = []
        for number in range(60):
            size = rng.choice([1, 8, 99, 100, 101, 5000])
            verb = rng.choice([Verb.SEND, Verb.WRITE, Verb.READ])
            silent = verb is not Verb.READ and rng.random() < 0.8
            work = Work(verb, 0, 0, size, ((0, size, 1),))
            told = lambda exc, n=number, to=done: to.append(n)  # noqa: E731
            queue.submit(Operation([work], told, signalled=not silent, keeps=2 * size))
            signalled += [n for n, _, signal in queue.take() if signal]
            while signalled and rng.random() < 0.7:
                for operation in queue.completed(signalled.pop(0)):
                    operation.finish(None)
                signalled += [n for n, _, signal in queue.take() if signal]
        work = Work(Verb.WRITE, 0, 0, 1, ((0, 1, 1),))
        queue.submit(Operation([work], lambda exc, to=done: to.append(60)))
        signalled += [n for n, _, signal in queue.take() if signal]
        while signalled:
            for operation in queue.completed(signalled.pop(0)):
                operation.finish(None)
            signalled += [n for n, _, signal in queue.take() if signal]
        assert sorted(done) == list(range(61)), f"seed {seed}"
        assert queue.in_flight == queue.bytes_in_flight == 0


def work_of(verb: Verb, length: int) -> list[Work]:
    return [Work(verb, 0, 0, length, ((0, length, 1),))]


def test_an_answer_does_not_wait_for_reads_that_are_not_posted_yet() -> None:
    """A peer answers in order: what is posted behind READs arrives after all their bytes have moved."""
    queue = SendQueue(16, bytes_max=1000, read_bytes_max=100)
    done: list[str] = []
    for name in ("a", "b", "c", "d"):
        queue.submit(Operation(work_of(Verb.READ, 50), lambda exc, n=name: done.append(n)))
    assert len(queue.take()) == 2
    for length in (10, 900):
        queue.submit(Operation(work_of(Verb.WRITE, length), lambda exc, n=length: done.append(f"write {n}")))
    queue.submit(Operation(work_of(Verb.SEND, 30), lambda exc: done.append("send")))
    assert [work.verb for _, work, _ in queue.take()] == [Verb.WRITE, Verb.WRITE, Verb.SEND], "in order, past READs"
    for operation in queue.completed(1):
        operation.finish(None)
    assert [work.verb for _, work, _ in queue.take()] == [Verb.READ]
    for operation in queue.completed(5):
        operation.finish(None)
    assert done == ["a", "b", "write 10", "write 900", "send"]
    assert [work.verb for _, work, _ in queue.take()] == [Verb.READ]
    assert queue.in_flight == 2


def test_messages_are_posted_before_reads_that_come_with_them() -> None:
    """The device moves what is posted in order: an answer behind a READ would wait for all its bytes."""
    queue = SendQueue(16, bytes_max=1000, read_bytes_max=200)
    for _ in range(2):
        queue.submit(Operation(work_of(Verb.READ, 50), lambda exc: None))
        queue.submit(Operation(work_of(Verb.SEND, 30), lambda exc: None))
    assert [work.verb for _, work, _ in queue.take()] == [Verb.SEND, Verb.SEND, Verb.READ, Verb.READ]


def test_neither_reads_nor_answers_take_all_of_the_queue() -> None:
    queue = SendQueue(4, bytes_max=1000)
    queue.submit(Operation(works_of(8), lambda exc: None))
    queue.submit(Operation(work_of(Verb.READ, 1) * 8, lambda exc: None))
    assert [work.verb for _, work, _ in queue.take()] == [Verb.WRITE, Verb.READ, Verb.WRITE, Verb.READ]


def test_what_is_left_without_a_signal_is_bounded() -> None:
    """Nobody is told of it until something else completes: on one connection, and over all of a server's."""

    def silent(queue: SendQueue, keeps: int) -> bool:
        queue.submit(Operation(work_of(Verb.WRITE, 1), lambda exc: None, signalled=False, keeps=keeps))
        [(_, _, signal)] = queue.take()
        return not signal

    silence = Silence(100, 40)
    queues = [SendQueue(128, bytes_max=1000, silence=silence) for _ in range(4)]
    first = queues[0]
    assert [silent(first, 20) for _ in range(5)] == [True, True, False, True, True]
    assert silence.bytes == 40
    assert not silent(first, 41)
    assert silence.bytes == 0, "a signal stands for all before it"
    assert [silent(queue, 40) for queue in queues] == [True, True, False, False]
    assert silence.bytes == 80
    assert silent(queues[3], 20)
    queues[0].drop()
    assert silence.bytes == 60, "a connection that is gone leaves nothing"
    queues[1].submit(Operation(work_of(Verb.SEND, 8), lambda exc: None))
    assert [signal for _, _, signal in queues[1].take()] == [True]
    assert silence.bytes == 20


def test_only_some_work_is_signalled() -> None:
    queue = SendQueue(128, bytes_max=1 << 30)
    queue.submit(Operation(works_of(100), lambda exc: None))
    assert [number for number, _, signal in queue.take() if signal] == [32, 64, 96, 100]


def test_one_signal_ends_a_chain_that_is_done_as_a_whole() -> None:
    for whole_chains, signals in ((True, [4]), (False, [1, 2, 3, 4])):
        queue = SendQueue(128, bytes_max=1 << 30, whole_chains=whole_chains)
        operations = [Operation(work_of(Verb.READ, 10), lambda exc: None) for _ in range(4)]
        for operation in operations:
            queue.submit(operation)
        assert [number for number, _, signal in queue.take() if signal] == signals
        assert queue.completed(4) == operations
    silent = Operation(work_of(Verb.WRITE, 10), lambda exc: None, signalled=False)
    queue.submit(silent)
    assert [signal for _, _, signal in queue.take()] == [False], "nobody waits for it"


def test_buffers_of_one_chain_are_told_of_together() -> None:
    """What is too much to be left without a signal was posted in one call: the last one's does."""
    queue = SendQueue(128, bytes_max=1 << 30, silence=Silence(100, 40))
    for _ in range(5):
        queue.submit(Operation(work_of(Verb.WRITE, 30), lambda exc: None, signalled=False, keeps=30))
    assert [number for number, _, signal in queue.take() if signal] == [5]


def test_what_is_dropped_is_all_that_has_not_finished() -> None:
    queue = SendQueue(4, bytes_max=1 << 30)
    operations = [Operation(works_of(3), lambda exc: None) for _ in range(4)]
    for operation in operations:
        queue.submit(operation)
    queue.take()
    assert queue.completed(3) == [operations[0]]
    queue.take()
    assert queue.drop() == operations[1:]
    assert queue.take() == []


def test_grants_are_given_in_turn_and_large_ones_alone() -> None:
    grants, given = Grants(100), []
    for size in (60, 50, 500, 10):
        grants.ask(size, lambda size=size: given.append(size))
    assert given == [60]
    grants.give_back(60)
    assert given == [60, 50]
    grants.give_back(50)
    assert given == [60, 50, 500]
    grants.give_back(500)
    assert given == [60, 50, 500, 10]
    grants.give_back(10)
    assert grants.bytes == 0


def test_gids() -> None:
    assert ipv4_gid("10.77.0.1") == FIRST.gid
    assert ipv4_gid("::1") == ipv4_gid("10.77.0") == ipv4_gid("a.b.c.d") == ""
    table = [LINK_LOCAL, OLD, FIRST, SECOND]
    assert pick_gid(table, ethernet=True) == FIRST
    assert pick_gid(table, ethernet=True, wanted=SECOND.gid) == SECOND
    assert pick_gid(table, ethernet=True, index=1) == OLD
    assert pick_gid(table, ethernet=True, index=7) is None
    assert pick_gid([LINK_LOCAL], ethernet=True) == LINK_LOCAL
    assert pick_gid([OLD], ethernet=True) is None
    assert pick_gid([OLD], ethernet=False) == OLD


def test_ports_are_chosen_by_route_then_nearness_then_load() -> None:
    def at(name: str, gids: list[Gid], *, near: bool = True, connections: int = 0, port: Port = PORT) -> Candidate:
        return Candidate(name, port, gids, near, connections)

    def chosen(*candidates: Candidate, address: str = "") -> str:
        choice = choose(candidates, address=address)
        return choice.device if choice is not None else ""

    assert chosen(at("a", [FIRST]), at("b", [SECOND], near=False, connections=9), address="10.77.0.2") == "b"
    assert chosen(at("a", [FIRST], near=False), at("b", [SECOND], connections=9)) == "b"
    assert chosen(at("a", [FIRST], connections=2), at("b", [SECOND], connections=1)) == "b"
    assert chosen(at("a", [FIRST], port=PORT._replace(active=False)), at("b", [])) == ""


def test_an_operation_knows_its_error() -> None:
    told: list[FfsError | None] = []
    queue = SendQueue(2, 100)
    queue.submit(Operation(works_of(1), told.append))
    lost = error(Code.UNAVAILABLE, "gone")
    for operation in queue.drop():
        operation.finish(lost)
    assert told == [lost]
    with pytest.raises(ValueError, match="send queue"):
        SendQueue(0, 100)
