"""A whole model in one file, in the layout of the original LDM code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import parse_json
from ..models.config import SD15_UNET, UPSCALER_UNET, TextEncoderConfig
from . import detect
from .configs import checked_defaults, network_config, sentences
from .layouts import IGNORED_AT_TOP, TITLES, Layout, Part, canonical, ema_name, prefix, root, table
from .rules import Config, native_shapes
from .tensors import TensorFile

METADATA = "darkroom"  # the key of our own configuration in a safetensors file's metadata: JSON
_V_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_DEVIATION = 0.09  # its standard deviation is above this in SD 2.x 768-v, below in 2.x base


@dataclass(frozen=True, slots=True)
class SingleFile:
    """What was found in a single file; a part that is not there has no configuration."""

    layouts: Mapping[Part, Layout]
    configs: Mapping[Part, Config]
    family: str
    scheduler_config: dict[str, Any]
    unknown: tuple[str, ...]  # keys that belong to nothing we know
    ema: bool = False  # the U-Net is there as a moving average only
    low_res_scheduler_config: dict[str, Any] | None = None
    zero_negative: bool = False
    tokenizer_2: dict[str, Any] | None = field(default=None, repr=False)  # as `tokenizer`, of a second text encoder
    defaults: dict[str, float] = field(default_factory=dict)
    tokenizer: dict[str, Any] | None = field(
        default=None, repr=False
    )  # file name -> content, of a vocabulary not CLIP's


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


def examine(file: TensorFile, path: Path) -> SingleFile:
    """Find out what a single file holds. CheckpointError if it is some other kind of file."""
    names = file.names()
    _refuse_foreign(names, path)
    ema = not any(name.startswith("model.diffusion_model.") for name in names)
    openclip = any(name.startswith("cond_stage_model.model.") for name in names)
    layouts: dict[Part, Layout] = {"unet": "ldm", "autoencoder": "ldm", **_text_layouts(names, openclip)}
    keys = {part: part_keys(names, part, layout, ema) for part, layout in layouts.items()}
    known = {name for found in keys.values() for name in found.values()}
    unknown = tuple(name for name in names if name not in known and not IGNORED_AT_TOP.match(name))
    shapes = {
        part: {key.removeprefix(prefix(part, layouts[part])): file.shape(name) for key, name in keys[part].items()}
        for part in layouts
    }
    texts = [part for part in layouts if part.startswith("text_encoder")]
    sdxl = layouts[texts[-1]] == "sdxl_openclip"
    configs: dict[Part, Config] = {}
    with sentences(str(path)):
        for part in texts:
            text_encoder = detect.text_encoder_config(
                shapes[part], layouts[part] in ("openclip", "sdxl_openclip"), projection=sdxl and part == texts[-1]
            )
            if text_encoder is not None:
                configs[part] = text_encoder
        last = configs.get(texts[-1])
        pooled = None
        if sdxl and isinstance(last, TextEncoderConfig):
            pooled = (last.projection_dim, 6 if len(texts) == 2 else 5)
        unet = detect.unet_config(shapes["unet"], openclip, pooled)
        family = "custom" if unet is None else detect.family_of(unet, len(texts))
        prediction, zero_snr = _prediction(file, keys["unet"], family, 4 if unet is None else unet.in_channels)
        if unet is not None:
            large = family == "sd2" and prediction == "v_prediction"  # as published for SD 2.1
            configs["unet"] = dataclasses.replace(unet, sample_size=96, upcast_attention=True) if large else unet
        upscaler = family == "upscaler"
        autoencoder = detect.autoencoder_config(shapes["autoencoder"], upscaler, sdxl)
        if autoencoder is not None:
            configs["autoencoder"] = autoencoder
    own = _own_metadata(file, path)
    for part in configs:
        if part in own:
            configs[part] = network_config(part, own[part], f"{path} (metadata)")
    return SingleFile(
        layouts=layouts,
        configs=configs,
        family=family,
        scheduler_config=own.get("scheduler", detect.scheduler_config(family, prediction, zero_snr)),
        unknown=unknown,
        ema=ema and unet is not None,
        low_res_scheduler_config=own.get("low_res_scheduler", dict(detect.LOW_RES_SCHEDULER) if upscaler else None),
        tokenizer=own.get("tokenizer"),
        tokenizer_2=own.get("tokenizer_2"),
        zero_negative=own.get("pipeline", {}).get("force_zeros_for_empty_prompt", family == "sdxl") is True,
        defaults=checked_defaults(own.get("defaults", {}), str(path)),
    )


def _text_layouts(names: list[str], openclip: bool) -> dict[Part, Layout]:
    """The text encoders of a file: SDXL has two, its refiner the second of them alone."""
    if any(name.startswith("conditioner.embedders.1.model.") for name in names):
        return {"text_encoder": "sdxl_clip", "text_encoder_2": "sdxl_openclip"}
    if any(name.startswith("conditioner.embedders.0.model.") for name in names):
        return {"text_encoder": "sdxl_openclip"}
    return {"text_encoder": "openclip" if openclip else "ldm"}


def require_whole(found: SingleFile, path: Path) -> None:
    """CheckpointError unless all networks are there and nothing unknown is."""
    missing = [TITLES[part] for part in found.layouts if part not in found.configs]
    if len(missing) == len(found.layouts):
        first = ", ".join(found.unknown[:3]) or "nothing"
        raise CheckpointError(f"{path} is not a Stable Diffusion checkpoint: its tensors are called {first}.")
    if missing:
        raise CheckpointError(f"{path} is not a whole model: it has no {' and no '.join(missing)}.")
    if found.unknown:
        first, count = ", ".join(found.unknown[:3]), len(found.unknown)
        raise CheckpointError(f"{path} has {count} unknown key{'s' * (count > 1)} ({first}{', ...' * (count > 3)}).")


def _refuse_foreign(names: list[str], path: Path) -> None:
    whole = any(name.startswith(("model.diffusion_model.", "model_ema.")) for name in names)
    for mark, what in detect.FOREIGN:
        decisive = mark in detect.DECISIVE
        if (decisive or not whole) and any(mark in name for name in names):
            raise CheckpointError(f"{path} is {what}.")


def _prediction(file: TensorFile, keys: Mapping[str, str], family: str, in_channels: int) -> tuple[str, bool]:
    """The prediction type, and whether the schedule ends at zero signal: markers, metadata, then what is known."""
    names = set(file.names())
    zero_snr = "ztsnr" in names
    if "v_pred" in names or any(name.startswith("edm_vpred.") for name in names) or family == "upscaler":
        return "v_prediction", zero_snr
    said = file.metadata.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction", "epsilon"):
        return ("epsilon" if said == "epsilon" else "v_prediction"), zero_snr
    key = keys.get(prefix("unet", "ldm") + _V_BIAS)
    if family == "sd2" and in_channels == 4 and key is not None and file.dtype(key).is_floating_point:
        bias = file.load(key).float()
        if bias.numel() > 1 and float(bias.std(correction=0)) > _V_DEVIATION:
            return "v_prediction", zero_snr
    return "epsilon", zero_snr


def _own_metadata(file: TensorFile, path: Path) -> dict[str, dict[str, Any]]:
    """What `save_single_file` noted in the file, if it wrote it: objects by the names of parts and schedulers."""
    text = file.metadata.get(METADATA)
    content = {} if text is None else parse_json(text, f"{path} (metadata)")
    return {name: value for name, value in content.items() if isinstance(value, dict)}
