"""Checkpoints of a training run: whole or absent, the last few kept, resumed bit for bit."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch

from darkroom.errors import TrainingError
from darkroom.formats.disk import sync_folder

NAME = re.compile(r"step-(\d{9})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step`; older ones beyond `keep` go. Raises TrainingError if the disk is full.

    Written beside its place, synced, then renamed: whoever kills us, the last whole checkpoint is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"step-{step:09d}.pt", folder / ".partial"
    try:
        with temporary.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise TrainingError(f"checkpoint {path} could not be written: {error}") from error
    temporary.rename(path)
    sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if NAME.fullmatch(p.name))


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path.name!r} is not a checkpoint's name")
    return int(found[1])


def steps_done(run: Path) -> int:
    """The step of a run's newest checkpoint, 0 if it has none."""
    return max((step_of(path) for path in checkpoints(run)), default=0)


def load_last(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint's state, or None. Only tensors and plain values are read from it."""
    found = checkpoints(folder)
    if not found:
        return None
    try:
        state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"checkpoint {found[-1]} can't be read: {error}") from error
    return state
