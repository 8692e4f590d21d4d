"""The memory of a ring, byte for byte, in Python and in C; names of links; ioctl numbers."""

from __future__ import annotations

import ctypes
import errno
import struct
import subprocess
from pathlib import Path

import pytest

from fireflyfs.client import usrbio
from fireflyfs.client.usrbio import ioctls, layout, names
from fireflyfs.client.usrbio.layout import RingLayout, RingOptions

C = Path(usrbio.__file__).parent / "c"


def test_header_bytes() -> None:
    options = RingOptions(16, for_read=False, io_depth=-4, priority=1, timeout_ms=250, flags=2)
    want = b"FFSIORNG" + struct.pack("<IIIIiiiIQQ", 1, 256, 16, 0, -4, 1, 250, 0, 2, 4096)
    assert layout.pack_header(options) == want
    assert len(want) <= layout.SQ_DOORBELL_AT
    assert layout.parse_header(want, 4096) == options


def test_where_the_arrays_stand() -> None:
    assert RingLayout.of(1) == RingLayout(1, 256, 264, 320, 272, 4096)
    assert RingLayout.of(128) == RingLayout(128, 256, 1280, 3328, 2304, 12288)
    for entries in (1, 2, 3, 8, 127, 128, 1000, 1024, layout.ENTRIES_MAX):
        where = RingLayout.of(entries)
        assert where.cq_seq == where.sq_seq + 8 * entries
        assert where.results == where.cq_seq + 8 * entries
        assert where.results + 8 * entries <= where.sqes
        assert where.sqes % 64 == 0
        assert where.sqes + 64 * entries <= where.nbytes < where.sqes + 64 * entries + 4096
        assert where.nbytes % 4096 == 0


def test_entry_bytes() -> None:
    packed = layout.SQE.pack(bytes(range(16)), 0x1011, 0x2022, 0x3033, 0x4044, 0x5055)
    numbers = struct.pack("<5Q", 0x1011, 0x2022, 0x3033, 0x4044, 0x5055)
    assert packed == bytes(range(16)) + numbers + bytes(8)
    import numpy as np

    (row,) = np.frombuffer(packed, layout.SQE_DTYPE).tolist()
    assert row == (bytes(range(16)), 0x1011, 0x2022, 0x3033, 0x4044, 0x5055)
    assert layout.AGENT.pack(7, 14, 1 << 40) == struct.pack("<IIQ", 7, 14, 1 << 40)
    assert layout.STATE_AT == layout.CQ_DOORBELL_AT + 4


@pytest.mark.parametrize(
    ("at", "value", "number"),
    [
        (0, b"x", errno.EINVAL),
        (8, struct.pack("<I", 2), errno.EPROTONOSUPPORT),
        (12, struct.pack("<I", 64), errno.EINVAL),
        (16, struct.pack("<I", 0), errno.EINVAL),
        (16, struct.pack("<I", 65537), errno.EINVAL),
        (16, struct.pack("<I", 1000), errno.EINVAL),  # more than there is memory for
        (20, struct.pack("<I", 7), errno.EINVAL),
        (24, struct.pack("<i", -17), errno.EINVAL),
        (28, struct.pack("<i", 2), errno.EINVAL),
        (32, struct.pack("<i", -1), errno.EINVAL),
        (48, struct.pack("<Q", 8192), errno.EINVAL),
    ],
)
def test_headers_that_are_none(at: int, value: bytes, number: int) -> None:
    head = bytearray(layout.pack_header(RingOptions(16)))
    head[at : at + len(value)] = value
    with pytest.raises(OSError, match=r".") as info:
        layout.parse_header(bytes(head), 4096)
    assert info.value.errno == number


def test_headers_of_too_little_memory() -> None:
    head = layout.pack_header(RingOptions(16))
    for data, nbytes in ((head[:50], 4096), (head, 4095), (b"", 0)):
        with pytest.raises(OSError, match=r"."):
            layout.parse_header(data, nbytes)


OFFSETS = """
#include "{source}"
#include <stddef.h>
#include <stdio.h>
int main(void) {{
  printf("%zu %zu %zu %zu %zu %zu %zu %zu\\n", offsetof(struct header, flags), offsetof(struct header, nbytes),
         offsetof(struct header, sq_doorbell), offsetof(struct header, cq_doorbell), offsetof(struct header, state),
         offsetof(struct header, completed), offsetof(struct sqe, length), offsetof(struct sqe, userdata));
  int entries[] = {{1, 2, 3, 8, 127, 128, 1000, 1024, 65536}};
  for (size_t i = 0; i < sizeof entries / sizeof *entries; ++i)
    printf("%zu %zu\\n", sqes_at(entries[i]), hf3fs_ior_size(entries[i]));
  printf("%lx %lx %lx\\n", (long)IOC_MAGIC, (long)IOC_REGISTER, (long)IOC_DEREGISTER);
  return 0;
}}
"""


def test_the_c_library_has_the_same(tmp_path: Path) -> None:
    (tmp_path / "offsets.c").write_text(OFFSETS.format(source=C / "hf3fs_usrbio.c"))
    program = tmp_path / "offsets"
    subprocess.run(
        ["gcc", "-std=gnu11", f"-I{C}", str(tmp_path / "offsets.c"), "-o", str(program), "-lpthread"], check=True
    )
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "40 48 64 128 132 136 40 48"
    for line, entries in zip(said[1:-1], (1, 2, 3, 8, 127, 128, 1000, 1024, 65536), strict=True):
        where = RingLayout.of(entries)
        assert line == f"{where.sqes} {where.nbytes}"
    assert said[-1] == f"{ioctls.GET_MAGIC:x} {ioctls.REGISTER:x} {ioctls.DEREGISTER:x}"


