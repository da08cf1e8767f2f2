"""GGUF files (ggml's, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), whose header is read and no more.

["GGUF"] [u32 version] [u64 tensors] [u64 pairs] [pairs: key, type, value] [tensors: name, dimensions, type, offset]
[padding to `general.alignment`] [the tensors' bytes]

Texts are [u64 length] [UTF-8]; dimensions are written fastest first, so they are turned round here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import CheckpointError
from .storage import MAX_DIMENSIONS, MAX_NAME, MAX_SIZE, MAX_TENSORS, Source

_MOST = 64 << 20  # bytes of header that are read: a vocabulary of 256,000 words takes 10
_PAIRS = 4096
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
# ggml's types: number -> name, numbers in a block, bytes of a block
_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("float32", 1, 4), 1: ("float16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("int8", 1, 1), 25: ("int16", 1, 2), 26: ("int32", 1, 4), 27: ("int64", 1, 8), 28: ("float64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("bfloat16", 1, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a GGUF file says of itself."""

    tensors: Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape, type
    pairs: Mapping[str, Any]  # texts and numbers; lists are left out
    fault: str | None = None  # a sentence: the file ends before its tensors do


def read_gguf(source: Source) -> Gguf:
    """The header of a GGUF file. Raises CheckpointError where it is broken."""
    cursor = _Cursor(source)
    version, tensors, pairs = cursor.take("<4xIQQ")
    if version not in (2, 3) or tensors > MAX_TENSORS or pairs > _PAIRS:
        raise CheckpointError(f"{source.path} is a broken GGUF file, or of a version ({version}) that isn't known")
    found: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        value = cursor.value(*cursor.take("<I"))
        if value is not None:
            found[key] = value
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    end = 0
    for _ in range(tensors):
        name = cursor.text(MAX_NAME)
        (count,) = cursor.take("<I")
        if count > MAX_DIMENSIONS:
            raise CheckpointError(f"{source.path} is a broken GGUF file: a tensor has {count} dimensions")
        shape = tuple(reversed(cursor.take(f"<{count}Q")))
        kind, offset = cursor.take("<IQ")
        label, block, size = _TYPES.get(kind, (f"type {kind}", 1, 0))
        elements = prod(shape)
        if max(elements, offset) > MAX_SIZE:
            raise CheckpointError(f"{source.path} is a broken GGUF file: a tensor is of an impossible size")
        end = max(end, offset + -(-elements // block) * size)
        shapes[name] = (shape, label)
    alignment = found.get("general.alignment", 32)
    alignment = alignment if isinstance(alignment, int) and 0 < alignment <= 1 << 16 else 32
    end += -(-cursor.position // alignment) * alignment
    fault = None
    if end > source.size:
        fault = f"{source.path} is cut short: it needs {end} bytes but has {source.size}; download it again."
    return Gguf(shapes, found, fault)


class _Cursor:
    """A place in a header, which is read in pieces."""

    def __init__(self, source: Source) -> None:
        self.source, self.position = source, 0
        self._piece, self._start = b"", 0

    def bytes(self, count: int) -> bytes:
        first = self.position - self._start
        if first + count > len(self._piece):
            self._start, first = self.position, 0
            self._piece = self.source.read(self.position, max(count, 1 << 16))
        self.position += count
        if count > len(self._piece) or self.position > _MOST:
            raise CheckpointError(f"{self.source.path} is a broken GGUF file: its header is cut short")
        return self._piece[first : first + count]

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))

    def text(self, most: int = 1 << 16) -> str:
        (length,) = self.take("<Q")
        if length > most:
            raise CheckpointError(f"{self.source.path} is a broken GGUF file: a text of {length} bytes")
        return self.bytes(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """A value; None for a list, which is passed over."""
        if kind in _FIXED:
            return self.take("<" + _FIXED[kind])[0]
        if kind == _TEXT:
            return self.text(1 << 20)
        if kind != _ARRAY:
            raise CheckpointError(f"{self.source.path} is a broken GGUF file: there is no type {kind}")
        inside, count = self.take("<IQ")
        if inside in _FIXED and count <= _MOST:
            self.bytes(struct.calcsize(_FIXED[inside]) * count)
            return None
        if inside != _TEXT or count > _MOST:
            raise CheckpointError(f"{self.source.path} is a broken GGUF file: a list of type {inside}")
        for _ in range(count):
            self.text(1 << 20)
        return None
