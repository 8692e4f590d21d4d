"""Chains as they reach the device, with work requests that are used again; pyverbs is played.

The fault model: a work request keeps what it was told until it is told otherwise, its successor too, and cannot be
told that it has none.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from fireflyfs.common.net.rdma import queues
from fireflyfs.common.net.rdma.plan import Local, Verb, Work
from fireflyfs.common.net.rdma.queues import KEPT_MAX, QueuePair

WRITE, READ, SEND, SIGNALED = 0, 4, 2, 2


class PlayedRequest:
    made = 0

    def __init__(self, *, num_sge: int, sg: list[Local]) -> None:
        PlayedRequest.made += 1
        assert num_sge == len(sg)
        self.sg = tuple(sg)
        self.wr_id = self.opcode = self.send_flags = -1
        self.rdma = (0, 0)
        self._next: PlayedRequest | None = None

    @property
    def next_wr(self) -> PlayedRequest | None:
        return self._next

    @next_wr.setter
    def next_wr(self, value: PlayedRequest) -> None:
        assert value is not None
        self._next = value

    def set_wr_rdma(self, rkey: int, address: int) -> None:
        self.rdma = (rkey, address)


class PlayedRaw:
    """Takes a chain as a device does."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int, int, int, tuple[Local, ...]]] = []
        self.refuses = False

    def post_send(self, request: PlayedRequest | None) -> None:
        if self.refuses:
            raise OSError(12, "no room")
        self.taken = []
        while request is not None:
            assert len(self.taken) < 200, "a chain without an end"
            rkey, address = request.rdma if request.opcode != SEND else (0, 0)
            self.taken.append((request.wr_id, request.opcode, request.send_flags, rkey, address, request.sg))
            request = request.next_wr


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> PlayedRaw:
    wr = SimpleNamespace(SendWR=PlayedRequest, SGE=lambda *piece: piece)
    monkeypatch.setattr(queues, "library", lambda: SimpleNamespace(wr=wr))
    PlayedRequest.made = 0
    return PlayedRaw()


def pair_on(raw: PlayedRaw) -> QueuePair:
    pair = QueuePair.__new__(QueuePair)
    pair._what, pair._raw = "queue pair", raw
    pair._signaled, pair._opcodes, pair._kept = SIGNALED, (WRITE, READ, SEND), {}
    return pair


def expected(chain: list[tuple[int, Work, bool]]) -> list[Any]:
    opcodes = {Verb.WRITE: WRITE, Verb.READ: READ, Verb.SEND: SEND}
    return [
        (number, opcodes[work.verb], SIGNALED if signalled else 0, work.rkey, work.address, work.local)
        for number, work, signalled in chain
    ]


def test_every_chain_is_posted_as_it_is_whatever_was_posted_before(raw: PlayedRaw) -> None:
    rng = random.Random(3)
    pair = pair_on(raw)
    number = 0
    for _ in range(3000):
        chain = []
        for _ in range(rng.choice([1, 1, 2, 3, 8, 9, 70])):
            number += 1
            verb = rng.choice(list(Verb))
            places = rng.choice([1, 1, 2])
            local = tuple((rng.randrange(5), rng.choice([1, 4096]), 7) for _ in range(places))
            rkey, address = (0, 0) if verb is Verb.SEND else (rng.randrange(1, 9), rng.randrange(1, 99))
            chain.append((number, Work(verb, address, rkey, 1, local), rng.random() < 0.3))
        raw.refuses = rng.random() < 0.1
        if raw.refuses:
            with pytest.raises(OSError, match="no room"):
                pair.post(chain)
            continue
        pair.post(chain)
        assert raw.taken == expected(chain)
        assert len(pair._kept) <= KEPT_MAX


def test_what_is_posted_again_and_again_is_made_once(raw: PlayedRaw) -> None:
    pair = pair_on(raw)
    write = Work(Verb.WRITE, 5, 1, 4096, ((1000, 4096, 7),))
    for number in range(0, 100, 2):
        chain = [
            (number, write._replace(address=number), False),
            (number + 1, Work(Verb.SEND, 0, 0, 40, ((1, 40, 7),)), True),
        ]
        pair.post(chain)
        assert raw.taken == expected(chain)
    assert PlayedRequest.made == 2
