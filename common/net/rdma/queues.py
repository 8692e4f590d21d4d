"""Queue pairs, shared receive queues and completion queues, over pyverbs (library.py)."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from fireflyfs.common.net.rdma.library import Owned, as_os_error, event_descriptor, library
from fireflyfs.common.net.rdma.plan import Local, Verb, Work
from fireflyfs.common.net.rdma.verbs import Device, Domain
from fireflyfs.common.net.rdma.wire import Parameters

SUCCESS: Final = 0
POLL_MAX: Final = 64
KEPT_MAX: Final = 64  # work requests of one queue pair that are used again
KEPT_CHAIN_MAX: Final = 8  # of longer chains none is kept: scattered pieces do not come again
RETRY_TIMEOUT: Final = 14  # 4.096 us * 2**14 = 67 ms before a packet is sent again ...
RETRIES: Final = 6  # ... so often: a peer that is gone fails a transfer after half a second. 7 would be for ever
# 41 ms until a message is sent again that found no receive buffer. Credits keep that from happening, unless another
# peer takes more than it was granted: then it passes.
RNR_TIMER: Final = 24
HOP_LIMIT: Final = 64
LAST: Final[Local] = (0, 0, 0)  # stands for the end of a chain; no piece of ours
RECEIVED: Final = 1 << 62  # added to the number of a receive buffer; work requests that are sent are below


class Completion(NamedTuple):
    """What has completed. Of a failure only the first two mean anything."""

    number: int  # of a work request, or `RECEIVED` + the buffer's
    status: int
    length: int  # of a message received
    queue_pair: int


class Completions(Owned):
    """A completion queue, with a channel whose descriptor an event loop can watch."""

    def __init__(self, device: Device, depth: int, *, watched: bool) -> None:
        self._channel: Any = None
        self.fd = -1
        with as_os_error("a completion queue"):
            if watched:
                self._channel, self.fd = event_descriptor(lambda: library().cq.CompChannel(device.raw))
                if self.fd < 0:
                    raise OSError(errno.EIO, "cannot tell which descriptor completions are told on")
            super().__init__("completion queue", library().cq.CQ(device.raw, depth, None, self._channel, 0))
        self.rearm()

    def rearm(self) -> None:
        """Have the descriptor become readable at the next completion. Before draining, or one is missed."""
        if self._channel is not None:
            with as_os_error("arming a completion queue"):
                self.raw.req_notify()

    def take_event(self) -> None:
        """Read the channel's event; none there is no error."""
        try:
            self._channel.get_cq_event(self.raw)
        except library().errors.PyverbsRDMAError as exc:
            if exc.error_code != errno.EAGAIN:
                raise OSError(abs(exc.error_code) or errno.EIO, f"a completion channel: {exc}") from exc
        else:
            self.raw.ack_events(1)

    def poll(self) -> list[Completion]:
        """Up to `POLL_MAX` of them; fewer: there were no more."""
        with as_os_error("polling a completion queue"):
            count, found = self.raw.poll(POLL_MAX)
            if not count:
                return []
            return [Completion(wc.wr_id, int(wc.status), wc.byte_len, wc.qp_num) for wc in found]

    def close(self) -> None:
        super().close()
        channel, self._channel = self._channel, None
        if channel is not None:
            with as_os_error("closing a completion channel"):
                channel.close()

    def abandon(self) -> None:
        channel, self._channel = self._channel, None
        super().abandon()
        if channel is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))


class SharedReceives(Owned):
    """A receive queue for any number of queue pairs of one domain. Posting takes no lock: pyverbs keeps Python's."""

    def __init__(self, domain: Domain, depth: int) -> None:
        lib = library()
        self._depth = depth
        with as_os_error("a shared receive queue"):
            attr = lib.srq.SrqInitAttr(lib.srq.SrqAttr(max_wr=depth, max_sge=1))
            super().__init__("shared receive queue", lib.srq.SRQ(domain.raw, attr))

    @staticmethod
    def request(number: int, address: int, length: int, lkey: int) -> Any:
        """What to post again and again."""
        lib = library()
        return lib.wr.RecvWR(wr_id=RECEIVED + number, num_sge=1, sg=[lib.wr.SGE(address, length, lkey)])

    def post(self, request: Any) -> None:
        with as_os_error("posting a receive buffer"):
            self.raw.post_recv(request)

    def warn_below(self, count: int) -> None:
        """Have the event SRQ_LIMIT come once when fewer buffers are posted."""
        lib = library()
        with as_os_error("arming a shared receive queue"):
            attr = lib.srq.SrqAttr(max_wr=self._depth, max_sge=1, srq_limit=count)
            self.raw.modify(attr, lib.constants["IBV_SRQ_LIMIT"])


