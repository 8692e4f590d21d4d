"""The verbs that the link needs, over pyverbs; the one module that knows its names.

pyverbs is imported when a device is first asked for: a machine without it, or without a device, has none and nothing
fails. rdma-core 44 keeps its constants flat in `pyverbs.enums`, 57 and newer only inside the enum classes of
`pyverbs.libibverbs_enums`; both are read here.

pyverbs never releases the interpreter's lock, so nothing here blocks: completion channels are non-blocking. Using a
verbs object after its `close` would end the process, so every wrapper forgets its object first and refuses afterwards.
Every failure is an OSError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import enum
import errno
import importlib
import logging
import os
import select
import threading
import weakref
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

from fireflyfs.common.net.rdma.plan import Verb, Work
from fireflyfs.common.net.rdma.wire import Parameters

log = logging.getLogger(__name__)

SUCCESS: Final = 0
POLL_MAX: Final = 64
RETRY_TIMEOUT: Final = 14  # 4.096 us * 2**14 = 67 ms before a packet is sent again ...
RETRIES: Final = 6  # ... so often: a peer that is gone fails a transfer after half a second. 7 would be for ever
# 41 ms until a message is sent again that found no receive buffer. Credits keep that from happening, unless another
# peer takes more than it was granted: then it passes.
RNR_TIMER: Final = 24
HOP_LIMIT: Final = 64
SRQ_LIMIT: Final = "IBV_EVENT_SRQ_LIMIT_REACHED"
FATAL: Final = frozenset({"IBV_EVENT_DEVICE_FATAL", "IBV_EVENT_SRQ_ERR", "IBV_EVENT_CQ_ERR"})
EVENTS: Final = frozenset({SRQ_LIMIT, *FATAL})
RECEIVED: Final = 1 << 62  # added to the number of a receive buffer; work requests that are sent are below
_fd_lock = threading.Lock()


class Completion(NamedTuple):
    """What has completed. Of a failure only the first two mean anything."""

    number: int  # of a work request, or `RECEIVED` + the buffer's
    status: int
    length: int  # of a message received
    queue_pair: int


class Limits(NamedTuple):
    """What a device allows; see `ibv_query_device`."""

    queue_pairs: int
    work_requests: int
    sges: int
    sges_read: int
    reads_out: int  # READs in flight that one queue pair may begin
    reads_in: int  # and answer
    regions: int
    completions: int
    shared_receives: int = 0  # of one shared receive queue


class Port(NamedTuple):
    """One active or inactive port."""

    number: int
    active: bool
    mtu: int  # as verbs number it: 1 is 256 bytes, 5 is 4096
    message_bytes_max: int
    lid: int
    ethernet: bool


class Gid(NamedTuple):
    """One entry of a port's table."""

    number: int
    gid: str  # eight groups of four hexadecimal digits
    roce_v2: bool


class _Library:
    """pyverbs' modules and constants."""

    def __init__(self) -> None:
        def load(name: str) -> ModuleType:
            return importlib.import_module(f"pyverbs.{name}")

        self.addr, self.cq, self.device, self.mr = load("addr"), load("cq"), load("device"), load("mr")
        self.pd, self.qp, self.srq, self.wr = load("pd"), load("qp"), load("srq"), load("wr")
        self.errors = load("pyverbs_error")
        try:
            module = load("libibverbs_enums")
        except ImportError:
            module = load("enums")
        self.constants = constants_of(module)


def constants_of(module: ModuleType) -> dict[str, int]:
    """Names and numbers of either layout."""
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if isinstance(value, enum.EnumMeta):
            members: dict[str, Any] = dict(value.__members__)
            found.update({key: int(member.value) for key, member in members.items()})
        elif name.startswith("IBV_"):
            found[name] = int(value)
    return found


_library: _Library | None = None


def library() -> _Library:
    """Raises ImportError where pyverbs is not installed."""
    global _library
    if _library is None:
        _library = _Library()
    return _library


@contextlib.contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """pyverbs' errors as OSError with the errno that it names."""
    try:
        yield
    except OSError:
        raise
    except Exception as exc:
        code = getattr(exc, "error_code", 0) or errno.EIO
        raise OSError(abs(code), f"{what}: {exc}") from exc


