"""What a file of torch.save holds, told in JSON by a process that can do nothing else.

`main` runs in a fresh interpreter with the file on stdin. It imports only the standard library and, before it looks at
a byte, gives up what it does not need: after `confine` it can open no file or socket, write to no file, and neither
grow nor compute for ever. The pickle inside is read by `unpickle`, which runs nothing in it. The tensors' bytes are
never touched: they lie in the file as they are, so the answer only says where.

Answers: {"tensors": [[name, dtype, shape, stride or null, offset], ...]}, {"tree": value}, or {"error": the rest of a
sentence that starts with the file's path}. In a tree, {"dict": [[key, value], ...]}, {"list": [...]} and
{"tensor": [dtype, shape, stride or null, offset]} stand for these, and null for anything that is no plain value.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import sys
import zipfile
from typing import Any, BinaryIO

from .storage import DTYPES, MAX_TENSORS
from .unpickle import Fault, Global, Inert, Lump, Storage, interpret, short

MEMORY = 2 << 30  # bytes
SECONDS = 60
MAX_PICKLE = 128 << 20  # bytes; the pickle itself holds no tensor data
MAX_RECORDS = 100_000
MAX_VALUES = 200_000  # in a tree
MAX_DEPTH = 12
MAX_TEXT = 32 << 20  # characters in a tree

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

Records = dict[str, tuple[int, int]]  # key of a storage, or name in a zip archive -> (offset, bytes)


def read_zip(file: BinaryIO, size: int) -> tuple[Any, Records]:
    """(value, where its storages lie) of the zip archive that torch.save writes since PyTorch 1.6."""
    try:
        records = zip_records(file, size)
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
        raise Fault(
            f"is a broken or cut zip archive of {size} bytes ({short(str(error))}): download it again"
        ) from None
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
            raise Fault(f"is a zip archive that holds {short(name)} twice: it is broken or hostile")
        if not name.isprintable() or "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise Fault(f"is a zip archive with a suspicious name in it: {short(ascii(name))}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Fault(f"is a zip archive whose {short(name)} is compressed or encrypted, as PyTorch never does")
        file.seek(info.header_offset)
        head = file.read(30)
        name_length, extra_length = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or file.read(name_length) != info.orig_filename.encode(
            "utf-8" if info.flag_bits & 0x800 else "cp437"
        ):
            raise Fault(f"is a zip archive whose two descriptions of {short(name)} disagree: it is broken or hostile")
        start = info.header_offset + 30 + name_length + extra_length
        if not position <= info.header_offset <= position + 24:  # a data descriptor has at most 24 bytes
            raise Fault("is a zip archive with overlapping records or bytes between them: it is broken or hostile")
        records[name] = start, info.file_size
        position = start + info.file_size
    if position > archive.start_dir:
        raise Fault("is a zip archive with overlapping records: it is broken or hostile")
    return records


def read_legacy(file: BinaryIO, size: int) -> tuple[Any, Records]:
    """The same of the older format: pickles (magic, protocol, machine, value, keys), then (count, bytes) for a key."""
    if interpret(file, {}) != LEGACY_MAGIC or interpret(file, {}) != LEGACY_PROTOCOL:
        raise Fault("is a pickle but not one of PyTorch's")
    machine = interpret(file, {})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Fault("was written on a big-endian machine: convert it to safetensors there")
    storages: dict[str, Storage] = {}
    value = interpret(file, storages)
    keys = interpret(file, {})
    if not isinstance(keys, list) or len(set(keys)) != len(keys):
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


def describe(tensor: Lump, records: Records) -> list[Any]:
    """[dtype, shape, stride or null, offset in bytes] of a tensor, checked against its storage and its record."""
    storage, size = tensor.storage, DTYPES[tensor.dtype]
    if storage.key not in records:
        raise Fault(f"is broken: the record {short(storage.key)} is missing; download it again")
    offset, length = records[storage.key]
    if storage.dtype is None or storage.elements * DTYPES[storage.dtype] > length:
        raise Fault(f"is broken: the record {short(storage.key)} of {length} bytes is too short; download it again")
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
    if not isinstance(value, Inert):
        return None
    if isinstance(value.kind, Global) and value.kind.name == "ParameterDict" and isinstance(value.state, dict):
        inner, keys = value.state.get("_parameters"), value.state.get("_keys")
        found = dict(inner) if isinstance(inner, dict) else {}
        return found | {key: value.state[key] for key in keys or () if key in value.state}
    return value.items or None


def names(value: Any, records: Records) -> list[list[Any]]:
    """[name, dtype, shape, stride, offset] of the tensors directly under the value or its `state_dict`."""
    root = mapping(value)
    if root is None:
        if isinstance(value, Inert) and isinstance(value.kind, Global):
            what = f"a {short(f'{value.kind.module}.{value.kind.name}')}"
        else:
            what = "a single tensor" if isinstance(value, Lump) else f"a {type(value).__name__}"
        raise Fault(f"holds {what} where named tensors are wanted: save its state_dict as safetensors")
    root = mapping(root.get("state_dict")) or root
    found = [[key, *describe(item, records)] for key, item in root.items() if type(key) is str and type(item) is Lump]
    if not found:
        raise Fault("holds no named tensors, neither directly nor under state_dict")
    if len(found) > MAX_TENSORS:
        raise Fault(f"holds {len(found)} tensors, more than the {MAX_TENSORS} allowed")
    return found


def tree(value: Any, records: Records) -> Any:
    """The value as JSON, see the head of this file."""
    values = text = 0

    def encode(value: Any, depth: int) -> Any:
        nonlocal values, text
        values += 1
        text += len(value) if isinstance(value, str) else 0
        if values > MAX_VALUES or text > MAX_TEXT:
            raise Fault(
                f"holds more than {MAX_VALUES} values or {MAX_TEXT} characters: it is too large to be read whole"
            )
        if value is None or isinstance(value, bool | float | str) or (type(value) is int and abs(value) < 1 << 63):
            return value
        if isinstance(value, Lump):
            return {"tensor": describe(value, records)}
        if depth >= MAX_DEPTH:
            return None
        if isinstance(value, list | tuple):
            return {"list": [encode(item, depth + 1) for item in value]}
        items = mapping(value)
        if items is None:
            return None
        pairs = [
            (key, item) for key, item in items.items() if type(key) is str or (type(key) is int and abs(key) < 1 << 63)
        ]
        return {"dict": [[key, encode(item, depth + 1)] for key, item in pairs]}

    return encode(value, 0)


def confine() -> None:
    """Gives up everything that reading needs not, as far as the system lets a process do so."""
    for codec in ("cp437", "raw-unicode-escape", "latin-1", "ascii", "utf-8"):
        codecs.lookup(codec)  # loads its module, while files can still be opened
    try:
        import resource
    except ImportError:  # Windows: there remain the time limit of the caller and an interpreter that runs nothing
        return
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 3),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def answer(file: BinaryIO, mode: str) -> dict[str, Any]:
    """The whole answer for one file."""
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        read = read_zip if file.read(2) == b"PK" else read_legacy
        file.seek(0)
        value, records = read(file, size)
        return {"tree": tree(value, records)} if mode == "tree" else {"tensors": names(value, records)}
    except Fault as fault:
        return {"error": str(fault)}
    except MemoryError:
        return {"error": f"needs more than {MEMORY} bytes of memory to be looked at: it is broken or hostile"}
    except Exception as error:  # a broken pickle can fail in any way
        return {"error": f"is a broken pickle ({type(error).__name__}): download it again"}


def main() -> None:
    """Answers for the file on stdin in the mode that the first argument names: "names" or "tree"."""
    confine()
    json.dump(answer(sys.stdin.buffer, sys.argv[1]), sys.stdout)
