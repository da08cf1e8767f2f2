"""ControlNets: told by their content, opened, and written.

| what                       | its keys                                                                     |
|----------------------------|------------------------------------------------------------------------------|
| diffusers folder or file   | `controlnet_cond_embedding...`, `down_blocks...`, `controlnet_down_blocks...`|
| original file              | `control_model.input_hint_block...`, `control_model.zero_convs...`           |
| original file, bare        | the same without `control_model.`                                            |

An original file may hold the model it was trained with, too; of that nothing is read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError
from ..files import parse_json, read_json, whole_file, whole_folder, write_json
from ..models.config import ControlNetConfig, UNetConfig
from . import detect, folder
from .ecosystem import foreign
from .folder import network_config, sentences
from .hub import resolve
from .layouts import IGNORED_AT_TOP, Layout, Part
from .rules import native_shapes
from .save import State, entries_of
from .tensors import Glance, TensorFile, open_tensors
from .weights import METADATA, Artifact, PartTensors, Weights
from .writer import write_safetensors

if TYPE_CHECKING:
    import torch

PART: Part = "controlnet"
CLASS = "ControlNetModel"
ORIGINAL = "control_model."
_MOST_HINTS = 32  # convolutions of the hint embedding that are looked for; published ones have 8
_FILE = "diffusion_pytorch_model.safetensors"
WHOLE_MODEL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
# What else a file may be, by the beginning of a key.
_OTHERS = (
    ("model.diffusion_model.", "a whole model: give it with --model"),
    ("lora_", "a LoRA: give it with --lora"),
    ("up_blocks.", "a U-Net"),
    ("output_blocks.", "a U-Net"),
    ("encoder.", "an autoencoder"),
)


@dataclass(eq=False, kw_only=True)
class ControlNetFile(Artifact):
    """A ControlNet; `kind` is "diffusers folder", "diffusers file" or "original file"."""

    title = "ControlNet"

    @property
    def controlnet_config(self) -> ControlNetConfig:
        return cast(ControlNetConfig, self.configs[PART])

    @property
    def family(self) -> str:
        """Which models it can steer: "sd1", "sd2", ... as of a U-Net."""
        return detect.family_of(self.controlnet_config)

    @property
    def facts(self) -> dict[str, Any]:
        config = self.controlnet_config
        width, channels = config.cross_attention_dim, config.hint_channels
        return {"family": self.family, "text_width": width, "hint_channels": channels}


def _found(path: Path, kind: str, config: ControlNetConfig, weights: Weights) -> ControlNetFile:
    return ControlNetFile(path=path, kind=kind, configs={PART: config}, weights={PART: weights})


def is_controlnet(seen: Glance) -> bool:
    """Whether a folder or a file holds a ControlNet, broken or not."""
    return seen.config.get("_class_name") == CLASS or _start(list(seen.shapes)) is not None


def open_controlnet(source: str | Path, variant: str | None = None) -> ControlNetFile:
    """Open a ControlNet: a diffusers folder, a file of any layout, or "org/name[@revision]" on the hub.

    A folder of a whole pipeline gives the ControlNet in it. Raises CheckpointError, in one sentence, where it is none.
    """
    path = resolve(source)
    return _open_folder(path, variant) if path.is_dir() else _open_file(path)


def _open_folder(path: Path, variant: str | None) -> ControlNetFile:
    place = path / "controlnet" if (path / "controlnet" / "config.json").is_file() else path
    if (place / "model_index.json").is_file():
        raise CheckpointError(f"{path} is no ControlNet but a whole model: give it with --model")
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{path} is no ControlNet: it has no config.json")
    config = _published(place / "config.json")
    weights = Weights(folder.weights_file(place, variant), "diffusers")
    return _found(path, "diffusers folder", config, weights)


def _published(file: Path) -> ControlNetConfig:
    content = read_json(file)
    kind = content.get("_class_name")
    if kind != CLASS:
        what = "a U-Net" if kind == "UNet2DConditionModel" else f"a {str(kind)[:60]!r}"
        raise CheckpointError(f"{file} is of {what}; a ControlNet's is of a {CLASS}")
    config = network_config(PART, content, str(file))
    assert isinstance(config, ControlNetConfig)
    return config


def _open_file(path: Path) -> ControlNetFile:
    with open_tensors(path) as file:
        names = file.names()
        start = _start(names)
        if start is None:
            others = (what for mark, what in _OTHERS if any(name.startswith(mark) for name in names))
            told = foreign(names) or next(others, None)
            first = ", ".join(names[:3]) or "nothing"
            raise CheckpointError(f"{path} is no ControlNet but {told or f'a file of tensors called {first}'}")
        unknown = [name for name in names if start and not name.startswith(start) and not _along(name)]
        if unknown:
            shown = ", ".join(unknown[:3]) + ", ..." * (len(unknown) > 3)
            raise CheckpointError(f"{path} holds a ControlNet and {len(unknown)} unknown keys ({shown})")
        shapes = {name.removeprefix(start): file.shape(name) for name in names if name.startswith(start)}
        original = any(name.startswith("input_hint_block.") for name in shapes)
        config = _config(file, path, shapes, "ldm" if original else "diffusers")
    weights = Weights(path, "ldm", start=start) if original else Weights(path, "diffusers")
    return _found(path, "original file" if original else "diffusers file", config, weights)


def _start(names: list[str]) -> str | None:
    """What the keys of the ControlNet among them begin with; None if there is none."""
    if "lora_controlnet" in names:  # a Control-LoRA's layers have the same names, but no weights
        return None
    if any(name.startswith(ORIGINAL) for name in names):
        return ORIGINAL
    return "" if any(name.startswith(("input_hint_block.", "controlnet_cond_embedding.")) for name in names) else None


def _along(name: str) -> bool:
    """Whether a key is of the model that a ControlNet was trained with, whose file it may share."""
    return name.startswith(WHOLE_MODEL) or IGNORED_AT_TOP.match(name) is not None


def _config(file: TensorFile, path: Path, shapes: detect.Shapes, layout: Layout) -> ControlNetConfig:
    """From what Darkroom wrote into the file, the config.json beside it, or the shapes."""
    noted = parse_json(file.metadata.get(METADATA, "{}"), f"{path} (metadata)").get(PART)
    if isinstance(noted, dict):
        config: ControlNetConfig = network_config(PART, noted, f"{path} (metadata)")
        return config
    beside = path.parent / "config.json"
    if beside.is_file() and read_json(beside).get("_class_name") == CLASS:
        return _published(beside)
    with sentences(str(path)):
        unet = detect.unet_config(detect.as_native(PART, layout, shapes), openclip=False)
        # the convolutions of the hint embedding, in order, without the last
        places = [f"input_hint_block.{2 * k}" for k in range(_MOST_HINTS)]
        if layout == "diffusers":
            start = "controlnet_cond_embedding."
            places = [start + "conv_in", *(f"{start}blocks.{k}" for k in range(_MOST_HINTS - 2)), start + "conv_out"]
        outs = [shapes.get(f"{place}.weight", ()) for place in places]
        widths = tuple(shape[0] for shape in outs if len(shape) == 4)[:-1:2]
        if unet is None or not widths or len(outs[0]) != 4:
            raise CheckpointError(f"{path} holds parts of a ControlNet only: download it again")
        values = {name.name: getattr(unet, name.name) for name in fields(UNetConfig)}
        return ControlNetConfig(**values, hint_widths=widths, hint_channels=outs[0][1])


def save_controlnet(path: str | Path, state: State, config: ControlNetConfig, dtype: torch.dtype | None = None) -> Path:
    """Write a ControlNet: one file in the original layout if the name ends in .safetensors, else a diffusers folder.

    `state` is in native names; `dtype` converts it (in 8 bits: matrices and convolutions; the rest in float16). Whole
    or not at all. Raises CheckpointError if it can't be written.
    """
    target = Path(os.path.abspath(path))
    if target.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise CheckpointError(f"{path}: Darkroom writes no pickles; end the name in .safetensors, or name a folder")
    if target.suffix.lower() == ".safetensors":
        metadata = {"format": "pt", METADATA: json.dumps({PART: config.to_diffusers()}, sort_keys=True)}
        with whole_file(target) as draft:
            write_safetensors(draft, entries_of(PART, "ldm", state, config, dtype, target), metadata)
        return target
    with whole_folder(target, "config.json") as draft:
        write_json(draft / "config.json", config.to_diffusers())
        entries = entries_of(PART, "diffusers", state, config, dtype, target)
        write_safetensors(draft / _FILE, entries, {"format": "pt"})
    return target


def convert_controlnet(source: Path, target: Path, dtype: torch.dtype | None, variant: str | None = None) -> Path:
    """Write a ControlNet anew, one tensor in memory at a time; arguments as in `artifact.convert`."""
    file = open_controlnet(source, variant)
    config = file.controlnet_config
    with PartTensors(file, PART, native_shapes(config, str(file.path))) as tensors:
        return save_controlnet(target, tensors, config, dtype)
