"""The control lane: any service of our .proto files over gRPC, bound by its descriptor.

Messages cross gRPC as bytes and are parsed here, so that malformed ones get our own error. A failure travels as its
gRPC status, with `ffs-code` ("1204 FENCED") in the trailing metadata.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import aio  # type: ignore[attr-defined,unused-ignore]

from fireflyfs.common.errors import MEANINGS, Code, FfsError, error
from fireflyfs.common.limits import GRPC_MESSAGE_BYTES_MAX
from fireflyfs.common.net.binding import Bound, as_failure, bind, deadline_s, message_classes
from fireflyfs.common.net.grpc_forks import forks

_grpc: Any = grpc  # its functions carry no types
CODE_KEY: Final = "ffs-code"
MESSAGE_CHARS_MAX: Final = 2048
CONCURRENT_CALLS_MAX: Final = 8192  # each client keeps one long poll
DEFAULT_DEADLINE_S: Final = 10.0
_SIZES: Final = [
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES_MAX),
]
# A peer that is gone without a word is noticed within 15 seconds.
_KEEPALIVE: Final = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER_OPTIONS: Final = [
    *_SIZES,
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a way to share load
]
_CLIENT_OPTIONS: Final = [
    *_SIZES,
    *_KEEPALIVE,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # what may be sent twice is decided above
]
# What gRPC says by itself, without our code.
_STATUS_CODES: Final = {
    grpc.StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.TIMEOUT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: Code.UNKNOWN_METHOD,
    grpc.StatusCode.CANCELLED: Code.CANCELLED,
}


class ControlServer:
    """Serves handler objects; `host:port`, port 0 takes any."""

    def __init__(
        self, services: Sequence[tuple[ServiceDescriptor, object]], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._bound = [(descriptor, bind(descriptor, handler)) for descriptor, handler in services]
        self._where = f"[{host}]" if ":" in host else host
        self._port = port
        self._server: Any = None
        self.address = ""

    async def start(self) -> None:
        """Raises CONFIG when the port cannot be had."""
        server = aio.server(options=_SERVER_OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX)
        for descriptor, methods in self._bound:
            handlers = {
                name: _grpc.unary_unary_rpc_method_handler(functools.partial(_serve, bound))
                for name, bound in methods.items()
            }
            server.add_generic_rpc_handlers((_grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))
        try:
            port = server.add_insecure_port(f"{self._where}:{self._port}")
        except RuntimeError as exc:
            raise error(Code.CONFIG, f"cannot listen on {self._where}:{self._port}: {exc}") from exc
        if not port:
            raise error(Code.CONFIG, f"cannot listen on {self._where}:{self._port}")
        await server.start()
        self._server = server
        self.address = f"{self._where}:{port}"

    async def stop(self, grace_s: float = 1.0) -> None:
        """Calls that run may finish within `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None


async def _serve(bound: Bound, data: bytes, context: Any) -> bytes:
    try:
        outcome = bound.start(bound.parse(data), None)
        reply = outcome if isinstance(outcome, Message) else await outcome
        answer = reply.SerializeToString()
        if len(answer) > GRPC_MESSAGE_BYTES_MAX:
            raise error(Code.TOO_LARGE, f"reply of {len(answer)} bytes, over the limit of {GRPC_MESSAGE_BYTES_MAX}")
        return answer
    except asyncio.CancelledError:
        raise
    except Exception as exc:
        failure = as_failure(exc, bound.name)
    await context.abort(
        MEANINGS[failure.code].grpc_status,
        failure.message[:MESSAGE_CHARS_MAX],
        trailing_metadata=((CODE_KEY, f"{int(failure.code)} {failure.code.name}"),),
    )
    raise AssertionError("abort returned")


def _to_error(exc: grpc.RpcError, what: str) -> FfsError:
    """A failed call as our error; `exc` is also a grpc.Call."""
    failed: Any = exc
    details = failed.details() or ""
    for key, value in failed.trailing_metadata() or ():
        if key == CODE_KEY:
            number = str(value).partition(" ")[0]
            return error(int(number) if number.isdigit() else Code.INTERNAL, details)
    code = _STATUS_CODES.get(failed.code(), Code.INTERNAL)
    return error(code, f"{what}: {details or failed.code()}")


class _Methods:
    """Paths and reply classes of a service."""

    def __init__(self, service: ServiceDescriptor) -> None:
        self._paths = {method.name: f"/{service.full_name}/{method.name}" for method in service.methods}
        self._replies = {method.name: message_classes(method)[1] for method in service.methods}
        self._service = service.full_name

    def path(self, name: str) -> str:
        path = self._paths.get(name)
        if path is None:
            raise error(Code.UNKNOWN_METHOD, f"{self._service} has no method {name}")
        return path

    def pack(self, request: Message) -> bytes:
        data = request.SerializeToString()
        if len(data) > GRPC_MESSAGE_BYTES_MAX:
            raise error(Code.TOO_LARGE, f"request of {len(data)} bytes, over the limit of {GRPC_MESSAGE_BYTES_MAX}")
        return data

    def parse(self, name: str, data: bytes) -> Any:
        reply = self._replies[name]()
        try:
            reply.MergeFromString(data)
        except DecodeError as exc:
            raise error(Code.PROTOCOL, f"the answer to {name} is not a {reply.DESCRIPTOR.name}") from exc
        return reply


class ControlClient:
    """Blocking calls to one server; safe to use from several threads, and beside forks of the process."""

    def __init__(self, service: ServiceDescriptor, address: str) -> None:
        self.address = address
        self._methods = _Methods(service)
        self._channel: Any = None
        self._callables: dict[str, Callable[..., bytes]] = {}
        self._lock = threading.Lock()
        self._closed = False
        forks.add(self)

    def call(self, name: str, request: Message, *, deadline_s: float = DEFAULT_DEADLINE_S) -> Any:
        """The reply message of method `name`. Raises FfsError: the server's, or UNAVAILABLE, TIMEOUT, TOO_LARGE.

        UNAVAILABLE too when the process forks meanwhile: what became of the call is not known then.
        """
        path = self._methods.path(name)
        data = self._methods.pack(request)
        with forks.call():
            channel, method = self._method(name, path)
            try:
                answer = method(data, timeout=_deadline(deadline_s))
            except (grpc.RpcError, ValueError) as exc:  # ValueError: a closed channel
                if self._channel is not channel and not self._closed:
                    raise error(Code.UNAVAILABLE, f"{name} at {self.address}: ended by a fork of this process") from exc
                if isinstance(exc, grpc.RpcError):
                    raise _to_error(exc, f"{name} at {self.address}") from exc
                raise error(Code.CANCELLED, str(exc)) from exc
        return self._methods.parse(name, answer)

    def _method(self, name: str, path: str) -> tuple[Any, Callable[..., bytes]]:
        with self._lock:
            if self._closed:
                raise error(Code.CANCELLED, "the client is closed")
            if self._channel is None:
                self._channel = _grpc.insecure_channel(self.address, options=_CLIENT_OPTIONS)
            method = self._callables.get(name)
            if method is None:
                method = self._callables[name] = self._channel.unary_unary(path)
            return self._channel, method

    def drop_channel(self) -> bool:
        """Close the channel, which ends the calls on it; the next call makes a new one. False: there is none."""
        with self._lock:
            channel, self._channel = self._channel, None
            self._callables.clear()
        if channel is None:
            return False
        channel.close()
        return True

    def close(self) -> None:
        self._closed = True
        self.drop_channel()


class AsyncControlClient:
    """The same for asyncio; belongs to the loop of its first call."""

    def __init__(self, service: ServiceDescriptor, address: str) -> None:
        self.address = address
        self._methods = _Methods(service)
        self._channel: Any = None
        self._callables: dict[str, Callable[..., Awaitable[bytes]]] = {}
        self._closed = False

    async def call(self, name: str, request: Message, *, deadline_s: float = DEFAULT_DEADLINE_S) -> Any:
        """The reply message of method `name`. Raises FfsError: the server's, or UNAVAILABLE, TIMEOUT, TOO_LARGE."""
        path = self._methods.path(name)
        data = self._methods.pack(request)
        if self._closed:
            raise error(Code.CANCELLED, "the client is closed")
        if self._channel is None:
            self._channel = aio.insecure_channel(self.address, options=_CLIENT_OPTIONS)
        method = self._callables.get(name)
        if method is None:
            method = self._callables[name] = self._channel.unary_unary(path)
        try:
            answer = await method(data, timeout=_deadline(deadline_s))
        except grpc.RpcError as exc:
            raise _to_error(exc, f"{name} at {self.address}") from exc
        except aio.UsageError as exc:
            raise error(Code.CANCELLED, str(exc)) from exc
        return self._methods.parse(name, answer)

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            await self._channel.close()


_deadline = deadline_s
