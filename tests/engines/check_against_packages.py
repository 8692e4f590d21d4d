"""Asks the hosts' own packages whether what is recorded of them still holds: hashes, interfaces, connectors.

    python -P tests/engines/check_against_packages.py [--wheels DIR] [--record] [sglang] [vllm] [lmcache]

Fetches the newest release of each package (400 MB in all; none of their requirements) unless DIR has its wheel, and
runs single modules of it with stand-ins for the rest. Run it by hand when a host has a new release: `make test` uses
what `--record` wrote. SGLang's hashes need g++ and OpenSSL's headers, vLLM's the package cbor2.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engines import interfaces, lmcache_host, sglang_host, vllm_host
from engines.opening import Opened
from engines.stubs import source_of
from fireflyfs.client.kvcache import hashes

TOKENS = [(number * 7919 + 13) % 130_000 for number in range(150)]
TOKENS[3:7] = [5, 200, 65_536, 2**31 + 5]
WIDE = [*TOKENS[:20], 2**40 + 3, *TOKENS[21:]]
EXTRAS: list[Any] = [(("lora", "a", "/x/a"), ("cache_salt", "s")), None, (("mm", "id0", -3),), *[None] * 6]
SEED = hashes.VLLM_SEED


def same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise SystemExit(f"{what}: ours {ours!r}, theirs {theirs!r}")
    print(f"  {what}: the same")


def unpacked(package: str, wheels: Path | None, into: Path) -> tuple[Path, str]:
    """A package's sources, and which release they are."""
    found = sorted(wheels.rglob(f"{package}-*.whl")) if wheels else []
    if not found:
        target = into / f"{package}-wheel"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), package]
        subprocess.run(pip, check=True)
        found = sorted(target.glob("*.whl"))
    root = into / package
    with zipfile.ZipFile(found[-1]) as wheel:
        wheel.extractall(root, [name for name in wheel.namelist() if name.endswith((".py", ".cpp"))])
    return root, found[-1].name.split("-")[1]


@contextmanager
def host_of(kind: Any, package: str, root: Path, real: Sequence[str]) -> Iterator[Any]:
    """`kind` of host with the package's own classes and our connector on top of them."""
    wanted = interfaces.WANTED[package]
    ours = f"fireflyfs.client.connectors.{package}"
    sys.modules.pop(ours, None)
    with source_of(root, [package], [*wanted, *real]), pytest.MonkeyPatch.context() as monkeypatch:
        names = {
            name: getattr(importlib.import_module(module), name) for module, all_ in wanted.items() for name in all_
        }
        host = kind(names, importlib.import_module(ours), Opened(monkeypatch))
        try:
            yield host
        finally:
            host.end()
            sys.modules.pop(ours, None)


def check_interface(package: str, root: Path, connector: str, module: str, base: str) -> dict[str, Any]:
    """What the package asks for now; ours must be callable by it."""
    wanted = interfaces.WANTED[package]
    with source_of(root, [package], list(wanted)):
        described = {
            module_: {name: interfaces.describe(getattr(importlib.import_module(module_), name)) for name in names}
            for module_, names in wanted.items()
        }
    with interfaces.stand_in(package):
        ours = getattr(importlib.import_module(f"fireflyfs.client.connectors.{package}"), connector)
        same(f"{connector} for {base}", interfaces.differences(ours, described[module][base]), [])
    return described


# SGLang


def sglang_hash_module(root: Path, into: Path) -> Any:
    """SGLang's hashes are C++: built as it builds them."""
    source = root / "sglang" / "srt" / "mem_cache" / "cpp_utils" / "hash_binding.cpp"
    include = [f"-I{Path(torch.__file__).parent / 'include'}", f"-I{sysconfig.get_paths()['include']}"]
    built = into / "hicache_hash_cpp.so"
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-DTORCH_EXTENSION_NAME=hicache_hash_cpp"]
    subprocess.run(["g++", *flags, *include, str(source), "-o", str(built), "-lcrypto"], check=True)
    sys.path.insert(0, str(into))
    return importlib.import_module("hicache_hash_cpp")


