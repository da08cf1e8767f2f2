"""What an opened file is made of: networks, where their weights lie, and how they are read, built, told and hashed.

Strictly: every key that is missing, extra or wrongly shaped is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import CheckpointError
from ..files import cache_folder, read_json, whole_file
from ..models.config import TextEncoderConfig
from ..models.presets import SD15_UNET, UPSCALER_UNET
from .layouts import TITLES, Layout, Part, canonical, ema_name, is_ignored, prefix, root, table
from .rules import Config, Place, native_shapes, network_class
from .storage import Source
from .tensors import TensorFile, open_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

METADATA = "darkroom"  # the key of our own configuration in a safetensors file's metadata: JSON
READERS = 2  # threads that read tensors; more would wait for the same memory


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a part's tensors lie."""

    path: Path  # a weights file, or the index of its shards
    layout: Layout
    ema: bool = False  # take the moving average: there is nothing else
    start: str | None = None  # what the part's keys begin with, where that is not what the layout says
    second: Path | None = None  # the rest of the tensors; layout "taesd": the decoder's, where `path` has the encoder's

    def open(self) -> TensorFile:
        """The tensors; those of a tiny autoencoder's two files as `encoder.` and `decoder.`"""
        first = open_tensors(self.path)
        if self.second is None:
            return first
        try:
            starts = ("encoder.", "decoder.") if self.layout == "taesd" else ("", "")
            return first.renamed(starts[0]).joined(open_tensors(self.second).renamed(starts[1]))
        except BaseException:
            first.close()
            raise

    @property
    def files(self) -> list[Path]:
        """All of them, the shards of an index in order."""
        return [*_shards(self.path), *([] if self.second is None else _shards(self.second))]

    def keys(self, names: list[str], part: Part) -> dict[str, str]:
        """The canonical key of each of the part's tensors -> the key among `names`."""
        return part_keys(names, part, self.layout, self.ema, self.start)


def _shards(path: Path) -> list[Path]:
    """A weights file itself, or the shards that an index names."""
    if path.suffix != ".json":
        return [path]
    shards = read_json(path, limit=16 << 20).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{path} is no index of shards in its own folder")
    return [path.parent / name for name in sorted(set(names))]


def part_keys(
    names: list[str], part: Part, layout: Layout, ema: bool = False, start: str | None = None
) -> dict[str, str]:
    """The canonical key of each of a part's tensors -> the key in the file. The canonical spelling wins over others.

    `start` is what the part's keys begin with in this file, where that is not what the layout says.
    """
    if ema and part == "unet":
        return _averages(names)
    if start is not None:
        own = [name for name in names if name.startswith(start)]
        found = part_keys([prefix(part, layout) + name.removeprefix(start) for name in own], part, layout)
        return {key: start + spelled.removeprefix(prefix(part, layout)) for key, spelled in found.items()}
    start = root(part, layout)
    keys: dict[str, str] = {}
    for name in names:
        if layout == "diffusers" or name.startswith(start):
            spelled = canonical(part, layout, name)
            if spelled == name or spelled not in keys:
                if spelled in keys:  # another spelling came first: it is the extra one
                    keys[keys[spelled]] = keys[spelled]
                keys[spelled] = name
            else:
                keys[name] = name
    return keys


def _averages(names: list[str]) -> dict[str, str]:
    """As `part_keys`, for a U-Net of which only the moving average was kept: its names have lost their dots."""
    present = set(names)
    best: dict[str, str] = {}
    for config in (SD15_UNET, UPSCALER_UNET):  # whose names others share, whatever their widths
        places = table("unet", "ldm", native_shapes(config), config).values()
        keys = {place.name: ema for place in places if (ema := ema_name(place.name)) in present}
        best = max(best, keys, key=len)
    return best


