"""Updates of many chunks: grouped by chain, one request for each chain to its head, all sent before any is awaited.

Each request holds an update channel until its outcome is known: sent again after any failure with the same sequence, it
happens once. A request is repeated whole; chunks that succeeded answer what they answered before.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fireflyfs.client.channels import ChannelPool, ChannelUse
from fireflyfs.client.retry import Retry, RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.client.storage_codec import UpdateRequest, WriteSpan, pack_update, plan_write, stamp, update_results
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, Reaction, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Address, BlockingLink, Call, Piece
from fireflyfs.common.net.methods import Method

WAVE_REQUESTS_MAX = 32  # under way at once for one caller
WAVE_BYTES_MAX = 128 * MiB


@dataclass(slots=True)
class _Sending:
    """One request on its way."""

    request: UpdateRequest
    body: bytearray
    pieces: list[Piece]
    statuses: list[FfsError | None] | None = None  # of each item, once answered
    failure: FfsError | None = None  # of the last attempt


class StorageWriter:
    """Batched writes with exactly-once retry. Safe to use from several threads."""

    def __init__(
        self,
        link: BlockingLink,
        routing: RoutingView,
        client_id: ClientId,
        channels: ChannelPool,
        policy: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._link = link
        self._routing = routing
        self._client_id = client_id
        self._channels = channels
        self._policy = policy
        self._clock = clock
        self._random = rng
        self._sleep = sleep

    def write(self, spans: Sequence[WriteSpan], still: Callable[[], None] | None = None) -> dict[int, FfsError]:
        """Store every span; the spans of which a part failed, with why. Overlapping spans are applied in order.

        `still` is called before each further attempt; what it raises ends them.
        """
        failed: dict[int, FfsError] = {}
        for requests in plan_write(spans):
            for request, outcome in zip(requests, self.update(requests, still), strict=True):
                for item, exc in zip(request.items, outcome, strict=True):
                    if exc is not None:
                        for span in item.spans:
                            failed.setdefault(span, exc)
        return failed

    def update(
        self, requests: Sequence[UpdateRequest], still: Callable[[], None] | None = None
    ) -> list[list[FfsError | None]]:
        """Run requests of distinct chunks at once; for each, the outcome of each of its items."""
        outcomes: list[list[FfsError | None]] = []
        start = 0
        while start < len(requests):
            end, nbytes = start, 0
            while (
                end < len(requests)
                and end - start < WAVE_REQUESTS_MAX
                and (end == start or nbytes + requests[end].nbytes <= WAVE_BYTES_MAX)
            ):
                nbytes += requests[end].nbytes
                end += 1
            wave = requests[start:end]
            with self._channels.take(len(wave)) as uses:
                outcomes += self._wave(wave, uses, still)
            start = end
        return outcomes

    def _wave(
        self, wave: Sequence[UpdateRequest], uses: list[ChannelUse], still: Callable[[], None] | None
    ) -> list[list[FfsError | None]]:
        sendings = [
            _Sending(request, pack_update(request, self._client_id, use.channel, use.sequence), request.pieces())
            for request, use in zip(wave, uses, strict=True)
        ]
        open_ones = sendings
        retry: Retry | None = None
        while True:
            routing = self._routing.current()
            self._send(routing, open_ones, self._policy.call_deadline_s if retry is None else retry.call_deadline_s())
            open_ones = [sending for sending in open_ones if sending.failure is not None]
            if not open_ones:
                break
            if retry is None:
                retry = Retry(self._policy, self._clock, self._random)
            if not self._pause(routing, retry, open_ones, still):
                break
        return [sending.statuses or [sending.failure] * len(sending.request.items) for sending in sendings]

    def _send(self, routing: Routing, sendings: list[_Sending], limit_s: float) -> None:
        """One attempt of each: sets its statuses, and its failure when it must be repeated or was refused."""
        calls: list[tuple[Address, Call]] = []
        sent: list[_Sending] = []
        for sending in sendings:
            try:
                chain = routing.chain(sending.request.chain_id)
                if not chain.serving:
                    raise error(Code.TARGET_OFFLINE, f"no replica of chain {chain.chain_id} serves now")
                address = routing.address(chain.serving[0])
            except FfsError as exc:
                sending.failure = exc
                continue
            stamp(sending.body, chain.version)
            calls.append((address, Call(Method.STORAGE_WRITE, sending.body, sending.pieces, (), limit_s)))
            sent.append(sending)
        if not calls:
            return
        if len(calls) == 1:
            try:
                self._answer(sent[0], self._link.call(*calls[0]).body)
            except FfsError as exc:
                sent[0].failure = exc
            return
        for sending, answer in zip(sent, self._link.call_many(calls), strict=True):
            try:
                if isinstance(answer, FfsError):
                    raise answer
                self._answer(sending, answer.body)
            except FfsError as exc:
                sending.failure = exc

    def _answer(self, sending: _Sending, body: bytes | memoryview) -> None:
        results = update_results(body, len(sending.request.items))
        codes: list[int] = results["status"].tolist()
        if not any(codes):
            sending.statuses = [None] * len(codes)
            sending.failure = None
            return
        sending.statuses = [error(code, "storage could not update a chunk") if code else None for code in codes]
        again = [exc for exc in sending.statuses if exc is not None and exc.reaction is not Reaction.GIVE_UP]
        sending.failure = again[0] if again else None

    def _pause(self, routing: Routing, retry: Retry, failed: list[_Sending], still: Callable[[], None] | None) -> bool:
        """Wait before the next attempt; False when there is none. Drops the requests that cannot be helped."""
        for sending in list(failed):
            if sending.failure is not None and sending.failure.reaction is Reaction.GIVE_UP:
                sending.statuses = None
                failed.remove(sending)
        if not failed:
            return False
        worst = failed[0].failure
        assert worst is not None
        try:
            step = retry.after(worst)
        except FfsError as exc:
            # What cannot be helped any more in one request says nothing of others, which may wait for their servers.
            waiting: list[_Sending] = []
            for sending in failed:
                if exc.code is Code.TIMEOUT or (sending.failure is not None and sending.failure.code is exc.code):
                    _end(sending, exc)
                else:
                    waiting.append(sending)
            failed[:] = waiting
            return bool(failed)
        if step.refresh:
            self._routing.wait_newer(routing.version, step.pause_s)
        else:
            self._sleep(step.pause_s)
        try:
            if still is not None:
                still()
        except FfsError as exc:
            for sending in failed:
                _end(sending, exc)
            return False
        return True


def _end(sending: _Sending, exc: FfsError) -> None:
    """Items that succeeded keep their success: the caller learns which part is stored."""
    if sending.statuses is not None:
        sending.statuses = [exc if was is not None else None for was in sending.statuses]
    else:
        sending.failure = exc
