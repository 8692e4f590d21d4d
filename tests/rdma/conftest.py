"""These tests need an rdma device. `make test-rdma` runs them in a guest that has one, or here where there is one."""

from fireflyfs.common.net.rdma.verbs import device_names

collect_ignore_glob = [] if device_names() else ["test_*.py"]