def device_names() -> list[str]:
    """Names of this machine's devices; empty without pyverbs, kernel support or devices."""
    try:
        return [device.name.decode() for device in library().device.get_device_list()]
    except ImportError as exc:
        log.debug("no rdma: pyverbs cannot be imported: %s", exc)
    except Exception as exc:  # a kernel without ib_uverbs answers with an error of pyverbs
        log.debug("no rdma: %s", exc)
    return []


def address_of(buffer: memoryview) -> tuple[int, Any]:
    """The address of writable bytes, and an export that keeps them from being resized or unmapped."""
    export = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    return ctypes.addressof(export), export


_alive: weakref.WeakSet[_Owned] = weakref.WeakSet()


def abandon_all() -> None:
    """Let go of every verbs object without destroying it.

    In a forked child they are the parent's, and destroying the copies would destroy those. At the end of a process the
    kernel does it, while pyverbs' destructors fail on modules that are gone already.
    """
    for owned in list(_alive):
        owned.abandon()


def _after_fork() -> None:
    global _fd_lock
    _fd_lock = threading.Lock()  # a thread of the parent's may have held it
    abandon_all()


atexit.register(abandon_all)
os.register_at_fork(after_in_child=_after_fork)


class _Owned:
    """Holds one verbs object; `close` forgets it before it destroys it."""

    _raw: Any = None  # of one that could not be made

    def __init__(self, what: str, raw: Any) -> None:
        self._what = what
        self._raw = raw
        _alive.add(self)

    @property
    def raw(self) -> Any:
        if self._raw is None:
            raise OSError(errno.EBADF, f"the {self._what} is closed")
        return self._raw

    @property
    def closed(self) -> bool:
        return self._raw is None

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            with _as_os_error(f"closing the {self._what}"):
                raw.close()

    def __del__(self) -> None:
        """Dropped without `close`, be it in a cycle: the collector would destroy a device before what was made on it,
        and the process would end."""
        if self._raw is not None:
            self.abandon()

    def abandon(self) -> None:
        """Never destroy it: the object lives as long as the process, and the kernel ends it then."""
        raw, self._raw = self._raw, None
        if raw is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))


class EventListener:
    """Told of asynchronous events."""

    def on_events(self, names: Sequence[str]) -> None:
        raise NotImplementedError


class Device(_Owned):
    """One open device."""

    def __init__(self, name: str) -> None:
        with _as_os_error(f"opening {name}"):
            with _fd_lock:  # the descriptor that asynchronous events come from, which pyverbs does not tell
                before = _event_fds()
                super().__init__("device", library().device.Context(name=name))
                new = _event_fds() - before
            self.events_fd = new.pop() if len(new) == 1 else -1
            if self.events_fd >= 0:
                os.set_blocking(self.events_fd, False)
            attr = self.raw.query_device()
            # Some devices say 0 for what they take as for the rest.
            self.limits = Limits(
                attr.max_qp, attr.max_qp_wr, max(attr.max_sge, 1), max(attr.max_sge_rd or attr.max_sge, 1),
                attr.max_qp_init_rd_atom, attr.max_qp_rd_atom, attr.max_mr, attr.max_cqe,
                attr.max_srq_wr,
            )  # fmt: skip
            self._ports = attr.phys_port_cnt
        self.name = name
        self._listeners: weakref.WeakSet[EventListener] = weakref.WeakSet()

    def listen(self, listener: EventListener) -> None:
        """Whoever reads the events tells every listener: `on_events` is called in any thread."""
        self._listeners.add(listener)

    def take_events(self) -> None:
        """Read what has happened to the device, its queues and queue pairs, and tell."""
        names = library().constants
        kinds = {names[name]: name for name in EVENTS if name in names}
        found = []
        while select.select([self.events_fd], [], [], 0)[0]:
            try:
                event = self.raw.get_async_event()
            except library().errors.PyverbsRDMAError:  # somebody else has read it
                break
            found.append(kinds.get(int(event.event_type), ""))
            event.ack()
        if found:
            for listener in list(self._listeners):
                listener.on_events(found)

    def ports(self) -> list[Port]:
        with _as_os_error(f"asking {self.name} for its ports"):
            active = library().constants["IBV_PORT_ACTIVE"]
            ethernet = library().constants["IBV_LINK_LAYER_ETHERNET"]
            found = []
            for number in range(1, self._ports + 1):
                attr = self.raw.query_port(number)
                found.append(
                    Port(number, int(attr.state) == active, int(attr.active_mtu), attr.max_msg_sz, attr.lid,
                         int(attr.link_layer) == ethernet)
                )  # fmt: skip
            return found

    def gids(self, port: int) -> list[Gid]:
        with _as_os_error(f"asking {self.name} for its GIDs"):
            rows = self.raw.query_gid_table(256)
            return [Gid(row.gid_index, row.gid_str(), int(row.gid_type) == 2) for row in rows if row.port_num == port]


