"""What a pickle would make, found out without running it.

A pickle is a program. This one is not run but read: an interpreter of its opcodes in which every class or function is a
mere name and every call makes an inert object, except that calls of torch's own tensor builders become descriptions of
tensors. So the files of trainers that also store callbacks or optimizer states open like any other. A pickle that names
what no checkpoint needs (os.system, eval, ...) is refused: nothing in it would be run, but nobody should keep it.

`main` does this in a fresh interpreter with the file on stdin. It imports only the standard library and, before it
looks at a byte, gives up what it does not need: after `confine` it can open no file or socket, write to no file, and
neither grow nor compute for long, and the less the smaller the file is. The tensors' bytes are never touched: they lie
in the file as they are, so the answer only says where.

A few bytes can also stand for endless work: one object may be named a million times. So nothing here hashes, compares,
copies or tells more of a value than its first level: keys are texts and numbers of 64 bits, a shape is short, and what
is told is counted as it grows. What this doesn't foresee ends at the allowance of memory and seconds.

Answers: {"tensors": [[name, dtype, shape, stride or null, offset], ...]}, {"tree": value}, or {"error": the rest of a
sentence that starts with the file's path}; of the mode "both", {"names": one of these, "tree": one of these}. In a
tree, {"dict": [[key, value], ...]}, {"list": [...]} and {"tensor": [dtype, shape, stride or null, offset]} stand for
these, and null for anything that is no plain value. Opcodes: `pickletools` of the standard library.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import json
import math
import os
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..errors import clip
from .storage import DTYPES, MAX_DIMENSIONS, MAX_NAME, MAX_SIZE, MAX_TENSORS, is_count

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
}  # fmt: skip

# A checkpoint may name these standard modules and these built-ins; the rest is what attacks are made of.
PLAIN_MODULES = {
    "collections", "datetime", "pathlib", "enum", "typing", "copyreg", "copy_reg", "decimal", "fractions", "uuid",
    "argparse", "dataclasses", "abc", "numbers", "functools", "itertools", "math", "re", "time", "random", "array",
    "types", "__main__", "_codecs",
}  # fmt: skip
PLAIN_BUILTINS = {
    "set", "frozenset", "list", "dict", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray",
    "slice", "range", "xrange", "object", "getattr", "unicode", "long", "basestring", "NoneType", "type",
}  # fmt: skip
BUILTINS = {"builtins", "__builtin__", "__builtins__"}
# renamed or removed since
REMOVED_MODULES = {"commands", "popen2", "urllib2", "cPickle", "thread", "dl", "imp", "distutils", "pipes"}
# Known ways out through other packages: numpy.testing's runstring, torch.hub, the `os` that some module imports.
HOSTILE_PARTS = {
    "os", "sys", "posix", "nt", "subprocess", "importlib", "shutil", "socket", "ctypes", "runpy", "pty", "builtins",
    "__builtins__", "__import__", "__globals__", "__subclasses__", "system", "popen", "Popen", "exec", "eval", "open",
    "execfile", "runstring", "hub", "cpp_extension", "f2py", "pip", "dill", "cloudpickle", "joblib", "IPython",
    "CodeType", "FunctionType",
}  # fmt: skip


class Fault(Exception):
    """Why a file is refused: the rest of a sentence that starts with its path."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Inert:
    """An object that the pickle would have made; it holds only what was to be put into it."""

    kind: object = None
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(eq=False, slots=True)
class Storage:
    """Where a tensor's numbers are: record `key` of the file, from element `begin` on."""

    key: str
    dtype: str | None
    elements: int
    begin: int = 0


