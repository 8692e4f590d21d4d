"""The rdma link on real verbs, by tests/rdma/run.sh: on this machine's device, or in a guest that has a software one.

One test here, because a guest starts once. It runs beside other tests: they wait a lot, and it translates instructions.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "rdma/run.sh"
GUEST_S = 1200
TESTS_MIN = 80  # that ran: one that was lost must not look like a pass


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(GUEST_S + 300)
def test_the_link_on_real_verbs() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment.pop("FFS_NO_SKIPS", None)
    done = subprocess.run(
        [RUN],
        env=environment | {"FFS_GUEST_SECONDS": str(GUEST_S)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    passed = re.findall(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[0]) >= TESTS_MIN
