"""The LoRAs of a loaded model: files read once, and a folder in which they have names."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import CheckpointError, RequestError, nearest
from .lora import lora_path, read_lora
from .lora_names import Homes

if TYPE_CHECKING:
    from torch import nn

    from ..adapters import Adapter, Lora, Scaled

KEPT = 16  # adapters that stay in memory, the latest
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
MAX_FILES = 20_000


class LoraStore:
    """Reads LoRAs for the networks of one model. Safe to use from several threads.

    Attributes:
        folder: where `find` looks; None: nowhere. Its sub-folders count too.
    """

    def __init__(self, networks: Mapping[str, nn.Module], folder: str | Path | None = None) -> None:
        self.networks = networks
        self.folder = None if folder is None else Path(folder)
        self._homes: Homes | None = None
        self._read: OrderedDict[tuple[str, int, int, bool], Adapter] = OrderedDict()
        self._lock = Lock()

    def get(self, lora: Lora | str | Path) -> Scaled:
        """A LoRA that a user asks for, read and on the networks' device. Raises CheckpointError as `read_lora` does."""
        from ..adapters import Lora, Scaled

        lora = lora if isinstance(lora, Lora) else Lora(lora)
        adapter = self._adapter(Path(lora.path), lora.allow_unmatched)
        return Scaled(adapter, lora.scale, lora.scale if lora.text_scale is None else lora.text_scale)

    def find(self, name: str) -> Adapter:
        """The LoRA of a name in the folder. Raises RequestError if there is none, with the nearest name."""
        if self.folder is None:
            raise RequestError(
                f"the LoRA {name[:60]!r} is asked for by name, but no folder of LoRAs is known; "
                "say where they are (lora_dir, --lora-dir)"
            )
        index = index_of(self.folder)
        if name not in index:
            raise RequestError(f"there is no LoRA {name[:60]!r} in {self.folder}{nearest(name, index)}")
        return self._adapter(index[name], False)

    def _adapter(self, path: Path, allow_unmatched: bool) -> Adapter:
        path = lora_path(path)
        try:
            state = os.stat(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"the LoRA {str(path)!r} can't be read: {reason}") from None
        key = (str(path.resolve()), state.st_mtime_ns, state.st_size, allow_unmatched)
        with self._lock:
            if key not in self._read:
                self._homes = self._homes or Homes(self.networks)
                weight = next(next(iter(self.networks.values())).parameters())
                adapter = read_lora(path, self._homes, allow_unmatched=allow_unmatched)
                self._read[key] = adapter.to(weight.device)
            self._read.move_to_end(key)
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
            return self._read[key]


def index_of(folder: Path) -> dict[str, Path]:
    """Name -> file, of all LoRAs in a folder and in those within it: a name is a file's stem, or, where two files share
    it, the path from the folder ("styles/ink"). Raises RequestError where there is no such folder."""
    if not folder.is_dir():
        raise RequestError(f"there is no folder {str(folder)!r} to find LoRAs in; create it, or name another one")
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        files += [Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
        if len(files) > MAX_FILES:
            raise RequestError(f"{str(folder)!r} holds more than {MAX_FILES:,} files; name a folder of LoRAs")
    index: dict[str, Path] = {}
    stems = [file.stem for file in files]
    shared = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    for file in files:
        long = file.relative_to(folder).with_suffix("").as_posix()
        index.setdefault(long, file)
        if file.stem not in shared:
            index.setdefault(file.stem, file)
    return index
