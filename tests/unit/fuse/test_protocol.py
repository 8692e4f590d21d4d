"""Layouts byte for byte as include/uapi/linux/fuse.h has them."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.fuse import handshake, statx
from fireflyfs.fuse import protocol as p

HEADER = Path("/usr/include/linux/fuse.h")
SIZES = {
    "fuse_in_header": p.IN_HEADER,
    "fuse_out_header": p.OUT_HEADER,
    "fuse_attr": p.ATTR,
    "fuse_entry_out": p.ENTRY_OUT,
    "fuse_attr_out": p.ATTR_OUT,
    "fuse_open_out": p.OPEN_OUT,
    "fuse_forget_in": p.FORGET_IN,
    "fuse_forget_one": p.FORGET_ONE,
    "fuse_batch_forget_in": p.BATCH_FORGET_IN,
    "fuse_getattr_in": p.GETATTR_IN,
    "fuse_setattr_in": p.SETATTR_IN,
    "fuse_mknod_in": p.MKNOD_IN,
    "fuse_mkdir_in": p.MKDIR_IN,
    "fuse_rename_in": p.RENAME_IN,
    "fuse_rename2_in": p.RENAME2_IN,
    "fuse_link_in": p.LINK_IN,
    "fuse_open_in": p.OPEN_IN,
    "fuse_create_in": p.CREATE_IN,
    "fuse_release_in": p.RELEASE_IN,
    "fuse_flush_in": p.FLUSH_IN,
    "fuse_read_in": p.READ_IN,
    "fuse_write_in": p.WRITE_IN,
    "fuse_write_out": p.WRITE_OUT,
    "fuse_statfs_out": p.STATFS_OUT,
    "fuse_fsync_in": p.FSYNC_IN,
    "fuse_access_in": p.ACCESS_IN,
    "fuse_setxattr_in": p.SETXATTR_IN,
    "fuse_getxattr_in": p.GETXATTR_IN,
    "fuse_getxattr_out": p.GETXATTR_OUT,
    "fuse_init_out": p.INIT_OUT,
    "fuse_interrupt_in": p.INTERRUPT_IN,
    "fuse_lk_in": p.LK_IN,
    "fuse_fallocate_in": p.FALLOCATE_IN,
    "fuse_copy_file_range_in": p.COPY_FILE_RANGE_IN,
    "fuse_lseek_in": p.LSEEK_IN,
    "fuse_lseek_out": p.LSEEK_OUT,
    "fuse_dirent": p.DIRENT,
    "fuse_notify_inval_inode_out": p.NOTIFY_INVAL_INODE,
    "fuse_notify_inval_entry_out": p.NOTIFY_INVAL_ENTRY,
}


@pytest.mark.skipif(not HEADER.exists() or not shutil.which("cc"), reason="needs kernel headers and a C compiler")
def test_sizes_are_the_kernels(tmp_path):
    lines = "".join(f'printf("{name} %zu\\n", sizeof(struct {name}));' for name in SIZES)
    source = tmp_path / "sizes.c"
    source.write_text(f"#include <stdio.h>\n#include <linux/fuse.h>\nint main(void){{{lines}return 0;}}\n")
    subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True)
    out = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    assert dict(line.split() for line in out.splitlines()) == {name: str(s.size) for name, s in SIZES.items()}


@pytest.mark.skipif(not HEADER.exists(), reason="needs kernel headers")
@pytest.mark.parametrize(
    ("prefix", "enum"), [("FUSE_", p.InitFlag), ("FATTR_", p.SetAttr), ("FOPEN_", p.OpenReply), ("FUSE_", p.Opcode)]
)
def test_constants_are_the_kernels(prefix, enum):
    text = HEADER.read_text()
    for member in enum:
        match = re.search(rf"\b{prefix}{member.name}\s+(?:=\s*)?(\(1 << (\d+)\)|\d+)", text)
        if match is None:  # newer than the installed header
            continue
        value = 1 << int(match[2]) if match[2] else int(match[1])
        assert value == member, member


def test_init_flags_of_64_bits():
    body = p.INIT_IN.pack(7, 45, 0, p.InitFlag.INIT_EXT) + struct.pack("=I", 1 << 4) + bytes(44)
    assert p.decode_init(memoryview(body)).flags == p.InitFlag.INIT_EXT | p.InitFlag.DIRECT_IO_ALLOW_MMAP
    assert p.decode_init(memoryview(body[:16])).flags == p.InitFlag.INIT_EXT
    without = p.INIT_IN.pack(7, 35, 0, 1) + struct.pack("=I", 1 << 4)
    assert p.decode_init(memoryview(without)).flags == 1


def test_sizes_known_by_heart():
    assert (p.IN_HEADER.size, p.OUT_HEADER.size, p.ATTR.size) == (40, 16, 88)
    assert (p.ENTRY_OUT.size, p.ATTR_OUT.size, p.INIT_OUT.size, p.STATFS_OUT.size) == (128, 104, 64, 80)
    assert p.WRITE_DATA_OFFSET == 80


def test_statx_says_what_getattr_says_and_when_the_file_was_made():
    attributes = p.Attributes(7, 1000, 2, 10**9 + 1, -1, 3 * 10**9 + 5, 0o100644, 1, 2, 3, os.makedev(8, 300), 4096)
    attr_out = p.encode_attr(attributes, p.Valid.of(1.5))
    out = statx.encode_statx(attr_out, -(10**9) + 7)
    assert (len(out), statx.STATX_IN.size) == (288, 24)
    assert struct.unpack_from("=QII", out) == (1, 500_000_000, 0)
    assert struct.unpack_from("=IIQIIIHH4Q", out, 32) == (0xFFF, 4096, 0, 1, 2, 3, 0o100644, 0, 7, 1000, 2, 0)
    times = [struct.unpack_from("=qi", out, 96 + 16 * place) for place in range(4)]
    assert times == [(1, 1), (-1, 7), (3, 5), (-1, 999_999_999)]
    assert struct.unpack_from("=4I", out, 160) == (8, 300, 0, 0)
    assert struct.unpack_from("=I", statx.encode_statx(attr_out), 32) == (0x7FF,)


def test_entry_bytes():
    attributes = p.Attributes(7, 1000, 2, 10**9 + 1, -1, 3 * 10**9 + 5, 0o100644, 1, 2, 3, 0, 4096)
    packed = p.encode_entry(attributes, p.Valid.of(1.5), p.Valid.of(0.25))
    assert struct.unpack_from("=4Q2I", packed) == (7, 0, 1, 0, 500_000_000, 250_000_000)
    ino, size, blocks, atime, mtime, ctime, *rest = p.ATTR.unpack_from(packed, 40)
    assert (ino, size, blocks, atime, ctime) == (7, 1000, 2, 1, 3)
    assert mtime == (1 << 64) - 1  # a nanosecond before the epoch: second -1 ...
    assert rest == [1, 999_999_999, 5, 0o100644, 1, 2, 3, 0, 4096, 0]  # ... and the rest of it
    assert p.encode_attr(attributes, p.NEVER)[16:] == packed[40:]


def test_setattr_takes_times_before_the_epoch():
    body = p.SETATTR_IN.pack(
        p.SetAttr.MTIME | p.SetAttr.SIZE, 0, 9, 55, 0, 1, (1 << 64) - 2, 0, 7, 500, 0, 0o600, 0, 1, 2, 0
    )
    asked = p.decode_setattr(memoryview(body))
    assert asked == p.SetAttrRequest(40, 9, 55, 1_000_000_007, -2 * 10**9 + 500, 0o600, 1, 2)


def test_names():
    assert p.decode_name(memoryview(b"xxxxabc\0"), 4) == b"abc"
    assert p.decode_names(memoryview(b"old\0new\0")) == (b"old", b"new")


def test_batch_forget():
    body = p.BATCH_FORGET_IN.pack(2, 0) + p.FORGET_ONE.pack(5, 1) + p.FORGET_ONE.pack(6, 3)
    assert list(p.decode_batch_forget(memoryview(body))) == [(5, 1), (6, 3)]


def test_dirents_are_padded():
    for name in (b"a", b"12345678", b"n" * 255):
        packed = p.encode_dirent(3, 4, 0o100644, name)
        assert len(packed) % 8 == 0
        assert len(packed) == p.dirent_bytes(name, plus=False)
        assert p.DIRENT.unpack_from(packed) == (3, 4, len(name), 8)
        assert p.dirent_bytes(name, plus=True) == len(packed) + 128


def test_notifications():
    packed = p.encode_inval_inode(9, -1, 0)
    assert p.OUT_HEADER.unpack_from(packed) == (len(packed), p.Notify.INVAL_INODE, 0)
    assert p.NOTIFY_INVAL_INODE.unpack_from(packed, 16) == (9, -1, 0)
    packed = p.encode_inval_entry(1, b"name")
    assert p.OUT_HEADER.unpack_from(packed) == (len(packed), p.Notify.INVAL_ENTRY, 0)
    assert packed.endswith(b"name\0")


def test_negotiation_takes_what_is_offered_and_wanted():
    offer = p.InitRequest(7, 45, 128 * 1024, (1 << 64) - 1)
    reply, session = handshake.negotiate(offer, 1 << 20)
    fields = p.INIT_OUT.unpack(reply)
    assert fields[6] == 1 << 20
    assert fields[8] == 256
    assert fields[3] | fields[10] << 32 == session.flags == handshake.WANTED | handshake.LOCKS
    _, local = handshake.negotiate(offer, 1 << 20, local_locks=True)
    assert local.flags == handshake.WANTED
    assert not session.flags & p.InitFlag.WRITEBACK_CACHE
    _, session = handshake.negotiate(p.InitRequest(7, 31, 4096, int(p.InitFlag.ASYNC_READ)), 1 << 20)
    assert session.flags == p.InitFlag.ASYNC_READ
    assert session.minor == 31
    both = p.InitFlag.HANDLE_KILLPRIV | p.InitFlag.HANDLE_KILLPRIV_V2
    _, session = handshake.negotiate(p.InitRequest(7, 45, 4096, int(both)), 1 << 20)
    assert session.flags == p.InitFlag.HANDLE_KILLPRIV_V2
    _, session = handshake.negotiate(p.InitRequest(7, 32, 4096, int(p.InitFlag.HANDLE_KILLPRIV)), 1 << 20)
    assert session.flags == p.InitFlag.HANDLE_KILLPRIV


def test_a_kernel_too_old_is_refused_with_both_numbers():
    with pytest.raises(FfsError, match=r"7\.19.*7\.31") as info:
        handshake.negotiate(p.InitRequest(7, 19, 0, 0), 1 << 20)
    assert info.value.code is Code.VERSION_MISMATCH
