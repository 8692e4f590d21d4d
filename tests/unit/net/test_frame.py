"""The frame codec: what is packed is parsed, and nonsense raises FfsError and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fireflyfs.common import limits
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net import frame
from fireflyfs.common.net.frame import HEADER_BYTES, INLINE, Header, Hello, Kind, LinkKind, Welcome

U16, U32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
ROOM = limits.FRAME_DATA_BYTES_MAX // 16
SEGMENTS = st.lists(
    st.one_of(
        st.tuples(st.just(INLINE), st.integers(0, ROOM), st.just(0)),
        st.tuples(st.integers(0, 2**31), st.integers(0, ROOM), st.integers(0, 2**64 - 1)),
    ),
    max_size=8,
)


def code_of(function, *args) -> Code:
    with pytest.raises(FfsError) as caught:
        function(*args)
    return caught.value.code


def parsed_or_code(function, *args):
    try:
        return function(*args), None
    except FfsError as exc:
        return None, exc.code


@given(U16, U32, SEGMENTS, SEGMENTS, st.integers(0, limits.FRAME_BODY_BYTES_MAX), U32)
def test_request_round_trip(method, request_id, out, into, body_len, deadline_ms) -> None:
    packed = frame.pack_request(method, request_id, out, into, body_len, deadline_ms)
    header = frame.parse_header(packed)
    assert (header.kind, header.method, header.request_id) == (Kind.REQUEST, method, request_id)
    assert (header.body_len, header.deadline_ms) == (body_len, deadline_ms)
    assert len(packed) == HEADER_BYTES + header.table_bytes
    got_out, got_into, total = frame.parse_segments(header, memoryview(packed)[HEADER_BYTES:])
    assert (got_out, got_into) == (out, into)
    assert total == sum(length for _, length, _ in out + into)
    assert header.data_len == sum(length for region, length, _ in out if region == INLINE)


@given(U32, st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 100), st.integers(0, 1000))
def test_reply_round_trip(request_id, pushed, body_len, data_len) -> None:
    packed = frame.pack_reply(request_id, pushed, body_len, data_len)
    header = frame.parse_header(packed)
    assert (header.kind, header.status, header.data_len) == (Kind.REPLY, 0, data_len)
    assert list(frame.parse_pushed(header, packed[HEADER_BYTES:], [1000] * 20)) == pushed


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_32_bytes_parse_or_raise_ours(data) -> None:
    try:
        header = frame.parse_header(data)
    except FfsError:
        return
    assert header.body_len <= limits.FRAME_BODY_BYTES_MAX


@given(st.integers(0, 255), st.integers(1, 7), U16, U32, U32, U16, U16, U32, U32, U32)
def test_any_fields_parse_or_raise_ours(version, kind, method, request_id, body, n_out, n_into, data, status, deadline):
    raw = frame.HEADER.pack(
        frame.MAGIC, version, kind, method, 0, request_id, body, n_out, n_into, data, status, deadline
    )
    header, code = parsed_or_code(frame.parse_header, raw)
    assert code in (None, Code.PROTOCOL, Code.TOO_LARGE, Code.VERSION_MISMATCH)
    if header is not None:
        assert header.table_bytes <= 16 * limits.FRAME_SEGMENTS_MAX
        assert header.data_len <= limits.FRAME_DATA_BYTES_MAX


@given(st.binary(max_size=200))
def test_any_handshake_and_region_bodies_parse_or_raise_ours(data) -> None:
    for parse in (frame.parse_hello, frame.parse_region):
        assert parsed_or_code(parse, data)[1] in (None, Code.PROTOCOL, Code.TOO_LARGE)
    for kind in (Kind.WELCOME, Kind.REFUSE):
        try:
            frame.parse_answer(Header(kind, 0, 0, len(data), 0, 0, 0, 0, 0), data)
        except FfsError:
            pass


def test_the_bytes_are_what_the_format_page_says() -> None:
    packed = frame.pack_request(0x0101, 7, [(INLINE, 3, 0)], [(2, 5, 9)], 4, 1500)
    assert packed.hex(" ", 4) == (
        "fff50104 01010000 07000000 04000000 01000100 03000000 00000000 dc050000"
        " ffffffff 03000000 00000000 00000000 02000000 05000000 09000000 00000000"
    )
    assert frame.pack_failure(7, 1204, "no")[:HEADER_BYTES].hex(" ", 4) == (
        "fff50105 00000000 07000000 02000000 00000000 00000000 b4040000 00000000"
    )


def test_limits_are_kept_on_both_sides() -> None:
    too_many = [(1, 1, 0)] * (limits.FRAME_SEGMENTS_MAX + 1)
    too_much = [(1, limits.FRAME_DATA_BYTES_MAX, 0), (1, 1, 0)]
    assert code_of(frame.pack_request, 1, 1, too_many, [], 0, 1) is Code.TOO_LARGE
    assert code_of(frame.pack_request, 1, 1, [], too_much, 0, 1) is Code.TOO_LARGE
    assert code_of(frame.pack_request, 1, 1, [], [], limits.FRAME_BODY_BYTES_MAX + 1, 1) is Code.TOO_LARGE
    header = Header(Kind.REQUEST, 1, 1, 0, 1, 1, 0, 0, 0)
    table = b"".join(frame.SEGMENT.pack(*segment) for segment in too_much)
    assert code_of(frame.parse_segments, header, table) is Code.TOO_LARGE


def test_inline_segments_must_match_the_data() -> None:
    table = frame.SEGMENT.pack(INLINE, 5, 0)
    assert code_of(frame.parse_segments, Header(Kind.REQUEST, 1, 1, 0, 1, 0, 6, 0, 0), table) is Code.PROTOCOL
    shifted = frame.SEGMENT.pack(INLINE, 5, 1)
    assert code_of(frame.parse_segments, Header(Kind.REQUEST, 1, 1, 0, 1, 0, 5, 0, 0), shifted) is Code.PROTOCOL


def test_pushed_lengths_stay_in_the_room_offered() -> None:
    header = Header(Kind.REPLY, 0, 1, 0, 0, 2, 0, 0, 0)
    assert code_of(frame.parse_pushed, header, struct.pack("<2I", 5, 11), [5, 10]) is Code.PROTOCOL
    assert code_of(frame.parse_pushed, header, struct.pack("<2I", 5, 5), [5]) is Code.PROTOCOL


def test_handshake() -> None:
    hello = Hello("c1", b"i" * 16, "h1", LinkKind.TCP | LinkKind.SHM)
    packed = frame.pack_hello(hello)
    assert frame.parse_hello(packed[HEADER_BYTES:]) == hello
    both = LinkKind.TCP | LinkKind.SHM
    assert frame.choose(hello, "c1", both).link is LinkKind.SHM
    assert frame.choose(hello, "c1", LinkKind.TCP).link is LinkKind.TCP
    assert code_of(frame.choose, hello, "c2", both) is Code.WRONG_CLUSTER
    newer = Hello("c1", b"i" * 16, "h1", both, protocol_min=9, protocol_max=11)
    with pytest.raises(FfsError, match="9 to 11, server 1 to 1") as caught:
        frame.choose(newer, "c1", both)
    assert caught.value.code is Code.VERSION_MISMATCH
    welcome = Welcome(1, LinkKind.TCP, 10, 1000)
    answer = frame.pack_welcome(welcome)
    assert frame.parse_answer(frame.parse_header(answer), answer[HEADER_BYTES:]) == welcome
    refusal = frame.pack_refuse(Code.WRONG_CLUSTER, "no")
    with pytest.raises(FfsError, match="no") as caught:
        frame.parse_answer(frame.parse_header(refusal), refusal[HEADER_BYTES:])
    assert caught.value.code is Code.WRONG_CLUSTER
    assert error(Code.WRONG_CLUSTER).code is caught.value.code
