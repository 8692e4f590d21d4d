"""These tests need an rdma device. `make test-rdma` runs them in a guest that has one, or here where there is one.

Whole clusters are asked for by FFS_RDMA_CLUSTER: see run.sh.
"""

import os

from fireflyfs.common.net.rdma.verbs import device_names

collect_ignore_glob = [] if device_names() else ["test_*.py"]
if not os.environ.get("FFS_RDMA_CLUSTER"):
    collect_ignore_glob.append("test_rdma_mount.py")
