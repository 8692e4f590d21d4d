"""Block hashes of token sequences, byte for byte as inference engines compute them.

Each block's hash covers its tokens and the hash of the block before it, so equal hashes mean an equal prefix. With the
functions here a program beside the engine (a router, a prefetcher, a warm-up job) finds the blocks an engine stored.

| function | whose scheme | stable |
|---|---|---|
| `sglang_page_hashes` | SGLang's HiCache | yes: sha256 over little-endian token ids |
| `vllm_block_hashes(..., "sha256_cbor")` | vLLM's prefix cache | yes: sha256 over canonical CBOR, in any language |
| `vllm_block_hashes(..., "sha256")` | the same, vLLM's default | for CPython: sha256 over pickle protocol 5 |
| `lmcache_chunk_hashes` | LMCache's chunks in the engine's process | with "sha256_cbor" and "sha256" |

The seed of a chain: vLLM 0.33 has a fixed one, which is the default here. Older releases draw a random one for each
process unless PYTHONHASHSEED is set: set it to the same string in every engine and pass it as `seed`.
Not offered: LMCache's "builtin" hash, which is CPython's own with a seed of each process, and the blake3 of its
multiprocess server.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fireflyfs.client.kvcache.cbor import encode_canonical, encode_head, encode_unsigned_many

VLLM_SEED = "vllm-none-hash"  # vLLM 0.33 and newer, where PYTHONHASHSEED is not set
PICKLE_PROTOCOL = 5  # vLLM takes the highest one: 5 in CPython 3.8 to 3.14
UINT32_MAX = (1 << 32) - 1
WIDE_TAG = b"\xff"  # SGLang's mark of a page with token ids beyond 32 bits: no such page has an even length

Algorithm = Literal["sha256", "sha256_cbor"]
Tokens = Sequence[int] | npt.NDArray[Any]


def _token_array(tokens: Tokens) -> npt.NDArray[np.int64]:
    """Token ids as one row. Raises ValueError for negative ones, TypeError for what is no integer."""
    array = np.asarray(tokens)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(f"token ids are one row of integers, not {array.dtype} of {array.ndim} dimensions")
    if int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError("token ids are 0 to 2**63 - 1")
    return array.astype(np.int64, copy=False)


def _check_block(size: int) -> None:
    if size <= 0:
        raise ValueError(f"a block of {size} tokens: it holds at least 1")


# SGLang


def sglang_namespace_seed(extra_key: str | None = None, cache_salt: str | None = None) -> str | None:
    """What a request with an extra key or a cache salt begins its chain with; None for one without (SGLang 0.5.23)."""
    if extra_key is None and cache_salt is None:
        return None
    digest = hashlib.sha256(b"sglang-cache-namespace-v1")
    for part in (extra_key, cache_salt):
        if part is None:
            digest.update(b"\x00")
        else:
            encoded = part.encode()
            digest.update(b"\x01" + len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def sglang_page_hashes(
    tokens: Tokens, page_size: int, *, prior_hash: str | None = None, bigram: bool = False
) -> list[str]:
    """SGLang's `get_hash_str` page by page: 64 hexadecimal digits for each page, a short last one included.

    `prior_hash`: the hash of the page before, or `sglang_namespace_seed`. `bigram`: each unit is a token with the one
    after it, as with EAGLE; the last token then begins none.
    """
    _check_block(page_size)
    array = _token_array(tokens)
    units = max(len(array) - 1, 0) if bigram else len(array)
    digest = bytes.fromhex(prior_hash) if prior_hash else b""
    if digest and len(digest) != hashlib.sha256().digest_size:
        raise ValueError("a prior hash has 64 hexadecimal digits")
    narrow = len(array) == 0 or int(array.max()) <= UINT32_MAX
    hashes: list[str] = []
    for start in range(0, units, page_size):
        count = min(page_size, units - start)
        page = array[start : start + count + bigram]
        wide = not narrow and int(page.max()) > UINT32_MAX
        if bigram:
            page = np.stack((page[:-1], page[1:]), axis=1).ravel()
        words = page.astype("<u8" if wide else "<u4")
        digest = hashlib.sha256(digest + (WIDE_TAG if wide else b"") + words.tobytes()).digest()
        hashes.append(digest.hex())
    return hashes


# vLLM


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=PICKLE_PROTOCOL)


_ENCODERS: dict[str, Callable[[object], bytes]] = {"sha256": _pickled, "sha256_cbor": encode_canonical}


def _encoder(algorithm: str) -> Callable[[object], bytes]:
    try:
        return _ENCODERS[algorithm]
    except KeyError:
        raise ValueError(f"unknown hash {algorithm!r}: {', '.join(_ENCODERS)}") from None


def vllm_root_hash(algorithm: Algorithm = "sha256", seed: str = VLLM_SEED) -> bytes:
    """The parent of every first block (vLLM's NONE_HASH). `seed`: PYTHONHASHSEED, where the engine has one."""
    return hashlib.sha256(_encoder(algorithm)(seed)).digest()


def vllm_block_hashes(
    tokens: Tokens,
    block_size: int,
    *,
    algorithm: Algorithm = "sha256",
    seed: str = VLLM_SEED,
    parent: bytes | None = None,
    extra_keys: Sequence[tuple[Any, ...] | None] | None = None,
) -> list[bytes]:
    """32 bytes for each full block, as vLLM's `hash_block_tokens`; what is left over at the end has no hash.

    `parent`: the hash of the block before `tokens`, or None at the beginning. `extra_keys`: for each block what the
    engine mixes in, or None. In 0.33: ("lora", name, path), ("mm", identifier, offset), ("cache_salt", salt) of the
    first block; older releases have no such words in front.
    """
    _check_block(block_size)
    encode = _encoder(algorithm)
    array = _token_array(tokens)
    count = len(array) // block_size
    if extra_keys is not None and len(extra_keys) < count:
        raise ValueError(f"{len(extra_keys)} extra keys for {count} blocks")
    previous = parent or vllm_root_hash(algorithm, seed)
    encoded = _encoded_blocks(array[: count * block_size], block_size, algorithm)
    hashes: list[bytes] = []
    for number in range(count):
        extra = extra_keys[number] if extra_keys is not None else None
        body = encoded(number, previous, extra, encode)
        previous = hashlib.sha256(body).digest()
        hashes.append(previous)
    return hashes


def vllm_group_key(block_hash: bytes, group: int) -> bytes:
    """The key under which vLLM's block pool knows a block: its hash and the number of its cache group."""
    return block_hash + group.to_bytes(4, "big")


def _encoded_blocks(
    array: npt.NDArray[np.int64], size: int, algorithm: str
) -> Callable[[int, object, object, Callable[[object], bytes]], bytes]:
    """What is hashed for block i: (parent, tokens, extra). CBOR of all tokens is made in one go, in numpy."""
    if algorithm == "sha256":
        values = array.tolist()
        return lambda number, parent, extra, encode: encode(
            (parent, tuple(values[number * size : (number + 1) * size]), extra)
        )
    flat, ends = encode_unsigned_many(array)
    starts = [0, *ends[size - 1 :: size].tolist()]
    view = memoryview(flat)
    head = encode_head(4, 3)
    row = encode_head(4, size)

    def body(number: int, parent: object, extra: object, encode: Callable[[object], bytes]) -> bytes:
        return b"".join((head, encode(parent), row, view[starts[number] : starts[number + 1]], encode(extra)))

    return body


# LMCache


def _folded(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def lmcache_chunk_hashes(
    tokens: Tokens,
    chunk_size: int = 256,
    *,
    algorithm: Algorithm = "sha256_cbor",
    seed: str = VLLM_SEED,
    parent: int | None = None,
    unfull_chunk: bool = False,
) -> list[int]:
    """Chunk hashes of LMCache's `ChunkedTokenDatabase` beside vLLM, 64 bits each (LMCache 0.5).

    `algorithm` is its `pre_caching_hash_algorithm`; `seed` as in `vllm_block_hashes`; `unfull_chunk` its
    `save_unfull_chunk`: a short last chunk has a hash too.
    """
    _check_block(chunk_size)
    encode = _encoder(algorithm)
    array = _token_array(tokens)
    end = len(array) if unfull_chunk else len(array) // chunk_size * chunk_size
    values = array.tolist()
    previous = _folded(vllm_root_hash(algorithm, seed)) if parent is None else parent
    hashes: list[int] = []
    for start in range(0, end, chunk_size):
        chunk = tuple(values[start : start + chunk_size])
        previous = _folded(hashlib.sha256(encode((previous, chunk, ()))).digest())
        hashes.append(previous)
    return hashes
