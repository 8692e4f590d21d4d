"""The command line's frame: help, exit codes, one line for each error."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fireflyfs.client.cli import exits, main, mount_table
from fireflyfs.client.cli.run import serve_until_signal
from fireflyfs.client.cli.settings import check_address
from fireflyfs.common.errors import MEANINGS, Code, FfsError, error


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys\n"
        "from fireflyfs.client.cli.main import main\n"
        "sys.argv = ['ffs', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'rich', 'numpy', 'google.protobuf', 'rocksdict'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("name", [name for section in main.COMMANDS.values() for name in section])
def test_each_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main.app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f" {name} [OPTIONS]" in result.output.splitlines()[0]


def test_usage_error_is_two() -> None:
    result = CliRunner().invoke(main.app, ["no-such-command"])
    assert result.exit_code == exits.USAGE
    assert "no-such-command" in result.output


@pytest.mark.parametrize("code", [code for code in Code if code != Code.OK])
def test_every_error_code_has_a_documented_exit_code(code: Code) -> None:
    number = exits.exit_code(error(code, "what happened"))
    assert number in (exits.FAILED, exits.USAGE, exits.NOT_FOUND, exits.UNREACHABLE, exits.REFUSED)
    if code < 1000:  # an errno from Python's own functions ends the same way
        assert exits.exit_code(OSError(int(code), "x")) == number
    assert MEANINGS[code]


@pytest.mark.parametrize("code", [code for code in Code if code != Code.OK])
def test_an_error_of_the_library_ends_as_its_code_does(code: Code) -> None:
    cause = error(code, "what happened")
    raised = cause.to_oserror("/x")
    raised.__cause__ = cause  # as `named` has it
    assert exits.exit_code(raised) == exits.exit_code(cause)
    if code in (Code.UNAVAILABLE, Code.TIMEOUT, Code.NO_SPACE):
        assert "`ffs " in exits.describe(raised)


def test_what_failed_of_several_is_told_and_the_worst_counts(capsys: pytest.CaptureFixture[str]) -> None:
    failures = exits.Failures()
    failures.end()  # nothing yet
    with failures.told():
        raise click.UsageError("a directory")
    with failures.told():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a")
    with failures.told():
        raise error(Code.ACCESS_DENIED, "no")
    assert capsys.readouterr().err == "ffs: a directory\nffs: /a: No such file or directory\nffs: no\n"
    with pytest.raises(SystemExit) as ended:
        failures.end()
    assert ended.value.code == exits.REFUSED
    for own in (BrokenPipeError(errno.EPIPE, "pipe"), OSError(errno.ENOSPC, "our own output"), KeyboardInterrupt()):
        with pytest.raises(type(own)), failures.told():
            raise own


def test_the_worst_of_several_errors_is_not_the_first() -> None:
    assert exits.worst([exits.USAGE, exits.NOT_FOUND, exits.FAILED, exits.REFUSED]) == exits.FAILED
    assert exits.worst([exits.USAGE, exits.REFUSED, exits.UNREACHABLE]) == exits.UNREACHABLE


def test_an_error_is_one_line_with_a_hint() -> None:
    text = exits.describe(error(Code.UNAVAILABLE, "127.0.0.1:7400\ndoes not answer"))
    assert "\n" not in text
    assert "ffs up" in text
    text = exits.describe(error(Code.UNAVAILABLE, "no cluster here: `ffs up` makes one"))
    assert text == "no cluster here: `ffs up` makes one", "what says itself what to do is given no second hint"


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon"])
@pytest.mark.parametrize(
    "option", [("mount", "/nowhere", "--attr-timeout"), ("up", "--trash-hours"), ("status", "--wait")]
)
def test_what_is_no_number_of_seconds_is_wrong_usage(option: tuple[str, ...], text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main.app, ["--root", str(tmp_path), *option, text])
    assert result.exit_code == exits.USAGE
    assert text in result.output


def test_a_configuration_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xd0\xff")
    result = CliRunner().invoke(main.app, ["--mgmtd", "127.0.0.1:1", "config", "set", "client", str(tmp_path / "file")])
    assert result.exit_code == exits.USAGE
    assert str(tmp_path / "file") in result.output


def test_what_others_mounted_is_not_ended(tmp_path: Path) -> None:
    with pytest.raises(FfsError, match="no mount of FireflyFS"):
        mount_table.unmount(Path("/proc"))
    with pytest.raises(FfsError, match="not mounted"):
        mount_table.unmount(tmp_path)


def test_oserror_names_the_file() -> None:
    assert exits.describe(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), b"/a")) == (
        "/a: No such file or directory"
    )


def test_unknown_exception_is_called_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.report(RuntimeError("boom")) == exits.FAILED
    assert capsys.readouterr().err == "ffs: RuntimeError: boom (this is a bug; --verbose shows the trace)\n"


def test_broken_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{sys.executable} -m fireflyfs.client.cli.main --help | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:99999", "host:x"])
def test_bad_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.UsageError):
        check_address(text)


def test_run_refuses_a_missing_configuration(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.app, ["run", "nothing", "--config", str(tmp_path / "x.toml")])
    assert result.exit_code == exits.USAGE


def test_run_refuses_a_worker_of_meta(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.app, ["run", "meta", "--worker", "0", "--config", str(tmp_path / "x.toml")])
    assert result.exit_code == exits.USAGE
    assert "storage only" in result.output


def test_a_signal_stops_a_server_in_good_order() -> None:
    seen: list[str] = []

    async def start(stop: asyncio.Event) -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)
        seen.append("stopped")

    asyncio.run(serve_until_signal(start))
    assert seen == ["stopped"]
