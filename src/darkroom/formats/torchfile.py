"""What a file of torch.save holds, told in JSON by a process that can do nothing else.

`main` runs in a fresh interpreter with the file on stdin. It imports only the standard library and, before it looks at
a byte, gives up what it does not need: after `confine` it can open no file or socket, write to no file, and neither
grow nor compute for long, and the less the smaller the file is. The pickle is read by `unpickle`, which runs nothing in
it. The tensors' bytes are never touched: they lie in the file as they are, so the answer only says where.

Answers: {"tensors": [[name, dtype, shape, stride or null, offset], ...]}, {"tree": value}, or {"error": the rest of a
sentence that starts with the file's path}; of the mode "both", {"names": one of these, "tree": one of these}. In a
tree, {"dict": [[key, value], ...]}, {"list": [...]} and {"tensor": [dtype, shape, stride or null, offset]} stand for
these, and null for anything that is no plain value.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

from ..errors import clip
from .storage import DTYPES, MAX_NAME, MAX_TENSORS
from .unpickle import Fault, Global, ObjectStub, Storage, StoredTensor, interpret, is_small

# What the child may use: the least, and the most that it may ever; between them it grows with the pickle, of which a
# tensor takes some 120 bytes and some microseconds.
MEMORY = 192 << 20, 2 << 30  # bytes of address space; 20 MB of them are the interpreter's
SECONDS = 2, 60  # of computing
MAX_PICKLE = 128 << 20  # bytes; the pickle itself holds no tensor data
MAX_RECORDS = 100_000
MAX_VALUES = 200_000  # in a tree
MAX_DEPTH = 12
MAX_TEXT = 1 << 20  # characters in a tree
MAX_TREE_TENSORS = 4096
SHARED = 16 << 20  # bytes of the tensors of a tree, where they share what the file holds
MAX_ANSWER = 32 << 20  # characters of JSON

INSIDE = ("state_dict", "params_ema", "params")  # where trainers put the weights, the average first
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

Records = dict[str, tuple[int, int]]  # key of a storage, or name in a zip archive -> (offset, bytes)


def read_zip(file: BinaryIO, size: int, allow: Callable[[int], None]) -> tuple[Any, Records]:
    """(value, where its storages lie) of the zip archive that torch.save writes since PyTorch 1.6."""
    try:
        records = zip_records(file, size)
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
        raise Fault(f"is a broken or cut zip archive of {size} bytes ({clip(str(error))}): download it again") from None
    pickles = [name for name in records if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)]
    if len(pickles) != 1:
        raise Fault("is a zip archive but no PyTorch checkpoint: unpack it and name the weights file in it")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records or any(name.startswith(f"{prefix}code/") for name in records):
        raise Fault("is a TorchScript program, not plain weights: export its state_dict as safetensors")
    if read_record(file, records.get(f"{prefix}byteorder"), b"little") != b"little":
        raise Fault("was written on a big-endian machine: convert it to safetensors there")
    if records[pickles[0]][1] > MAX_PICKLE:
        raise Fault(f"holds a pickle of {records[pickles[0]][1]} bytes, more than the {MAX_PICKLE} allowed")
    allow(records[pickles[0]][1])
    storages: dict[str, Storage] = {}
    value = interpret(io.BytesIO(read_record(file, records[pickles[0]])), storages)
    found = {key: records[f"{prefix}data/{key}"] for key in storages if f"{prefix}data/{key}" in records}
    return value, found


def read_record(file: BinaryIO, place: tuple[int, int] | None, default: bytes = b"") -> bytes:
    if place is None:
        return default
    file.seek(place[0])
    return file.read(place[1])


def zip_records(file: BinaryIO, size: int) -> Records:
    """Name -> (offset, bytes) of every record; all stored, unique, disjoint, plainly named, filling the file."""
    file.seek(max(0, size - 22))
    end = file.read()
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise Fault(f"is a zip archive cut short or with trailing bytes ({size} bytes): download it again")
    archive = zipfile.ZipFile(file)
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(infos) > MAX_RECORDS:
        raise Fault(f"holds {len(infos)} records, more than the {MAX_RECORDS} allowed")
    records: Records = {}
    position = 0
    for info in infos:
        name = info.filename
        if name in records:
            raise Fault(f"is a zip archive that holds {clip(name)} twice: it is broken or hostile")
        if not name.isprintable() or "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise Fault(f"is a zip archive with a suspicious name in it: {clip(ascii(name))}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Fault(f"is a zip archive whose {clip(name)} is compressed or encrypted, as PyTorch never does")
        file.seek(info.header_offset)
        head = file.read(30)
        name_length, extra_length = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or file.read(name_length) != info.orig_filename.encode(
            "utf-8" if info.flag_bits & 0x800 else "cp437"
        ):
            raise Fault(f"is a zip archive whose two descriptions of {clip(name)} disagree: it is broken or hostile")
        start = info.header_offset + 30 + name_length + extra_length
        if not position <= info.header_offset <= position + 24:  # a data descriptor has at most 24 bytes
            raise Fault("is a zip archive with overlapping records or bytes between them: it is broken or hostile")
        records[name] = start, info.file_size
        position = start + info.file_size
    if position > archive.start_dir:
        raise Fault("is a zip archive with overlapping records: it is broken or hostile")
    return records


def read_legacy(file: BinaryIO, size: int, allow: Callable[[int], None]) -> tuple[Any, Records]:
    """The same of the older format: pickles (magic, protocol, machine, value, keys), then (count, bytes) for a key."""
    allow(min(size, MAX_PICKLE) // 16)  # where the pickles end is not known yet; most of a file is tensors
    if interpret(file, {}) != LEGACY_MAGIC or interpret(file, {}) != LEGACY_PROTOCOL:
        raise Fault("is a pickle but not one of PyTorch's")
    machine = interpret(file, {})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Fault("was written on a big-endian machine: convert it to safetensors there")
    storages: dict[str, Storage] = {}
    value = interpret(file, storages)
    keys = interpret(file, {})
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise ValueError("no list of keys")
    records: Records = {}
    position = file.tell()
    for key in keys:
        storage = storages[key]
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if storage.dtype is None:
            raise Fault("holds tensors of a type that Darkroom does not read (complex or quantised)")
        if count != storage.elements:
            raise Fault(f"is broken: it announces {storage.elements} numbers for a storage and then {count}")
        length = count * DTYPES[storage.dtype]
        records[key] = position + 8, length
        position += 8 + length
    if position != size:
        fault = "is cut short" if position > size else "has trailing bytes"
        raise Fault(f"{fault}: it describes {position} bytes but the file has {size}; download it again")
    return value, records


def describe(tensor: StoredTensor, records: Records) -> list[Any]:
    """[dtype, shape, stride or null, offset in bytes] of a tensor, checked against its storage and its record."""
    storage, size = tensor.storage, DTYPES[tensor.dtype]
    if storage.key not in records:
        raise Fault(f"is broken: the record {clip(storage.key)} is missing; download it again")
    offset, length = records[storage.key]
    if storage.dtype is None or storage.elements * DTYPES[storage.dtype] > length:
        raise Fault(f"is broken: the record {clip(storage.key)} of {length} bytes is too short; download it again")
    contiguous, elements, reach = True, 1, 1
    for n, step in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        contiguous &= n == 1 or step == elements
        elements *= n
        reach += (n - 1) * step
    begin = storage.begin * DTYPES[storage.dtype] + tensor.offset * size
    if elements and begin + reach * size > storage.elements * DTYPES[storage.dtype]:
        raise Fault("is broken: it describes a tensor that reaches outside its storage")
    if not elements:
        return [tensor.dtype, tensor.shape, None, offset]
    return [tensor.dtype, tensor.shape, None if contiguous else tensor.stride, offset + begin]


def mapping(value: Any) -> dict[Any, Any] | None:
    """The dict that `value` is or was to become (subclasses of dict, torch's ParameterDict), else None."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, ObjectStub):
        return None
    if isinstance(value.kind, Global) and value.kind.name == "ParameterDict" and isinstance(value.state, dict):
        inner, keys = value.state.get("_parameters"), value.state.get("_keys")
        value.items |= inner if isinstance(inner, dict) else {}
        value.items |= {key: value.state[key] for key in keys or () if type(key) is str and key in value.state}
        value.state = None  # once is enough
    return value.items or None


def names(value: Any, records: Records) -> list[list[Any]]:
    """[name, dtype, shape, stride, offset] of the tensors directly under the value, or under one of `INSIDE` in it."""
    root = mapping(value)
    if root is None:
        if isinstance(value, ObjectStub) and isinstance(value.kind, Global):
            what = f"a {clip(f'{value.kind.module}.{value.kind.name}')}"
        else:
            what = "a single tensor" if isinstance(value, StoredTensor) else f"a {type(value).__name__}"
        raise Fault(f"holds {what} where named tensors are wanted: save its state_dict as safetensors")
    root = next((inner for key in INSIDE if (inner := mapping(root.get(key)))), root)
    tensors = {key: item for key, item in root.items() if type(key) is str and type(item) is StoredTensor}
    if not tensors:
        raise Fault(f"holds no named tensors, neither directly nor under {' or '.join(INSIDE)}")
    if len(tensors) > MAX_TENSORS:
        raise Fault(f"holds {len(tensors)} tensors, more than the {MAX_TENSORS} allowed")
    if (longest := max(map(len, tensors))) > MAX_NAME:
        raise Fault(f"holds a tensor whose name has {longest} characters (at most {MAX_NAME})")
    return [[key, *describe(item, records)] for key, item in tensors.items()]


def tree(value: Any, records: Records, size: int) -> Any:
    """The value as JSON, see the head of this file; `size` is the file's."""
    values = text = tensors = numbers = 0

    def count(value: Any) -> None:
        nonlocal values, text
        values += 1
        text += len(value) if isinstance(value, str) else 0
        if values > MAX_VALUES or text > MAX_TEXT:
            raise Fault(
                f"holds more than {MAX_VALUES} values or {MAX_TEXT} characters: it is too large to be read whole"
            )

    def encode(value: Any, depth: int) -> Any:
        nonlocal tensors, numbers
        count(value)
        if value is None or isinstance(value, bool | float | str) or is_small(value):
            return value
        if isinstance(value, StoredTensor):
            place = describe(value, records)
            tensors, numbers = tensors + 1, numbers + math.prod(place[1]) * DTYPES[place[0]]
            if tensors > MAX_TREE_TENSORS or numbers > max(size, SHARED):  # each would be read
                raise Fault(f"holds more than {MAX_TREE_TENSORS} tensors or the same ones again and again")
            return {"tensor": place}
        if depth >= MAX_DEPTH:
            return None
        if isinstance(value, list | tuple):
            return {"list": [encode(item, depth + 1) for item in value]}
        items = mapping(value)
        if items is None:
            return None
        pairs = []
        for key, item in items.items():  # all keys are texts or small numbers
            count(key)
            pairs.append([key, encode(item, depth + 1)])
        return {"dict": pairs}

    return encode(value, 0)


def confine() -> None:
    """Gives up everything that reading needs not, as far as the system lets a process do so."""
    for codec in ("cp437", "raw-unicode-escape", "latin-1", "ascii", "utf-8"):
        codecs.lookup(codec)  # loads its module, while files can still be opened
    try:
        import resource
    except ImportError:  # Windows: there remain the time limit of the caller and an interpreter that runs nothing
        return
    for limit, soft, hard in (
        (resource.RLIMIT_AS, *MEMORY),
        (resource.RLIMIT_CPU, *SECONDS),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 3, 3),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (soft, hard))


