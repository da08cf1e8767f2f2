"""What a command shows while it works: one progress bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Display:
    """A bar on stderr if that is a terminal; use it as a context manager. Lines of the answer go through `answer`."""

    def __init__(self, task: str) -> None:
        """`task`: what is being done until the first `steps`, such as "loading the model"."""
        self._task = task
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=self._task,
                bar_format="{desc} ...",
                leave=False,
                dynamic_ncols=True,
                file=sys.stderr,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def steps(self, done: int, total: int, description: str) -> None:
        """Show `done` of `total` steps."""
        if self._bar is None:
            return
        bar = self._bar
        if bar.bar_format is not None:  # the first one: from words to a bar
            bar.close()
            bar = self._bar = tqdm(total=total, unit=" steps", leave=False, dynamic_ncols=True, file=sys.stderr)
        bar.total = total
        bar.set_description(description, refresh=False)
        bar.update(done - bar.n)

    def answer(self, line: str) -> None:
        """Print a line of the answer on stdout, above the bar, at once."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)
        if self._bar is not None:
            self._bar.refresh()
