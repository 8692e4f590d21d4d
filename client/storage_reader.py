"""Reads of many pieces of many chunks: grouped by worker, sent at once, landed in the caller's memory, verified.

The unit is a batch: a READ_IO array and one piece of memory for each row. After `read` every piece is filled: with the
chunk's bytes, and with zeros where the chunk ends or is missing. What failed stays unspecified and its row's status
says why. Chunks of one chain are spread over its SERVING replicas in lots, so that one file's batch uses all of them.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from fireflyfs.client.replica_choice import ReplicaChoice
from fireflyfs.client.retry import Retry, RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.client.storage_codec import fill_zeros, read_results, view_of
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, Reaction, error
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Address, BlockingLink, Call, Piece, Reply
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import READ_IO

LOT_ITEMS_MAX = 64  # pieces of one chain that go to one replica together
LOT_BYTES_MAX = 4 * MiB
REQUEST_ITEMS_MAX = 1024
REQUEST_BYTES_MAX = 8 * MiB  # of one request, except for a single larger piece
WAVE_BYTES_MAX = 128 * MiB  # asked for at once by one caller

_IO = struct.Struct("<QQIIII")  # READ_IO
_RESULT = struct.Struct("<IIQII")  # READ_RESULT
_MISSING = int(Code.CHUNK_NOT_FOUND)

Ios = npt.NDArray[np.void]
Row = tuple[int, int, int, int, int]  # inode, index, chain id, offset in the chunk, length


@dataclass(slots=True)
class _Request:
    """What one STORAGE_READ will ask: rows of the batch, for one worker."""

    address: Address
    rows: list[int]
    nbytes: int
    load: int  # as ReplicaChoice counts it
    targets: set[int]


class _Once:
    """What `read_once` asks one worker for."""

    __slots__ = ("body", "load", "nbytes", "rows", "targets")

    def __init__(self) -> None:
        self.body = bytearray()
        self.rows: list[int] = []
        self.nbytes = 0
        self.load = 0  # as ReplicaChoice counts it
        self.targets: set[int] = set()


class StorageReader:
    """Batched reads with replica choice, verification and retry. Safe to use from several threads."""

    def __init__(
        self,
        link: BlockingLink,
        routing: RoutingView,
        choice: ReplicaChoice,
        policy: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._link = link
        self._routing = routing
        self._choice = choice
        self._policy = policy
        self._first_s = min(policy.first_read_s, policy.call_deadline_s, policy.deadline_s)
        self._clock = clock
        self._random = rng
        self._sleep = sleep

    def read_one(self, inode: int, index: int, chain_id: int, offset: int, into: Piece, length: int) -> bool:
        """One piece by the shortest way. False: something was unusual, `read` must be asked and will sort it out."""
        finish = self.begin_one(inode, index, chain_id, offset, into, length, self._first_s)
        return finish is not None and finish()

    def begin_one(
        self, inode: int, index: int, chain_id: int, offset: int, into: Piece, length: int, limit_s: float
    ) -> Callable[[], bool] | None:
        """The same in two halves, while something else is asked: what is returned waits, and must be called.

        It takes `limit_s` in all, or gives up. None: nobody can be asked.
        """
        routing = self._routing.current()
        chain = routing.chains.get(chain_id)
        chosen = self._choice.choose(chain.serving, routing.addresses) if chain is not None else None
        if chain is None or chosen is None:
            return None
        target, address = chosen
        body = _IO.pack(inode, index, chain_id, chain.version, offset, length)
        began_s = self._clock.monotonic_s()
        load = self._choice.begin(address, length)
        try:
            begun = self._link.begin(address, Call(Method.STORAGE_READ, body, (), (into,), limit_s))
        except FfsError:
            self._choice.failed(address, load, (target,))
            return None
        except BaseException:
            self._choice.failed(address, load, ())
            raise

        def finish() -> bool:
            try:
                reply = begun.finish()
            except FfsError:
                self._choice.failed(address, load, (target,))
                return False
            except BaseException:
                self._choice.failed(address, load, ())
                raise
            self._choice.end(address, load, self._clock.monotonic_s() - began_s)
            if len(reply.body) != _RESULT.size:
                return False
            status, got, _, expected, _ = _RESULT.unpack(reply.body)
            return _landed(view_of(into), length, status, got, expected)

        return finish

    def read_once(self, rows: Sequence[Row], pieces: Sequence[Piece]) -> list[int]:
        """Small pieces in one attempt, of as few workers as have them all: a request costs more than a small piece.

        Returns the rows that must be read another way.
        """
        asked, left = self._share(rows)
        calls = [
            (address, Call(Method.STORAGE_READ, each.body, (), [pieces[row] for row in each.rows], self._first_s))
            for address, each in asked.items()
        ]
        began_s = self._clock.monotonic_s()
        answers: Sequence[Reply | FfsError] = ()
        try:
            answers = [self._call_one(*calls[0])] if len(calls) == 1 else self._link.call_many(calls)
        finally:
            elapsed_s = self._clock.monotonic_s() - began_s
            for (address, each), answer in zip_longest(asked.items(), answers):
                if isinstance(answer, Reply):
                    self._choice.end(address, each.load, elapsed_s)
                else:
                    self._choice.failed(address, each.load, each.targets if answer is not None else ())
        for each, answer in zip(asked.values(), answers, strict=True):
            if isinstance(answer, FfsError) or len(answer.body) != len(each.rows) * _RESULT.size:
                left += each.rows
                continue
            for row, (status, got, _, expected, _) in zip(each.rows, _RESULT.iter_unpack(answer.body), strict=True):
                if not _landed(view_of(pieces[row]), rows[row][4], status, got, expected):
                    left.append(row)
        return left

    def _share(self, rows: Sequence[Row]) -> tuple[dict[Address, _Once], list[int]]:
        """Who is asked for which rows, and the rows of chains that nobody can be asked for."""
        routing = self._routing.current()
        asked: dict[Address, _Once] = {}
        left: list[int] = []
        for place, (inode, index, chain_id, offset, length) in enumerate(rows):
            chain = routing.chains.get(chain_id)
            serving = chain.serving if chain is not None else ()
            chosen = next(
                ((target, at) for target in serving if (at := routing.addresses.get(target)) in asked), None
            ) or self._choice.choose(serving, routing.addresses)
            if chain is None or chosen is None:
                left.append(place)
                continue
            target, address = chosen
            each = asked.get(address)
            if each is None:
                each = asked[address] = _Once()
            each.body += _IO.pack(inode, index, chain_id, chain.version, offset, length)
            each.rows.append(place)
            each.targets.add(target)
            each.nbytes += length
        for address, each in asked.items():
            each.load = self._choice.begin(address, each.nbytes)
        return asked, left

    def read(self, ios: Ios, pieces: Sequence[Piece]) -> dict[int, FfsError]:
        """Fill every piece; the rows that failed, with what they failed with. `ios` is scratch afterwards."""
        failed: dict[int, FfsError] = {}
        lengths: list[int] = ios["length"].tolist()
        start = 0
        while start < len(pieces):  # one wave, nearly always
            end, total = start, 0
            while end < len(pieces) and (end == start or total + lengths[end] <= WAVE_BYTES_MAX):
                total += lengths[end]
                end += 1
            self._wave(ios, pieces, lengths, range(start, end), failed)
            start = end
        return failed

    def _wave(
        self, ios: Ios, pieces: Sequence[Piece], lengths: list[int], rows: Sequence[int], failed: dict[int, FfsError]
    ) -> None:
        retry: Retry | None = None
        excluded: dict[int, set[int]] = {}
        while rows:
            routing = self._routing.current()
            errors: dict[int, FfsError] = {}
            requests = self._plan(routing, ios, lengths, rows, excluded, errors)
            if requests:
                limit_s = self._first_s if retry is None else retry.call_deadline_s()
                self._ask(requests, ios, pieces, lengths, limit_s, errors, excluded)
            if not errors:
                return
            if retry is None:
                retry = Retry(self._policy, self._clock, self._random)
            rows = self._settle(routing, retry, ios, errors, excluded, failed)

    def _plan(
        self,
        routing: Routing,
        ios: Ios,
        lengths: list[int],
        rows: Sequence[int],
        excluded: dict[int, set[int]],
        errors: dict[int, FfsError],
    ) -> list[_Request]:
        """Who is asked for what. Rows whose chain has nobody to ask go to `errors`."""
        chain_ids: list[int] = ios["chain_id"].tolist()
        by_chain: dict[int, list[int]] = {}
        for row in rows:
            by_chain.setdefault(chain_ids[row], []).append(row)
        open_requests: dict[Address, _Request] = {}
        requests: list[_Request] = []
        versions: list[int] = ios["chain_version"].tolist()
        for chain_id, members in by_chain.items():
            try:
                chain = routing.chain(chain_id)
                serving = chain.serving
                if not serving:
                    raise error(Code.TARGET_OFFLINE, f"no replica of chain {chain_id} serves now")
                for lot, nbytes in _lots(members, lengths):
                    chosen = self._choice.choose(serving, routing.addresses, excluded.get(chain_id, ()))
                    if chosen is None:
                        raise error(Code.TARGET_OFFLINE, f"no replica of chain {chain_id} has a known address")
                    target, address = chosen
                    request = open_requests.get(address)
                    if request is None or (
                        request.nbytes + nbytes > REQUEST_BYTES_MAX or len(request.rows) + len(lot) > REQUEST_ITEMS_MAX
                    ):
                        request = open_requests[address] = _Request(address, [], 0, 0, set())
                        requests.append(request)
                    request.load += self._choice.begin(address, nbytes)
                    request.rows.extend(lot)
                    request.nbytes += nbytes
                    request.targets.add(target)
                    for row in lot:
                        versions[row] = chain.version
            except FfsError as exc:
                placed = {row for request in requests for row in request.rows}
                errors.update((row, exc) for row in members if row not in placed)
        ios["chain_version"] = versions
        return requests

    def _ask(
        self,
        requests: list[_Request],
        ios: Ios,
        pieces: Sequence[Piece],
        lengths: list[int],
        limit_s: float,
        errors: dict[int, FfsError],
        excluded: dict[int, set[int]],
    ) -> None:
        calls = []
        for request in requests:
            rows = request.rows
            if len(rows) == len(pieces) and rows == list(range(len(rows))):  # the whole batch, in order
                body, into = ios.tobytes(), pieces
            else:
                body, into = ios[rows].tobytes(), [pieces[row] for row in rows]
            calls.append((request.address, Call(Method.STORAGE_READ, body, (), into, limit_s)))
        began_s = self._clock.monotonic_s()
        try:
            answers = [self._call_one(*calls[0])] if len(calls) == 1 else self._link.call_many(calls)
        except BaseException:
            for request in requests:
                self._choice.failed(request.address, request.load, ())
            raise
        elapsed_s = self._clock.monotonic_s() - began_s
        for request, answer in zip(requests, answers, strict=True):
            failure = answer if isinstance(answer, FfsError) else self._land(request, answer, pieces, lengths, errors)
            if failure is not None:
                errors.update((row, failure) for row in request.rows)
            refused = [row for row in request.rows if row in errors] if errors else []
            for row in refused:
                excluded.setdefault(int(ios["chain_id"][row]), set()).update(request.targets)
            gone = any(errors[row].reaction is Reaction.REFRESH for row in refused)
            if gone:
                self._choice.failed(request.address, request.load, request.targets)
            else:
                self._choice.end(request.address, request.load, elapsed_s)

    def _call_one(self, address: Address, call: Call) -> Reply | FfsError:
        try:
            return self._link.call(address, call)
        except FfsError as exc:
            return exc

    def _land(
        self,
        request: _Request,
        reply: Reply,
        pieces: Sequence[Piece],
        lengths: list[int],
        errors: dict[int, FfsError],
    ) -> FfsError | None:
        """Verify what arrived, zero what is a hole; rows that cannot be used go to `errors`."""
        try:
            results = read_results(reply.body, len(request.rows))
        except FfsError as exc:
            return exc
        statuses = results["status"].tolist()
        gots = results["length"].tolist()
        sums = results["crc32c"].tolist()
        for row, status, got, expected in zip(request.rows, statuses, gots, sums, strict=True):
            view = view_of(pieces[row])
            want = lengths[row]
            if status == 0 and got == want:
                if crc32c(view) != expected:
                    errors[row] = error(Code.CHECKSUM, "bytes were damaged on the way from storage")
            elif status == _MISSING:
                fill_zeros(view)
            elif status:
                errors[row] = error(status, "storage could not read a chunk")
            elif got > want:
                return error(Code.PROTOCOL, f"storage answered {got} bytes where {want} were asked")
            elif got and crc32c(view[:got]) != expected:
                errors[row] = error(Code.CHECKSUM, "bytes were damaged on the way from storage")
            else:
                fill_zeros(view[got:])
        return None

    def _settle(
        self,
        routing: Routing,
        retry: Retry,
        ios: Ios,
        errors: dict[int, FfsError],
        excluded: dict[int, set[int]],
        failed: dict[int, FfsError],
    ) -> list[int]:
        """Wait as the errors call for; the rows to ask again. Rows that are beyond help go to `failed`."""
        again = []
        for row, exc in errors.items():
            if exc.reaction is Reaction.GIVE_UP:
                failed[row] = exc
            else:
                again.append(row)
        if not again:
            return again
        replicas_left = True
        for chain_id in {int(ios["chain_id"][row]) for row in again}:
            chain = routing.chains.get(chain_id)
            if chain is None or set(chain.serving) <= excluded.get(chain_id, set()):
                excluded.pop(chain_id, None)
                replicas_left = False
        try:
            step = retry.after(errors[again[0]], replicas_left=replicas_left)
        except FfsError as exc:
            # What cannot be helped any more in one chunk says nothing of others, which may wait for their servers.
            given_up = [row for row in again if exc.code is Code.TIMEOUT or errors[row].code is exc.code]
            failed.update((row, exc) for row in given_up)
            return sorted(row for row in again if row not in failed)
        if step.refresh:
            self._routing.wait_newer(routing.version, step.pause_s)
        elif step.pause_s:
            self._sleep(step.pause_s)
        return sorted(again)


def _landed(view: memoryview, length: int, status: int, got: int, expected: int) -> bool:
    """Whether a piece is as it should be, zeros where storage has nothing. False: it must be read another way."""
    if status == _MISSING:
        fill_zeros(view)
        return True
    if status or got > length:
        return False
    if got == length:
        return bool(crc32c(view) == expected)
    if got and crc32c(view[:got]) != expected:
        return False
    fill_zeros(view[got:])
    return True


def _lots(members: list[int], lengths: list[int]) -> list[tuple[list[int], int]]:
    """Rows of one chain in lots for one replica each, with their bytes."""
    total = sum([lengths[row] for row in members])
    if len(members) <= LOT_ITEMS_MAX and total <= LOT_BYTES_MAX:
        return [(members, total)]
    lots: list[tuple[list[int], int]] = []
    lot: list[int] = []
    nbytes = 0
    for row in members:
        if lot and (len(lot) >= LOT_ITEMS_MAX or nbytes + lengths[row] > LOT_BYTES_MAX):
            lots.append((lot, nbytes))
            lot, nbytes = [], 0
        lot.append(row)
        nbytes += lengths[row]
    lots.append((lot, nbytes))
    return lots


def single_io(inode: int, index: int, chain_id: int, offset: int, length: int) -> Ios:
    """READ_IO of one piece."""
    return np.array([(inode, index, chain_id, 0, offset, length)], READ_IO)