class Domain(_Owned):
    """A protection domain: its queue pairs reach its regions and no others."""

    def __init__(self, device: Device) -> None:
        with _as_os_error("a protection domain"):
            super().__init__("protection domain", library().pd.PD(device.raw))

    def register(self, buffer: memoryview, *, remote: bool) -> Region:
        """Raises OSError: ENOMEM is the limit of locked memory (`ulimit -l`)."""
        return Region(self, buffer, remote=remote)


class Region(_Owned):
    """Registered memory; keeps it mapped until `close`."""

    def __init__(self, domain: Domain, buffer: memoryview, *, remote: bool) -> None:
        names = library().constants
        access = names["IBV_ACCESS_LOCAL_WRITE"]
        if remote:
            access |= names["IBV_ACCESS_REMOTE_READ"] | names["IBV_ACCESS_REMOTE_WRITE"]
        self.length = len(buffer)
        self.address, self._export = address_of(buffer)
        with _as_os_error(f"registering {self.length} bytes"):
            raw = library().mr.MR(domain.raw, self.length, access, address=self.address)
        super().__init__("region", raw)
        self.lkey: int = raw.lkey
        self.rkey: int = raw.rkey

    def close(self) -> None:
        super().close()
        self._export = None  # after the region: the pages must not go first


class Completions(_Owned):
    """A completion queue, with a channel whose descriptor an event loop can watch."""

    def __init__(self, device: Device, depth: int, *, watched: bool) -> None:
        self._channel: Any = None
        self.fd = -1
        with _as_os_error("a completion queue"):
            if watched:
                self._channel, self.fd = _open_channel(device)
            super().__init__("completion queue", library().cq.CQ(device.raw, depth, None, self._channel, 0))
        self.rearm()

    def rearm(self) -> None:
        """Have the descriptor become readable at the next completion. Before draining, or one is missed."""
        if self._channel is not None:
            with _as_os_error("arming a completion queue"):
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
        with _as_os_error("polling a completion queue"):
            count, found = self.raw.poll(POLL_MAX)
            if not count:
                return []
            return [Completion(wc.wr_id, int(wc.status), wc.byte_len, wc.qp_num) for wc in found]

    def close(self) -> None:
        super().close()
        channel, self._channel = self._channel, None
        if channel is not None:
            with _as_os_error("closing a completion channel"):
                channel.close()

    def abandon(self) -> None:
        channel, self._channel = self._channel, None
        super().abandon()
        if channel is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))


def _open_channel(device: Device) -> tuple[Any, int]:
    """A channel and its descriptor, which pyverbs before 57 does not tell."""
    with _fd_lock:
        before = _event_fds()
        channel = library().cq.CompChannel(device.raw)
        fd = getattr(channel, "fd", None)
        if fd is None:
            new = _event_fds() - before
            if len(new) != 1:
                raise OSError(errno.EIO, f"cannot tell the completion channel's descriptor: {sorted(new)}")
            fd = new.pop()
    os.set_blocking(fd, False)
    return channel, int(fd)


def _event_fds() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found


