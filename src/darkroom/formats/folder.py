"""A diffusers folder: which of its files are the weights of its parts, and what their configurations say.

Strangers wrote these: whatever is wrong in them ends in one sentence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_json
from ..models.config import (
    AutoencoderConfig,
    ControlNetConfig,
    TextEncoderConfig,
    TinyAutoencoderConfig,
    UNetConfig,
    VisionEncoderConfig,
)
from .layouts import TITLES, Part
from .rules import ToldConfig

_CLASSES: dict[Part, type[ToldConfig]] = {
    "unet": UNetConfig,
    "autoencoder": AutoencoderConfig,
    "text_encoder": TextEncoderConfig,
    "text_encoder_2": TextEncoderConfig,
    "image_encoder": VisionEncoderConfig,
    "controlnet": ControlNetConfig,
}
_MOST_BLOCKS = 4096  # resnets and transformer blocks of a U-Net; published ones have under 150


def checked_defaults(content: Any, where: str) -> dict[str, float]:
    """The settings a model wants where a request names none: "steps" (1..1000), "guidance_scale" (0..100) and
    "refine_strength" (0..1), of pictures that are enlarged.

    CheckpointError, naming `where`, for anything else.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} has defaults {content!r}; they are an object")
    known = {"steps": 1000, "guidance_scale": 100, "refine_strength": 1}
    for name, value in content.items():
        whole = name == "steps"
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if name not in known or not number or not int(whole) <= value <= known[name]:
            raise CheckpointError(
                f"{where} has the default {name}={value!r}; there may be steps (1 to 1000), guidance_scale (0 to 100), "
                f"refine_strength (0 to 1)"
            )
    return content


def network_config(part: Part, content: dict[str, Any], where: str) -> Any:
    """The configuration of one network from its `config.json`. CheckpointError names `where` and the value at fault."""
    if part.startswith("text_encoder") and isinstance(content.get("text_config"), dict):
        content = content["text_config"]  # a whole CLIP's configuration
    if part == "image_encoder" and isinstance(content.get("vision_config"), dict):
        shared = {"projection_dim": content["projection_dim"]} if "projection_dim" in content else {}
        content = content["vision_config"] | shared
    tiny = part == "autoencoder" and content.get("_class_name") == "AutoencoderTiny"
    with sentences(where):
        config = (TinyAutoencoderConfig if tiny else _CLASSES[part]).from_diffusers(content)
        if isinstance(config, UNetConfig):
            blocks = sum(n * depth for n, depth in zip(config.layers_per_block, config.transformer_layers, strict=True))
            if blocks > _MOST_BLOCKS:
                raise ValueError(f"it describes {blocks} blocks; at most {_MOST_BLOCKS} are built")
        return config


@contextlib.contextmanager
def sentences(where: str) -> Iterator[None]:
    """What goes wrong while a configuration is made, as CheckpointError."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{where} has a value of a wrong type ({error})") from None


# --- which file is what ---------------------------------------------------------------------------------------------


SUBFOLDERS: dict[Part, str] = {
    "unet": "unet",
    "autoencoder": "vae",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
}

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")

# diffusion_pytorch_model.safetensors, model.fp16.safetensors, pytorch_model.bin, and the indices of shards, whose
# variant stands in either of two places: model.fp16.safetensors.index.json, model.safetensors.index.fp16.json.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors|bin)[\w-]+))?"
    r"\.(?P<format>safetensors|bin)(?P<index>\.index(?:\.(?P<late>[\w-]+))?\.json)?"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

DEFAULTS_FILE = "darkroom.json"  # beside model_index.json: settings that suit a model, where ours do not

_UNSUPPORTED = (
    "StableDiffusion3",
    "Flux",
    "Kandinsky",
    "IF",
    "PixArt",
    "Wuerstchen",
    "StableCascade",
)


def weights_file(folder: Path, variant: str | None = None) -> Path:
    """The weights of one part: plain safetensors, else `.fp16.` safetensors, else plain `.bin`, else what there is.

    With `variant`, files of that variant come first. CheckpointError, listing what is there, if there are none.
    """
    found = []
    for path in _listing(folder):
        match = _WEIGHTS.fullmatch(path.name)
        if match is None or _SHARD.search(path.name):
            continue
        named = match["variant"] or match["late"]
        rank = {None: 0, "fp16": 1}.get(named, 4) + (2 if match["format"] == "bin" else 0)
        found.append((named != variant if variant else False, rank, match["index"] is not None, path.name, path))
    if not found:
        raise CheckpointError(
            f"{folder} has no weights (diffusion_pytorch_model.safetensors or the like); it has {_contents(folder)}"
        )
    return min(found)[-1]


def has_variant(folder: Path, variant: str) -> bool:
    """Whether a part's folder has weights of this variant."""
    matches = (_WEIGHTS.fullmatch(path.name) for path in _listing(folder))
    return any(match is not None and variant in (match["variant"], match["late"]) for match in matches)


