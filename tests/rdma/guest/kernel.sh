#!/bin/bash
# Unpacks Debian's kernel and the modules that run.py's guest needs into DIR; installs nothing. Done once: a DIR that is
# complete is left as it is. Needs apt-get, dpkg-deb, depmod (kmod) and python3; no root.
set -euo pipefail
out=${1:?usage: $0 DIR}
[ -e "$out/modules.order" ] && exit 0
PATH=$PATH:/usr/sbin:/sbin
MODULES="virtio_pci virtio_console 9pnet_virtio 9p overlay dummy crc32_pclmul rdma_rxe rdma_ucm fuse"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
package() { apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-6/{print $2; exit}'; }
pkg=$(package)
[ -n "$pkg" ] || { apt-get update -qq; pkg=$(package); }
[ -n "$pkg" ] || { echo "kernel.sh: apt knows no linux-image-amd64" >&2; exit 1; }
apt-get download -qq "$pkg" || { apt-get update -qq; pkg=$(package); apt-get download -qq "$pkg"; }
dpkg-deb -x "$pkg"_*.deb all
version=${pkg#linux-image-}
depmod -b all "$version"
mkdir -p made/boot made/modules
for module in $MODULES; do
  modprobe -d all -S "$version" --show-depends "$module"
done | awk '/^insmod/ && !seen[$2]++ {print $2}' | while read -r path; do
  cp "$path" made/modules/
  echo "modules/${path##*/}" >> made/modules.list
done
# An uncompressed kernel boots three seconds faster.
python3 - "all/boot/vmlinuz-$version" "made/boot/vmlinux-$version" <<'PY'
import lzma, sys
data = open(sys.argv[1], "rb").read()
open(sys.argv[2], "wb").write(lzma.LZMADecompressor().decompress(data[data.find(b"\xfd7zXZ\0"):]))
PY
mkdir -p "$out"
cp -r made/boot made/modules "$out/"
mv made/modules.list "$out/modules.order" # last: it says that the rest is there
