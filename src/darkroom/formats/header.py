"""The header of a safetensors file, checked whole before anything is allocated by it.

[8 bytes: N, little-endian] [N bytes of JSON: name -> dtype, shape, data_offsets] [the tensors' bytes, without gaps]
Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .storage import MAX_TENSORS, Slot, Source, check_name, clip, is_count

MAX_HEADER = 16_000_000  # bytes of JSON in a safetensors header or in a shard index

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def safetensors_slots(source: Source) -> tuple[list[Slot], dict[str, str]]:
    """Every tensor's place in the file, in the order of their bytes, and the file's metadata.

    Raises CheckpointError unless the header is within the limits, names each tensor once by a sane name, gives each a
    known type, a shape and just the bytes these need, and the tensors fill the file from the header to its last byte
    without hole or overlap.
    """
    path, size = source.path, source.size
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} claims a header of {length} bytes; more than {MAX_HEADER} is broken or hostile.")
    begin = 8 + length
    if begin > size:
        raise CheckpointError(
            f"{path} is cut short: its header ends at byte {begin} but the file has {size}; download it again."
        )
    header = parse_json(path, source.read(8, length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} is broken: its metadata is not a mapping of text to text.")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} claims {len(header)} tensors, more than the {MAX_TENSORS} allowed.")

    position = 0
    entries = [_entry(path, name, entry) for name, entry in header.items()]
    for start, stop, name, _, _ in sorted(entries, key=lambda entry: entry[:2]):
        if start != position:
            fault = "overlaps the one before it" if start < position else "leaves a hole before it"
            raise CheckpointError(f"{path} is broken: the tensor {name} {fault} (byte {start}, not {position}).")
        position = stop
    if begin + position != size:
        fault = "is cut short" if begin + position > size else "has trailing bytes"
        raise CheckpointError(
            f"{path} {fault}: its header describes {begin + position} bytes but the file has {size}; download it again."
        )

    slots = []
    for start, stop, name, dtype, shape in entries:
        slot = Slot(source, name, dtype, shape, begin + start)
        if slot.bytes != stop - start:
            raise CheckpointError(
                f"{path} is broken: the tensor {name}, {clip(shape)} of {dtype}, needs {clip(slot.bytes)} bytes "
                f"but has {stop - start}."
            )
        slots.append(slot)
    return slots, metadata


def _entry(path: Path, name: str, entry: Any) -> tuple[int, int, str, str, tuple[int, ...]]:
    """(start, stop, name, torch's dtype name, shape) of one header entry; what it is, not yet whether it fits."""
    check_name(path, name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path} is broken: {name} is not described by dtype, shape and data_offsets.")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise CheckpointError(f"{path} holds the tensor {name} of the type {clip(code)}, which is unknown.")
    if not isinstance(shape, list):
        raise CheckpointError(f"{path} gives the tensor {name} an impossible shape: {clip(shape)}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)) or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path} gives the tensor {name} impossible offsets: {clip(offsets)}.")
    return offsets[0], offsets[1], name, dtype, tuple(shape)


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """`raw` as one JSON object without a repeated key at any depth, else CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointError(f"{path} names {clip(key)} twice: it is broken or hostile.")
            result[key] = value
        return result

    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is broken: its {len(raw)} bytes of header or index are not JSON.") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} is broken: its header or index is not a JSON object.")
    return parsed