def part_folders(path: Path) -> dict[Part, Path]:
    """The folders of the networks. CheckpointError if one is missing, or the folder is another kind of model.

    A model with a `text_encoder_2` alone (SDXL's refiner) has it for its first.
    """
    name = pipeline_class(path)
    if name is not None and name.startswith(_UNSUPPORTED):
        raise CheckpointError(
            f"{path} holds a {name}, which this version does not load; it loads Stable Diffusion 1.x, 2.x and XL"
        )
    folders = {part: path / sub for part, sub in SUBFOLDERS.items()}
    if not folders["unet"].is_dir():
        if (path / "transformer").is_dir():
            raise CheckpointError(
                f"{path} holds a transformer instead of a U-Net; Darkroom loads Stable Diffusion 1.x, 2.x and XL"
            )
        if (path / "config.json").is_file() and read_json(path / "config.json").get("_class_name") == "ControlNetModel":
            raise CheckpointError(f"{path} is a ControlNet, not a whole model: give it with --control beside a model")
        raise CheckpointError(f"{path} has no U-Net (a folder unet/); it has {_contents(path)}")
    second = path / SUBFOLDERS["text_encoder_2"]
    if not second.is_dir():
        del folders["text_encoder_2"]
    elif not folders["text_encoder"].is_dir():
        folders["text_encoder"] = folders.pop("text_encoder_2")
    for part, folder in folders.items():
        if not folder.is_dir():
            raise CheckpointError(
                f"{path} has no {TITLES[part]} (a folder {SUBFOLDERS[part]}/); it has {_contents(path)}"
            )
    return folders


def pipeline_class(path: Path) -> str | None:
    """The pipeline that `model_index.json` names, if there is a readable one."""
    name = _index(path).get("_class_name")
    return name if isinstance(name, str) else None


def zero_negative(path: Path) -> bool:
    """Whether an SDXL's empty negative prompt means zeros: `force_zeros_for_empty_prompt` (default: true)."""
    return _index(path).get("force_zeros_for_empty_prompt", True) is True


def _index(path: Path) -> dict[str, Any]:
    try:
        return read_json(path / "model_index.json")
    except CheckpointError:
        return {}


def tokenizer_of(encoder: Path) -> Path:
    """The folder of the tokenizer that goes with a text encoder's folder."""
    return encoder.parent / encoder.name.replace("text_encoder", "tokenizer")


def defaults(path: Path) -> dict[str, float]:
    """The settings in a folder's `darkroom.json`, if it has one. CheckpointError if it says nonsense."""
    file = path / DEFAULTS_FILE
    return checked_defaults(read_json(file), str(file)) if file.is_file() else {}


def tokenizer_files(folder: Path) -> Path | None:
    """The folder itself if it holds a tokenizer."""
    return folder if is_tokenizer([name for name in TOKENIZER_FILES if (folder / name).is_file()]) else None


def is_tokenizer(names: Collection[str]) -> bool:
    """Whether files of these names make a CLIP tokenizer."""
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"}.issubset(names)


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} can't be listed: {error.strerror or error}") from None


def _contents(folder: Path) -> str:
    """The first names in a folder, for a sentence."""
    try:
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError:
        names = []
    return (", ".join(names[:6]) + ", ..." * (len(names) > 6)) or "nothing"
