"""Writing safetensors files, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..request import choice
from .storage import SAFETENSORS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CODES = {name: code for code, name in SAFETENSORS.items() if "float" in name}

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
        kind = _CODES.get(str(entry.dtype).removeprefix("torch."))
        if kind is None or entry.name in header:
            raise CheckpointError(f"{path}: the tensor {entry.name} can't be written as {entry.dtype}, or comes twice")
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
        raise CheckpointError(f"{path}: {entry.name} is {list(converted.shape)}, not {list(entry.shape)}")
    narrow = entry.dtype.itemsize == 1 and bool(tensor.numel())  # 8 bits may saturate instead of overflowing
    if not is_finite(converted) or (narrow and float(tensor.float().abs().max()) > torch.finfo(entry.dtype).max):
        kind = str(entry.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: {entry.name} holds NaN, infinity or a value too large for {kind}")
    return converted.reshape(-1).view(torch.uint8).numpy().data
