"""Checkpoints of a training run: whole or absent, the last few kept, resumed bit for bit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import TrainingError
from ..files import replacing

NAME = re.compile(r"step-(\d{9})\.pt")


BEST = "best.pt"  # in a run's folder: the checkpoint with the smallest held-out loss


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2, best: bool = False) -> Path:
    """Write `state` as the checkpoint of `step`, and keep it as the best if it is; older ones beyond `keep` go.

    Raises TrainingError on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / f"step-{step:09d}.pt", state)
    if best:
        keep_best(folder, step)
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, state: dict[str, Any]) -> Path:
    """Write `state` into a file: beside its place, synced, then renamed. Whoever kills us, the old files are whole.

    Raises TrainingError, and leaves nothing, where the disk is full.
    """
    try:
        with replacing(path) as draft, draft.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as error:
        raise TrainingError(f"checkpoint {path} could not be written: {_first_line(error)}") from error
    return path


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it is now, in memory of its own, on the CPU."""
    copy: dict[str, Any] = tree_map(lambda v: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v, state)
    return copy


def size(state: Mapping[str, Any]) -> int:
    """Bytes of a state's tensors."""
    return sum(v.nbytes for v in tree_leaves(state) if isinstance(v, Tensor))


def keep_best(folder: Path, step: int) -> None:
    """Keep the checkpoint of `step` as the best one, whatever becomes of it under its own name."""
    path = folder / f"step-{step:09d}.pt"
    with replacing(folder / BEST) as draft:
        draft.unlink()
        try:
            os.link(path, draft)
        except OSError:  # a file system without links
            shutil.copyfile(path, draft)


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


def load_last(folder: Path, mmap: bool = False) -> dict[str, Any] | None:
    """The newest checkpoint's state, or None, as `read` reads it. Raises TrainingError."""
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return read(found[-1], mmap)
    except TrainingError as error:
        older = f"; delete it to go on from {found[-2].name}" if found[1:] else "; delete it to begin again"
        raise TrainingError(f"{error}{older}") from error


def load_best(folder: Path) -> dict[str, Any]:
    """The state of the checkpoint with the smallest held-out loss. Raises TrainingError."""
    if not (folder / BEST).is_file():
        raise TrainingError(f"{folder} has no best checkpoint; set validate_every, and hold rows out, to find one")
    return read(folder / BEST)


def read(path: Path, mmap: bool = False) -> dict[str, Any]:
    """What `write` wrote, on the CPU; with `mmap` its tensors are read when they are used.

    Only tensors and plain values are read. Raises TrainingError.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError) as error:
        raise TrainingError(f"checkpoint {path} can't be read: {_first_line(error)}") from error
    except Exception as error:  # torch's words are guesses, and advice to read it without care
        raise TrainingError(f"checkpoint {path} can't be read: it is damaged, or none of ours") from error
    return state


def check_fit(modules: Mapping[str, nn.Module], weights: Mapping[str, Any], path: Path) -> None:
    """Raise TrainingError, with the first tensor that differs, unless a checkpoint's weights are those of `modules`."""
    for name, module in modules.items():
        ours, theirs = module.state_dict(), weights.get(name, {})
        for key in [*ours, *theirs]:
            here, there = ours.get(key), theirs.get(key)
            if here is None or there is None or here.shape != there.shape:
                raise TrainingError(
                    f"{path} is of another architecture: {name}.{key} is {_shape(there)} there and {_shape(here)} here"
                )
    if extra := sorted(set(weights) - set(modules)):
        raise TrainingError(f"{path} is of another architecture: it has {extra[0]}, which is not trained here")


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
