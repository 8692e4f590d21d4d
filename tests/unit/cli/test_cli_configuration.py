"""What `ffs config set` lets through: the manager that `ffs run` starts knows every node type's keys."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from fireflyfs.client.cli import exits, main, run, schemas, views
from fireflyfs.common import config
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.mgmtd import server
from fireflyfs.mgmtd.core.specs import ConfigParser, check_config
from fireflyfs.mgmtd.server import MgmtdConfig


@pytest.mark.parametrize(
    ("node_type", "text", "says"),
    [
        ("mgmtd", "failed_afterr_s = 3.0", "mgmtd configuration: unknown key failed_afterr_s; did you mean failed_aft"),
        ("mgmtd", 'failed_after_s = "soon"', "mgmtd configuration: failed_after_s must be float, got 'soon'"),
        ("meta", "nonsense = 1", "meta configuration: unknown key nonsense"),
        ("storage", "threads = true", "storage configuration: threads must be int, got True"),
        ("storage", "workers = [{ports = 1}]", r"unknown key workers\[0\].ports"),
        ("client", "deadline_s = []", "client configuration: deadline_s must be float"),
        ("fuse", "threads = 99", "fuse configuration: .*threads_max"),
        ("fuse", "= 1", "fuse configuration is not valid TOML"),
    ],
)
def test_what_is_no_configuration_of_a_node_type_is_refused(node_type: str, text: str, says: str) -> None:
    parser = schemas.config_parsers()[views.NODE_TYPES[node_type]]
    with pytest.raises(FfsError, match=says) as caught:
        parser(text)
    assert caught.value.code is Code.CONFIG
    with pytest.raises(FfsError):
        check_config(text, "", parser)


@pytest.mark.parametrize("node_type", list(views.NODE_TYPES))
def test_some_keys_are_enough(node_type: str) -> None:
    schemas.check(node_type, "")
    schemas.check("storage", "resync_bytes_s = 1000\nfence_s = 2\n")


def test_the_manager_that_run_starts_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[int, ConfigParser]] = []

    async def serve(settings: MgmtdConfig, stop: asyncio.Event, *, config_parsers: dict[int, ConfigParser]) -> None:
        given.append(config_parsers)

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr("fireflyfs.client.cli.logs.set_up", lambda *_: None)
    path = tmp_path / "mgmtd.toml"
    path.write_text(config.dump(MgmtdConfig("c", kv="memory")), encoding="utf-8")
    result = CliRunner().invoke(main.app, ["run", "mgmtd", "--config", str(path)])
    assert result.exit_code == exits.OK, result.output
    assert set(given[0]) == {int(number) for number in views.NODE_TYPES.values()}
    assert set(run.ROLES) <= set(schemas.SCHEMAS)