@dataclass(eq=False, kw_only=True)
class Artifact:
    """Something opened: what its networks are, and where their weights lie. Nothing of it is loaded.

    Every kind of file that holds networks is one (a whole model: `checkpoint.Checkpoint`).
    """

    title: ClassVar[str] = ""  # what it is called, if that goes before its form
    path: Path
    kind: str  # its form, such as "single file"
    configs: Mapping[Part, Config]
    weights: Mapping[Part, Weights] = field(repr=False)
    _digests: dict[Part, str] = field(default_factory=dict, repr=False)
    _hashing: threading.Lock = field(default_factory=threading.Lock, repr=False)  # one that has begun is waited for

    @property
    def name(self) -> str:
        """A name for people: the file's name without its suffix, or the folder's."""
        return self.path.stem if self.path.is_file() else self.path.resolve().name

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks there are; the first is what a hash is of, if nobody says otherwise."""
        return tuple(self.configs)

    def config(self, part: Part) -> Config:
        """The configuration of one network."""
        return self.configs[part]

    def build(self, part: Part, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Any:
        """A network with its weights, to look with and not to train. Raises CheckpointError, see `PartTensors`."""
        import torch

        config = self.config(part)
        with torch.device("meta"):
            network = network_class(config)(config)
        self.fill(network, part, device, dtype)
        return network.eval().requires_grad_(False)

    def fill(
        self, network: nn.Module, part: Part, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        """Give a network on `meta` its weights, without a second copy of them, and move it to its device."""
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        network.load_state_dict(native_state(self, part, expected, dtype), strict=True, assign=True)
        network.to(device)

    def holds(self, part: Part, state: Mapping[str, Tensor]) -> bool:
        """Whether a network's `state_dict()` is what `fill` makes of the files, bit for bit; reads them."""
        shapes = {name: tensor.shape for name, tensor in state.items()}
        dtypes = {tensor.dtype for tensor in state.values()}
        there = native_state(self, part, shapes, next(iter(dtypes)))
        return len(dtypes) == 1 and all(there[name].equal(tensor.cpu()) for name, tensor in state.items())

    def hash(self, part: Part | None = None) -> str:
        """The ecosystem's model hash: ten hex digits of the SHA-256 of a network's files (a single file: of it all).

        None: of the first network. Reads them whole the first time, and remembers (`digest_of`).
        """
        part = part or self.parts[0]
        with self._hashing:
            if part not in self._digests:
                self._digests[part] = digest_of(self.weights[part].files)
            return self._digests[part][:10]

    def hash_ahead(self) -> None:
        """Begin to find `hash()` in a thread, beside what else there is to do: Stable Diffusion's takes a second."""

        def find() -> None:
            with contextlib.suppress(CheckpointError):  # whoever asks for it is told
                self.hash()

        threading.Thread(target=find, name="model hash", daemon=True).start()

    @property
    def facts(self) -> dict[str, Any]:
        """What else is told of this kind of file."""
        return {}

    @property
    def size(self) -> int:
        """Bytes of the weights' files."""
        files = dict.fromkeys(file for weights in self.weights.values() for file in weights.files)
        return sum(file.stat().st_size for file in files)

    def describe(self, with_hash: bool = False) -> dict[str, Any]:
        """All of it, ready for JSON; reads no weights, but for the hash.

        Keys: name, path, kind, the `facts`, size (bytes), and of its network parameters, dtypes (name -> tensors) and
        fault (a sentence or None). Of several: parameters (of all), parts (part -> the same three), fault (the first).
        """
        parts = {part: self._told(part) for part in self.parts}
        told = next(iter(parts.values()))
        if len(parts) > 1:
            faults = [part["fault"] for part in parts.values() if part["fault"]]
            parameters = sum(part["parameters"] for part in parts.values())
            told = {"parameters": parameters, "parts": parts, "fault": faults[0] if faults else None}
        kind = f"{self.title}, {self.kind}" if self.title else self.kind
        about = {"name": self.name, "path": str(self.path), "kind": kind, **self.facts, "size": self.size, **told}
        return about | ({"hash": self.hash()} if with_hash else {})

    def _told(self, part: Part) -> dict[str, Any]:
        expected = native_shapes(self.config(part), f"{self.path}: {TITLES[part]}")
        fault = None
        try:
            PartTensors(self, part, expected).close()
        except CheckpointError as error:
            fault = str(error)
        with self.weights[part].open() as file:
            keys = self.weights[part].keys(file.names(), part).values()
            dtypes = Counter(file.dtype_name(key) for key in keys)
        parameters = sum(math.prod(shape) for shape in expected.values())
        return {"parameters": parameters, "dtypes": dict(dtypes.most_common()), "fault": fault}


