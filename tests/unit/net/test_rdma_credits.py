"""How many messages may be on their way, and how deep that makes queues: none overflows, nobody waits for ever."""

from __future__ import annotations

import random
from collections import deque

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.rdma.credits import (
    BLOCK,
    COUNT_MASK,
    SPARE,
    Credits,
    ReceiveBudget,
    connections_that_fit,
    receive_buffers,
    send_completions,
)


class End:
    """One end: it has messages to send, and reads what came when it likes."""

    def __init__(self, window: int, theirs: int, to_send: int) -> None:
        self.credits = Credits(window, theirs)
        self.window = window
        self.to_send = to_send
        self.unread = 0
        self.taken = 0  # data messages
        self.way: deque[tuple[int, bool]] = deque()  # to this end: what a message grants, whether it carries data

    def send(self, peer: End) -> bool:
        if not self.to_send or not self.credits.room:
            return False
        self.to_send -= 1
        peer.way.append((self.credits.sends(), True))
        return True

    def tell(self, peer: End) -> bool:
        if not self.credits.due:
            return False
        peer.way.append((self.credits.sends(), False))
        return True

    def arrive(self) -> bool:
        if not self.way:
            return False
        assert len(self.way) + self.unread <= self.window, "more than there are buffers for"
        told, data = self.way.popleft()
        self.credits.received(told)
        if data:
            self.unread += 1
        else:
            self.credits.posted_again()
        return True

    def read(self) -> bool:
        if not self.unread:
            return False
        self.unread -= 1
        self.taken += 1
        self.credits.posted_again()
        return True


@pytest.mark.parametrize("windows", [(4, 4), (4, 16), (16, 16), (5, 7)])
def test_no_buffer_is_missing_and_everything_arrives(windows: tuple[int, int]) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        count = rng.choice([1, 10, 300])
        ends = [End(windows[0], windows[1], count), End(windows[1], windows[0], rng.choice([0, count]))]
        wanted = [ends[1].to_send, ends[0].to_send]
        while [end.taken for end in ends] != wanted:
            turns = [
                (step, which)
                for which in (0, 1)
                for step in ("send", "tell", "arrive", "read")
                for _ in range(rng.randrange(1, 4))
            ]
            rng.shuffle(turns)
            moved = False
            for step, which in turns:
                end, peer = ends[which], ends[1 - which]
                moved |= getattr(end, step)(peer) if step in ("send", "tell") else getattr(end, step)()
            assert moved, "both wait for each other"


def test_an_end_that_does_not_read_until_its_own_messages_are_taken() -> None:
    """A server that holds back requests until its answers have left: what tells of room gets past what is unread."""
    server, client = End(16, 16, 500), End(16, 16, 400)
    while client.taken < 500:
        moved = [client.send(server), client.tell(server), server.send(client), server.tell(client)]
        moved += [server.arrive(), client.arrive(), client.read()]
        assert any(moved), "both wait for each other"
    assert server.unread > 0


def test_messages_without_frames_do_not_answer_each_other_for_ever() -> None:
    ends = [End(16, 16, 1000), End(16, 16, 0)]
    tells = 0
    while ends[1].taken < 1000:
        for end, peer in (ends, ends[::-1]):
            end.send(peer)
            tells += end.tell(peer)
            while end.arrive() or end.read():
                pass
    assert tells < 1000 // 7 + 20


def test_one_message_too_many_is_found() -> None:
    credits = Credits(4, 4)
    for _ in range(4):
        credits.received(4)
    with pytest.raises(FfsError, match="5 came, 4 were granted") as caught:
        credits.received(4)
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize("told", [3, 5, 1 << 31, COUNT_MASK, 0])
def test_grants_that_a_peer_cannot_make_are_found(told: int) -> None:
    """Fewer than before, or more than it has buffers."""
    credits = Credits(4, 4)
    with pytest.raises(FfsError) as caught:
        credits.received(told)
    assert caught.value.code is Code.PROTOCOL


def test_counts_begin_again_on_the_wire() -> None:
    ours, theirs = Credits(4, 4), Credits(4, 4)
    for credits in (ours, theirs):
        for name in ("_granted", "_received", "_allowed", "_sent"):
            setattr(credits, name, getattr(credits, name) + COUNT_MASK - 5)
        credits._posted_again = COUNT_MASK - 5
    for _ in range(40):
        assert ours.room
        theirs.received(ours.sends())
        theirs.posted_again()
        if theirs.due:
            ours.received(theirs.sends())
            ours.posted_again()


def test_every_granted_message_has_a_buffer_whoever_comes_and_goes() -> None:
    rng = random.Random(3)
    budget, posted = ReceiveBudget(20), 0
    for _ in range(400):
        if rng.random() < 0.6:
            if budget.full:
                with pytest.raises(OSError, match="share"):
                    budget.enter()
            else:
                posted += budget.enter()
        elif budget.connections:
            budget.leave()
        assert posted == budget.buffers <= budget.buffers_max == receive_buffers(20)
        assert posted >= budget.connections * 16 + (SPARE if posted else 0)
    lost = sum(budget.replace_lost() for _ in range(100))
    assert posted + lost == budget.buffers_max


def test_queues_hold_whatever_may_be_in_them() -> None:
    assert send_completions(128) > 128
    for allowed in (0, 100, 4096, 32767, 1 << 20):
        fit = connections_that_fit(allowed)
        assert fit == 0 or receive_buffers(fit) <= allowed
        assert receive_buffers(fit + BLOCK) > allowed, "room is left over"
    assert connections_that_fit(32767) >= 1024, "of a card"
