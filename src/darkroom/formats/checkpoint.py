"""A model of any kind, opened without its weights."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_json
from ..models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from . import detect, folder, single
from .configs import network_config, sentences
from .digests import digest_of
from .hub import resolve
from .layouts import PARTS, Part
from .rules import ToldConfig
from .tensors import open_tensors
from .weights import PartTensors, Weights, native_state

__all__ = ["Checkpoint", "PartTensors", "native_state", "open_checkpoint"]

EOS, EXCLAMATION_MARK = "<|endoftext|>", "!"
_hashing = threading.Lock()  # so that a hash begun in a thread is waited for, and not found twice


@dataclass(eq=False)
class Checkpoint:
    """What a model is and where its weights lie. Nothing of it is loaded."""

    kind: str  # "diffusers folder" or "single file"
    path: Path
    unet_config: UNetConfig
    autoencoder_config: AutoencoderConfig
    text_encoder_config: TextEncoderConfig
    scheduler_config: dict[str, Any]  # as in scheduler_config.json
    weights: Mapping[Part, Weights]
    family: str  # "sd1", "sd2", "sdxl", "sdxl_refiner", "upscaler" or "custom" (another text width)
    tokenizer_folder: Path | None = None  # None: CLIP's own vocabulary
    tokenizer: tuple[Path, Path] | None = None  # its vocab.json and merges.txt, if it has them
    pad_token: str = EOS  # where there is no tokenizer folder: what CLIP's vocabulary pads with
    text_encoder_2_config: TextEncoderConfig | None = None  # of SDXL, and
    tokenizer_folder_2: Path | None = None  # its tokenizer; None: CLIP's own vocabulary, padded with "!"
    zero_negative: bool = False  # an empty negative prompt means zeros (SDXL)
    low_res_scheduler_config: dict[str, Any] | None = None  # the upscaler's second schedule
    defaults: Mapping[str, float] = field(default_factory=dict)  # steps, guidance_scale: what suits this model
    vae: Path | None = None  # a stand-alone autoencoder that was put in place of the model's own
    _hashes: dict[Part, str] = field(default_factory=dict, repr=False)
    _kept: object = field(default=None, repr=False)  # a temporary folder that must live as long as this

    @property
    def name(self) -> str:
        """A name for people: the file's name without its suffix, or the folder's."""
        return self.path.stem if self.path.is_file() else self.path.resolve().name

    @property
    def task(self) -> str:
        """What the U-Net's input channels are for: "text-to-image", "inpainting", "upscaling", ..."""
        return detect.TASKS.get(self.unet_config.in_channels, "custom")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The networks there are."""
        return PARTS if self.text_encoder_2_config is None else (*PARTS, "text_encoder_2")

    @property
    def pad_id(self) -> int | None:
        """What CLIP's own vocabulary pads with; None where the model brings its own tokenizer."""
        return None if self.tokenizer_folder else (0 if self.pad_token == EXCLAMATION_MARK else 49407)

    def config(self, part: Part) -> ToldConfig:
        """The configuration of one network."""
        if part == "unet":
            return self.unet_config
        if part == "text_encoder_2":
            assert self.text_encoder_2_config is not None
            return self.text_encoder_2_config
        return self.autoencoder_config if part == "autoencoder" else self.text_encoder_config

    def hash(self, part: Part = "unet") -> str:
        """The ecosystem's model hash: ten hex digits of the file's SHA-256 (a folder: of its U-Net's files).

        Of another part, that of its files. Reads the whole file the first time, and remembers (`digests`).
        """
        with _hashing:
            if part not in self._hashes:
                weights = self.weights[part]
                second = [weights.second] if weights.second else []
                self._hashes[part] = digest_of([*weight_files(weights.path), *second])[:10]
            return self._hashes[part]

    def hash_ahead(self) -> None:
        """Begin to find `hash()` in a thread, beside what else there is to do: Stable Diffusion's takes a second."""

        def find() -> None:
            with contextlib.suppress(CheckpointError):  # whoever asks for it is told
                self.hash()

        threading.Thread(target=find, name="model hash", daemon=True).start()


