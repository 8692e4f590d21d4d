"""The same handler object on the data link: the body is the request message, the reply's body the reply message."""

from __future__ import annotations

from collections.abc import Awaitable

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from fireflyfs.common.net.api import Handler, ServerRequest
from fireflyfs.common.net.binding import Bound, bind
from fireflyfs.common.net.methods import service_methods


def link_handlers(service: ServiceDescriptor, prefix: str, handler: object) -> dict[int, Handler]:
    """Handlers by method number for those methods that have one (`methods.py`, "META" or "STORAGE")."""
    numbers = service_methods(prefix)
    return {int(numbers[name]): _serve(bound) for name, bound in bind(service, handler).items() if name in numbers}


def _serve(bound: Bound) -> Handler:
    def handle(request: ServerRequest) -> Awaitable[None] | None:
        outcome = bound.start(bound.parse(request.body), request.peer)
        if isinstance(outcome, Message):
            request.reply(outcome.SerializeToString())
            return None
        return _finish(request, outcome)

    return handle


async def _finish(request: ServerRequest, pending: Awaitable[Message]) -> None:
    request.reply((await pending).SerializeToString())
