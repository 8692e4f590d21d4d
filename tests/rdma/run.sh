#!/bin/bash
# The link over real verbs: on this machine's own rdma device, or in a guest with a software one. `make test-rdma`.
# Arguments: further pytest arguments. FFS_GUEST_KERNEL: where the guest's kernel is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/pyverbs-link.sh .venv
tests=(-p no:cacheprovider -q --timeout 240 tests/rdma tests/conformance/test_link.py -k "rdma" "$@")
if .venv/bin/python -c 'import sys; from fireflyfs.common.net.rdma.verbs import device_names; sys.exit(not device_names())'
then
  exec .venv/bin/pytest "${tests[@]}"
fi
kernel=${FFS_GUEST_KERNEL:-${XDG_CACHE_HOME:-$HOME/.cache}/fireflyfs/guest-kernel}
tests/rdma/guest/kernel.sh "$kernel"
exec tests/rdma/guest/run.py --kernel "$kernel" --rw "$PWD" --timeout "${FFS_GUEST_SECONDS:-1200}" \
  -- .venv/bin/python -m pytest "${tests[@]}"
