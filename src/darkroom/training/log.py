"""What a run says of itself: rows of log.jsonl."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .loop import LoopConfig


class Log:
    """Figures of the steps since the last row, summed where they were made and read only when a row is written."""

    def __init__(self, folder: Path, step: int) -> None:
        self._file = open(folder / "log.jsonl", "a")  # noqa: SIM115
        self._began = self._last = time.monotonic()
        self._last_step = step
        self._sums: dict[str, Tensor] = {}

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @torch.no_grad()
    def add(self, figures: dict[str, Tensor]) -> None:
        """A step's figures; `good` says whether it counts."""
        good = figures["good"]
        for key, value in figures.items():
            counted = torch.where(good, value, torch.zeros_like(value))
            self._sums[key] = self._sums[key] + counted if key in self._sums else counted.float()

    def write(self, step: int, config: LoopConfig, optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
        """A row for the steps since the last one."""
        now = time.monotonic()
        good = float(self._sums.pop("good"))
        rate = optimizer.param_groups[0]["lr"] / config.lr
        row = {
            "step": step,
            **{k: round(m, 6) for k, v in self._sums.items() if good and (m := _mean(v, good)) is not None},
            "rate": round(rate, 4),
            "skipped": int(skipped),
            "samples_per_second": round((step - self._last_step) * config.batch_size / (now - self._last), 1),
            "seconds": round(now - self._began, 1),
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._sums, self._last, self._last_step = {}, now, step


def _mean(summed: Tensor, steps: float) -> float | None:
    """A figure over some steps; one of two numbers is a sum and how many it is of, which may be none."""
    if summed.ndim == 0:
        return float(summed) / steps
    total, count = summed.tolist()
    return total / count if count else None