def weight_files(path: Path) -> list[Path]:
    """A weights file itself, or the shards that an index names, in order."""
    if path.suffix != ".json":
        return [path]
    shards = read_json(path, limit=16 << 20).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) and all(map(_is_text, shards.values())) else []
    if not names or any(Path(name).name != name for name in names):
        raise CheckpointError(f"{path} is no index of shards in its own folder.")
    return [path.parent / name for name in names]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


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
        raise CheckpointError(f"{path} has no weights of the variant {variant!r}.")
    configs = {
        p: network_config(p, read_json(sub / "config.json"), str(sub / "config.json")) for p, sub in folders.items()
    }
    weights = {p: Weights(folder.weights_file(sub, variant), "diffusers") for p, sub in folders.items()}
    _pool(configs, path)
    family = detect.family_of(configs["unet"], len(folders) - 2)
    scheduler = path / "scheduler" / "scheduler_config.json"
    low_res = path / "low_res_scheduler" / "scheduler_config.json"
    prediction = "v_prediction" if family == "upscaler" else "epsilon"
    tokenizer_folder, tokenizer = folder.tokenizer_files(folder.tokenizer_of(folders["text_encoder"]))
    return Checkpoint(
        kind="diffusers folder",
        path=path,
        unet_config=configs["unet"],
        autoencoder_config=configs["autoencoder"],
        text_encoder_config=configs["text_encoder"],
        scheduler_config=read_json(scheduler) if scheduler.is_file() else detect.scheduler_config(family, prediction),
        weights=weights,
        family=family,
        tokenizer_folder=tokenizer_folder,
        tokenizer=tokenizer,
        pad_token=EXCLAMATION_MARK if configs["text_encoder"].hidden_act == "gelu" else EOS,
        text_encoder_2_config=configs.get("text_encoder_2"),
        tokenizer_folder_2=folder.tokenizer_files(path / "tokenizer_2")[0] if "text_encoder_2" in folders else None,
        zero_negative=configs["unet"].size_conditioning and folder.zero_negative(path),
        low_res_scheduler_config=read_json(low_res) if low_res.is_file() else None,
        defaults=folder.defaults(path),
    )


def _open_single(path: Path) -> Checkpoint:
    with open_tensors(path) as file:
        found = single.examine(file, path)
    single.require_whole(found, path)
    configs = dict(found.configs)
    _pool(configs, path)
    unet, autoencoder, text = (configs[part] for part in PARTS)
    text_2 = configs.get("text_encoder_2")
    assert text_2 is None or isinstance(text_2, TextEncoderConfig)
    assert isinstance(unet, UNetConfig)
    assert isinstance(autoencoder, AutoencoderConfig)
    assert isinstance(text, TextEncoderConfig)
    kept = _unpack_tokenizer(found.tokenizer, path)
    tokenizer_folder, tokenizer = (None, None) if kept is None else folder.tokenizer_files(Path(kept.name))
    kept_2 = _unpack_tokenizer(found.tokenizer_2, path)
    return Checkpoint(
        kind="single file",
        path=path,
        unet_config=unet,
        autoencoder_config=autoencoder,
        text_encoder_config=text,
        scheduler_config=found.scheduler_config,
        weights={part: Weights(path, layout, found.ema and part == "unet") for part, layout in found.layouts.items()},
        family=found.family,
        tokenizer_folder=tokenizer_folder,
        tokenizer=tokenizer,
        pad_token=EXCLAMATION_MARK if text.hidden_act == "gelu" else EOS,
        text_encoder_2_config=text_2,
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
            raise CheckpointError(f"{path} has two text encoders, and its U-Net is not told what SDXL's is.")
        return
    width = sum(configs[part].hidden_size for part in texts)
    if width != unet.cross_attention_dim:
        raise CheckpointError(
            f"{path}: its text encoders are {width} wide together, and its U-Net takes {unet.cross_attention_dim}."
        )
    with sentences(str(path)):
        unet.sizes(configs[texts[-1]].projection_dim)


def _unpack_tokenizer(content: Mapping[str, Any] | None, path: Path) -> tempfile.TemporaryDirectory[str] | None:
    """A vocabulary that a single file brings along, as the files that tokenizers are read from."""
    if content is None:
        return None
    texts = {name: content[name] for name in folder.TOKENIZER_FILES if isinstance(content.get(name), str)}
    if not folder.is_tokenizer(texts):
        raise CheckpointError(f"{path} (metadata): its tokenizer lacks vocab.json or merges.txt.")
    place = tempfile.TemporaryDirectory(prefix="darkroom-tokenizer-")
    for name, text in texts.items():
        Path(place.name, name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return place
