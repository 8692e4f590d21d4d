#!/bin/bash
# Installs the Debian packages that are missing: `run` (default) what a cluster and a mount need, `test` what the tests
# need beside that, `soak` what the long tests need beside that, `bench` what the comparison with another file system needs.
# As root it installs; as another user it prints the one command to run and fails. Nothing missing: it does nothing.
set -euo pipefail

declare -A PROGRAM=( # program to look for -> Debian package
  [fusermount3]=fuse3
)
need_test() {
  PROGRAM+=([fio]=fio [sqlite3]=sqlite3 [iperf3]=iperf3 [git]=git [mkfs.ext4]=e2fsprogs
            [ip]=iproute2 [nft]=nftables [fsfreeze]=util-linux [nsenter]=util-linux [fuser]=psmisc
            [setfacl]=acl [setpriv]=util-linux [rsync]=rsync [gcc]=gcc
            [qemu-system-x86_64]=qemu-system-x86 [busybox]=busybox-static [depmod]=kmod [rdma]=iproute2)
}
need_soak() {
  PROGRAM+=([dbench]=dbench [bonnie++]=bonnie++ [stress-ng]=stress-ng [pg_lsclusters]=postgresql [make]=make
            [bison]=bison [flex]=flex)
}
need_bench() {
  PROGRAM+=([mfsmaster]=moosefs-master [mfschunkserver]=moosefs-chunkserver [mfsmount]=moosefs-client
            [redis-server]=redis-server)
}

case "${1:-run}" in
  run) ;;
  test) need_test ;;
  soak) need_test; need_soak ;;
  bench) need_test; need_bench ;;
  *) echo "usage: $0 [run|test|soak|bench]" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin
missing=()
for program in "${!PROGRAM[@]}"; do
  command -v "$program" >/dev/null || missing+=("${PROGRAM[$program]}")
done
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ "${1:-run}" != run ]; then # Python's own tests run on a mount
  [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
  "${PYTHON:-python3}" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("test.test_fcntl"))' \
    2>/dev/null || missing+=(libpython3-testsuite)
  # rdma: libraries, and a module of the system's Python
  [ -d /usr/lib/python3/dist-packages/pyverbs ] || missing+=(python3-pyverbs ibverbs-providers librdmacm1)
fi
[ "${1:-run}" != soak ] || compgen -G '/usr/src/binutils/binutils-*.tar.xz' >/dev/null || missing+=(binutils-source)
[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}. These are Debian's names: install your system's packages of the same programs" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "missing: ${missing[*]}. Run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Servers that a package brings must not start by themselves: the benchmark starts its own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null; }
