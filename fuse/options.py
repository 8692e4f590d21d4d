"""What a mount can be told. Every field has a default that works; docs/mount.md explains them to operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.link_choice import check_name

THREADS_MAX: Final = 64
THREADS_USUAL: Final = 24
SUBTYPES: Final = ("fireflyfs", "hf3fs")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Times are seconds, sizes are bytes. `strict` sets the options that it stands for, whatever they were."""

    allow_other: bool = True  # users other than the one who mounts may enter
    use_helper: bool = False  # mount through fusermount3 even as root
    entry_timeout_s: float = 1.0  # how long the kernel may trust a name
    attr_timeout_s: float = 1.0  # how long the kernel may trust attributes
    negative_timeout_s: float = 0.0  # how long the kernel may trust that a name is missing
    strict: bool = False  # what one mount has written, every mount sees: nothing is kept, nothing waits
    local_locks: bool = False  # flock and fcntl locks are the kernel's: they hold among this mount's programs only
    write_behind: bool = True  # False: each write is stored before its system call returns
    dirty_bytes_max: int = 128 * MiB
    dirty_age_s: float = 0.5
    relatime: bool = False  # reading sets the access time when it is not newer than the others, or a day old
    kernel_readahead_kib: int = 4096  # set on the mount when we are root; 0: the kernel's own
    request_bytes_max: int = MiB  # one read or write request
    threads: int = 4  # service threads; more are started while all of them wait for servers
    threads_max: int = THREADS_USUAL
    flush_threads: int = 2
    handles_max: int = 1 << 20
    list_entries: int = 1024  # asked from meta at once
    source: str = "fireflyfs"  # what `df` and `mount` show
    subtype: str = "fireflyfs"  # of the mount's type, fuse.SUBTYPE
    link: str = "auto"  # taken to servers: auto, rdma, tcp, shm

    def __post_init__(self) -> None:
        if self.strict:
            kept = {"entry_timeout_s": 0.0, "attr_timeout_s": 0.0, "negative_timeout_s": 0.0, "write_behind": False}
            for name, value in kept.items():
                object.__setattr__(self, name, value)
        check_name(self.link)
        if self.subtype not in SUBTYPES:
            raise ValueError(f"subtype must be one of {', '.join(SUBTYPES)}")
        if not 1 <= self.threads <= self.threads_max <= THREADS_MAX:
            raise ValueError(f"threads must be 1 to threads_max, threads_max at most {THREADS_MAX}")
        if self.request_bytes_max % (4 * KiB) or not 128 * KiB <= self.request_bytes_max <= MiB:
            raise ValueError("request_bytes_max must be a multiple of 4096 from 128 KiB to 1 MiB")
        if min(self.entry_timeout_s, self.attr_timeout_s, self.negative_timeout_s, self.dirty_age_s) < 0:
            raise ValueError("times must not be negative")
