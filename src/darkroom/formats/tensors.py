"""One weights file, or a set of shards, read safely and tensor by tensor.

What a file is, is decided by its content, never by its name: safetensors, one of PyTorch's pickles, or the index (JSON)
of a sharded set. Every fault is a CheckpointError of one sentence that names the file.

safetensors (https://github.com/huggingface/safetensors#format): the header is checked whole before anything is
allocated by it.

[8 bytes: N, little-endian] [N bytes of JSON: name -> dtype, shape, data_offsets] [the tensors' bytes, without gaps]

PyTorch's pickles (`.ckpt`, `.pt`, `.pth`, `.bin`) are read without running anything in them.
`torch.load(weights_only=True)` in a child process would be the usual answer, but it refuses the many published
checkpoints in which a trainer left a callback object, it needs a second copy of the weights, in memory or on disk, to
hand them to this process, and seconds to start. So the child here has no torch at all. It is confined, it reads the
pickle as a list of instructions that it does not follow (`torchfile`, `unpickle`), and answers where each tensor lies
in the file: their bytes are stored as they are in both of PyTorch's formats. This process checks the answer as it would
a header's and then reads the tensors straight from the file, one at a time: no copy beyond the tensors kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, clip
from ..files import read_json
from .gguf import read_gguf
from .storage import (
    MAX_TENSORS,
    SAFETENSORS,
    Slot,
    Source,
    check_finite,
    check_name,
    is_count,
    is_finite,
    take_scales,
    unwrapped,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER = 16_000_000  # bytes of JSON in a safetensors header or in a shard index


def safetensors_slots(source: Source) -> tuple[list[Slot], dict[str, str]]:
    """Every tensor's place in the file, in the order of their bytes, and the file's metadata.

    Raises CheckpointError unless the header is within the limits, names each tensor once by a sane name, gives each a
    known type, a shape and just the bytes these need, and the tensors fill the file from the header to its last byte
    without hole or overlap.
    """
    path, size = source.path, source.size
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} claims a header of {length} bytes; more than {MAX_HEADER} is broken or hostile")
    begin = 8 + length
    if begin > size:
        raise CheckpointError(
            f"{path} is cut short: its header ends at byte {begin} but the file has {size}; download it again"
        )
    header = parse_json(path, source.read(8, length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} is broken: its metadata is not a mapping of text to text")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} claims {len(header)} tensors, more than the {MAX_TENSORS} allowed")

    position = 0
    entries = [_entry(path, name, entry) for name, entry in header.items()]
    for start, stop, name, _, _ in sorted(entries, key=lambda entry: entry[:2]):
        if start != position:
            fault = "overlaps the one before it" if start < position else "leaves a hole before it"
            raise CheckpointError(f"{path} is broken: the tensor {name} {fault} (byte {start}, not {position})")
        position = stop
    if begin + position != size:
        fault = "is cut short" if begin + position > size else "has trailing bytes"
        raise CheckpointError(
            f"{path} {fault}: its header describes {begin + position} bytes but the file has {size}; download it again"
        )

    slots = []
    for start, stop, name, dtype, shape in entries:
        slot = Slot(source, name, dtype, shape, begin + start)
        if slot.bytes != stop - start:
            raise CheckpointError(
                f"{path} is broken: the tensor {name}, {clip(shape)} of {dtype}, needs {clip(slot.bytes)} bytes "
                f"but has {stop - start}"
            )
        slots.append(slot)
    return slots, metadata


def _entry(path: Path, name: str, entry: Any) -> tuple[int, int, str, str, tuple[int, ...]]:
    """(start, stop, name, torch's dtype name, shape) of one header entry; what it is, not yet whether it fits."""
    check_name(path, name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path} is broken: {name} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise CheckpointError(f"{path} holds the tensor {name} of the type {clip(code)}, which is unknown")
    if not isinstance(shape, list):
        raise CheckpointError(f"{path} gives the tensor {name} an impossible shape: {clip(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)) or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path} gives the tensor {name} impossible offsets: {clip(offsets)}")
    return offsets[0], offsets[1], name, dtype, tuple(shape)


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """`raw` as one JSON object without a repeated key at any depth, else CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointError(f"{path} names {clip(key)} twice: it is broken or hostile")
            result[key] = value
        return result

    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is broken: its {len(raw)} bytes of header or index are not JSON") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} is broken: its header or index is not a JSON object")
    return parsed


# --- PyTorch's pickles -----------------------------------------------------------------------------------------------


TIMEOUT = 120.0  # seconds of wall-clock, for a busy machine; of computing the child allows itself a few (`allow`)
SMALL = 64 << 20  # bytes of a file of which a tree is told too, so that it needs to be looked at once only
KEPT = 8  # answers that are remembered, the latest
TICK = 0.02  # seconds; more than between two times that a file system can tell apart

_CHILD = "import sys; sys.path.append(sys.argv.pop()); from darkroom.formats.torchfile import main; main()"


def is_pickle(head: bytes) -> bool:
    """Whether a file that starts with `head` may be of `torch.save`: a zip archive, or pickles in a row."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def pickled_slots(source: Source) -> list[Slot]:
    """Where the tensors directly in a PyTorch pickle, or in its `state_dict`, lie in the file; all else is left out.

    Raises CheckpointError if the file holds none, or is broken or hostile.
    """
    answer = _answer(source, "names")
    return [_slot(source, name, place) for name, *place in answer["tensors"]]


def read_pickle_tensors(path: Path | str, *, finite: bool = True) -> Any:
    """All that is plain in a PyTorch pickle: nested dicts, lists, numbers, texts, None, and tensors (contiguous, CPU).

    For small files of free form, such as textual-inversion embeddings. Anything that is no plain value is None; so is
    what lies deeper than twelve levels. Dicts keep keys that are texts or whole numbers. Raises CheckpointError if the
    file is no PyTorch pickle, is broken or hostile, or, if they must be `finite`, holds NaN or infinity in a tensor.
    """
    source = Source(Path(path))
    try:
        if not is_pickle(source.read(0, 8)):
            raise CheckpointError(f"{path} is no PyTorch pickle")
        return _grown(source, _answer(source, "tree")["tree"], "", finite)
    finally:
        source.close()


def _grown(source: Source, value: Any, name: str, finite: bool) -> Any:
    """The value that the child's JSON stands for."""
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _grown(source, item, f"{name}.{key}", finite) for key, item in value["dict"]}
    if "list" in value:
        return [_grown(source, item, f"{name}.{index}", finite) for index, item in enumerate(value["list"])]
    label = clip(name.removeprefix(".")) or "tensor"
    tensor = _slot(source, label, value["tensor"]).read()
    if finite:
        check_finite(label, tensor, source.path)
    return tensor


