"""Calls by gRPC beside forks of the process."""

from __future__ import annotations

import threading

from fireflyfs.common.net.grpc_forks import Forks


class Client:
    """Has one call under way until its channel goes."""

    def __init__(self, forks: Forks) -> None:
        self.forks = forks
        self.dropped = threading.Event()
        self.entered = threading.Event()
        forks.add(self)

    def drop_channel(self) -> bool:
        self.dropped.set()
        return True

    def call(self) -> None:
        with self.forks.call():
            self.entered.set()
            assert self.dropped.wait(10)


def test_a_fork_ends_calls_and_keeps_others_out() -> None:
    forks = Forks()
    client = Client(forks)
    caller = threading.Thread(target=client.call)
    caller.start()
    assert client.entered.wait(10)
    forks.before()  # returns when the call has left
    caller.join(10)
    assert not caller.is_alive()
    later = Client(forks)
    later.dropped.set()
    waiting = threading.Thread(target=later.call)
    waiting.start()
    assert not later.entered.wait(0.05)
    forks.before()  # another thread forks at the same time
    forks.after_in_parent()
    assert not later.entered.wait(0.05)
    forks.after_in_parent()
    assert later.entered.wait(10)
    waiting.join(10)


def test_a_child_begins_without_what_its_parent_was_at() -> None:
    forks = Forks()
    client = Client(forks)
    caller = threading.Thread(target=client.call)
    caller.start()
    assert client.entered.wait(10)
    forks.after_in_child()  # without the parent's threads: nobody will leave that call
    with forks.call():
        pass
    client.dropped.set()
    caller.join(10)
