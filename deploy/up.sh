#!/bin/bash
# `make up`: starts the local cluster, mounts it, writes a file and reads it back, and says what to do next.
# usage: up.sh [MOUNTPOINT]; the cluster's folder is $FFS_ROOT.
set -euo pipefail
cd "$(dirname "$0")/.."
mount=${1:-}
ffs=.venv/bin/ffs
export FFS_ROOT=${FFS_ROOT:-$PWD/.ffs}

if [ -n "$mount" ] && [ ! -e /dev/fuse ]; then
  echo "There is no /dev/fuse here (try: modprobe fuse): the cluster starts without a mount." >&2
  mount=
fi
if [ -n "$mount" ]; then
  $ffs up --mount "$mount"
  hello=$mount/hello.txt
  printf 'Hello from FireflyFS, %s.\n' "$(date -u +%FT%TZ)" > "$hello"
  sync -f "$hello"
  echo
  echo "wrote and read back $hello: $(cat "$hello")"
else
  $ffs up
  file=$(mktemp) && trap 'rm -f "$file"' EXIT
  printf 'Hello from FireflyFS, %s.\n' "$(date -u +%FT%TZ)" > "$file"
  $ffs put --quiet "$file" /hello.txt
  echo
  echo "wrote and read back /hello.txt: $($ffs cat /hello.txt)"
fi
try=$ffs
down="make down"
[ "$FFS_ROOT" = "$PWD/.ffs" ] || { try="$ffs --root $FFS_ROOT" && down="make down FFS_ROOT=$FFS_ROOT"; }
cat <<X

What next:
X
[ -n "$mount" ] && cat <<X
  cp -a some/folder $mount/        # it is a file system
X
cat <<X
  $try ls -l /                # the same files, without a mount
  $try status                 # processes, nodes, replicas
  $try chains list            # where data lives
  $try bench                  # a first look at the speed
  $down                   # stop; the data stays in ${FFS_ROOT#"$PWD"/}
X
