"""An agent: a process beside the mount that serves rings. `python -m fireflyfs.fuse.usrbio.agent`, by the mount only.

It keeps nothing: rings, regions and files come from the mount through a socket, and when that closes, it ends.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Final

from fireflyfs.client.cli.logs import set_up
from fireflyfs.client.session import ClientContext
from fireflyfs.common import collector
from fireflyfs.common.errors import FfsError
from fireflyfs.common.net.memory import SharedPool
from fireflyfs.fuse.usrbio import messages
from fireflyfs.fuse.usrbio.ends import Ends
from fireflyfs.fuse.usrbio.known import Known
from fireflyfs.fuse.usrbio.messages import Message
from fireflyfs.fuse.usrbio.ring_threads import RingThreads
from fireflyfs.fuse.usrbio.served_ring import ServedRing
from fireflyfs.fuse.usrbio.stages import Stages
from fireflyfs.proto.common_pb2 import NODE_TYPE_FUSE

log = logging.getLogger(__name__)

CONNECT_S: Final = 30.0
END_S: Final = 3.0  # for batches under way, when the mount ends
ANSWER_S: Final = 60.0  # the mount may wait for a metadata server


class Questions:
    """Questions to the mount under way. Safe to use from several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[threading.Event, list[tuple[Message, int]]]] = {}

    def ask(self, question: Message) -> tuple[Message, int]:
        """The answer and its descriptor. OSError: what the mount says is wrong, or it does not answer."""
        number = next(self._numbers)
        came: list[tuple[Message, int]] = []
        event = threading.Event()
        with self._lock:
            self._waiting[number] = (event, came)
        try:
            messages.send(self._sock, question | {"n": number})
            event.wait(ANSWER_S)
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if not came:
            raise OSError(errno.ETIMEDOUT, "the mount does not answer")
        answer, fd = came[0]
        if answer.get("errno"):
            raise OSError(answer["errno"], "the mount says no")
        return answer, fd

    def answered(self, answer: Message, fd: int) -> None:
        with self._lock:
            waiting = self._waiting.get(answer["re"])
            if waiting is not None:
                waiting[1].append((answer, fd))
        if waiting is not None:
            waiting[0].set()
        elif fd >= 0:
            os.close(fd)


class Agent:
    """Serves what the mount says on `sock`, until that is closed."""

    def __init__(self, sock: socket.socket, context: ClientContext, ends: Ends) -> None:
        self._sock = sock
        self._context = context
        self._questions = Questions(sock)
        self._known = Known(self._questions.ask, ends, lambda token: self._tell({"did": "forget", "file": token}))
        assert isinstance(context.pool, SharedPool)
        self._stages = Stages(context.pool)
        self._rings: dict[int, RingThreads] = {}

    def run(self) -> None:
        while (came := messages.receive(self._sock)) is not None:
            message, fd = came
            if "re" in message:
                self._questions.answered(message, fd)
            elif message["do"] == "serve":
                self._serve(message["ring"], fd)
            elif message["do"] == "drop":
                threads = self._rings.pop(message["ring"], None)
                if threads is not None:
                    threads.stop()
            elif message["do"] == "forget_region":
                self._known.forget_region(bytes.fromhex(message["region"]))
            elif message["do"] == "forget":
                self._known.forget_file(message["file"])
        for threads in self._rings.values():
            threads.stop()
        end_s = time.monotonic() + END_S
        for threads in self._rings.values():  # whoever waits is told
            threads.join(end_s - time.monotonic())

    def _serve(self, number: int, fd: int) -> None:
        try:
            if fd < 0:
                raise OSError(errno.EMFILE, "its descriptor did not arrive")
            ring = ServedRing(fd)
        except (OSError, ValueError) as exc:
            log.warning("ring %d is refused: %s", number, exc)
            if fd >= 0:
                os.close(fd)
            self._tell({"did": "refuse", "ring": number, "errno": getattr(exc, "errno", None) or errno.EINVAL})
            return
        self._rings[number] = threads = RingThreads(ring, self._context.storage, self._known, self._stages)
        threads.start()

    def _tell(self, message: Message) -> None:
        try:
            messages.send(self._sock, message)
        except OSError as exc:
            log.debug("the mount is gone: %s", exc)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--ends", type=int, required=True)
    parser.add_argument("--mgmtd", required=True)
    parser.add_argument("--link", default="")
    parser.add_argument("--log-file", type=Path)
    options = parser.parse_args()
    set_up(options.log_file, "info")
    try:
        context = ClientContext.connect(
            options.mgmtd.split(","),
            NODE_TYPE_FUSE,
            connect_timeout_s=CONNECT_S,
            description=f"agent {os.getpid()}",
            link=options.link,
        )
    except FfsError as exc:
        log.error("cannot join the cluster: %s", exc)
        raise SystemExit(4) from exc
    collector.settle()
    with socket.socket(fileno=options.socket) as sock:
        Agent(sock, context, Ends(options.ends)).run()
    context.close()
    os._exit(0)  # rings may wait for servers


if __name__ == "__main__":
    main()
