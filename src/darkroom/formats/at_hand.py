"""Which of the models of a folder a recipe means: by the hash it tells, or by the name where it tells none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError
from .checkpoint import open_checkpoint
from .weights import digest_of

_HASH = re.compile(r"[0-9a-f]{10}([0-9a-f]{54})?\Z")  # A1111's, or all of the SHA-256
_OLD_HASH = re.compile(r"[0-9a-f]{8}\Z")
_ENDINGS = (".safetensors", ".ckpt")
_MOST = 10_000  # files that are looked at


def stem(name: str) -> str:
    """What is the same in the names that tools have for one file: "SD1.5/v1-5.safetensors", "v1-5"."""
    last = re.split(r"[/\\]", name.strip())[-1].casefold()
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin|sft|gguf)\Z", "", last)


def hash_told(digits: str | None) -> str | None:
    """The ten hexadecimal digits in what a recipe calls its model's hash; None for A1111's old one and other tools'."""
    digits = (digits or "").strip().casefold()
    return digits[:10] if _HASH.match(digits) else None


def old_hash(file: Path) -> str:
    """Eight hexadecimal digits, A1111's hash until 2023: the SHA-256 of 64 KB in the second megabyte."""
    with open(file, "rb") as stream:
        stream.seek(0x100000)
        return hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]


def find_model(folder: str | Path, name: str | None, digits: str | None) -> Path | None:
    """The model of a folder, at any depth, that has the hash, or where none is told the name; None: there is none.

    Models of the same name are looked at first, since whole files are read for their hashes. Raises CheckpointError
    for a folder that isn't there.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{str(folder)!r} is not a folder; give one that holds models")
    told = hash_told(digits)
    old = (digits or "").strip().casefold() if told is None else ""
    wanted = stem(name or "")
    models = sorted(_models(Path(folder)), key=lambda path: stem(path.name) != wanted)
    if told is None and not _OLD_HASH.match(old):
        return models[0] if models and wanted and stem(models[0].name) == wanted else None
    return next((path for path in models if _is(path, told, old)), None)


def _is(model: Path, told: str | None, old: str) -> bool:
    try:
        if told is None:
            return model.is_file() and old_hash(model) == old
        if model.is_file():
            return digest_of([model])[:10] == told
        return open_checkpoint(model).hash() == told
    except (CheckpointError, OSError):  # one that can't be read isn't the one
        return False


def _models(folder: Path) -> Iterator[Path]:
    """Checkpoint files and diffusers folders."""
    for count, path in enumerate(folder.rglob("*")):
        if count == _MOST:
            return
        if path.name == "model_index.json":
            yield path.parent
        elif path.suffix.lower() in _ENDINGS and path.is_file() and not _inside(path, folder):
            yield path


def _inside(path: Path, folder: Path) -> bool:
    """Whether a file is a part of a diffusers folder: `unet/diffusion_pytorch_model.safetensors`."""
    return path.parent != folder and (path.parent.parent / "model_index.json").is_file()
