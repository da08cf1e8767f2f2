"""What a command shows while it works: one progress bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tqdm import tqdm

from . import complain
from .command import is_quiet


class Display:
    """A bar on stderr if that is a terminal; use it as a context manager. Lines of the answer go through `answer`."""

    def __init__(self, task: str) -> None:
        """`task`: what is being done until the first `steps`, such as "loading the model"."""
        self._task = task
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty() and not is_quiet():
            self._bar = _bar(desc=self._task, bar_format="{desc} ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def now(self, task: str) -> None:
        """Say what is being done, where that is not the next step of many."""
        if self._bar is None:
            return
        self._bar.set_description_str(task if self._bar.bar_format is not None else f"{task}: ")

    def steps(self, done: int, total: int, description: str) -> None:
        """Show `done` of `total` steps."""
        if self._bar is None:
            return
        bar = self._bar
        if bar.bar_format is not None:  # the first one: from words to a bar
            bar.close()
            bar = self._bar = _bar(desc=description, total=total, unit="step")
        bar.total = total
        bar.set_description(description, refresh=False)
        bar.update(done - bar.n)

    def hide(self) -> None:
        """Clear the bar's line, for something else to be shown there."""
        if self._bar is not None:
            self._bar.clear()

    def answer(self, line: str) -> None:
        """Print a line of the answer on stdout, above the bar, at once."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def note(self, sentence: str) -> None:
        """Tell of what is no error; nothing with --quiet."""
        if not is_quiet():
            self.complain(sentence)

    def complain(self, sentence: str) -> None:
        """Tell of an error on stderr, above the bar."""
        if self._bar is not None:
            self._bar.clear()
        complain(sentence)
        if self._bar is not None:
            self._bar.refresh()


def _bar(**options: Any) -> tqdm[Any]:
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    if columns == 0:  # a terminal that does not know its size: tqdm would show nothing
        options |= {"ncols": 80, "nrows": 24}
    return tqdm(leave=False, dynamic_ncols=columns > 0, file=sys.stderr, **options)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C that comes inside take effect only at the end, so that a file and the word of it stay together."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield  # signals go elsewhere, or a shell started us in the background and wants none to arrive
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
