"""The process behind a mount: connects, mounts, says that it is ready, serves until it is unmounted."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fireflyfs.client.cli.connect import CONNECT_TIMEOUT_S
from fireflyfs.client.cli.mount_table import FS_SOURCE, unmount
from fireflyfs.client.cli.waiting import Notice
from fireflyfs.client.session import ClientContext
from fireflyfs.common import collector
from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.link_choice import choose_link
from fireflyfs.fuse.context import backend_of
from fireflyfs.fuse.mount import Mount
from fireflyfs.fuse.options import THREADS_USUAL, MountOptions
from fireflyfs.fuse.usrbio.host import RingHost
from fireflyfs.proto.common_pb2 import NODE_TYPE_FUSE


def serve(
    addresses: list[str],
    mountpoint: Path,
    *,
    ready_fd: int | None,
    kernel: Sequence[str],
    libfuse: bool,
    link: str,
    options: dict[str, Any],
    log_file: Path | None = None,
) -> None:
    """Serve `mountpoint` until it is unmounted by anyone, or SIGTERM or SIGINT asks for it.

    `options` are fields of fuse's MountOptions. `ready_fd` gets `ready` once the mount can be used, and is closed.
    `kernel` are options that the kernel keeps (ro, noexec): they need root. With `libfuse`, which serves it otherwise,
    CONFIG is raised where the package is missing. `link` empty: what FFS_LINK says.
    """
    if kernel and os.geteuid() != 0:
        raise error(Code.NOT_PERMITTED, f"mount option {kernel[0]} needs root")
    _raise_descriptors()
    link = choose_link(link).value  # the agents of its rings take the same
    with contextlib.nullcontext() if ready_fd is not None else Notice():  # who started this one says it
        context = ClientContext.connect(
            addresses,
            NODE_TYPE_FUSE,
            link=link,
            description=f"mount at {mountpoint}, pid {os.getpid()}",
            connect_timeout_s=CONNECT_TIMEOUT_S,
        )
    try:
        options.setdefault("threads_max", max(options["threads"], THREADS_USUAL))
        mount_options = MountOptions(source=f"{FS_SOURCE}#{addresses[0]}", link=link, **options)
        if libfuse:
            _serve_with_libfuse(context, mountpoint, mount_options, kernel, ready_fd)
            return
        mount = Mount(
            backend_of(context), mountpoint, mount_options, rings=lambda volume: RingHost(volume, addresses, log_file)
        )
        mount.start()
        collector.settle()
        _begin(mountpoint, kernel, ready_fd)
        mount.run()
    finally:
        context.close()


def _raise_descriptors() -> None:
    """Applications' regions and rings keep descriptors open here and in the agents, thousands of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _begin(mountpoint: Path, kernel: Sequence[str], ready_fd: int | None) -> None:
    """The mount is there: make it what was asked for, and say so."""
    if kernel:
        _remount(mountpoint, kernel)
    if ready_fd is not None:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
        # stderr is the same pipe: from here on only the log file is written.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


def _serve_with_libfuse(
    context: ClientContext, mountpoint: Path, options: MountOptions, kernel: Sequence[str], ready_fd: int | None
) -> None:
    try:
        from fireflyfs.fuse import libfuse
    except (ImportError, OSError) as exc:
        raise error(
            Code.CONFIG, f"--libfuse needs libfuse and mfusepy (pip install 'fireflyfs[libfuse]'): {exc}"
        ) from exc
    # libfuse says that it is ready before it answers anything, so the rest is done beside it.
    libfuse.run(
        context,
        mountpoint,
        options,
        ready=lambda: threading.Thread(target=_begin, args=(mountpoint, kernel, ready_fd), daemon=True).start(),
    )


def _remount(mountpoint: Path, kernel: Sequence[str]) -> None:
    done = subprocess.run(
        ["mount", "-i", "-o", ",".join(["remount", *kernel]), str(mountpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        unmount(mountpoint, lazy=True)
        raise error(Code.IO_ERROR, f"cannot set {', '.join(kernel)} on {mountpoint}: {done.stderr.strip()}")