@dataclass(eq=False, slots=True)
class Lump:
    """A tensor; `offset` and `stride` in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: list[int]
    stride: list[int]


def interpret(stream: BinaryIO, storages: dict[str, Storage]) -> Any:
    """The value of one pickle, of plain values, dicts, Lumps, Globals and Inerts; adds its storages to `storages`.

    Raises Fault for a hostile pickle, and any of ValueError, LookupError, TypeError, ... for a broken one.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below the open marks
    memo: dict[int, Any] = {}
    copied = 0

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    arg: Any
    for code, arg, _ in pickletools.genops(stream):
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                outer.append(stack)
                stack = []
            case "POP":
                if stack:
                    stack.pop()
                else:
                    since_mark()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(arg)])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(arg)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append(Inert())
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code.name[-1])
                items = [stack.pop() for _ in range(count)]
                stack.append(tuple(reversed(items)))
            case "LIST":
                items = since_mark()
                stack.append(items)
            case "DICT":
                items = since_mark()
                stack.append(plain_keys(zip(items[::2], items[1::2], strict=True)))
            case "FROZENSET":
                since_mark()
                stack.append(Inert())
            case "APPEND":
                item = stack.pop()
                _append(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                _append(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "GLOBAL":
                module, _, name = arg.partition(" ")
                stack.append(named(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(named(module, name))
            case "INST":
                module, _, name = arg.partition(" ")
                since_mark()
                stack.append(Inert(named(module, name)))
            case "OBJ":
                items = since_mark()
                stack.append(Inert(items[0]))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                copied += sum(len(arg) for arg in args[:4] if isinstance(arg, list | tuple | dict))
                if copied > MAX_COPIED:
                    raise Fault("makes the same values again and again: it is broken or hostile")
                stack.append(call(function, args))
            case "NEWOBJ_EX":
                _, args, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(call(function, args))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Inert):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(persistent(stack.pop(), storages))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(code.name)
            case _:  # what is left are the numbers, texts and bytes: the argument is the value
                stack.append(arg)
    raise ValueError("no STOP")


def named(module: object, name: object) -> Global:
    """The name of a class or function, unless no checkpoint would need it."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a class is named by two texts")
    if len(module) + len(name) > 2 * MAX_NAME:
        raise Fault("names a class by an endless name: it is hostile or broken; nothing in it was run")
    root, *path = [*module.split("."), *name.split(".")]
    if root in BUILTINS:
        hostile = name not in PLAIN_BUILTINS
    elif root in PLAIN_MODULES:
        hostile = not HOSTILE_PARTS.isdisjoint(path)
    else:
        hostile = (
            root in sys.stdlib_module_names or root in REMOVED_MODULES or not HOSTILE_PARTS.isdisjoint([root, *path])
        )
    if hostile:
        raise Fault(
            f"names {clip(f'{module}.{name}')}, which no weights need: it is hostile or broken; nothing in it was run"
        )
    return Global(module, name)


def call(function: object, args: Any) -> Any:
    """What stands for `function(*args)`: a tensor, a dict, or an inert object."""
    if not isinstance(function, Global):
        return Inert(function)
    match function.module, function.name:
        case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
            return lump(args[0], args[1], args[2], args[3], None)
        case "torch._utils", "_rebuild_tensor_v3":
            return lump(args[0], args[1], args[2], args[3], args[6])
        case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
            return args[0]
        case "torch._tensor", "_rebuild_from_type_v2" if args[0].module == "torch._utils":
            return call(args[0], args[2])
        case "collections", "OrderedDict":
            return plain_keys(_pairs(args[0])) if args else {}
        case (("builtins" | "__builtin__"), "dict"):
            return plain_keys(_pairs(*args)) if args else {}
        case "collections", "defaultdict":
            return {}
        case (("copyreg" | "copy_reg"), "_reconstructor"):
            return Inert(args[0])
    return Inert(function)


def lump(storage: object, offset: object, shape: Any, stride: Any, dtype: object) -> Lump | Inert:
    """A tensor over `storage`; inert if of a type that we don't read (complex, quantised)."""
    if not isinstance(storage, Storage):
        return Inert()
    kind = storage.dtype
    if dtype is not None:
        kind = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else None
    if kind not in DTYPES:
        return Inert()
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise Fault("is broken: it describes a tensor of an impossible shape, stride or offset")
    numbers = [offset, *shape, *stride]
    if not all(type(n) is int and 0 <= n < MAX_SIZE for n in numbers):
        raise Fault("is broken: it describes a tensor of an impossible shape, stride or offset")
    return Lump(storage, kind, numbers[0], list(shape), list(stride))


def persistent(key: Any, storages: dict[str, Storage]) -> Any:
    """A storage; ("storage", its class, record, device, elements[, (view's record, offset, elements)])."""
    if key[0] == "module":
        return key[1]
    if key[0] != "storage":
        raise ValueError("an unknown persistent id")
    kind, record, elements = key[1], key[2], key[4]
    if not isinstance(kind, Global) or not isinstance(record, str) or not is_count(elements):
        raise TypeError("a malformed storage")
    storage = storages.setdefault(record, Storage(record, STORAGES.get(kind.name), elements))
    if len(key) > 5 and key[5] is not None:
        _, begin, count = key[5]
        if not is_count(begin) or not is_count(count) or begin + count > elements:
            raise Fault("is broken: it describes a view outside its storage")
        return Storage(record, storage.dtype, begin + count, begin)
    return storage


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise TypeError("appending to no list")


def _set(target: Any, items: list[Any]) -> None:
    into = target.items if isinstance(target, Inert) else target
    if not isinstance(into, dict):
        raise TypeError("setting items of no mapping")
    into.update(plain_keys(zip(items[::2], items[1::2], strict=True)))


def plain_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The dict of these pairs, without those whose keys nobody asks for.

    Only texts and whole numbers of 64 bits are kept. Classes, tuples and the like are keys of a trainer's belongings;
    hashing them is what must not happen: a tuple that holds itself twice, forty times over, takes for ever.
    """
    kept: dict[Any, Any] = {}
    for key, value in pairs:
        if type(key) is str or _is_small(key):
            kept[key] = value
        elif type(key) is tuple and any(type(b) is tuple for a in key[:8] if type(a) is tuple for b in a[:8]):
            raise Fault("has tuples of tuples of tuples as keys: it is broken or hostile")
    return kept


def _is_small(value: object) -> bool:
    return type(value) is int and -(1 << 63) < value < 1 << 63


def _pairs(items: Any) -> Iterable[tuple[Any, Any]]:
    """What a dict can be made of."""
    pairs: Iterable[tuple[Any, Any]] = items.items() if isinstance(items, dict) else items
    return pairs


# --- torchfile


# What the child may use: the least, and the most that it may ever; between them it grows with the pickle, of which a
# tensor takes some 120 bytes and some microseconds.
MEMORY = 192 << 20, 2 << 30  # bytes of address space; 20 MB of them are the interpreter's
SECONDS = 2, 60  # of computing
MAX_PICKLE = 128 << 20  # bytes; the pickle itself holds no tensor data
MAX_RECORDS = 100_000
MAX_COPIED = 2_000_000  # elements of what is handed to calls
MAX_VALUES = 200_000  # in a tree
MAX_DEPTH = 12
MAX_TEXT = 1 << 20  # characters in a tree
MAX_TREE_TENSORS = 4096
SHARED = 16 << 20  # bytes of the tensors of a tree, where they share what the file holds
MAX_ANSWER = 32 << 20  # characters of JSON

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


def describe(tensor: Lump, records: Records) -> list[Any]:
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
    if not isinstance(value, Inert):
        return None
    if isinstance(value.kind, Global) and value.kind.name == "ParameterDict" and isinstance(value.state, dict):
        inner, keys = value.state.get("_parameters"), value.state.get("_keys")
        value.items |= inner if isinstance(inner, dict) else {}
        value.items |= {key: value.state[key] for key in keys or () if type(key) is str and key in value.state}
        value.state = None  # once is enough
    return value.items or None


def names(value: Any, records: Records) -> list[list[Any]]:
    """[name, dtype, shape, stride, offset] of the tensors directly under the value or its `state_dict`."""
    root = mapping(value)
    if root is None:
        if isinstance(value, Inert) and isinstance(value.kind, Global):
            what = f"a {clip(f'{value.kind.module}.{value.kind.name}')}"
        else:
            what = "a single tensor" if isinstance(value, Lump) else f"a {type(value).__name__}"
        raise Fault(f"holds {what} where named tensors are wanted: save its state_dict as safetensors")
    root = mapping(root.get("state_dict")) or root
    tensors = {key: item for key, item in root.items() if type(key) is str and type(item) is Lump}
    if not tensors:
        raise Fault("holds no named tensors, neither directly nor under state_dict")
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
        if value is None or isinstance(value, bool | float | str) or _is_small(value):
            return value
        if isinstance(value, Lump):
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