def check_sglang(root: Path, into: Path) -> None:
    native = sglang_hash_module(root, into)
    module = "sglang.srt.mem_cache.cpp_utils.native_hash"
    utils = "sglang.srt.mem_cache.utils"
    with source_of(root, ["sglang"], [module, utils]):
        hasher: Any = importlib.import_module(module)
        hasher._load_native_hash_module = lambda: native
        storage: Any = importlib.import_module(utils)

        class Key(list[int]):
            extra_key, cache_salt, is_bigram = "lora1", "s", False

        class Bigram(list[int]):
            is_bigram = True

            def __len__(self) -> int:
                return super().__len__() - 1

        for tokens in (TOKENS, WIDE):
            same("page hashes", hashes.sglang_page_hashes(tokens, 16), storage.get_hash_str(tokens, None, page_size=16))
            theirs = hasher.get_native_hash(Bigram(tokens), None, 16)
            same("bigram hashes", hashes.sglang_page_hashes(tokens, 16, bigram=True), theirs)
        seed = hashes.sglang_namespace_seed("lora1", "s")
        theirs = storage.get_storage_hash_str(Key(TOKENS), None, page_size=16)
        same("namespaces", hashes.sglang_page_hashes(TOKENS, 16, prior_hash=seed), theirs)
    factory = "sglang.srt.mem_cache.storage.backend_factory"
    with host_of(sglang_host.Host, "sglang", root, [factory]) as host:
        pool = sglang_host.HostPool()
        extra = {
            "backend_name": "fireflyfs", "module_path": "fireflyfs.client.connectors.sglang", "interface_v1": 1,
            "class_name": "FireflyHiCache", "fireflyfs": {"mgmtd": host.opened.mgmtd},
        }  # fmt: skip
        real = importlib.import_module(factory).StorageBackendFactory
        backend = real._do_create_backend("dynamic", host.config(extra_config=extra), pool)
        backend.register_mem_pool_host(pool)
        pool.page(2).fill_(5)
        names = hashes.sglang_page_hashes(TOKENS, sglang_host.PAGE)[:2]
        same("pages through the dynamic backend", backend.batch_set_v1(names, pool.indices(2, 3)), [True] * 2)
        same("and back", backend.batch_get_v1(names, pool.indices(0, 1)), [True] * 2)
        same("byte for byte", bool((pool.page(0) == 5).all()), True)
        found = backend.batch_exists_v2(names, [])
        same("prefixes of several pools", (found.kv_hit_pages, found.restorable_prefix_pages), (2, [1, 2]))
        backend.close()


# vLLM


def vllm_hashing(root: Path) -> tuple[Any, Callable[..., Any]]:
    """Its hash functions, and `hash_block_tokens`, which lies in a module with the whole engine around it."""
    hashing = importlib.import_module("vllm.utils.hashing")
    tree = ast.parse((root / "vllm" / "v1" / "core" / "kv_cache_utils.py").read_text())
    wanted = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name == "hash_block_tokens")
        or (isinstance(node, ast.Assign) and "DEFAULT_NONE_HASH_SEED" in ast.dump(node.targets[0]))
    ]
    names: dict[str, Any] = {"BlockHash": bytes, "Any": Any, "Callable": Callable, "Sequence": Sequence}
    exec(compile(ast.Module(wanted, []), "kv_cache_utils.py", "exec"), names)
    same("the seed of chains", SEED, names["DEFAULT_NONE_HASH_SEED"])

    def block(function: Any, parent: bytes | None, tokens: Sequence[int], extra: Any) -> bytes:
        names["NONE_HASH"] = function(SEED)
        hashed: bytes = names["hash_block_tokens"](function, parent, tokens, extra)
        return hashed

    return hashing, block


def check_vllm(root: Path, into: Path) -> None:
    with source_of(root, ["vllm"], ["vllm.utils.hashing"]):
        hashing, block = vllm_hashing(root)
        for algorithm in ("sha256", "sha256_cbor"):
            function = hashing.get_hash_fn_by_name(algorithm)
            for tokens, extras in ((TOKENS, EXTRAS), (WIDE, [None] * 9)):
                theirs: list[bytes] = []
                for number in range(9):
                    part = tokens[number * 16 : number * 16 + 16]
                    theirs.append(block(function, theirs[-1] if theirs else None, part, extras[number]))
                ours = hashes.vllm_block_hashes(tokens, 16, algorithm=algorithm, extra_keys=extras)  # type: ignore[arg-type]
                same(f"{algorithm} of blocks", ours, theirs)
    with host_of(vllm_host.Host, "vllm", root, []) as host:
        first, second = (host.engine(2) for _ in range(2))
        one = first.request("one", TOKENS[:18])
        first.schedule(one)
        first.step((one, 0, 18))
        first.flush()
        two = second.request("two", TOKENS[:18])
        same("tokens that another engine finds", second.schedule(two), (16, False))
        second.step()
        same("and loads", second.content(two, 16), first.content(one, 16))


