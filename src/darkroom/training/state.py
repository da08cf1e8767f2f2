"""Checkpoints of a training run: whole or absent, the last few kept, resumed bit for bit.

A checkpoint is torch's zip archive, each record of which carries its CRC-32. torch doesn't look at those; here they are
compared whenever one is read, and so are its fields.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
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
        return _of_run(found[-1], mmap)
    except TrainingError as error:
        older = "add --skip-damaged or delete it, to go on from " + found[-2].name if found[1:] else ""
        raise TrainingError(f"{error}; {older or 'delete it to begin again'}") from error


def set_damaged_aside(folder: Path) -> tuple[list[Path], int]:
    """Rename the newest checkpoints up to one that is whole, so that it is the newest; what was renamed, and its step.

    Raises TrainingError where there are checkpoints, and none is whole.
    """
    found, damaged = checkpoints(folder), list[Path]()
    for path in reversed(found):
        try:
            _of_run(path, mmap=True)
        except TrainingError:
            damaged.append(path)
        else:
            return [old.rename(old.with_name(f"{old.name}.damaged")) for old in damaged], step_of(path)
    if found:
        raise TrainingError(f"no checkpoint in {folder} is whole; delete them to begin again, or use another folder")
    return [], 0


def load_best(folder: Path) -> dict[str, Any]:
    """The state of the checkpoint with the smallest held-out loss. Raises TrainingError."""
    if not (folder / BEST).is_file():
        raise TrainingError(f"{folder} has no best checkpoint; set validate_every, and hold rows out, to find one")
    return _of_run(folder / BEST)


def read(path: Path, mmap: bool = False) -> dict[str, Any]:
    """What `write` wrote, on the CPU; with `mmap` its tensors are read when they are used.

    Only tensors and plain values are read. Raises TrainingError, also where a bit of it has changed since.
    """
    try:
        changed = _changed(path)
        state: Any = None if changed else torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError) as error:
        raise TrainingError(f"checkpoint {path} can't be read: {_first_line(error)}") from error
    except Exception as error:  # torch's words are guesses, and advice to read it without care
        raise TrainingError(f"checkpoint {path} can't be read: it is damaged, or none of ours") from error
    if changed:
        raise TrainingError(f"checkpoint {path} is damaged: {changed!r} in it has changed since it was written")
    if not isinstance(state, dict):
        raise TrainingError(f"checkpoint {path} is none of ours: it holds a {type(state).__name__}")
    return state


def _changed(path: Path) -> str | None:
    """The first record of an archive that isn't what its digest says."""
    with zipfile.ZipFile(path) as archive:
        odd = (record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED)
        return next(odd, None) or archive.testzip()


# --- what a checkpoint of the loop holds


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(v) for name, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _is_recipe(value: Any) -> bool:
    return isinstance(value, dict) and _is_plain(value) and _is_whole(value.get("steps"))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())


def are_weights(value: Any) -> bool:
    """Whether a value is some networks' weights: tensors by names, by networks' names."""
    return isinstance(value, dict) and all(
        isinstance(network, str)
        and isinstance(tensors, dict)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items())
        for network, tensors in value.items()
    )


def _is_state(value: Any) -> bool:
    states = value.get("state") if isinstance(value, dict) else None
    return isinstance(states, dict) and all(_is_whole(i) and isinstance(s, dict) for i, s in states.items())


def _is_scale(value: Any) -> bool:
    names = ("factor", "good_steps")
    return value is None or (
        isinstance(value, dict) and all(isinstance(t := value.get(n), Tensor) and t.numel() == 1 for n in names)
    )


def _are_opponents(value: Any) -> bool:
    return value == {} or (
        isinstance(value, dict) and are_weights(value.get("modules")) and _is_state(value.get("optimizer"))
    )


def are_averages(value: Any) -> bool:
    """Whether a value is weights, by the lengths of their averages."""
    return isinstance(value, dict) and all(type(k) is float and are_weights(v) for k, v in value.items())


# What each field must be. Early versions' checkpoints lack some.
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "step": _is_whole, "skipped": _is_whole, "recipe": _is_recipe, "modules": are_weights, "optimizer": _is_state,
    "ema": are_weights, "powers": are_averages, "opponents": _are_opponents, "best": _are_numbers, "scale": _is_scale,
}  # fmt: skip
_SINCE = ("powers", "opponents", "best", "scale")


def _of_run(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint that the loop has written. Raises TrainingError where it has an odd field, or lacks one."""
    saved = read(path, mmap)
    for name, fits in _FIELDS.items():
        if name not in saved and name not in _SINCE:
            raise TrainingError(f"checkpoint {path} is none of ours: it has no {name!r}")
        if name in saved and not fits(saved[name]):
            raise TrainingError(f"checkpoint {path} is none of ours: its {name!r} is {_short(saved[name])}")
    if NAME.fullmatch(path.name) and step_of(path) != saved["step"]:
        raise TrainingError(f"checkpoint {path} is none of ours: it is of step {saved['step']}")
    return saved


def _short(value: Any) -> str:
    return repr(value)[:60] if _is_plain(value) else f"an odd {type(value).__name__}"


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
