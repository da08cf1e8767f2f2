"""Arrays on disk under hashes of what they were computed from: latents of pictures, embeddings of texts.

A cache is a folder of safetensors files, each with entries of one shape, some dozens of megabytes at most. A file is
there whole or not at all; any number of processes may write to one cache at once; what is there is never changed. An
entry carries a checksum, looked at whenever it is read.

FOLDER/HASH.safetensors    tensors [n, ...]; metadata: "keys" (n x 32 hexadecimal digits), "sums" (n x 8)
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError, TrainingError
from ..files import whole_file
from ..formats.storage import Source
from ..formats.tensors import safetensors_slots
from ..formats.writer import Entry, write_safetensors

MAX_ENTRIES = 1024  # in a file
MAX_BYTES = 32 << 20
MAX_SECONDS = 30.0  # of work in a file: what is lost when a process is killed
_KEY, _SUM = 32, 8  # hexadecimal digits

Array = NDArray[np.float16] | NDArray[np.float32]
Arrays = Mapping[str, Array]
_DTYPES: Mapping[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


def key_of(*parts: object) -> str:
    """The key of what was computed from `parts`: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:_KEY]


def fingerprint(module: nn.Module) -> str:
    """A hash of a network's weights: what its latents are kept under."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry's arrays lie: for each name the first byte, the shape and the type; and their checksum."""

    path: Path
    spots: tuple[tuple[str, int, tuple[int, ...], str], ...]
    total: int


class Cache:
    """The entries of a folder. Raises TrainingError, naming the file, for one that is not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, _Place] = {}
        self._files: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Look for what other processes have written."""
        try:
            found = sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []
        except OSError as error:
            raise TrainingError(f"the cache {self.folder} can't be read ({error.strerror})") from error
        for path in found:
            if path.name not in self._files:
                self._files.add(path.name)
                self._open(path)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, NDArray[Any]]:
        """The arrays under a key. Raises KeyError where there is none, TrainingError where they have been damaged."""
        place = self._places[key]
        arrays: dict[str, NDArray[Any]] = {}
        total = 0
        try:
            with open(place.path, "rb", buffering=0) as file:
                for name, offset, shape, dtype in place.spots:
                    size = _DTYPES[dtype].itemsize * int(np.prod(shape))
                    file.seek(offset)
                    data = file.read(size)
                    total = zlib.crc32(data, total)
                    if len(data) != size:
                        raise _damaged(place.path)
                    arrays[name] = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
        except OSError as error:
            raise TrainingError(f"the cache {place.path} can't be read ({error.strerror})") from error
        if total != place.total:
            raise _damaged(place.path)
        return arrays

    def writer(self) -> Writer:
        """Something to add entries with."""
        return Writer(self)

    def _open(self, path: Path) -> None:
        try:
            source = Source(path)
            try:
                slots, metadata = safetensors_slots(source)
            finally:
                source.close()
        except CheckpointError as error:
            raise TrainingError(f"the cache is damaged: delete {path} to have it made anew ({error})") from error
        keys, sums = metadata.get("keys", ""), metadata.get("sums", "")
        n = len(keys) // _KEY
        good = len(keys) == n * _KEY and len(sums) == n * _SUM and slots
        if not good or any(s.dtype not in _DTYPES or not s.shape or s.shape[0] != n for s in slots):
            raise TrainingError(f"{path} is no part of a cache; delete it, or choose another folder")
        slots = sorted(slots, key=lambda s: s.name)
        for i in range(n):
            spots = tuple((s.name, s.offset + i * (s.bytes // n), s.shape[1:], s.dtype) for s in slots)
            key, total = keys[i * _KEY : (i + 1) * _KEY], int(sums[i * _SUM : (i + 1) * _SUM], 16)
            self._places.setdefault(key, _Place(path, spots, total))


def _damaged(path: Path) -> TrainingError:
    return TrainingError(f"the cache is damaged: delete {path} to have it made anew")


class Writer:
    """Collects entries and writes them in files of bounded size. Use it as a context manager."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._waiting: dict[str, Arrays] = {}
        self._began = 0.0

    def add(self, key: str, arrays: Arrays) -> None:
        """Add an entry, written at the latest when the writer is left. Raises TrainingError where the disk is full."""
        shape = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if self._waiting:
            before = next(iter(self._waiting.values()))
            size = sum(array.nbytes for array in before.values()) * len(self._waiting)
            if (
                {name: (array.shape, array.dtype) for name, array in before.items()} != shape
                or len(self._waiting) >= MAX_ENTRIES
                or size >= MAX_BYTES
                or time.monotonic() - self._began > MAX_SECONDS
            ):
                self.flush()
        if not self._waiting:
            self._began = time.monotonic()
        self._waiting[key] = arrays

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        keys, rows = list(self._waiting), list(self._waiting.values())
        names = sorted(rows[0])
        sums = []
        for row in rows:
            total = 0
            for name in names:
                total = zlib.crc32(np.ascontiguousarray(row[name]).tobytes(), total)
            sums.append(f"{total:08x}")
        stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in names}
        entries = [Entry(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in stacked.items()]  # type: ignore[misc]
        path = self.cache.folder / f"{key_of(*keys)}.safetensors"
        try:
            with whole_file(path) as draft:
                write_safetensors(draft, entries, {"keys": "".join(keys), "sums": "".join(sums)})
        except CheckpointError as error:
            raise TrainingError(f"the cache can't be written: {error}") from error
        self._waiting = {}
        self.cache.refresh()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, TrainingError):
            self.flush()  # what has been computed is kept, also when the user interrupts


def stacked_rows(rows: Sequence[Array]) -> Tensor:
    """Arrays of one shape as one float32 tensor."""
    return torch.from_numpy(np.stack(rows)).float()


def missing(cache: Cache, keys: Iterable[str]) -> list[int]:
    """The numbers of the keys that a cache does not have, each key once."""
    seen: set[str] = set()
    found = []
    for i, key in enumerate(keys):
        if key not in cache and key not in seen:
            seen.add(key)
            found.append(i)
    return found
