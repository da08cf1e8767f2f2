"""The one door to files that hold networks or words: from a path or a name on the hub to what it is.

`KINDS` has a row for each kind of file: how one is recognised, by its content and never by its name, how it is opened,
and how it is written anew. What is opened tells about itself (`describe`); where it holds networks, it is a
`weights.Artifact`, and so built, checked and hashed in the same way. A new kind is a file of this room with its `open`,
and a row here (docs/adding-a-format.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..errors import CheckpointError, RequestError
from ..request import choice
from .checkpoint import convert_checkpoint, open_checkpoint
from .control import WHOLE_MODEL, convert_controlnet, is_controlnet, open_controlnet
from .ecosystem import open_other, tell
from .embedding import FORMS, convert_embedding, is_embedding, read_embedding
from .features import is_features, is_text_encoder, open_features, open_text_encoder
from .hub import resolve
from .lora import is_lora, open_lora
from .lora_save import convert_lora
from .tensors import Glance
from .upscaler import convert_upscaler, is_upscaler, open_upscaler
from .vae import is_vae, open_vae

if TYPE_CHECKING:
    import torch


class Described(Protocol):
    """Something opened."""

    @property
    def path(self) -> Path: ...
    def describe(self, with_hash: bool = False) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a file shall be written anew; None: as it is."""

    dtype: torch.dtype | None = None
    variant: str | None = None  # which weights of a folder to take, such as "fp16"
    form: str | None = None  # of an embedding's file


Convert: TypeAlias = Callable[[Path, Path, Wanted], Path]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file."""

    name: str
    told_by: Callable[[Glance], bool]  # whether this is one, broken or not; never raises
    open: Callable[[Path, str | None], Described]  # (path, variant); raises CheckpointError, in one sentence
    convert: Convert  # (source, target, how)


def _open_features(path: Path, variant: str | None) -> Described:
    return next(iter(open_features([path]).values()))


def _convert_lora(source: Path, target: Path, wanted: Wanted) -> Path:
    if wanted.dtype is not None or wanted.variant is not None:
        raise RequestError("--dtype and --variant are for models; a LoRA's numbers stay as they are")
    return convert_lora(source, target)


def _convert_embedding(source: Path, target: Path, wanted: Wanted) -> Path:
    return convert_embedding(source, target, wanted.form and choice("--form", wanted.form, FORMS))


def _refuse(source: Path, target: Path, wanted: Wanted) -> Path:
    raise CheckpointError(f"{source} is a {open_other(source).what}, which Darkroom does not convert")


def _convert_networks(write: Callable[[Path, Path, torch.dtype | None, str | None], Path]) -> Convert:
    def convert(source: Path, target: Path, wanted: Wanted) -> Path:
        if target.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
            raise CheckpointError(
                f"{target}: Darkroom writes no pickles; end the name in .safetensors, or name a folder"
            )
        if target.exists() and source.resolve() == target.resolve():
            raise CheckpointError(f"{target} is both the source and the target: choose another name for the result")
        return write(source, target, wanted.dtype, wanted.variant)

    return convert


MODEL = Kind("model", lambda seen: True, open_checkpoint, _convert_networks(convert_checkpoint))

# The last takes whatever no other does, and says what else that may be.
KINDS: list[Kind] = [
    Kind("upscaler", is_upscaler, lambda path, variant: open_upscaler(path), _convert_networks(convert_upscaler)),
    Kind("other", lambda seen: tell(seen) is not None, lambda path, variant: open_other(path), _refuse),
    Kind("LoRA", is_lora, lambda path, variant: open_lora(path), _convert_lora),
    Kind("embedding", is_embedding, lambda path, variant: read_embedding(path), _convert_embedding),
    Kind("ControlNet", is_controlnet, open_controlnet, _convert_networks(convert_controlnet)),
    Kind("network that judges", is_features, _open_features, MODEL.convert),
    Kind("text encoder", is_text_encoder, lambda path, variant: open_text_encoder(path), MODEL.convert),
    Kind("VAE", is_vae, lambda path, variant: open_vae(path), MODEL.convert),
    MODEL,
]


def kind_of(path: Path) -> Kind:
    """What kind of file lies at a path."""
    seen = Glance(path)
    return next(kind for kind in KINDS if kind.told_by(seen))


def open_artifact(source: str | Path, variant: str | None = None) -> Described:
    """Open anything: a path, "org/name[@revision]" on the hub (a string only), or "embedded:NAME".

    Raises CheckpointError, in one sentence, for what is broken or of no kind that Darkroom knows.
    """
    path = resolve(source)
    return kind_of(path).open(path, variant)


def describe(source: str | Path, variant: str | None = None, with_hash: bool = False) -> dict[str, Any]:
    """What anything is and holds, ready for JSON, without loading it. Raises CheckpointError.

    Of a file that is cut short but can be told: its name, path, kind and size, and the fault, in a sentence.
    """
    path = resolve(source)
    seen = Glance(path)
    kind = next(kind for kind in KINDS if kind.told_by(seen))
    try:
        return kind.open(path, variant).describe(with_hash)
    except CheckpointError as error:
        if seen.fault is None or (kind is MODEL and not seen.has(*WHOLE_MODEL)):
            raise
        about = {"name": path.stem, "path": str(path), "kind": kind.name, "size": path.stat().st_size}
        return about | {"fault": str(error)}


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    form: str | None = None,
) -> Path:
    """Write a model, ControlNet, LoRA or embedding anew, in the other layout, one tensor in memory at a time.

    A model or a ControlNet: a single file if `target` ends in .safetensors, else a diffusers folder. `dtype` converts
    the weights; None keeps each tensor's own. Returns where it was written.

    Raises CheckpointError with one sentence; then nothing is left at `target` that was not there before.
    """
    path = resolve(source)
    return kind_of(path).convert(path, Path(target), Wanted(dtype, variant, form))