def _slot(source: Source, name: str, place: list[Any]) -> Slot:
    dtype, shape, stride, offset = place
    return Slot(
        source, name, dtype, offset=offset, shape=tuple(shape), stride=None if stride is None else tuple(stride)
    )


_answers: OrderedDict[tuple[int, ...], dict[str, Any]] = OrderedDict()
_answers_lock = Lock()


def _answer(source: Source, mode: str) -> dict[str, Any]:
    """What the child says of a file, "names" or "tree"; a small file is looked at once for both.

    Whether it is the same file is told by its number, size and times. One that was changed a moment ago is waited for:
    another change at the same tick of the system's clock could not be told from this one. Raises CheckpointError.
    """
    key, age = _identity(source)
    if 0 <= age < TICK:
        time.sleep(TICK)
        key, age = _identity(source)
    with _answers_lock:
        found = _answers.get(key)
    if found is None or (mode not in found and "error" not in found):
        asked = _ask(source, "both" if source.size <= SMALL else mode)
        found = asked if source.size <= SMALL or "error" in asked else {mode: asked}
        if age >= TICK:
            with _answers_lock:
                _answers[key] = found
                while len(_answers) > KEPT:
                    _answers.popitem(last=False)
    answer: dict[str, Any] = found if "error" in found else found[mode]
    if "error" in answer:
        raise CheckpointError(f"{source.path} {answer['error']}")
    return answer