def allow(size: int) -> None:
    """Raises what a confined process may use to what `size` bytes of pickle need."""
    try:
        import resource
    except ImportError:
        return
    for limit, (least, most), more in (
        (resource.RLIMIT_AS, MEMORY, 32 * size),
        (resource.RLIMIT_CPU, SECONDS, size >> 19),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (min(most, least + more), most))


def answer(file: BinaryIO, mode: str, allow: Callable[[int], None] = lambda size: None) -> dict[str, Any]:
    """The whole answer for one file; `allow` is told how many bytes of pickle there are to be looked at."""

    def part(mode: str) -> dict[str, Any]:
        try:
            return {"tree": tree(value, records, size)} if mode == "tree" else {"tensors": names(value, records)}
        except Exception as error:
            return {"error": _fault(error)}

    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        read = read_zip if file.read(2) == b"PK" else read_legacy
        file.seek(0)
        value, records = read(file, size, allow)
    except Exception as error:  # a broken pickle can fail in any way
        return {"error": _fault(error)}
    return {"names": part("names"), "tree": part("tree")} if mode == "both" else part(mode)


def _fault(error: Exception) -> str:
    if isinstance(error, Fault):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs more memory to be looked at than a file of its size should: it is broken or hostile"
    return f"is a broken pickle ({type(error).__name__}): download it again"


def main() -> None:
    """Answers for the file on stdin in the mode that the first argument names: "names", "tree" or "both"."""
    gc.disable()  # it would look at everything again and again, and memory is bounded
    confine()
    try:
        text = json.dumps(answer(sys.stdin.buffer, sys.argv[1], allow))
        fault = None if len(text) <= MAX_ANSWER else f"needs {len(text)} characters to be told, more than {MAX_ANSWER}"
    except (MemoryError, RecursionError) as error:
        fault = _fault(error)
    sys.stdout.write(text if fault is None else json.dumps({"error": fault}))
    sys.stdout.flush()
    os._exit(0)  # without taking apart what a hostile file has made