class SharedReceives(_Owned):
    """A receive queue for any number of queue pairs of one domain. Posting takes no lock: pyverbs keeps Python's."""

    def __init__(self, domain: Domain, depth: int) -> None:
        lib = library()
        self._depth = depth
        with _as_os_error("a shared receive queue"):
            attr = lib.srq.SrqInitAttr(lib.srq.SrqAttr(max_wr=depth, max_sge=1))
            super().__init__("shared receive queue", lib.srq.SRQ(domain.raw, attr))

    @staticmethod
    def request(number: int, address: int, length: int, lkey: int) -> Any:
        """What to post again and again."""
        lib = library()
        return lib.wr.RecvWR(wr_id=RECEIVED + number, num_sge=1, sg=[lib.wr.SGE(address, length, lkey)])

    def post(self, request: Any) -> None:
        with _as_os_error("posting a receive buffer"):
            self.raw.post_recv(request)

    def warn_below(self, count: int) -> None:
        """Have the event SRQ_LIMIT come once when fewer buffers are posted."""
        lib = library()
        with _as_os_error("arming a shared receive queue"):
            attr = lib.srq.SrqAttr(max_wr=self._depth, max_sge=1, srq_limit=count)
            self.raw.modify(attr, lib.constants["IBV_SRQ_LIMIT"])


class QueuePair(_Owned):
    """A reliable connection. `remote`: the peer may READ and WRITE this domain's regions through it.

    Messages are taken from `receives`, and told of in `received`, of one that takes any.
    """

    def __init__(
        self,
        domain: Domain,
        completions: Completions,
        depth: int,
        sges: int,
        *,
        remote: bool,
        receives: SharedReceives | None = None,
        received: Completions | None = None,
    ) -> None:
        lib = library()
        names = lib.constants
        with _as_os_error("a queue pair"):
            own = 1 if receives is None else 0
            cap = lib.qp.QPCap(max_send_wr=depth, max_recv_wr=own, max_send_sge=sges, max_recv_sge=own)
            init = lib.qp.QPInitAttr(
                qp_type=names["IBV_QPT_RC"], scq=completions.raw, rcq=(received or completions).raw,
                srq=receives.raw if receives is not None else None, cap=cap, sq_sig_all=0,
            )  # fmt: skip
            raw = lib.qp.QP(domain.raw, init)
        super().__init__("queue pair", raw)
        self.number: int = raw.qp_num
        self._access = (names["IBV_ACCESS_REMOTE_READ"] | names["IBV_ACCESS_REMOTE_WRITE"]) if remote else 0
        self._signaled = names["IBV_SEND_SIGNALED"]
        self._opcodes = (names["IBV_WR_RDMA_WRITE"], names["IBV_WR_RDMA_READ"], names["IBV_WR_SEND"])  # by Verb

    def connect(self, port: int, gid_index: int, ours: Parameters, theirs: Parameters) -> None:
        """To the state in which both directions work. Raises OSError: what the peer said cannot be used."""
        lib = library()
        with _as_os_error("connecting a queue pair"):
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
        with _as_os_error("ending a queue pair"):
            self.raw.modify(lib.qp.QPAttr(qp_state=lib.constants["IBV_QPS_ERR"]), lib.constants["IBV_QP_STATE"])

    def post(self, chain: Sequence[tuple[int, Work, bool]]) -> None:
        """Post (number, work, signalled) in one call to the device."""
        lib = library()
        make, sge = lib.wr.SendWR, lib.wr.SGE
        opcodes, signaled = self._opcodes, self._signaled
        with _as_os_error("posting work requests"):
            first = None
            posted: list[Any] = []  # pyverbs links them by address: all must live until the call is over
            for number, work, signalled in chain:
                pieces = [sge(address, length, lkey) for address, length, lkey in work.local]
                request = make(
                    wr_id=number, opcode=opcodes[work.verb], num_sge=len(pieces), sg=pieces,
                    send_flags=signaled if signalled else 0,
                )  # fmt: skip
                if work.verb is not Verb.SEND:
                    request.set_wr_rdma(work.rkey, work.address)
                if first is None:
                    first = request
                else:
                    posted[-1].next_wr = request
                posted.append(request)
            self.raw.post_send(first)
