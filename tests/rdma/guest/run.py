#!/usr/bin/env python3
"""Run a command under a throw-away Linux kernel that has an rdma device, on a machine whose own kernel has none.

    run.py --kernel DIR [--rw DIR]... [--timeout SECONDS] -- COMMAND [ARGUMENT]...

The guest sees this machine's root file system read-only (a tmpfs overlay takes its writes; /tmp, /run, /var/tmp and
/dev/shm start empty; directories named with --rw are written through), has no network card, and a Soft-RoCE device
rxe0 on a dummy interface with address 10.77.0.1/24. The command's output is passed on as it comes; the exit status is
the command's, 124 at the time limit, 125 when the guest itself failed. DIR is what kernel.sh has unpacked. QEMU
translates instructions (TCG): the command runs about ten times slower than outside, on any machine, without root.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

INTERFACE_MTU = 4200  # gives an rdma MTU of 4096
PORTS = ("out", "err", "rc")
SHARE = "security_model=none,multidevs=remap"
MOUNT_9P = "trans=virtio,version=9p2000.L,msize=512000,access=any"
KERNEL_LINE = (
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr audit=0 apparmor=0 nowatchdog random.trust_cpu=on "
    "edd=off tsc=reliable no_timer_check rcupdate.rcu_expedited=1 net.ifnames=0 dummy.numdummies=0 cryptomgr.notests"
)

INIT = r"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for m in $(cat /modules.list); do insmod /m/$m 2>/dev/kmsg || echo "guest: insmod $m failed" >/dev/kmsg; done
mkdir -p /lower /rw /root
mount -t 9p -o @9P@,ro,cache=loose host /lower || echo "guest: no root" >/dev/kmsg
mount -t tmpfs -o size=90% tmpfs /rw
mkdir -p /rw/up /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/up,workdir=/rw/work overlay /root
for d in proc sys dev; do mount --move /$d /root/$d; done
mkdir -p /root/run && mount -t tmpfs tmpfs /root/run
mount -t tmpfs tmpfs /root/tmp && chmod 1777 /root/tmp
mount -t tmpfs tmpfs /root/var/tmp && chmod 1777 /root/var/tmp
@MOUNTS@
cp /init2 /command /root/run/
exec switch_root /root /bin/sh /run/init2
"""

INIT2 = r"""
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd; ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
hostname guest
ip link set lo up
ip link add eth0 type dummy
ip link set eth0 mtu @MTU@
ip addr add 10.77.0.1/24 dev eth0
ip link set eth0 up
rdma link add rxe0 type rxe netdev eth0
port() { for p in /sys/class/virtio-ports/*; do [ "$(cat $p/name)" = "$1" ] && echo /dev/${p##*/}; done; }
OUT=$(port out) ERR=$(port err) RC=$(port rc)
setsid /bin/sh /run/command </dev/null >$OUT 2>$ERR
echo $? >$RC
sync; echo o >/proc/sysrq-trigger
sleep 30
"""


def cpio(entries: dict[str, tuple[int, bytes, tuple[int, int]]]) -> bytes:
    """A "newc" archive of name: (mode, content, (major, minor))."""
    out = io.BytesIO()

    def put(name: str, mode: int, data: bytes, number: int, device: tuple[int, int]) -> None:
        text = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(text), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        for part in (text, data):
            out.write(part)
            out.write(b"\0" * (-out.tell() % 4))

    for number, (name, (mode, data, device)) in enumerate(entries.items(), 1):
        put(name, mode, data, number, device)
    put("TRAILER!!!", 0, b"", 0, (0, 0))
    return out.getvalue()


def initramfs(modules: list[Path], init: str, init2: str, command: str) -> bytes:
    folder, program, none = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, (0, 0)
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("run.py: busybox is missing: deploy/debian-packages.sh test installs it")
    entries = dict.fromkeys(("bin", "dev", "proc", "sys", "m", "lower", "rw", "root"), (folder, b"", none))
    entries["dev/console"] = (stat.S_IFCHR | 0o600, b"", (5, 1))
    entries["bin/busybox"] = (program, Path(busybox).read_bytes(), none)
    for path in modules:
        entries["m/" + path.name] = (program, path.read_bytes(), none)
    texts = {"modules.list": "\n".join(p.name for p in modules), "init": init, "init2": init2, "command": command}
    for name, text in texts.items():
        entries[name] = (program, text.encode(), none)
    return cpio(entries)


