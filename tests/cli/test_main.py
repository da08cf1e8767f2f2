"""The frame of all commands: help, wrong usage, exit codes, what a terminal is shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import click
import pytest

import darkroom.cli as cli
from darkroom.errors import CheckpointError

Command = Callable[..., Any]  # see conftest.py


def test_help_lists_every_command(command: Command) -> None:
    for arguments in (["--help"], ["-h"], []):
        answer = command(*arguments)
        assert (answer.code, answer.err) == (0, "")
        for name, text in cli.COMMANDS.items():
            assert name in answer.out
            assert text in answer.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, command: Command) -> None:
    answer = command(name, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"Usage: darkroom {name}" in answer.out


def test_help_imports_no_torch() -> None:
    """Nor anything else that takes long, in a fresh process and with every command's own help."""
    code = (
        "import sys; from darkroom.cli import COMMANDS, run\n"
        "run(['--help']); [run([name, '--help']) for name in COMMANDS]; run(['samplers'])\n"
        "found = {'torch', 'numpy', 'rich', 'huggingface_hub', 'safetensors', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(f'imported {found}' if found - ALLOWED else 0)"
    ).replace("ALLOWED", "{'pydantic'}")  # which typer imports by itself
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_version(command: Command) -> None:
    from darkroom import __version__

    assert command("--version").out == f"darkroom {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["genrate", "x"], "there is no command 'genrate'; did you mean 'generate'? see 'darkroom --help'"),
        (["zzz"], "there is no command 'zzz'; there are generate, "),
        (["--zebra"], "there is no option --zebra; see 'darkroom --help'"),
        (
            ["generate", "x", "--sede", "1"],
            "there is no option --sede; did you mean --seed? see 'darkroom generate --help'",
        ),
        (["generate", "x", "--seed"], "--seed"),
        (["convert", "only-one"], "DST"),
        (["\x1b[31m"], r"there is no command '\x1b[31m'"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], said: str, command: Command) -> None:
    answer = command(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what is put into this list."""
    errors: list[BaseException] = []
    module: Any = types.ModuleType("darkroom.cli.fail")
    module.app = cli.App()

    @module.app.command()
    def fail() -> None:
        raise errors[0]

    monkeypatch.setitem(sys.modules, "darkroom.cli.fail", module)
    monkeypatch.setitem(cli.COMMANDS, "fail", "Fail.")
    return errors


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckpointError("the file 'x' is broken"), 2, "the file 'x' is broken"),
        (CheckpointError("evil \x1b[2J\u202e\ud800\n"), 2, r"evil \x1b[2J\u202e\ud800\n"),
        (CheckpointError("x" * 10_000), 2, " ... "),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), 2, "memory ran out"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
        (click.exceptions.Exit(3), 3, ""),
        (SystemExit(4), 4, ""),
    ],
)
def test_every_error_is_one_line_and_a_code(
    error: BaseException, code: int, said: str, command: Command, failing: list[BaseException]
) -> None:
    failing.append(error)
    answer = command("fail")
    assert answer.code == code
    if said:
        assert said in answer.sentence
        assert len(answer.sentence) < 2000
    else:
        assert answer.err == ""


def test_debug_shows_the_traceback(
    command: Command, failing: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(CheckpointError("broken"))
    monkeypatch.setattr(cli.os, "environ", os.environ | {"DARKROOM_DEBUG": "1"})
    answer = command("fail")
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert answer.err.endswith("darkroom: broken\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ending_twice_is_quiet(number: int) -> None:
    """The first signal lets the command clean up; another one, later, ends it without a word."""
    code = (
        "import time; from darkroom import cli\n"
        "def run(arguments):\n"
        "    try:\n        print('there', flush=True); time.sleep(60)\n"
        "    finally:\n        print('cleaning', flush=True); time.sleep(60)\n"
        "cli.run, cli.PATIENCE = run, 0.0\ncli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("there\n", "cleaning\n"):
        assert process.stdout.readline() == line
        process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (128 + number, "", "")


def test_a_reader_that_goes_away_hears_no_complaint() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "darkroom", "samplers"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() in (0, 1)
    process.stderr.close()


def test_samplers(command: Command) -> None:
    from darkroom.samplers import names

    assert [line.split()[0] for line in command("samplers").out.splitlines()] == names()
    rows = command("samplers", "--json").json
    assert [row["id"] for row in rows] == names()
    assert {"id": "dpmpp_2m", "label": "DPM++ 2M", "diffusers": "DPMSolverMultistepScheduler"} in rows
