"""Where a tensor's bytes lie in a file, and how they become a tensor.

Tensors are read into memory of their own, straight from the file, and converted piece by piece on the way: the
high-water mark is the tensors kept, and a model once loaded no longer depends on its file. A memory map would save that
read, but its pages are dropped and faulted in again under memory pressure, they count twice while a tensor is
converted, and a file that someone truncates or overwrites while the model draws would kill the process.

Weights in 8 bits may have a scale beside them, as ComfyUI's tools write them ("scaled fp8"):

    X.weight          float8, [O, I, ...]
    X.scale_weight    or, in newer files, X.weight_scale: one number, or one for each of the O outputs
    X.scale_input     or X.input_scale: for products in 8 bits; not needed here
    X.comfy_quant     JSON as bytes: {"format": "float8_e4m3fn"}
    scaled_fp8        a mark that the file is of this kind, perhaps after the network's prefix

The weight meant is float8 times scale. Source: ComfyUI's QUANTIZATION.md; the older names by published files.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_TENSORS = 20_000
MAX_NAME = 512
MAX_DIMENSIONS = 16
MAX_SIZE = 2**48

# torch's name of the type -> bytes per element
DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
# safetensors' code of it -> torch's name
SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class Source:
    """A regular file opened for reading, safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if `path` is missing, a folder, a device or not readable."""
        self.path = path
        try:
            kind = os.stat(path).st_mode
            if stat.S_ISDIR(kind):
                raise CheckpointError(f"{path} is a folder where a weights file is wanted: name a file in it")
            if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
                raise CheckpointError(f"{path} is not a regular file: name a weights file")
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (lives as long as the TensorFile)
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist: check the path") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} can't be opened: {getattr(error, 'strerror', None) or error}") from None
        self.size = os.fstat(self.file.fileno()).st_size
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, fewer at the file's end."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        return bytes(memoryview(buffer)[: self.read_into(memoryview(buffer), offset)])

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset`; returns how many bytes there were."""
        done = 0
        try:
            while done < len(buffer) and (count := self._read_some(buffer[done:], offset + done)):
                done += count
        except (OSError, ValueError) as error:  # ValueError: closed
            raise CheckpointError(f"{self.path} can't be read: {getattr(error, 'strerror', None) or error}") from None
        return done

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):  # needs no lock: several threads read at once
            return os.preadv(self.file.fileno(), [buffer], offset)
        with self._lock:
            self.file.seek(offset)
            return self.file.readinto(buffer) or 0

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor in a file: type, shape and place. Checked when made, so that reading it can't reach outside the file.

    `offset` counts bytes from the file's beginning; `stride` counts elements, as torch does, None means contiguous.
    """

    source: Source
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        path, name = self.source.path, self.name
        check_name(path, name)
        if self.dtype not in DTYPES:
            raise CheckpointError(f"{path} holds the tensor {name} of the unknown type {clip(self.dtype)}")
        for numbers in (self.shape, self.stride or ()):
            if len(numbers) > MAX_DIMENSIONS or not all(is_count(n) for n in numbers):
                raise CheckpointError(f"{path} gives the tensor {name} an impossible shape or stride: {clip(numbers)}")
        if self.stride is not None and len(self.stride) != len(self.shape):
            raise CheckpointError(f"{path} gives the tensor {name} a stride that does not match its shape")
        if not is_count(self.offset) or self.offset + self.span > self.source.size:
            raise CheckpointError(
                f"{path} is cut short or broken: the tensor {name} would end at byte {clip(self.offset + self.span)} "
                f"but the file has {self.source.size}; download it again"
            )
        if self.stride is not None and self.bytes > self.span:  # a stride of 0 makes terabytes out of one number
            raise CheckpointError(f"{path} repeats the bytes of the tensor {name} instead of storing them")

    @property
    def elements(self) -> int:
        """How many numbers the tensor has."""
        product = 1
        for n in self.shape:
            product *= n
        return product

    @property
    def bytes(self) -> int:
        """How many bytes the tensor needs in memory."""
        return self.elements * DTYPES[self.dtype]

    @property
    def span(self) -> int:
        """How many bytes of the file it reaches over; more than `bytes` if the stride leaves gaps."""
        if self.stride is None or not self.elements:
            return self.bytes
        reach = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return reach * DTYPES[self.dtype]

    def read(self) -> Tensor:
        """The tensor, contiguous, on the CPU, in memory of its own. CheckpointError if the file has become shorter."""
        import torch

        flat = self.room(getattr(torch, self.dtype), self.span // DTYPES[self.dtype])
        self.read_into(flat)
        if self.stride is None or not self.elements:
            return flat.reshape(self.shape)
        return flat.as_strided(self.shape, self.stride).contiguous()

    def read_into(self, flat: Tensor, start: int = 0) -> None:
        """Fills `flat`, of this tensor's type, contiguous, on the CPU, with its elements in the file from `start` on.

        CheckpointError if the file has become shorter.
        """
        import torch

        raw = flat.view(torch.uint8)
        if len(raw) and self.source.read_into(raw.numpy().data, self.offset + start * DTYPES[self.dtype]) != len(raw):
            raise CheckpointError(f"{self.source.path} became shorter while {self.name} was being read")
        if self.dtype == "bool":
            raw.ne_(0)  # any other byte in a bool is undefined behaviour

    def room(self, dtype: torch.dtype, elements: int) -> Tensor:
        """Memory for this tensor, [elements] in `dtype`, not filled. CheckpointError where there is none."""
        import torch

        try:
            return torch.empty(elements, dtype=dtype, device="cpu")
        except RuntimeError:  # how torch says that the CPU's memory is used up
            size = elements * dtype.itemsize
            raise CheckpointError(f"{self.source.path}: no memory for {self.name}, {size} bytes") from None


def check_finite(name: str, tensor: Tensor, file: Path | str) -> None:
    """Raises CheckpointError if a floating-point tensor holds NaN or infinity; `name`, `file` are for its sentence."""
    if not is_finite(tensor):
        raise CheckpointError(f"{file} is poisoned or broken: the tensor {name} holds NaN or infinity")


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's values are finite, found without a second tensor of its size."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # there is no arithmetic in 8 bits
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # NaN wins in both
    return bool(torch.isfinite(low) & torch.isfinite(high))


def is_count(value: object) -> bool:
    """Whether `value` is a whole number that a size, stride or offset may be."""
    return type(value) is int and 0 <= value <= MAX_SIZE


def check_name(path: Path, name: object) -> None:
    """Raises CheckpointError for a name that could be a trick: control characters, a way out of a folder, endless."""
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{path} holds a tensor without a proper name")
    if len(name) > MAX_NAME:
        raise CheckpointError(f"{path} holds a tensor whose name has {len(name)} characters (at most {MAX_NAME})")
    if not name.isprintable() or "../" in name or "..\\" in name or name.startswith(("/", "\\")):
        raise CheckpointError(f"{path} holds a tensor with a suspicious name: {clip(ascii(name))}")


# --- weights in 8 bits with scales -----------------------------------------------------------------------------------


_SCALES = (".scale_weight", ".weight_scale")
_BESIDE = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"


# What wrappers of networks put into their names: DataParallel and DDP, torch.compile, FSDP, checkpointing.
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What the names of a whole file begin with; all may stand under something more (`model.module.model.diffusion_model.`).
_ROOTS = re.compile(r"(?P<above>(?:\w+\.)+)(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.")


def unwrapped(slots: Sequence[Slot]) -> list[Slot]:
    """The tensors under the names that they had before a network was wrapped, if that leaves them all different."""
    plain = [_WRAPPERS.sub("", slot.name) for slot in slots]
    above = Counter(match["above"] for name in plain if (match := _ROOTS.match(name)))
    if above:
        start = above.most_common(1)[0][0]
        plain = [name.removeprefix(start) for name in plain]
    if len(set(plain)) < len(plain) or "" in plain:
        return list(slots)
    return [slot if slot.name == name else replace(slot, name=name) for slot, name in zip(slots, plain, strict=True)]


def take_scales(slots: Mapping[str, Slot]) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """(the tensors of a file without what belongs to their scaling, a scaled weight's name -> its scale).

    Raises CheckpointError for weights that are quantized in any other way (int8, 4 bits, blocks).
    """
    scales: dict[str, Slot] = {}
    beside: set[str] = set()
    for name, slot in slots.items():
        layer, dot, last = name.rpartition(".")
        if f".{last}" in _SCALES and dot and f"{layer}.weight" in slots:
            scales[f"{layer}.weight"] = _checked(slot, slots[f"{layer}.weight"])
            beside.add(name)
        elif last == _MARK:
            beside.add(name)
    beside |= {name[: -len(".weight")] + end for name in scales for end in _BESIDE}
    return {name: slot for name, slot in slots.items() if name not in beside}, scales


def _checked(scale: Slot, weight: Slot) -> Slot:
    one_each = weight.shape[:1] == (scale.elements,) and prod(scale.shape[:1]) == scale.elements
    eighth = weight.dtype.startswith("float8") and len(weight.shape) > 1
    if not eighth or "float" not in scale.dtype or (scale.elements != 1 and not one_each):
        raise CheckpointError(
            f"{weight.source.path} is quantized in a way that Darkroom does not read ({clip(weight.name)} is "
            f"{weight.dtype} with scales {list(scale.shape)}): use the model in float16, or in plain or scaled float8"
        )
    return scale
