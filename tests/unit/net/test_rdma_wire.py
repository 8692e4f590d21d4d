"""The rdma frames, and what of a peer's is refused."""

from __future__ import annotations

import enum
import struct
from types import ModuleType

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.limits import REGION_BYTES_MAX
from fireflyfs.common.net import frame
from fireflyfs.common.net.frame import HEADER_BYTES, INLINE, Hello, Kind, LinkKind
from fireflyfs.common.net.rdma import settings, wire
from fireflyfs.common.net.rdma.library import constants_of
from fireflyfs.common.net.rdma.settings import settings_from_environment
from fireflyfs.common.net.rdma.wire import Exposed, Parameters

PARAMETERS = Parameters(0x123456, 0xABCDEF, "0000:0000:0000:0000:0000:ffff:0a4d:0001", 3, 5, 16, 64)


def body_of(packed: bytes, kind: Kind) -> bytes:
    header = frame.parse_header(packed)
    assert header.kind == kind
    assert header.body_len == len(packed) - HEADER_BYTES
    return packed[HEADER_BYTES:]


def test_round_trips() -> None:
    assert wire.parse_parameters(body_of(wire.pack_parameters(PARAMETERS), Kind.CONNECT)) == PARAMETERS
    exposed = Exposed(5, 0x01020304, 4096, 0x7F00_0000_1000)
    assert wire.parse_expose(body_of(wire.pack_expose(exposed), Kind.EXPOSE)) == exposed
    assert wire.parse_probe(body_of(wire.pack_probe(4096, 9), Kind.PROBE)) == (4096, 9)
    refusal = wire.pack_refusal(Kind.CONNECT, int(Code.UNAVAILABLE), "no port is active")
    assert frame.parse_header(refusal).status == Code.UNAVAILABLE
    assert body_of(refusal, Kind.CONNECT) == b"no port is active"


def test_the_bytes_are_those_of_the_format_page() -> None:
    assert body_of(wire.pack_parameters(PARAMETERS), Kind.CONNECT).hex() == (
        "56341200efcdab0000000000000000000000ffff0a4d0001030005104000100000200000"
    )
    assert body_of(wire.pack_expose(Exposed(5, 9, 4096, 0x1000)), Kind.EXPOSE).hex() == (
        "050000000900000000100000000000000010000000000000"
    )
    assert wire.MESSAGE_HEADER.pack(21, 5).hex() == "1500000005000000"


@pytest.mark.parametrize("message", [b"", bytes(7), struct.pack("<II", 16, 1), struct.pack("<II", 16, 2) + b"abc"])
def test_senseless_messages(message: bytes) -> None:
    with pytest.raises(FfsError) as caught:
        wire.parse_message(memoryview(message))
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(30),
        bytes(36),
        struct.pack("<II16sHBBBxHI", 1 << 24, 0, bytes(16), 0, 5, 1, 1, 16, 8192),
        struct.pack("<II16sHBBBxHI", 0, 1 << 24, bytes(16), 0, 5, 1, 1, 16, 8192),
        struct.pack("<II16sHBBBxHI", 1, 1, bytes(16), 0, 0, 1, 1, 16, 8192),
        struct.pack("<II16sHBBBxHI", 1, 1, bytes(16), 0, 6, 1, 1, 16, 8192),
        struct.pack("<II16sHBBBxHI", 1, 1, bytes(16), 0, 5, 0, 0, 16, 8192),
        struct.pack("<II16sHBBBxHI", 1, 1, bytes(16), 0, 5, 1, 1, 3, 8192),
        struct.pack("<II16sHBBBxHI", 1, 1, bytes(16), 0, 5, 1, 1, 16, 511),
        struct.pack("<II16sHBBBxHI", 1, 1, bytes(16), 0, 5, 1, 1, 16, (1 << 20) + 1),
    ],
)
def test_senseless_parameters(body: bytes) -> None:
    with pytest.raises(FfsError) as caught:
        wire.parse_parameters(body)
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize(
    ("exposed", "code"),
    [
        ((INLINE, 1, 10, 4096), Code.PROTOCOL),
        ((1, 1, 0, 4096), Code.PROTOCOL),
        ((1, 1, REGION_BYTES_MAX + 1, 0), Code.TOO_LARGE),
        ((1, 1, 4096, (1 << 64) - 4095), Code.PROTOCOL),
    ],
)
def test_senseless_regions(exposed: tuple[int, int, int, int], code: Code) -> None:
    with pytest.raises(FfsError) as caught:
        wire.parse_expose(struct.pack("<IIQQ", *exposed))
    assert caught.value.code is code


def test_a_probe_that_would_wrap_around() -> None:
    with pytest.raises(FfsError):
        wire.parse_probe(struct.pack("<QI", (1 << 64) - 8, 1))


def test_rdma_is_taken_where_both_offer_it_and_nothing_is_nearer() -> None:
    both = LinkKind.TCP | LinkKind.RDMA
    assert frame.choose(Hello("c", bytes(16), "", both), "c", both).link == LinkKind.RDMA
    assert frame.choose(Hello("c", bytes(16), "", both), "c", LinkKind.TCP).link == LinkKind.TCP
    assert frame.choose(Hello("c", bytes(16), "", LinkKind.TCP), "c", both).link == LinkKind.TCP
    everything = both | LinkKind.SHM
    assert frame.choose(Hello("c", bytes(16), "", everything), "c", everything).link == LinkKind.SHM


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (settings.DEVICES_ENV, settings.GID_INDEX_ENV):
        monkeypatch.delenv(name, raising=False)
    assert settings_from_environment().devices == ()
    monkeypatch.setenv(settings.DEVICES_ENV, "mlx5_0:1, mlx5_1")
    monkeypatch.setenv(settings.GID_INDEX_ENV, "3")
    chosen = settings_from_environment()
    assert chosen.gid_index == 3
    assert [chosen.allows(*at) for at in (("mlx5_0", 1), ("mlx5_0", 2), ("mlx5_1", 2))] == [True, False, True]
    monkeypatch.setenv(settings.GID_INDEX_ENV, "-1")
    with pytest.raises(FfsError) as caught:
        settings_from_environment()
    assert caught.value.code is Code.CONFIG


def test_constants_of_both_layouts() -> None:
    flat, nested = ModuleType("flat"), ModuleType("nested")
    flat.IBV_QPT_RC = 2  # type: ignore[attr-defined]
    flat.other = 5  # type: ignore[attr-defined]
    nested.ibv_qp_type = enum.IntEnum("ibv_qp_type", {"IBV_QPT_RC": 2})  # type: ignore[attr-defined]
    assert constants_of(flat) == constants_of(nested) == {"IBV_QPT_RC": 2}
