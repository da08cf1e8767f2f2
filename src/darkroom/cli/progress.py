"""The line on a terminal that says how a training gets on."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from pathlib import Path

from ..training.kinds import log
from . import complain


class Line(logging.Handler):
    """One line on a terminal: the stage, its step, loss, samples a second, time left. Nothing in a pipe.

    It reads the run's log, which is written by whichever process trains. What a training warns of is told above it, in
    a pipe too.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._text = ""
        self._run: Path | None = None
        self._steps = 0
        self._width = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Line:
        log.addHandler(self)
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._work, daemon=True, name="darkroom-progress")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self)
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._show("")

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a warning."""
        if self._thread is not None:
            self._show("")
        complain(record.getMessage())

    def stage(self, text: str, run: Path | None, steps: int) -> None:
        """A stage begins: `run` has its log, if it is one."""
        self._text, self._run, self._steps = text, run, steps

    def _work(self) -> None:
        while not self._done.wait(0.5):
            self._show(progress(self._text, self._run, self._steps))

    def _show(self, text: str) -> None:
        text = text[: shutil.get_terminal_size((80, 24)).columns - 1]
        print("\r" + text.ljust(self._width) + ("" if text else "\r"), end="", file=sys.stderr, flush=True)
        self._width = len(text)


def progress(text: str, run: Path | None, steps: int) -> str:
    """What the line says of a stage."""
    from ..training.log import read_log

    rows = read_log(run) if run is not None else []
    if not rows:
        return f"{text} ..." if text else ""
    row = rows[-1]
    speed = float(row.get("samples_per_second", 0))
    parts = [
        text,
        f"step {row['step']:,} of {steps:,}",
        f"loss {row.get('loss', float('nan')):.4f}",
        next((f"held out {r['validation']:.4f}" for r in reversed(rows) if "validation" in r), ""),
        f"{row['psnr']:.1f} dB" if "psnr" in row else "",
        f"{speed:.0f} samples/s" if speed >= 10 else f"{speed:.1f} samples/s",
        f"{row['utilisation']:.0%} of the device" if "utilisation" in row else "",
        f"{row['skipped']} skipped" if row.get("skipped") else "",
        f"{_clock(row['left'])} left" if "left" in row else "",
    ]
    return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
