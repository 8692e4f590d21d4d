#!/bin/bash
# Lets a virtual environment import the system's pyverbs and nothing else of the system: `deploy/pyverbs-link.sh .venv`.
# Debian and Ubuntu: python3-pyverbs. Built for another minor version of Python than the environment's it is of no use.
set -euo pipefail
python=${1:?usage: $0 VENV}/bin/python
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
for system in /usr/lib/python3/dist-packages /usr/lib64/python3*/site-packages; do
  [ -e "$system/pyverbs/device$suffix" ] || continue
  ln -sfn "$system/pyverbs" "$packages/pyverbs"
  exec "$python" -c 'import pyverbs.device'
done
echo "no pyverbs for $("$python" -V): install python3-pyverbs (Debian, Ubuntu), or leave it: rdma is optional" >&2
exit 1
