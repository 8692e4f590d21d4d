"""`ffs mount` and `ffs umount`.

A mount in the background is this program again, in a session of its own, with a pipe: it says `ready` on the pipe when
the kernel has answered, or its error, so that `ffs mount` ends only when the mount can be used, with its exit code.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import click

from fireflyfs.client.cli import connect, output
from fireflyfs.client.cli.mount_table import is_dead, managers_of, our_mounts, place_of, unmount
from fireflyfs.client.cli.settings import MOUNTPOINT, Amount, Settings, pass_settings
from fireflyfs.client.cli.waiting import Notice
from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.link_choice import LINKS

READY_WAIT_S = 30.0
END_WAIT_S = 10.0
ERROR_BYTES_MAX = 64 << 10
_AS_IT_IS = "mounted already at {}: it stays as it is, `ffs umount` first makes other options count"


class _LikeMount(click.Command):
    """Takes the options of mount(8) too: `-o noatime,strict` is `--kernel=noatime --strict`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from fireflyfs.client.cli.mount_options import split

        return super().parse_args(ctx, split(args))


@click.command(cls=_LikeMount)
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option(
    "-o",
    "_",
    metavar="OPTION[,OPTION]...",
    help="As in fstab: options without their dashes (attr_timeout=5), and the kernel's (ro, nosuid, noexec ...).",
)
@click.option("--kernel", multiple=True, hidden=True)
@click.option("--foreground", "-f", is_flag=True, help="Stay; Ctrl-C unmounts.")
@click.option("--attr-timeout", type=Amount(0), default=1.0, show_default=True, help="Seconds attributes are cached.")
@click.option("--entry-timeout", type=Amount(0), default=1.0, show_default=True, help="Seconds names are cached.")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Threads that answer the kernel."
)
@click.option("--allow-other/--only-me", default=None, help="Who may use it.  [default: everyone when root mounts]")
@click.option("--libfuse", is_flag=True, help="Through libfuse and the package mfusepy: slower, and it can do less.")
@click.option(
    "--relatime/--noatime", default=False, show_default=True, help="Whether reading a file sets its access time."
)
@click.option(
    "--strict",
    is_flag=True,
    help="Every mount sees what this one has written, and the other way round, at once: no caches, no write-behind.",
)
@click.option(
    "--local-locks",
    is_flag=True,
    help="Keep flock and fcntl locks in this machine's kernel: faster, and unknown to other mounts.",
)
@click.option(
    "--subtype",
    type=click.Choice(["fireflyfs", "hf3fs"]),
    default="fireflyfs",
    show_default=True,
    help="Show as a mount of type fuse.SUBTYPE: hf3fs is what programs for 3FS look for.",
)
@click.option(
    "--link",
    type=click.Choice(LINKS),
    help="How bytes travel: the best that both ends have, or one that is insisted on.  [default: FFS_LINK, or auto]",
)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--log-file", type=click.Path(path_type=Path), help="Where a background mount logs.")
@pass_settings
def mount(
    settings: Settings,
    mountpoint: Path,
    foreground: bool,
    attr_timeout: float,
    entry_timeout: float,
    threads: int,
    allow_other: bool | None,
    libfuse: bool,
    relatime: bool,
    strict: bool,
    local_locks: bool,
    subtype: str,
    link: str | None,
    read_only: bool,
    kernel: tuple[str, ...],
    ready_fd: int | None,
    log_file: Path | None,
    _: None,
) -> None:
    """Mount the file system on MOUNTPOINT, in the background unless told otherwise.

    Returns when the mount can be used. `ffs umount MOUNTPOINT` ends it. Without root, fusermount3 makes the mount.
    """
    if allow_other is None:
        allow_other = os.geteuid() == 0
    if read_only:
        kernel = (*kernel, "ro")
    if not foreground and ready_fd is None:
        options = [f"--attr-timeout={attr_timeout}", f"--entry-timeout={entry_timeout}", f"--threads={threads}"]
        options += ["--allow-other" if allow_other else "--only-me"]
        options += ["--relatime"] if relatime else []
        options += ["--strict"] if strict else []
        options += ["--local-locks"] if local_locks else []
        options += [f"--subtype={subtype}"]
        options += [f"--link={link}"] if link else []
        options += [f"--kernel={option}" for option in kernel]
        options += ["--libfuse"] if libfuse else []
        options += [f"--log-file={log_file}"] if log_file else []
        made = mount_in_background(settings, mountpoint, options)
        where = str(place_of(mountpoint))
        output.done(settings, f"mounted at {where}" if made else _AS_IT_IS.format(where), mountpoint=where, made=made)
        return
    addresses = connect.mgmtd_addresses(settings)
    if ready_fd is None:  # else whoever started this process has met the cluster manager
        connect.meet(addresses)
    _check_mountpoint(mountpoint)
    if ready_fd is not None:
        from fireflyfs.client.cli.logs import set_up

        set_up(log_file or _log_path(settings, mountpoint), "info")
    from fireflyfs.client.cli.serving_mount import serve

    serve(
        addresses,
        mountpoint,
        ready_fd=ready_fd,
        kernel=kernel,
        libfuse=libfuse,
        link=link or "",
        options={
            "attr_timeout_s": attr_timeout,
            "entry_timeout_s": entry_timeout,
            "threads": threads,
            "allow_other": allow_other,
            "relatime": relatime,
            "strict": strict,
            "local_locks": local_locks,
            "subtype": subtype,
        },
        log_file=None if foreground else log_file or _log_path(settings, mountpoint),
    )