def modules_in_order(kernel: Path) -> list[Path]:
    """The modules that kernel.sh chose, each after those it needs."""
    return [kernel / line for line in (kernel / "modules.order").read_text().split()]


def guest_script(command: list[str], environment: list[str]) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONSAFEPATH") if name in os.environ}
    for item in environment:
        name, _, value = item.partition("=")
        kept[name] = value
    lines = [f"export {name}={shlex.quote(value)}" for name, value in kept.items()]
    lines += ["ulimit -l unlimited", f"cd {shlex.quote(os.getcwd())} || exit 125", f"exec {shlex.join(command)}", ""]
    return "\n".join(lines)


def qemu_command(arguments: argparse.Namespace, initrd: Path, console: Path, fds: dict[str, int]) -> list[str]:
    kernel = next((arguments.kernel / "boot").glob("vmlinux-*"))
    line = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max",
        "-m", arguments.memory, "-smp", str(min(4, os.cpu_count() or 1)), "-nodefaults", "-no-user-config",
        "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot", "-serial", f"file:{console}",
        "-kernel", str(kernel), "-initrd", str(initrd), "-append", KERNEL_LINE,
        "-virtfs", f"local,path=/,mount_tag=host,readonly=on,{SHARE}",
    ]  # fmt: skip
    for number, folder in enumerate(arguments.rw):
        line += ["-virtfs", f"local,path={folder},mount_tag=rw{number},{SHARE}"]
    line += ["-device", "virtio-serial-pci"]
    for name, fd in fds.items():
        line += ["-chardev", f"socket,id={name},fd={fd}", "-device", f"virtserialport,chardev={name},name={name}"]
    return line


def run(arguments: argparse.Namespace, folder: Path) -> int:
    console, initrd = folder / "console", folder / "initrd"
    mounts = [
        f"mkdir -p /root{d}; mount -t 9p -o {MOUNT_9P},cache=mmap rw{i} /root{d}" for i, d in enumerate(arguments.rw)
    ]
    init = INIT.replace("@9P@", MOUNT_9P).replace("@MOUNTS@", "\n".join(mounts))
    script = guest_script(arguments.command, arguments.env)
    initrd.write_bytes(
        initramfs(modules_in_order(arguments.kernel), init, INIT2.replace("@MTU@", str(INTERFACE_MTU)), script)
    )
    pairs = {name: socket.socketpair() for name in PORTS}
    fds = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
    guest = subprocess.Popen(
        qemu_command(arguments, initrd, console, fds), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        pass_fds=list(fds.values()),
    )  # fmt: skip
    status = bytearray()

    def pump(name: str, ours: socket.socket) -> None:
        while data := ours.recv(65536):
            if name == "rc":
                status.extend(data)
            else:
                os.write(1 if name == "out" else 2, data)

    threads = []
    for name, (ours, theirs) in pairs.items():
        theirs.close()
        threads.append(threading.Thread(target=pump, args=(name, ours), daemon=True))
        threads[-1].start()
    timed_out = False
    try:
        guest.wait(arguments.timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        guest.kill()
        guest.wait()
    for thread in threads:
        thread.join(5)
    if timed_out:
        print(f"run.py: the time limit of {arguments.timeout:.0f} s is over", file=sys.stderr)
        return 124
    if not status.strip():
        sys.stderr.write(console.read_text(errors="replace")[-4000:])
        return 125
    return int(status.split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=Path, required=True, metavar="DIR", help="what kernel.sh has unpacked")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--rw", action="append", type=os.path.realpath, default=[], metavar="DIR")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ffs-guest-") as folder:
        return run(arguments, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
