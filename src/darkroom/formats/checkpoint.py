"""A whole model: opened without its weights, described, and written anew."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError
from ..files import read_json
from ..models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from . import detect, folder
from .ecosystem import named, tell
from .folder import network_config, sentences
from .hub import resolve
from .layouts import PARTS, Part
from .rules import native_shapes
from .save import Contents, TokenizerSource, save_folder, save_single_file
from .tensors import Glance, open_tensors
from .weights import Artifact, PartTensors, Weights, native_state

if TYPE_CHECKING:
    import torch

    from ..prompts.tokenizer import Tokenizer

__all__ = ["Checkpoint", "PartTensors", "native_state", "open_checkpoint"]

EOS, EXCLAMATION_MARK = "<|endoftext|>", "!"


@dataclass(eq=False, kw_only=True)
class Checkpoint(Artifact):
    """A whole model, and what is said of it beside its networks."""

    scheduler_config: dict[str, Any]  # as in scheduler_config.json
    family: str  # "sd1", "sd2", "sdxl", "sdxl_refiner", "upscaler" or "custom" (another text width)
    tokenizer_folder: Path | None = None  # None: CLIP's own vocabulary, padded with
    pad_token: str = EOS
    tokenizer_folder_2: Path | None = None  # of SDXL's second text encoder; None: CLIP's own, padded with "!"
    zero_negative: bool = False  # an empty negative prompt means zeros (SDXL)
    low_res_scheduler_config: dict[str, Any] | None = None  # the upscaler's second schedule
    defaults: Mapping[str, float] = field(default_factory=dict)  # steps, guidance_scale: what suits this model
    vae: Path | None = None  # a stand-alone autoencoder that was put in place of the model's own
    _kept: object = field(default=None, repr=False)  # a temporary folder that must live as long as this

    @property
    def parts(self) -> tuple[Part, ...]:
        return PARTS if self.text_encoder_2_config is None else (*PARTS, "text_encoder_2")

    @property
    def task(self) -> str:
        """What the U-Net's input channels are for: "text-to-image", "inpainting", "upscaling", ..."""
        return detect.TASKS.get(self.unet_config.in_channels, "custom")

    @property
    def unet_config(self) -> UNetConfig:
        return cast(UNetConfig, self.configs["unet"])

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        return cast(AutoencoderConfig, self.configs["autoencoder"])

    @property
    def text_encoder_config(self) -> TextEncoderConfig:
        return cast(TextEncoderConfig, self.configs["text_encoder"])

    @property
    def text_encoder_2_config(self) -> TextEncoderConfig | None:
        return cast("TextEncoderConfig | None", self.configs.get("text_encoder_2"))

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "task": self.task,
            "prediction_type": self.scheduler_config.get("prediction_type", "epsilon"),
            "scheduler": self.scheduler_config.get("_class_name", "unknown"),
            "picture_size": self.unet_config.sample_size * self.autoencoder_config.downscale,  # pixels a side
            "text_width": self.unet_config.cross_attention_dim,
            "vocabulary": self.text_encoder_config.vocab_size,
        }

    @property
    def size(self) -> int:
        """Bytes of the file, or of all that lies in the folder."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def tokenizer(self, part: Part = "text_encoder") -> Tokenizer:
        """What a text encoder's texts are read with: its own tokenizer, or CLIP's for a file that brings none."""
        from ..prompts.tokenizer import Tokenizer

        second = part == "text_encoder_2"
        folder = self.tokenizer_folder_2 if second else self.tokenizer_folder
        pad = EXCLAMATION_MARK if second else self.pad_token
        return Tokenizer.default(pad) if folder is None else Tokenizer.from_folder(folder)


def open_checkpoint(source: str | Path, variant: str | None = None) -> Checkpoint:
    """Open a model: a diffusers folder, a single file, or "org/name[@revision]" on the hub (a string only).

    `variant` ("fp16") is preferred among a folder's weights. Configurations are read, or told from the shapes of a
    single file's tensors; no weights are loaded. Raises CheckpointError with one sentence if it is no model we know.
    """
    path = resolve(source)
    return _open_folder(path, variant) if path.is_dir() else _open_single(path)


def _open_folder(path: Path, variant: str | None) -> Checkpoint:
    folders = folder.part_folders(path)
    if variant and not any(folder.has_variant(sub, variant) for sub in folders.values()):
        raise CheckpointError(f"{path} has no weights of the variant {variant!r}")
    configs: dict[Part, Any] = {
        p: network_config(p, read_json(sub / "config.json"), str(sub / "config.json")) for p, sub in folders.items()
    }
    weights = {p: Weights(folder.weights_file(sub, variant), "diffusers") for p, sub in folders.items()}
    _pool(configs, path)
    family = detect.family_of(configs["unet"], len(folders) - 2)
    scheduler = path / "scheduler" / "scheduler_config.json"
    low_res = path / "low_res_scheduler" / "scheduler_config.json"
    prediction = "v_prediction" if family == "upscaler" else "epsilon"
    return Checkpoint(
        kind="diffusers folder",
        path=path,
        configs=configs,
        scheduler_config=read_json(scheduler) if scheduler.is_file() else detect.scheduler_config(family, prediction),
        weights=weights,
        family=family,
        tokenizer_folder=folder.tokenizer_files(folder.tokenizer_of(folders["text_encoder"])),
        pad_token=EXCLAMATION_MARK if configs["text_encoder"].hidden_act == "gelu" else EOS,
        tokenizer_folder_2=folder.tokenizer_files(path / "tokenizer_2") if "text_encoder_2" in folders else None,
        zero_negative=configs["unet"].size_conditioning and folder.zero_negative(path),
        low_res_scheduler_config=read_json(low_res) if low_res.is_file() else None,
        defaults=folder.defaults(path),
    )


def _open_single(path: Path) -> Checkpoint:
    try:
        file = open_tensors(path)
    except CheckpointError:
        if (other := tell(Glance(path))) is not None and other.fault is None:
            raise CheckpointError(f"{path} is {named(other.tensors) or other.what}") from None
        raise
    with file:
        found = detect.examine(file, path)
    detect.require_whole(found, path)
    configs: dict[Part, Any] = dict(found.configs)
    _pool(configs, path)
    kept = _unpack_tokenizer(found.tokenizer, path)
    kept_2 = _unpack_tokenizer(found.tokenizer_2, path)
    return Checkpoint(
        kind="single file",
        path=path,
        configs=configs,
        scheduler_config=found.scheduler_config,
        weights={part: Weights(path, layout, found.ema and part == "unet") for part, layout in found.layouts.items()},
        family=found.family,
        tokenizer_folder=None if kept is None else Path(kept.name),
        pad_token=EXCLAMATION_MARK if configs["text_encoder"].hidden_act == "gelu" else EOS,
        tokenizer_folder_2=None if kept_2 is None else Path(kept_2.name),
        zero_negative=found.zero_negative,
        low_res_scheduler_config=found.low_res_scheduler_config,
        defaults=found.defaults,
        _kept=(kept, kept_2),
    )


def _pool(configs: dict[Part, Any], path: Path) -> None:
    """Let the last text encoder pool where the U-Net wants a pooled text, and no other.

    Raises CheckpointError where text encoders and U-Net don't fit.
    """
    unet, texts = configs["unet"], [part for part in configs if part.startswith("text_encoder")]
    for part in texts:
        configs[part] = replace(configs[part], projection=unet.size_conditioning and part == texts[-1])
    if not unet.size_conditioning:
        if len(texts) > 1:
            raise CheckpointError(f"{path} has two text encoders, and its U-Net is not told what SDXL's is")
        return
    width = sum(configs[part].hidden_size for part in texts)
    if width != unet.cross_attention_dim:
        raise CheckpointError(
            f"{path}: its text encoders are {width} wide together, and its U-Net takes {unet.cross_attention_dim}"
        )
    with sentences(str(path)):
        unet.sizes(configs[texts[-1]].projection_dim)


def _unpack_tokenizer(content: Mapping[str, Any] | None, path: Path) -> tempfile.TemporaryDirectory[str] | None:
    """A vocabulary that a single file brings along, as the files that tokenizers are read from."""
    if content is None:
        return None
    texts = {name: content[name] for name in folder.TOKENIZER_FILES if isinstance(content.get(name), str)}
    if not folder.is_tokenizer(texts):
        raise CheckpointError(f"{path} (metadata): its tokenizer lacks vocab.json or merges.txt")
    place = tempfile.TemporaryDirectory(prefix="darkroom-tokenizer-")
    for name, text in texts.items():
        Path(place.name, name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return place


def convert_checkpoint(source: Path, target: Path, dtype: torch.dtype | None, variant: str | None = None) -> Path:
    """Write a model anew, one tensor in memory at a time; arguments as in `artifact.convert`."""
    checkpoint = open_checkpoint(source, variant)
    single = target.suffix.lower() == ".safetensors"
    with ExitStack() as stack:
        configs: dict[Part, Any] = {part: checkpoint.config(part) for part in checkpoint.parts}
        states = {
            part: stack.enter_context(PartTensors(checkpoint, part, native_shapes(config, str(checkpoint.path))))
            for part, config in configs.items()
        }
        contents = Contents(
            configs=configs,
            states=states,
            tokenizers=_tokenizers(checkpoint, bare=single),
            scheduler_config=checkpoint.scheduler_config,
            low_res_scheduler_config=checkpoint.low_res_scheduler_config,
            zero_negative=checkpoint.zero_negative,
            defaults=checkpoint.defaults,
        )
        return (save_single_file if single else save_folder)(target, contents, dtype)


def _tokenizers(checkpoint: Checkpoint, bare: bool) -> dict[Part, TokenizerSource]:
    """The tokenizers of a checkpoint's text encoders; CLIP's own where it brings none, or nothing if `bare`."""
    folders: dict[Part, Path | None] = {
        "text_encoder": checkpoint.tokenizer_folder,
        "text_encoder_2": checkpoint.tokenizer_folder_2,
    }
    return {
        part: folder or checkpoint.tokenizer(part)
        for part, folder in folders.items()
        if part in checkpoint.parts and not (bare and folder is None)
    }