def _identity(source: Source) -> tuple[tuple[int, ...], float]:
    """What tells a file and its content, and the seconds since it was changed."""
    state = os.fstat(source.file.fileno())
    changed = max(state.st_mtime_ns, state.st_ctime_ns)
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return key, time.time() - changed / 1e9


def _ask(source: Source, mode: str) -> dict[str, Any]:
    """The child's answer; a fresh interpreter, since a fork of a process with threads can hang."""
    package = str(Path(__file__).resolve().parents[2])
    keep = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # what an interpreter may need to start; no secrets
    try:
        source.file.seek(0)
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, mode, package],
            stdin=source.file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT,
            env={name: os.environ[name] for name in keep if name in os.environ},
            check=False,
        )
        return dict(json.loads(child.stdout))
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT:.0f} s to look at: it is broken or hostile"}
    except OSError as error:
        raise CheckpointError(f"{source.path}: no process could be started to look at it ({error.strerror})") from None
    except ValueError:
        if child.returncode == -getattr(signal, "SIGXCPU", 0):
            return {"error": "takes more time to be looked at than a file of its size should: it is broken or hostile"}
        raise CheckpointError(f"{source.path} is broken: looking at it ended with status {child.returncode}") from None


# --- any weights file ------------------------------------------------------------------------------------------------


__all__ = ["TensorFile", "check_finite", "open_tensors"]

MAX_SHARDS = 256
PIECE = 1 << 19  # elements that are read, converted and looked at together, so that they are still in the cache