class PartTensors:
    """The tensors of one network under their native names, one at a time. A context manager.

    `expected` is native name -> shape. Opening raises CheckpointError, naming the first few keys and their number, if
    any is missing, extra, wrongly shaped or no floating-point tensor.
    """

    def __init__(self, artifact: Artifact, part: Part, expected: Mapping[str, tuple[int, ...]]) -> None:
        weights = artifact.weights[part]
        self._places = table(part, weights.layout, expected, artifact.config(part))
        self._expected = expected
        self._fused: tuple[str, Tensor] | None = None
        self._file = weights.open()
        try:
            names = self._file.names()
            self._keys = weights.keys(names, part)
            problems = self._problems(part, weights.layout, artifact)
            if problems:
                raise CheckpointError(
                    f"{weights.path}: the {TITLES[part]} does not fit its configuration: {'; '.join(problems)}"
                )
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """All native names, in an order in which fused tensors are read once."""
        return sorted(self._places, key=lambda name: self._places[name].name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._expected[name])

    def dtype(self, name: str) -> torch.dtype:
        """The type in which `load` gives it."""
        return self._file.dtype(self._keys[self._places[name].name])

    def stored(self, name: str) -> str:
        """The type it is stored in, as torch names it."""
        return self._file.dtype_name(self._keys[self._places[name].name])

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, in memory of its own, converted to `dtype` if given. CheckpointError if it is not finite."""
        place = self._places[name]
        key = self._keys[place.name]
        if place.transposed:
            return self._file.load(key, dtype).T.contiguous()
        if place.third is None:
            return self._file.load(key, dtype).reshape(self.shape(name))
        fused = self._fused  # another thread may change it
        if fused is None or fused[0] != key:
            fused = self._fused = (key, self._file.load(key, dtype))
        return fused[1].chunk(3)[place.third].clone()

    def close(self) -> None:
        self._fused = None
        self._file.close()

    def __enter__(self) -> PartTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _problems(self, part: Part, layout: Layout, artifact: Artifact) -> list[str]:
        """What is wrong with the file's keys: at most one clause each for missing, unknown, misshapen, not numbers."""
        wanted = {place.name: (name, place) for name, place in self._places.items()}
        missing = [key for key in wanted if key not in self._keys]
        unknown = [
            self._keys[key]
            for key in self._keys
            if key not in wanted
            and not is_ignored(part, layout, key)
            and not self._is_dropped(part, layout, key, artifact)
        ]
        misshapen, whole = [], []
        for key, (name, place) in wanted.items():
            if key not in self._keys:
                continue
            own = self._keys[key]
            shape, expected = self._file.shape(own), in_file_shape(tuple(self._expected[name]), place)
            if shape != expected and not (place.pointwise and _squeezed(shape) == _squeezed(expected)):
                misshapen.append(f"{own} is {list(shape)} where {list(expected)} is expected")
            elif not self._file.dtype(own).is_floating_point:
                whole.append(f"{own} is {str(self._file.dtype(own)).removeprefix('torch.')}")
        return [
            *_clause(missing, "key is missing", "keys are missing"),
            *_clause(unknown, "key is unknown", "keys are unknown"),
            *_clause(misshapen, "tensor has a wrong shape", "tensors have a wrong shape"),
            *_clause(whole, "tensor has no floating-point numbers", "tensors have no floating-point numbers"),
        ]

    def _is_dropped(self, part: Part, layout: Layout, key: str, artifact: Artifact) -> bool:
        """Whether a key is of SD 2.x's last OpenCLIP layer, which is never used."""
        config = artifact.config(part)
        if layout != "openclip" or not isinstance(config, TextEncoderConfig) or config.num_hidden_layers != 23:
            return False
        return key.startswith("cond_stage_model.model.transformer.resblocks.23.")


