"""Options of mounts as fstab has them."""

from __future__ import annotations

import click
import pytest

from fireflyfs.client.cli import mount_helper
from fireflyfs.client.cli.mount_options import parse, split


def test_ours_the_kernels_and_those_for_others() -> None:
    parsed = parse(
        [
            "ro,nosuid,noatime,attr_timeout=5",
            "_netdev,nofail,x-systemd.automount,allow_other,rw,defaults,,threads=8,link=tcp",
        ]
    )
    assert parsed.arguments == ["--noatime", "--attr-timeout=5", "--allow-other", "--threads=8", "--link=tcp"]
    assert parsed.kernel == ["ro", "nosuid"]


@pytest.mark.parametrize("text", ["nonsense", "attr_timeout", "attr_timeout=", "ro=1", "allow_other=yes"])
def test_what_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse([text])


def test_every_o_is_replaced() -> None:
    assert split(["-o", "ro", "mnt", "-othreads=2,nodev", "-f"]) == [
        "--threads=2", "--kernel=ro", "--kernel=nodev", "mnt", "-f",
    ]  # fmt: skip
    assert split(["mnt", "--only-me"]) == ["mnt", "--only-me"]
    assert split(["--", "-o", "x"]) == ["--", "-o", "x"]


def test_the_helper_answers_as_mount_expects(capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.main(["127.0.0.1:1"]) == mount_helper.USAGE
    assert "usage" in capsys.readouterr().err
    assert mount_helper.main(["127.0.0.1:1", "/nowhere", "-f", "-o", "rw"]) == 0
    assert mount_helper.main(["127.0.0.1:1", "/nowhere", "-o", "rw,nonsense", "-v", "-t", "ffs"]) == mount_helper.USAGE
    assert "unknown mount option: nonsense" in capsys.readouterr().err
