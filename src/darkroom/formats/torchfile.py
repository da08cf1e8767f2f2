"""What a pickle would make, found out without running it.

A pickle is a program. This one is not run but read: an interpreter of its opcodes in which every class or function is a
mere name and every call makes an inert object, except that calls of torch's own tensor builders become descriptions of
tensors. So the files of trainers that also store callbacks or optimizer states open like any other. A pickle that names
what no checkpoint needs (os.system, eval, ...) is refused: nothing in it would be run, but nobody should keep it.

Opcodes: `pickletools` of the standard library. It runs in a confined process of its own, see `torchfile`.

What a file of torch.save holds, told in JSON by a process that can do nothing else.

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
import pickletools
import sys
import zipfile
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..errors import clip
from .storage import DTYPES, MAX_TENSORS

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


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names."""

    module: str
    name: str


@dataclass(eq=False)
class Inert:
    """An object that the pickle would have made; it holds only what was to be put into it."""

    kind: object = None
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(eq=False)
class Storage:
    """Where a tensor's numbers are: record `key` of the file, from element `begin` on."""

    key: str
    dtype: str | None
    elements: int
    begin: int = 0


@dataclass(eq=False)
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
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
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
        case "torch._tensor", "_rebuild_from_type_v2":
            return call(args[0], args[2])
        case "collections", "OrderedDict":
            return dict(args[0]) if args else {}
        case (("builtins" | "__builtin__"), "dict"):
            return dict(*args)
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
    numbers = [offset, *shape, *stride]
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers) or len(shape) != len(stride):
        raise Fault("is broken: it describes a tensor of an impossible shape, stride or offset")
    return Lump(storage, kind, numbers[0], list(shape), list(stride))


def persistent(key: Any, storages: dict[str, Storage]) -> Any:
    """A storage; ("storage", its class, record, device, elements[, (view's record, offset, elements)])."""
    if key[0] == "module":
        return key[1]
    if key[0] != "storage":
        raise ValueError("an unknown persistent id")
    kind, record, elements = key[1], key[2], key[4]
    if not isinstance(kind, Global) or not isinstance(record, str) or type(elements) is not int or elements < 0:
        raise TypeError("a malformed storage")
    storage = storages.setdefault(record, Storage(record, STORAGES.get(kind.name), elements))
    if len(key) > 5 and key[5] is not None:
        _, begin, count = key[5]
        if type(begin) is not int or type(count) is not int or begin < 0 or count < 0 or begin + count > elements:
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
    into.update(zip(items[::2], items[1::2], strict=True))


# --- torchfile


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
        found = dict(inner) if isinstance(inner, dict) else {}
        return found | {key: value.state[key] for key in keys or () if key in value.state}
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