def mount_in_background(settings: Settings, mountpoint: Path, options: list[str]) -> bool:
    """Start a mount and return when it can be used. One that is there already is left alone: False.

    Raises what the mount said when it cannot be made.
    """
    addresses = connect.mgmtd_addresses(settings)
    if _is_there(mountpoint, addresses):
        return False
    connect.meet(addresses)
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        pass  # a file, as the check says
    _check_mountpoint(mountpoint)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "fireflyfs.client.cli.main", "--root", str(settings.root)]
    command += ["--mgmtd", ",".join(addresses), "mount", str(place_of(mountpoint)), f"--ready-fd={write_end}", *options]
    with open(os.devnull, "r+b") as null:
        process = subprocess.Popen(
            command, stdin=null, stdout=null, stderr=write_end, pass_fds=[write_end], start_new_session=True, cwd="/"
        )
    os.close(write_end)
    with Notice("the mount to be ready"):
        said = _read_until(read_end, b"ready\n", READY_WAIT_S)
    os.close(read_end)
    if said.endswith(b"ready\n"):
        return True
    text = said.decode(errors="replace").strip().removeprefix("ffs: ")
    if not text and process.poll() is None:
        process.terminate()
        raise error(Code.TIMEOUT, f"{mountpoint} is not mounted after {READY_WAIT_S:.0f} s")
    try:
        code = process.wait(END_WAIT_S)
    except subprocess.TimeoutExpired:  # it has warned of something, and is neither ready nor done
        process.terminate()
        raise error(Code.TIMEOUT, f"{mountpoint} is not mounted: {text.splitlines()[-1]}") from None
    kind = {4: Code.UNAVAILABLE, 5: Code.NOT_PERMITTED, 3: Code.NO_ENTRY}.get(code, Code.IO_ERROR)
    raise error(kind, f"{mountpoint} cannot be mounted: {text.splitlines()[-1] if text else f'exit code {code}'}")


def _is_there(mountpoint: Path, addresses: list[str]) -> bool:
    """Whether the cluster is mounted there already. What a mount that died left behind is cleared away.

    Raises BUSY when another cluster is mounted there.
    """
    path = place_of(mountpoint)
    sources = [source for mounted, source in our_mounts() if mounted == path]
    if not sources:
        return False
    if is_dead(path):
        unmount(path, lazy=True)
        return False
    if not managers_of(sources[-1]).intersection(addresses):
        raise error(Code.BUSY, f"{mountpoint} is a mount of another cluster ({sources[-1]}): unmount it first")
    return True


@click.command()
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option("--lazy", is_flag=True, help="Detach at once, even while files are open.")
@pass_settings
def umount(settings: Settings, mountpoint: Path, lazy: bool) -> None:
    """Unmount MOUNTPOINT: what is written reaches the servers first."""
    unmount(mountpoint, lazy=lazy)
    output.done(settings, f"unmounted {mountpoint}", mountpoint=str(mountpoint))


def _check_mountpoint(path: Path) -> None:
    if not path.is_dir():
        if path.exists():
            raise error(Code.NOT_DIRECTORY, f"{path} is not a directory")
        raise error(Code.NO_ENTRY, f"{path} is no directory: make it first")
    if not Path("/dev/fuse").exists():
        raise error(Code.NOT_SUPPORTED, "there is no /dev/fuse: load the kernel's fuse module (modprobe fuse)")
    if any(True for _ in path.iterdir()):
        raise error(Code.NOT_EMPTY, f"{path} is not empty: a mount would hide what is in it")


def _log_path(settings: Settings, mountpoint: Path) -> Path:
    name = str(place_of(mountpoint)).strip("/").replace("/", "-") or "root"
    return settings.root / "log" / f"mount-{name}.log"


def _read_until(fd: int, end: bytes, timeout_s: float) -> bytes:
    said = b""
    deadline = time.monotonic() + timeout_s
    while not said.endswith(end) and len(said) < ERROR_BYTES_MAX:
        if not select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0]:
            break
        piece = os.read(fd, 4096)
        if not piece:
            break
        said += piece
    return said