class QueuePair(Owned):
    """A reliable connection. `remote`: the peer may READ and WRITE this domain's regions through it.

    Messages land in buffers of `receives`, and are told of in `received`, or with what is sent.
    """

    def __init__(
        self,
        domain: Domain,
        completions: Completions,
        depth: int,
        sges: int,
        *,
        remote: bool,
        receives: SharedReceives,
        received: Completions | None = None,
    ) -> None:
        lib = library()
        names = lib.constants
        with as_os_error("a queue pair"):
            cap = lib.qp.QPCap(max_send_wr=depth, max_recv_wr=0, max_send_sge=sges, max_recv_sge=0)
            init = lib.qp.QPInitAttr(
                qp_type=names["IBV_QPT_RC"], scq=completions.raw, rcq=(received or completions).raw,
                srq=receives.raw, cap=cap, sq_sig_all=0,
            )  # fmt: skip
            raw = lib.qp.QP(domain.raw, init)
        super().__init__("queue pair", raw)
        self.number: int = raw.qp_num
        self._access = (names["IBV_ACCESS_REMOTE_READ"] | names["IBV_ACCESS_REMOTE_WRITE"]) if remote else 0
        self._signaled = names["IBV_SEND_SIGNALED"]
        self._opcodes = (names["IBV_WR_RDMA_WRITE"], names["IBV_WR_RDMA_READ"], names["IBV_WR_SEND"])  # by Verb
        self._kept: dict[tuple[Local, ...], Any] = {}

    def connect(self, port: int, gid_index: int, ours: Parameters, theirs: Parameters) -> None:
        """To the state in which both directions work. Raises OSError: what the peer said cannot be used."""
        lib = library()
        with as_os_error("connecting a queue pair"):
            attr = lib.qp.QPAttr(port_num=port)
            attr.qp_access_flags = self._access
            self.raw.to_init(attr)
            attr = lib.qp.QPAttr(port_num=port)
            route = lib.addr.GlobalRoute(dgid=lib.addr.GID(theirs.gid), sgid_index=gid_index, hop_limit=HOP_LIMIT)
            attr.ah_attr = lib.addr.AHAttr(port_num=port, is_global=1, gr=route, dlid=theirs.lid)
            attr.dest_qp_num = theirs.queue_pair
            attr.path_mtu = min(ours.mtu, theirs.mtu)
            attr.rq_psn = theirs.first_packet
            attr.max_dest_rd_atomic = min(ours.reads_in, theirs.reads_out)
            attr.min_rnr_timer = RNR_TIMER
            self.raw.to_rtr(attr)
            attr.sq_psn = ours.first_packet
            attr.timeout, attr.retry_cnt, attr.rnr_retry = RETRY_TIMEOUT, RETRIES, RETRIES
            attr.max_rd_atomic = min(ours.reads_out, theirs.reads_in)
            self.raw.to_rts(attr)

    def end(self) -> None:
        """To the state in which nothing moves any more; what has come before can still be reaped."""
        lib = library()
        with as_os_error("ending a queue pair"):
            self.raw.modify(lib.qp.QPAttr(qp_state=lib.constants["IBV_QPS_ERR"]), lib.constants["IBV_QP_STATE"])

    def post(self, chain: Sequence[tuple[int, Work, bool]]) -> None:
        """Post (number, work, signalled) in one call to the device."""
        opcodes, signaled = self._opcodes, self._signaled
        with as_os_error("posting work requests"):
            following = None
            posted: list[Any] = []  # pyverbs links them by address: all must live until the call is over
            for number, work, signalled in reversed(chain):
                request = self._request(work.local, last=following is None)
                request.wr_id = number
                request.opcode = opcodes[work.verb]
                request.send_flags = signaled if signalled else 0
                if work.verb is not Verb.SEND:
                    request.set_wr_rdma(work.rkey, work.address)
                if following is not None:
                    request.next_wr = following
                posted.append(request)
                following = request
            self.raw.post_send(following)
            self._keep(chain, posted)

    def _request(self, local: tuple[Local, ...], *, last: bool) -> Any:
        """One for these pieces of ours: to make it takes as long as all else about it. The last of a chain has never
        had another behind it, because pyverbs has no way to unlink that."""
        key = (*local, LAST) if last else local
        request = self._kept.pop(key, None)  # away: a chain may name the same pieces twice
        if request is not None:
            return request
        lib = library()
        return lib.wr.SendWR(num_sge=len(local), sg=[lib.wr.SGE(*piece) for piece in local])

    def _keep(self, chain: Sequence[tuple[int, Work, bool]], posted: Sequence[Any]) -> None:
        """The device has taken what they say."""
        if len(posted) > KEPT_CHAIN_MAX:
            return
        if len(self._kept) + len(posted) > KEPT_MAX:
            self._kept.clear()
        key: tuple[Local, ...]
        for (_, work, _), request in zip(reversed(chain), posted, strict=True):
            key = (*work.local, LAST) if request is posted[0] else work.local
            self._kept[key] = request
