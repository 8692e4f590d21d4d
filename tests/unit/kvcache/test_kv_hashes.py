"""Block hashes against what the engines' own code gave (`tests/engines/check_against_packages.py` asks them anew)."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from fireflyfs.client.kvcache import hashes
from fireflyfs.client.kvcache.cbor import encode_canonical, encode_unsigned_many

TOKENS = [(number * 7919 + 13) % 130_000 for number in range(70)]
TOKENS[3:7] = [5, 200, 65_536, 2**31 + 5]  # every width that an encoding knows
WIDE = [*TOKENS[:20], 2**40 + 3, *TOKENS[21:]]
EXTRAS = [(("lora", "a", "/x/a"), ("cache_salt", "s")), None, (("mm", "id0", -3),), None]

# vLLM 0.33.0: vllm/utils/hashing.py and hash_block_tokens of vllm/v1/core/kv_cache_utils.py, blocks of 16
VLLM = {
    "sha256": (
        "1c082afcc1b39ba4e0f6a010e673aa4515d6457961d1c2672e8198a2c800a9cb",
        "fb52a7534a34186b678569c5f195be3ebdd3c44b6c4cb6026c17762bee0f6e66",
        "6022f10b13b2b0d5b6ce106098867f3821b865e1d277a9344aae743446d000c4",
    ),
    "sha256_cbor": (
        "55f231ffedaf1fd419acb84fff577279290667d37bccbe802113531d9c2c0e39",
        "8598807c0384fa4b2dbfe07cf5b4ede68be38ae87e39a163e60515fc3be47341",
        "80b370db00247709ac73c1f563e51fc6b34c9fb57a616929f69eb6e4fe791a7b",
    ),
}
# LMCache 0.5.6: lmcache/v1/token_database.py with vLLM's functions, chunks of 16: the first, the fifth (a short one)
LMCACHE = {"sha256": (0xDB54934E93EDF6F3, 0x9F52101F101A1ACA), "sha256_cbor": (0xEA5AAF82A85C9D6A, 0x7B768EBCF108C250)}
# SGLang 0.5.23: mem_cache/cpp_utils, pages of 16: the last page's
SGLANG = {
    ("narrow", False): "384cb09669e1c100959b3c3b658a62bc5f113bcc7d8610f9dc35bf54de660ead",
    ("narrow", True): "5eb840629028e8d2e68794fb293feaff39eee43ec4bfaa619e52035c2745258d",
    ("wide", False): "2c6e2beef29bf614d6fd70b925ede89435fd79d19ebfe805e885925664762a14",
    ("wide", True): "ef0522a8f9153b29ce60962cd9769fcf0f2fe75af44610ae6b5607aeca33288c",
}


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_vllm_block_hashes(algorithm: hashes.Algorithm) -> None:
    first, last, plain = VLLM[algorithm]
    found = hashes.vllm_block_hashes(TOKENS, 16, algorithm=algorithm, extra_keys=EXTRAS)
    assert len(found) == 4
    assert (found[0].hex(), found[-1].hex()) == (first, last)
    assert hashes.vllm_block_hashes(WIDE, 16, algorithm=algorithm)[-1].hex() == plain
    # A chain goes on where it was left, and tokens may be an array.
    half = hashes.vllm_block_hashes(
        np.array(TOKENS[32:]), 16, algorithm=algorithm, parent=found[1], extra_keys=EXTRAS[2:]
    )
    assert half == found[2:]
    assert hashes.vllm_group_key(found[0], 3) == found[0] + b"\0\0\0\3"


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_another_seed_is_another_chain(algorithm: hashes.Algorithm) -> None:
    other = hashes.vllm_block_hashes(TOKENS, 16, algorithm=algorithm, seed="7")
    assert not set(other) & set(hashes.vllm_block_hashes(TOKENS, 16, algorithm=algorithm))


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_lmcache_chunk_hashes(algorithm: hashes.Algorithm) -> None:
    found = hashes.lmcache_chunk_hashes(TOKENS, 16, algorithm=algorithm, unfull_chunk=True)
    assert (len(found), found[0], found[4]) == (5, *LMCACHE[algorithm])
    assert hashes.lmcache_chunk_hashes(TOKENS, 16, algorithm=algorithm) == found[:4]
    assert hashes.lmcache_chunk_hashes(TOKENS[16:], 16, algorithm=algorithm, parent=found[0]) == found[1:4]


@pytest.mark.parametrize("width", ["narrow", "wide"])
@pytest.mark.parametrize("bigram", [False, True])
def test_sglang_page_hashes(width: str, bigram: bool) -> None:
    tokens = TOKENS if width == "narrow" else WIDE
    found = hashes.sglang_page_hashes(tokens, 16, bigram=bigram)
    assert (len(found), found[-1]) == (5, SGLANG[width, bigram])


def test_sglang_chains_and_namespaces() -> None:
    found = hashes.sglang_page_hashes(TOKENS, 16)
    assert hashes.sglang_page_hashes(TOKENS[32:], 16, prior_hash=found[1]) == found[2:]
    assert hashes.sglang_namespace_seed() is None
    seed = hashes.sglang_namespace_seed("lora1", "s")
    salted = hashes.sglang_page_hashes(TOKENS, 16, prior_hash=seed)
    assert salted[0] == "ece0afd6c2b7168d4c731ef7cbd6ec27985ee14f90e07503f59644eb6a0a1748"
    assert hashes.sglang_namespace_seed("") != hashes.sglang_namespace_seed(None, "")


@pytest.mark.parametrize("wrong", [[-1], [2**63], [1.5], [[1, 2]], ["a"]])
def test_what_is_no_token_is_refused(wrong: list[object]) -> None:
    for scheme in (hashes.sglang_page_hashes, hashes.vllm_block_hashes, hashes.lmcache_chunk_hashes):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            scheme(wrong, 1)  # type: ignore[operator]


def test_what_else_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        hashes.vllm_block_hashes(TOKENS, 0)
    with pytest.raises(ValueError, match="unknown hash 'builtin'"):
        hashes.lmcache_chunk_hashes(TOKENS, 16, algorithm="builtin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        hashes.sglang_page_hashes(TOKENS, 16, prior_hash="abcd")
    with pytest.raises(ValueError, match="1 extra keys for 4 blocks"):
        hashes.vllm_block_hashes(TOKENS, 16, extra_keys=[None])
    assert hashes.vllm_block_hashes([], 16) == hashes.sglang_page_hashes([], 16) == []


# RFC 8949, appendix A
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "00"), (23, "17"), (24, "1818"), (1000, "1903e8"), (1000000, "1a000f4240"),
        (1000000000000, "1b000000e8d4a51000"), (18446744073709551615, "1bffffffffffffffff"),
        (-1, "20"), (-1000, "3903e7"),
        (0.0, "f90000"), (1.1, "fb3ff199999999999a"), (65504.0, "f97bff"), (100000.0, "fa47c35000"),
        (float("inf"), "f97c00"), (float("nan"), "f97e00"), (False, "f4"), (True, "f5"), (None, "f6"),
        (b"\x01\x02\x03\x04", "4401020304"), ("IETF", "6449455446"), ("\u00fc", "62c3bc"), ([1, [2, 3]], "8201820203"),
        ({"a": 1, "b": [2, 3]}, "a26161016162820203"), ({"bb": 1, "a": 2, 10: 3}, "a30a0361610262626201"),
    ],
)  # fmt: skip
def test_canonical_cbor(value: object, expected: str) -> None:
    assert encode_canonical(value).hex() == expected


def test_many_integers_at_once() -> None:
    rng = random.Random(5)
    values = [rng.getrandbits(rng.randrange(1, 63)) for _ in range(2000)] + [
        0,
        23,
        24,
        255,
        256,
        65535,
        65536,
        2**32 - 1,
    ]
    flat, ends = encode_unsigned_many(np.array(values, np.int64))
    assert flat == b"".join(map(encode_canonical, values))
    assert ends[-1] == len(flat)
    assert hashlib.sha256(flat[: ends[0]]).digest() == hashlib.sha256(encode_canonical(values[0])).digest()


def test_what_cbor_does_not_know() -> None:
    with pytest.raises(TypeError, match="no CBOR for object"):
        encode_canonical(object())
    with pytest.raises(ValueError, match="64 bits"):
        encode_canonical(1 << 64)
