"""The line on a terminal that says how a training gets on."""

from __future__ import annotations

import logging
import shutil
import sys
from typing import TYPE_CHECKING

from ..training.kinds import log
from . import complain

if TYPE_CHECKING:
    from ..training.start import TrainingProgress


class Line(logging.Handler):
    """One line on a terminal: the stage, its step, loss, samples a second, time left. Nothing in a pipe.

    What a training warns of is told above it, in a pipe too.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._width = 0
        self._shown = False

    def __enter__(self) -> Line:
        log.addHandler(self)
        self._shown = sys.stderr.isatty()
        return self

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self)
        if self._shown:
            self._show("")
        self._shown = False

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a warning."""
        if self._shown:
            self._show("")
        complain(record.getMessage())

    def show(self, now: TrainingProgress) -> None:
        """What a training tells of itself."""
        if self._shown:
            self._show(progress(now))

    def _show(self, text: str) -> None:
        text = text[: shutil.get_terminal_size((80, 24)).columns - 1]
        print("\r" + text.ljust(self._width) + ("" if text else "\r"), end="", file=sys.stderr, flush=True)
        self._width = len(text)


def progress(now: TrainingProgress) -> str:
    """What the line says of a stage."""
    row = now.figures
    if not row:
        return f"{now.stage} ..." if now.stage else ""
    speed = float(row.get("samples_per_second", 0))
    parts = [
        now.stage,
        f"step {now.step:,} of {now.steps:,}",
        f"loss {row.get('loss', float('nan')):.4f}",
        f"held out {row['validation']:.4f}" if "validation" in row else "",
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