def test_the_built_library() -> None:
    """By the name that programs link to, with all calls of the header and no other."""
    import hf3fs_py_usrbio

    path = Path(hf3fs_py_usrbio.__file__).parent / "libhf3fs_api_shared.so"
    library = ctypes.CDLL(str(path))
    assert library.hf3fs_ior_size(128) == RingLayout.of(128).nbytes
    assert b"libhf3fs_api_shared.so\0" in path.read_bytes()
    point = ctypes.create_string_buffer(256)
    assert library.hf3fs_extract_mount_point(point, 256, b"/proc/self") == -1


IN_C = """
#include "{source}"
#include <assert.h>
#include <stdio.h>

/* A folder stands in for a mount: nobody serves the ring. */
int main(int argc, char **argv) {{
  static char deep[PATH_MAX], point[256];
  (void)argc;
  while (strlen(deep) < PATH_MAX - 3) strcat(deep, "a/");
  assert(hf3fs_extract_mount_point(point, sizeof point, deep) == -1); /* none of it exists */

  char real[PATH_MAX], want[PATH_MAX];
  assert(realpath(".", want) && real_path("no/such/./name//", real) && !strcmp(real + strlen(want), "/no/such/./name"));
  assert(real_path("/no", real) && !strcmp(real, "/no") && real_path("/", real) && !strcmp(real, "/"));
  assert(!real_path("no/..", real) && !real_path("", real));

  struct hf3fs_ior ring;
  assert(hf3fs_iorcreate(&ring, argv[1], 8, true, INT_MIN, -1) == -EINVAL);
  assert(hf3fs_iorcreate(&ring, argv[1], 8, true, 0, -1) == 0);
  ((struct ring *)ring.iorh)->header->state = ENOLINK;
  struct timespec never = {{.tv_sec = INT64_MAX, .tv_nsec = 999999999}}, before = {{.tv_sec = INT64_MIN}};
  struct hf3fs_cqe cqe;
  assert(hf3fs_wait_for_ios(&ring, &cqe, 1, 1, &never) == -ENOLINK);
  assert(hf3fs_wait_for_ios(&ring, &cqe, 1, 1, &before) == 0);
  assert(find(INT_MIN) == NULL && find(-1) == NULL && find(INT_MAX) == NULL);

  struct hf3fs_iov made, opened;
  assert(hf3fs_iovcreate(&made, argv[1], 4096, 0, -1) == 0);
  opened = made;
  assert(hf3fs_iovopen(&opened, (uint8_t *)opened.id, opened.mount_point, 4096, 0, -1) == 0);
  assert(!memcmp(opened.id, made.id, 16) && !strcmp(opened.mount_point, argv[1]));
  hf3fs_iovdestroy(&opened);
  hf3fs_iovdestroy(&made);
  hf3fs_iordestroy(&ring);
  return 0;
}}
"""


def test_the_c_library_at_its_limits(tmp_path: Path) -> None:
    """Paths of thousands of names, the last times that there are, and structures that name themselves."""
    (tmp_path / "3fs-virt/iovs").mkdir(parents=True)
    (tmp_path / "limits.c").write_text(IN_C.format(source=C / "hf3fs_usrbio.c"))
    program = tmp_path / "limits"
    command = ["gcc", "-std=gnu11", "-Wall", "-Werror", f"-I{C}", str(tmp_path / "limits.c"), "-o", str(program)]
    subprocess.run([*command, "-lpthread"], check=True)
    done = subprocess.run([program, tmp_path], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "3fs-virt/iovs").iterdir()) == []


ID = bytes(range(16))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (RingOptions(8), ".r0.t0"),
        (RingOptions(8, False, -4, 0, 20), ".w-4.t20"),
        (RingOptions(8, True, 4, -1, 0, 3), ".r4.ph.t0.f11"),
        (RingOptions(8, True, 0, 1, 0, 2), ".r0.pl.t0.f10"),
    ],
)
def test_names_of_rings(options: RingOptions, name: str) -> None:
    assert names.ring_name(ID, options) == ID.hex() + name
    assert names.parse(ID.hex() + name) == names.LinkName(ID, ring=True)


def test_names_of_regions() -> None:
    for name in (ID.hex(), "00010203-0405-0607-0809-0a0b0c0d0e0f", ID.hex() + ".b4096"):
        assert names.parse(name) == names.LinkName(ID, ring=False)
    for name in ("", "x", ID.hex() + ".", ID.hex() + ".q1", ID.hex() + ".r", ID.hex() + ".r0.f2", ID.hex() + ".px"):
        with pytest.raises(OSError, match=r"."):
            names.parse(name)


def test_ioctl_numbers() -> None:
    """As the kernel's macros make them."""
    assert ioctls.GET_MAGIC == 0x80046802
    assert ioctls.GET_MOUNT_NAME == 0x80206800
    assert ioctls.FSYNC == 0x680B
    assert ioctls.REGISTER == 0x80086840