def native_state(
    artifact: Artifact, part: Part, expected: Mapping[str, torch.Size], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All tensors of a network under their native names, for `load_state_dict(assign=True)` on `meta`.

    `expected`: native name -> shape, from that network's `state_dict()`. Tensors are converted to `dtype` piece by
    piece while they are read, so that memory holds each once. Strict: see `PartTensors`.
    """
    with PartTensors(artifact, part, expected) as tensors, ThreadPoolExecutor(READERS) as readers:
        names = tensors.names()
        return dict(zip(names, readers.map(lambda name: tensors.load(name, dtype), names), strict=True))


def in_file_shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """The shape of the file's tensor that holds a native tensor of `shape` at `place`."""
    if place.third is not None:
        shape = (3 * shape[0], *shape[1:])
    if place.transposed:
        shape = shape[::-1]
    return (*shape, 1, 1) if place.as_convolution and len(shape) == 2 else shape


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A pointwise layer's [out, in], whether or not it is written as a convolution of one pixel."""
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


def _clause(items: list[str], one: str, many: str) -> list[str]:
    if not items:
        return []
    return [f"{len(items)} {one if len(items) == 1 else many} ({', '.join(items[:3])}{', ...' * (len(items) > 3)})"]


# --- the SHA-256 of weights files, remembered on disk for large ones ------------------------------------------------


LARGE = 2**26  # bytes of files from which on their digest is kept
_DIGEST = re.compile("[0-9a-f]{64}")


def digest_of(paths: Sequence[Path]) -> str:
    """64 hex digits: the SHA-256 of some files, one after another. Raises CheckpointError; what is no file is refused.

    That of large files is kept under what the system says of each: its place, size, number, and when it or anything
    about it was last changed. A file that is written anew, or put in another's place, is read again.
    """
    path = paths[0]
    try:
        stats = [os.stat(path := each) for each in paths]
        kept = _place(paths, stats) if sum(stat.st_size for stat in stats) >= LARGE else None
        if kept is not None and (known := _read(kept)) is not None:
            return known
        digest = hashlib.sha256()
        for path in paths:
            feed(digest, path)
        if kept is not None and [_seen(os.stat(each)) for each in paths] == [_seen(stat) for stat in stats]:
            _write(kept, digest.hexdigest())
        return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None


def content_hash(path: Path) -> str:
    """SHA-256 as A1111 reckons it for a LoRA: of a safetensors file without its header (so that notes in it may
    change), of any other file whole."""
    digest = hashlib.sha256()
    feed(digest, path, headless=True)
    return digest.hexdigest()


def feed(digest: Any, path: Path, headless: bool = False) -> None:
    """Add a file's bytes to a digest; `headless`: of a safetensors file those of its tensors alone."""
    source = Source(path)
    try:
        head = source.read(0, 9)
        offset = 8 + int.from_bytes(head[:8], "little") if headless and head[8:9] == b"{" else 0
        block = memoryview(bytearray(1 << 20))
        while count := source.read_into(block, offset):
            digest.update(block[:count])
            offset += count
    finally:
        source.close()


def _seen(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _place(paths: Sequence[Path], stats: Sequence[os.stat_result]) -> Path:
    told = repr([(os.path.abspath(path), _seen(stat)) for path, stat in zip(paths, stats, strict=True)])
    return cache_folder() / "digests" / hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


def _read(place: Path) -> str | None:
    """What is kept there, if it is a digest."""
    with contextlib.suppress(OSError, ValueError):
        text = place.read_text(encoding="ascii")
        if _DIGEST.fullmatch(text):
            return text
    return None


def _write(place: Path, digest: str) -> None:
    """Keep a digest, whole or not at all; a disk that takes nothing costs the keeping only."""
    with contextlib.suppress(CheckpointError), whole_file(place) as draft:
        draft.write_text(digest, encoding="ascii")
