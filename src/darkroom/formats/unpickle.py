"""What a pickle would make, found out without running it.

A pickle is a program. This one is not run but read: an interpreter of its opcodes in which every class or function is a
mere name and every call makes an inert object, except that calls of torch's own tensor builders become descriptions of
tensors. So the files of trainers that also store callbacks or optimizer states open like any other. A pickle that names
what no checkpoint needs (os.system, eval, ...) is refused: nothing in it would be run, but nobody should keep it.

A few bytes can also stand for endless work: one object may be named a million times. So nothing here hashes, compares,
copies or tells more of a value than its first level: keys are texts and numbers of 64 bits, a shape is short, and what
is told is counted as it grows. What this doesn't foresee ends at the allowance of memory and seconds.

Opcodes: `pickletools` of the standard library.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..errors import clip
from .storage import DTYPES, MAX_DIMENSIONS, MAX_NAME, MAX_SIZE, is_count

MAX_COPIED = 2_000_000  # elements of what is handed to calls

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
class ObjectStub:
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
class StoredTensor:
    """A tensor; `offset` and `stride` in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: list[int]
    stride: list[int]


def interpret(stream: BinaryIO, storages: dict[str, Storage]) -> Any:
    """One pickle as plain values, dicts, StoredTensors, Globals and ObjectStubs; adds its storages to `storages`.

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
                stack.append(ObjectStub())
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
                stack.append(ObjectStub())
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
                stack.append(ObjectStub(named(module, name)))
            case "OBJ":
                items = since_mark()
                stack.append(ObjectStub(items[0]))
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
                if isinstance(stack[-1], ObjectStub):
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
        return ObjectStub(function)
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
            return ObjectStub(args[0])
    return ObjectStub(function)


def lump(storage: object, offset: object, shape: Any, stride: Any, dtype: object) -> StoredTensor | ObjectStub:
    """A tensor over `storage`; inert if of a type that we don't read (complex, quantised)."""
    if not isinstance(storage, Storage):
        return ObjectStub()
    kind = storage.dtype
    if dtype is not None:
        kind = dtype.name if isinstance(dtype, Global) and dtype.module == "torch" else None
    if kind not in DTYPES:
        return ObjectStub()
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise Fault("is broken: it describes a tensor of an impossible shape, stride or offset")
    numbers = [offset, *shape, *stride]
    if not all(type(n) is int and 0 <= n < MAX_SIZE for n in numbers):
        raise Fault("is broken: it describes a tensor of an impossible shape, stride or offset")
    return StoredTensor(storage, kind, numbers[0], list(shape), list(stride))


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
    elif not isinstance(target, ObjectStub):
        raise TypeError("appending to no list")


def _set(target: Any, items: list[Any]) -> None:
    into = target.items if isinstance(target, ObjectStub) else target
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
        if type(key) is str or is_small(key):
            kept[key] = value
        elif type(key) is tuple and any(type(b) is tuple for a in key[:8] if type(a) is tuple for b in a[:8]):
            raise Fault("has tuples of tuples of tuples as keys: it is broken or hostile")
    return kept


def is_small(value: object) -> bool:
    return type(value) is int and -(1 << 63) < value < 1 << 63


def _pairs(items: Any) -> Iterable[tuple[Any, Any]]:
    """What a dict can be made of."""
    pairs: Iterable[tuple[Any, Any]] = items.items() if isinstance(items, dict) else items
    return pairs