# LMCache


def check_lmcache(root: Path, into: Path) -> None:
    class Configured:
        chunk_size, save_unfull_chunk = 16, True

    with source_of(root, ["lmcache", "transformers"], ["lmcache.v1.token_database"]):
        database: Any = importlib.import_module("lmcache.v1.token_database")
        for algorithm in ("sha256", "sha256_cbor"):
            chunks = object.__new__(database.ChunkedTokenDatabase)
            chunks.config, chunks.chunk_size = Configured, 16
            encode = hashes._encoder(algorithm)
            # Its hash function is vLLM's, which `check_vllm` compares.
            chunks.hash_func = lambda value, encode=encode: hashes.hashlib.sha256(encode(value)).digest()  # type: ignore[attr-defined]
            database.NONE_HASH = database._normalize_hash_to_int(hashes.vllm_root_hash(algorithm, SEED))  # type: ignore[arg-type]
            theirs = [found for _, _, found in chunks.process_tokens(TOKENS, make_key=False)]
            ours = hashes.lmcache_chunk_hashes(TOKENS, 16, algorithm=algorithm, unfull_chunk=True)  # type: ignore[arg-type]
            same(f"{algorithm} of chunks", ours, theirs)
    with host_of(lmcache_host.Host, "lmcache", root, []) as host:
        connectors: Any = importlib.import_module(lmcache_host.MODULE)
        connectors.discover_subclasses = lambda *_, **__: []  # no other backend's requirements are here
        prefix = "remote_storage_plugin.fireflyfs."
        extra = {
            prefix + "module_path": "fireflyfs.client.connectors.lmcache", prefix + "class_name": "FireflyAdapter",
            prefix + "mgmtd": "h:1",
        }  # fmt: skip
        config = SimpleNamespace(remote_storage_plugins=["fireflyfs"], extra_config=extra, use_layerwise=False)
        shapes = [torch.Size(lmcache_host.SHAPE)]
        metadata = SimpleNamespace(
            get_shapes=lambda: shapes, get_dtypes=lambda: [torch.bfloat16], use_mla=False, get_num_groups=lambda: 1,
            chunk_size=lmcache_host.CHUNK,
        )  # fmt: skip
        base: Any = importlib.import_module(lmcache_host.MODULE + ".base_connector")
        base.get_size_bytes = lambda shapes, dtypes: sum(
            shape.numel() * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)
        )
        manager = connectors.ConnectorManager(
            "plugin://fireflyfs", host.loop, host.cpu, config, metadata, plugin_name="fireflyfs"
        )
        connector = manager.create_connector()
        key, chunk = lmcache_host.key, lmcache_host.chunk
        host.run(connector.batched_put([key(1), key(2)], [chunk(1), chunk(2)]))
        same("chunks through the plugin", connector.batched_contains([key(1), key(2), key(3)]), 2)
        found = host.run(connector.batched_get([key(2), key(3)]))
        same("and back", (bool((found[0].tensor == 2).all()), found[1]), (True, None))
        assert asyncio.iscoroutinefunction(connector.get)
        host.run(connector.close())


CHECKS: dict[str, tuple[Callable[[Path, Path], None], str, str, str]] = {
    "sglang": (check_sglang, "FireflyHiCache", sglang_host.MODULE, "HiCacheStorage"),
    "vllm": (check_vllm, "FireflyConnector", vllm_host.MODULE, "KVConnectorBase_V1"),
    "lmcache": (check_lmcache, "FireflyRemote", lmcache_host.MODULE + ".base_connector", "RemoteConnector"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(CHECKS))
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="where wheels are that were fetched before")
    parser.add_argument("--record", action="store_true", help="write what the packages ask for to interfaces.json")
    arguments = parser.parse_args()
    recorded = json.loads(interfaces.RECORDED.read_text())
    with tempfile.TemporaryDirectory(prefix="ffs-hosts-") as folder:
        for package in arguments.packages or CHECKS:
            check, connector, module, base = CHECKS[package]
            root, version = unpacked(package, arguments.wheels, Path(folder))
            print(f"{package} {version} (recorded: {recorded[package]['version']})")
            described = check_interface(package, root, connector, module, base)
            check(root, Path(folder))
            recorded[package] = {"version": version, "modules": described}
    if arguments.record:
        interfaces.RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