class TensorFile:
    """The named tensors of one file or of a sharded set. Nothing is read before `load`. Also a context manager."""

    def __init__(self, path: Path, slots: Iterable[Slot], metadata: dict[str, str] | None = None) -> None:
        self.path = path
        self.metadata: dict[str, str] = metadata or {}
        self._all = {slot.name: slot for slot in slots}
        self._slots, self._scales = take_scales(self._all)

    def names(self) -> list[str]:
        """All names, in the file's order."""
        return list(self._slots)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._slot(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which `load` gives the tensor: the one it is stored in, float32 for a scaled one."""
        import torch

        dtype: torch.dtype = torch.float32 if name in self._scales else getattr(torch, self._slot(name).dtype)
        return dtype

    def dtype_name(self, name: str) -> str:
        """The type the tensor is stored in, as torch names it ("float16"), without importing torch."""
        return self._slot(name).dtype

    def load(self, name: str, dtype: torch.dtype | None = None, finite: bool = True) -> Tensor:
        """The tensor, contiguous, on the CPU, in memory of its own; safe to call from several threads.

        `dtype` converts floating-point tensors; whole numbers and booleans stay what they are. With `finite`, a tensor
        with NaN or infinity in it, or with values too large for `dtype`, raises CheckpointError.
        """
        import torch

        slot, source = self._slot(name), self._slot(name).source.path
        stored, kept = self.dtype(name), getattr(torch, slot.dtype)
        result = slot.room(dtype if dtype is not None and stored.is_floating_point else stored, slot.elements)
        factors = self._scales[name].read().float().flatten() if name in self._scales else None
        row = slot.elements // slot.shape[0] if factors is not None and len(factors) > 1 else 1
        step = max(1, PIECE // row) * row
        whole = slot.read().flatten() if slot.stride is not None else None
        piece = None if result.dtype == kept else torch.empty(min(step, slot.elements), dtype=kept, device="cpu")
        # torch converts one type of 16 bits into another five times faster by way of float32, with the same bits
        both = piece is not None and piece.dtype.itemsize == result.dtype.itemsize == 2
        wide = torch.empty(min(step, slot.elements), dtype=torch.float32, device="cpu") if both else None
        for start in range(0, slot.elements, step):
            here = result[start : start + step]
            part = here if piece is None else piece[: len(here)]
            if whole is None:
                slot.read_into(part, start)
            else:
                part.copy_(whole[start : start + step])
            if factors is not None:
                rows = part.float().view(-1, row)
                rows *= factors if len(factors) == 1 else factors[start // row :, None][: len(rows)]
                part = rows.view(-1)
            if part is not here:
                here.copy_(part if wide is None else wide[: len(here)].copy_(part))
            if finite and not is_finite(here):
                check_finite(name, part, source)
                kind = str(result.dtype).removeprefix("torch.")
                raise CheckpointError(
                    f"{self.path}: {name} has values too large for {kind}: load it in bfloat16 or float32"
                )
        return result.view(slot.shape)

    def renamed(self, start: str) -> TensorFile:
        """The same tensors, each under its name with `start` in front."""
        slots = [dataclasses.replace(slot, name=start + slot.name) for slot in self._all.values()]
        return TensorFile(self.path, slots, self.metadata)

    def joined(self, other: TensorFile) -> TensorFile:
        """This file's tensors and another's, none of which has the name of one of these."""
        return TensorFile(self.path, [*self._all.values(), *other._all.values()], self.metadata)

    def close(self) -> None:
        """Closes the file; tensors already loaded stay valid."""
        for source in {id(slot.source): slot.source for slot in self._all.values()}.values():
            source.close()

    def _slot(self, name: str) -> Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise CheckpointError(f"{self.path} holds no tensor named {clip(name)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tensors(path: Path | str) -> TensorFile:
    """Opens a weights file of any kind we read, found out by its content.

    safetensors; PyTorch pickles (`.ckpt`, `.pt`, `.pth`, `.bin`; weights may sit under `state_dict`); the
    `*.index.json` of a sharded set, whose shards lie beside it. Raises CheckpointError if there is no such file, or it
    is none of these, or it is broken or hostile.
    """
    source = Source(Path(path))
    try:
        head = source.read(0, 512)
        if not _is_safetensors(head) and head.lstrip().startswith(b"{"):
            slots, metadata = _shards(source)
            source.close()
        else:
            slots, metadata = _open_one(source)
    except BaseException:
        source.close()
        raise
    return TensorFile(source.path, unwrapped(slots), metadata)


class Glance:
    """What lies at a path, at first sight, for whoever asks whether it is theirs; each is read once.

    Attributes:
        path: a file or a folder; anything.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of a weights file's tensors, though the file may be cut short; nothing where it is none."""
        return {} if self._loose else {name: shape for name, (shape, _) in self.tensors.items()}

    @property
    def tensors(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Name -> shape and type of whatever can be told of a file, of forms that can't be loaded, too."""
        return self._all[0]

    @property
    def fault(self) -> str | None:
        """How a file is damaged of which something can be told all the same, in a sentence."""
        return self._all[1]

    @cached_property
    def is_gguf(self) -> bool:
        try:
            source = Source(self.path)
        except CheckpointError:
            return False
        try:
            return source.read(0, 4) == b"GGUF"
        finally:
            source.close()

    @property
    def _loose(self) -> bool:
        """Whether it is of a form that no network is loaded from: GGUF, or tensors deep in a pickle."""
        return self._all[2]

    @cached_property
    def _all(self) -> tuple[Mapping[str, tuple[tuple[int, ...], str]], str | None, bool]:
        try:
            with open_tensors(self.path) as file:
                return {name: (file.shape(name), file.dtype_name(name)) for name in file.names()}, None, False
        except CheckpointError as error:
            fault = str(error)
        try:
            return _loosely(self.path, fault)
        except CheckpointError as error:
            return {}, str(error), False

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The config.json of a network's folder; nothing where there is none, or a whole model."""
        try:
            is_network = self.path.is_dir() and not (self.path / "model_index.json").exists()
            return read_json(self.path / "config.json") if is_network else {}
        except CheckpointError:
            return {}

    def has(self, *starts: str) -> bool:
        """Whether a tensor's name begins with one of these."""
        return any(name.startswith(starts) for name in self.shapes)


def _loosely(path: Path, fault: str) -> tuple[Mapping[str, tuple[tuple[int, ...], str]], str | None, bool]:
    """What can be told of a file that `open_tensors` refuses; CheckpointError if nothing can. See `Glance._all`."""
    source = Source(path)
    try:
        head = source.read(0, 512)
        if head.startswith(b"GGUF"):
            gguf = read_gguf(source)
            return gguf.tensors, gguf.fault, True
        if _is_safetensors(head):
            length = int.from_bytes(head[:8], "little")
            header = parse_json(path, source.read(8, length)) if length <= MAX_HEADER else {}
            header.pop("__metadata__", None)
            entries = [_entry(path, name, entry) for name, entry in header.items()]
            return {name: (shape, dtype) for _, _, name, dtype, shape in entries}, fault, False
        if is_pickle(head):
            found = {slot.name: (slot.shape, slot.dtype) for slot in _planted(source, _answer(source, "tree")["tree"])}
            return found, None, True
        return {}, None, False
    finally:
        source.close()


def _planted(source: Source, value: Any, name: str = "") -> Iterator[Slot]:
    """The tensors of the value that the child's JSON stands for, named by the way to them."""
    if isinstance(value, dict) and "tensor" in value:
        yield _slot(source, name.removeprefix("."), value["tensor"])
    elif isinstance(value, dict):
        for key, item in value["dict"] if "dict" in value else enumerate(value["list"]):
            yield from _planted(source, item, f"{name}.{key}")


def _open_one(source: Source) -> tuple[list[Slot], dict[str, str]]:
    """The tensors of one file that is no index, and its metadata."""
    head = source.read(0, 512)
    if _is_safetensors(head):
        return safetensors_slots(source)
    if is_pickle(head):
        return pickled_slots(source), {}
    raise CheckpointError(f"{source.path} {_what_else(head)}")


def _is_safetensors(head: bytes) -> bool:
    """A length, then "{". A length of five bytes would be text: JSON too may have a "{" in that place."""
    return head[8:9] == b"{" and (head[:1] != b"{" or head[5:8] == bytes(3))


def _what_else(head: bytes) -> str:
    """What a file is that starts with `head` but holds no weights; the rest of a sentence that starts with its path."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty (0 bytes): download it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: run `git lfs pull` in its folder, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "is a web page under a weights file's name: download the file itself, not the page about it"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first, or, if an old PyTorch wrote it, save it anew with a current one"
    if head.startswith(b"GGUF"):
        return "is a GGUF file, which Darkroom does not read: use a safetensors file"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")):
        return "is a compressed archive: unpack it first"
    return f"is no weights file (safetensors, PyTorch pickle, shard index): it starts with {head[:8]!r}"


def _shards(source: Source) -> tuple[list[Slot], dict[str, str]]:
    """The tensors of the set that an index describes: {"weight_map": {tensor's name: shard's name}, ...}."""
    path, folder = source.path, source.path.parent
    if source.size > MAX_HEADER:
        raise CheckpointError(f"{path} has {source.size} bytes, too many for a shard index (at most {MAX_HEADER})")
    weight_map = parse_json(path, source.read(0, source.size)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} is JSON but no shard index (it has no weight_map): name the weights file itself")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(f"{path} claims {len(weight_map)} tensors, more than the {MAX_TENSORS} allowed")
    for name, file in weight_map.items():
        check_name(path, name)
        if not isinstance(file, str) or not _is_plain(file):
            raise CheckpointError(f"{path} names the shard {clip(ascii(file))}: only a plain name beside it is allowed")
    files = list(dict.fromkeys(weight_map.values()))
    if len(files) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(files)} shards, more than the {MAX_SHARDS} allowed")
    if missing := [file for file in files if not (folder / file).exists()]:
        raise CheckpointError(f"{path} needs the shard {missing[0]}, which is missing beside it: download it again")
    found: dict[str, Slot] = {}
    metadata: dict[str, str] = {}
    opened: list[Source] = []
    try:
        for file in files:
            opened.append(Source(folder / file))
            slots, extra = _open_one(opened[-1])
            metadata |= extra
            for slot in slots:
                if weight_map.get(slot.name) != file:
                    raise CheckpointError(f"{folder / file} holds {slot.name}, but not according to {path.name}")
                found[slot.name] = slot
        for name, file in weight_map.items():
            if name not in found:
                raise CheckpointError(f"{folder / file} lacks the tensor {name}, which {path.name} places there")
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    return [found[name] for name in weight_map], metadata


def _is_plain(name: str) -> bool:
    """Whether `name` is a file's name and nothing more on any system: no folder, drive, stream or way up."""
    return (
        0 < len(name) <= 255
        and name.isprintable()
        and name not in {".", ".."}
        and not any(c in name for c in '/\\:*?"<>|')
    )
