"""From a service descriptor to the methods of a handler object: GetRouting is answered by `get_routing`.

A method takes the request message, and the peer if it has a second parameter; it is `async def` or a plain `def`
that does not block for long. It returns the reply message or raises FfsError.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import DEADLINE_S_MAX
from fireflyfs.common.net.api import Peer

log = logging.getLogger(__name__)
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


def snake_case(name: str) -> str:
    """GetRouting: get_routing."""
    return _WORD.sub("_", name).lower()


@dataclass(frozen=True, slots=True)
class Bound:
    """One method of one handler object."""

    name: str
    request_class: type[Message]
    reply_class: type[Message]
    function: Callable[..., Message | Awaitable[Message]]
    wants_peer: bool

    def parse(self, data: bytes | memoryview) -> Message:
        """Raises PROTOCOL for bytes that are no such message."""
        request = self.request_class()
        try:
            request.MergeFromString(bytes(data))
        except DecodeError as exc:
            raise error(Code.PROTOCOL, f"not a {self.request_class.DESCRIPTOR.name}: {exc}") from exc
        return request

    def start(self, request: Message, peer: Peer | None) -> Message | Awaitable[Message]:
        return self.function(request, peer) if self.wants_peer else self.function(request)


def bind(service: ServiceDescriptor, handler: object) -> dict[str, Bound]:
    """The methods of `service` that `handler` answers, by their name in the .proto file."""
    bound: dict[str, Bound] = {}
    for method in service.methods:
        function = getattr(handler, snake_case(method.name), None)
        if function is None:
            log.debug("%s does not answer %s", type(handler).__name__, method.full_name)
            continue
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        wants_peer = len(parameters) > 1 and parameters[1].name == "peer"
        bound[method.name] = Bound(method.name, *message_classes(method), function, wants_peer)
    if not bound:
        raise TypeError(f"{type(handler).__name__} answers no method of {service.full_name}")
    return bound


def message_classes(method: MethodDescriptor) -> tuple[type[Message], type[Message]]:
    get = message_factory.GetMessageClass
    return get(method.input_type), get(method.output_type)


def as_failure(exc: BaseException, what: str) -> FfsError:
    """What a caller is told; a bug of ours is logged with its trace here."""
    if isinstance(exc, FfsError):
        return exc
    log.error("%s failed", what, exc_info=exc)
    return error(Code.INTERNAL, f"{type(exc).__name__}: {exc}")


def deadline_s(value: float) -> float:
    return min(max(value, 0.001), DEADLINE_S_MAX)
