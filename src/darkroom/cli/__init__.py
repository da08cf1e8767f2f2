"""The command line. `main` is what `darkroom` and `python -m darkroom` run.

How to add a command: write `cli/NAME.py` with `app = App()` and one `@app.command()` (several make a group, which has
an `about`), and give it a row in `COMMANDS`. The module is imported when its command is used; it imports torch inside
its function, so that `--help` stays quick.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ..errors import Error, did_you_mean, out_of_memory, visible
from ..training.background import PATIENCE, endings
from .command import SETTINGS, App, Group, is_quiet

# Name -> what `darkroom --help` says. Dashes in a name are underscores in its module's.
COMMANDS = {
    "generate": "Draw pictures from texts.",
    "batch": "Draw a list of prompts, and go on with it after any end.",
    "sweep": "Draw a grid of variations on one labelled sheet.",
    "hint": "Make a picture that steers a ControlNet, to look at it.",
    "upscale": "Make a picture larger.",
    "explain": "Say what a model reads of a prompt.",
    "info": "Say what a model, picture, folder of pictures or run is.",
    "gallery": "Write a folder's pictures and recipes as one HTML file.",
    "verify": "Draw a picture again from its own recipe and compare.",
    "convert": "Write a model as a diffusers folder or as a single file.",
    "train": "Train networks, or tune a model on pictures.",
    "evaluate": "Judge whether pictures show what the prompts say.",
    "data": "Scan, pack, encode or render training pictures.",
    "serve": "Serve pictures over HTTP: a page, OpenAI's and A1111's dialects.",
    "worker": "Draw what servers on a shared database take in.",
    "cluster": "Make a Ray cluster's token, and say what is wrong with one.",
    "keys": "Make, list and remove a server's API keys.",
    "samplers": "List the samplers.",
    "objects": "List what the embedded model knows.",
    "completion": "Let bash, zsh or fish complete commands and options.",
    "bench": "Measure how fast this machine is.",
}

ASKING = "_DARKROOM_COMPLETE"  # in the environment, it says that a shell asks what it may offer
USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130


class _Commands(Group):
    """The group of all commands, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        if cmd_name not in COMMANDS:
            return None
        app: App = importlib.import_module(f"darkroom.cli.{cmd_name.replace('-', '_')}").app
        return app.build(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """click's, with another sentence for what is none."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Their names and lines, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"darkroom {__version__}")
        context.exit()


def command_line() -> click.Group:
    """All of the command line."""
    version = click.Option(
        ["--version"], is_flag=True, callback=_version, is_eager=True, expose_value=False, help="Print the version."
    )
    return _Commands(
        "darkroom",
        params=[version],
        help="Stable Diffusion, whole: train it, tune it, run it.\n\n"
        'Try: darkroom generate "a large fox on a yellow background"',
        context_settings=SETTINGS,
    )


def main() -> NoReturn:
    """Run the command line and exit with its code: 0, 2 for a user's error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a prompt may hold what the terminal's encoding can't say
            stream.reconfigure(errors="backslashreplace")
    _end_on_signals()
    if (instruction := os.environ.get(ASKING)) is not None:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(command_line(), {}, "darkroom", ASKING, instruction))
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
        code = code or 1
    sys.exit(code)


def _end_on_signals() -> None:
    """End on a signal by an exception, so that drafts are removed on the way; on another one, a second later, at once
    and without a word: what is left then is cleared at the next start."""
    first = 0.0

    def end(number: int, frame: Any) -> None:
        nonlocal first
        if first:
            if time.monotonic() - first > PATIENCE:
                os._exit(128 + number)
            return
        first = time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for number in endings():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    An error is one sentence on stderr; DARKROOM_DEBUG=1 adds its traceback.
    """
    debug = os.environ.get("DARKROOM_DEBUG", "") not in ("", "0")
    if not debug:
        logging.getLogger("darkroom").addHandler(logging.NullHandler())  # every failure is told once, by us
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
    try:
        whole = command_line()
        with whole.make_context("darkroom", list(arguments) or ["--help"]) as context:
            code = whole.invoke(context)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _explain(error)


def _explain(error: BaseException) -> int:
    """Say on stderr what went wrong, in a sentence; return the exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        complain("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return 1
    if isinstance(error, Error):
        complain(str(error))
        return USER_ERROR
    if isinstance(error, click.ClickException):
        complain(_usage_sentence(error))
        return USER_ERROR
    if out_of_memory(error):
        complain("memory ran out; use a smaller model or size, or --dtype bfloat16")
        return USER_ERROR
    complain(f"internal error: {type(error).__name__}: {error} (DARKROOM_DEBUG=1 shows where; please report it)")
    return INTERNAL_ERROR


def _usage_sentence(error: click.ClickException) -> str:
    """What click says of a wrong option or value, and where to read more."""
    message = error.format_message().strip()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "darkroom"
    message = message[:1].lower() + message[1:]
    return f"{message.rstrip('.')}{'' if message.endswith('?') else ';'} see '{command} --help'"


def complain(sentence: str) -> None:
    """One line on stderr, whatever control characters the sentence holds, and of a length that can be read."""
    if len(sentence) > 2000:
        sentence = f"{sentence[:1000]} ... {sentence[-500:]}"
    try:
        print(f"darkroom: {visible(sentence)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # stderr is closed: nobody to tell
        return


def note(sentence: str) -> None:
    """As `complain`, of what is no error; nothing with --quiet."""
    if not is_quiet():
        complain(sentence)


def _close_stdout() -> None:
    """The reader of our output has gone: write the rest to nowhere, so that Python's own flush at exit stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
