"""What a run says of itself: rows of log.jsonl, and of TensorBoard's."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..files import replacing
from .parallel import sum_over_ranks
from .recipe import LoopConfig

NAME = "log.jsonl"  # in a run's folder


class Log:
    """Figures of the steps since the last row, summed where they were made and read only when a row is written.

    Rows of steps after `step`, which a killed run had written and shall do again, go; so does a row cut short.
    Only the first process has a `folder`: the others write nothing.
    """

    def __init__(self, folder: Path | None, config: LoopConfig, step: int) -> None:
        self._config, self._first, self._last_step = config, step, step
        self._file, self._board = None, None
        if folder is not None:
            path = folder / NAME
            _rewind(path, step)
            self._file = path.open("a", encoding="utf-8")
            if config.tensorboard:
                self._board = _board(folder / "tensorboard", step)
        self._began = self._last = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self.work = 0.0  # floating-point operations of a step in this process, once they have been counted
        self.peak = math.inf  # what its device could do of them in a second

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (self._file, self._board):
            if writer is not None:
                writer.close()

    @torch.no_grad()
    def add(self, figures: Mapping[str, Tensor]) -> None:
        """A step's figures; `good` says whether it counts."""
        good = figures["good"]
        for key, value in figures.items():
            counted = torch.where(good, value, torch.zeros_like(value))
            self._sums[key] = self._sums[key] + counted if key in self._sums else counted.float()

    def write(self, step: int, optimizer: torch.optim.Optimizer, skipped: Tensor, **others: float) -> None:
        """A row for the steps since the last one, with `others` in it; all ranks must call, it tells of them all."""
        c, now = self._config, time.monotonic()
        sum_over_ranks(list(self._sums.values()))  # the number of good steps among them
        good, rate = float(self._sums.pop("good")), optimizer.param_groups[0]["lr"]
        steps, seconds = step - self._last_step, max(now - self._last, 1e-9)
        pace = (now - self._began) / (step - self._first)
        row: dict[str, float] = {
            "step": step,
            **{k: round(m, 6) for k, v in self._sums.items() if good and (m := _mean(v, good)) is not None},
            **{k: round(v, 6) for k, v in others.items()},
            "lr": rate,
            "rate": round(rate / c.lr, 4),
            "skipped": int(skipped),
            "samples_per_second": round(steps * c.batch_size / seconds, 1),
            **({"utilisation": round(steps * self.work / seconds / self.peak, 3)} if self.work else {}),
            "seconds": round(now - self._began, 1),
            "left": round((c.steps - step) * pace, 1),
        }
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board is not None:
            for key in row.keys() - {"step", "seconds", "left"}:
                self._board.add_scalar(key, row[key], step)
            self._board.flush()
        self._sums, self._last, self._last_step = {}, now, step


def read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl; none if there is no log. A last line that is half written is left out."""
    try:
        lines = (run / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def seconds_of(rows: list[dict[str, Any]]) -> float:
    """Seconds of training over all sessions of a run: every session counts its own from zero."""
    total = last = 0.0
    for row in rows:
        now = float(row.get("seconds", 0.0))
        if now < last:
            total += last
        last = now
    return total + last


def _rewind(path: Path, step: int) -> None:
    """Leave the whole rows up to `step` in a log."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if kept != lines:
        with replacing(path) as draft:
            draft.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, for rows after `step`. Raises TrainingError where that isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "tensorboard is true, and TensorBoard isn't installed; pip install 'darkroom-diffusion[train]', or leave it"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _mean(summed: Tensor, steps: float) -> float | None:
    """A figure over some steps; one of two numbers is a sum and how many it is of, which may be none."""
    if summed.ndim == 0:
        return float(summed) / steps
    total, count = summed.tolist()
    return total / count if count else None
