"""Writing safetensors files tensor by tensor, and files and folders whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..request import choice
from .disk import sync_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}  # fmt: skip

# The types of numbers that a model can be written in -> torch's names. In 8 bits a network can be kept, not run.
SAVED = {
    "float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "float8_e4m3": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
}  # fmt: skip


def saved_type(name: str) -> torch.dtype:
    """torch's type for one of `SAVED`. Raises RequestError for another name."""
    import torch

    dtype: torch.dtype = getattr(torch, SAVED[choice("dtype", name, SAVED)])
    return dtype


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to be written; `load` is called when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def write_safetensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors#format), one tensor in memory at a time.

    The same entries give the same bytes. Tensors lie by falling element size and then by name, so that each is aligned.
    Raises CheckpointError if a tensor is not what its entry says or not finite.
    """
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for entry in entries:
        size = entry.dtype.itemsize
        for n in entry.shape:
            size *= n
        kind = _NAMES.get(str(entry.dtype).removeprefix("torch."))
        if kind is None or entry.name in header:
            raise CheckpointError(f"{path}: the tensor {entry.name} can't be written as {entry.dtype}, or comes twice.")
        header[entry.name] = {"dtype": kind, "shape": list(entry.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            file.write(_bytes(entry, path))
        file.flush()
        os.fsync(file.fileno())


def _bytes(entry: Entry, path: Path) -> memoryview:
    import torch

    from .storage import is_finite

    tensor = entry.load().detach().to(device="cpu")
    converted = tensor.to(entry.dtype).contiguous()
    if tuple(converted.shape) != entry.shape:
        raise CheckpointError(f"{path}: {entry.name} is {list(converted.shape)}, not {list(entry.shape)}.")
    narrow = entry.dtype.itemsize == 1 and bool(tensor.numel())  # 8 bits may saturate instead of overflowing
    if not is_finite(converted) or (narrow and float(tensor.float().abs().max()) > torch.finfo(entry.dtype).max):
        kind = str(entry.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: {entry.name} holds NaN, infinity or a value too large for {kind}.")
    return converted.reshape(-1).view(torch.uint8).numpy().data


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a configuration as the ecosystem's tools do: two spaces, sorted."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.(part|old)", re.DOTALL)  # a name that the writers below work under


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; it becomes `path` when all went well, and is gone otherwise. OSError -> CheckpointError."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file to write.")
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    with _sentences(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            os.replace(draft, path)
            sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, marker: str) -> Iterator[Path]:
    """A new folder to write into; it becomes `path` when all went well, and is gone otherwise.

    An old folder at `path` is replaced if it is empty or holds a file called `marker` (so it is of the same kind); any
    other raises CheckpointError. OSError -> CheckpointError.
    """
    with _sentences(path):
        if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
            raise CheckpointError(f"{path} exists and is not a model (it has no {marker}): choose another name.")
    stamp = uuid.uuid4().hex[:8]
    draft, old = path.parent / f".{path.name}.{stamp}.part", path.parent / f".{path.name}.{stamp}.old"
    with _sentences(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
            yield draft
            for folder in (draft, *(sub for sub in draft.rglob("*") if sub.is_dir())):
                sync_folder(folder)
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(draft, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            sync_folder(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def clear_drafts(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder, where nobody else is writing now."""
    for left in folder.iterdir():
        if _DRAFT.fullmatch(left.name) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error.strerror or error}.") from None
