"""Networks that enlarge pictures, told by their content, read and written.

| network          | its keys                                                                                  |
|------------------|-------------------------------------------------------------------------------------------|
| RRDB (ESRGAN)    | `conv_first`, `body.0.rdb1.conv1` (Real-ESRGAN); `RRDB_trunk.0.RDB1.conv1` (BSRGAN);        |
|                  | `model.0`, `model.1.sub.0.RDB1.conv1.0` (ESRGAN's first edition)                            |
| Compact (SRVGG)  | `body.0`, `body.1`, ... and nothing else                                                   |
| SPAN             | `conv_1.sk`, `block_1.c1_r.sk`, ...                                                        |

All may stand under `params_ema.` or `params.`, as BasicSR's trainer leaves them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError
from ..files import whole_file
from ..models.upscaler import CompactConfig, RRDBConfig, SpanConfig, UpscalerConfig
from .ecosystem import named
from .folder import sentences
from .hub import resolve
from .layouts import Layout, Part
from .rules import native_shapes
from .save import State, entries_of
from .tensors import Glance, open_tensors
from .weights import METADATA, Artifact, PartTensors, Weights
from .writer import write_safetensors

if TYPE_CHECKING:
    import torch

PART: Part = "upscaler"
_STARTS = ("params_ema.", "params.", "")
_BODY = re.compile(r"body\.(\d+)\.(weight|bias)\Z")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(eq=False, kw_only=True)
class UpscalerFile(Artifact):
    """A network that enlarges; `kind` is its architecture."""

    title = "upscaler"

    @property
    def upscaler_config(self) -> UpscalerConfig:
        return cast(UpscalerConfig, self.configs[PART])

    @property
    def facts(self) -> dict[str, Any]:
        return {"scale": self.upscaler_config.scale, "channels": self.upscaler_config.in_channels}


def _start(names: Shapes) -> str:
    """What the network's keys begin with."""
    return next(start for start in _STARTS if not start or any(name.startswith(start) for name in names))


def _layout(shapes: Shapes) -> tuple[str, Layout] | None:
    """Which network the names are of ("rrdb", "compact", "span"), and by whose names."""
    if "block_1.c1_r.sk.weight" in shapes or "conv_1.sk.weight" in shapes:
        return "span", "basicsr"
    if any(name.startswith("RRDB_trunk.") for name in shapes):
        return "rrdb", "bsrgan"
    if any(re.match(r"model\.1\.sub\.\d+\.RDB\d\.", name) for name in shapes):
        return "rrdb", "esrgan"
    if any(re.match(r"body\.\d+\.rdb\d\.", name) for name in shapes):
        return "rrdb", "basicsr"
    if shapes and all(_BODY.match(name) for name in shapes) and len(shapes.get("body.0.weight", ())) == 4:
        return "compact", "basicsr"
    return None


def _without(shapes: Shapes, start: str) -> Shapes:
    return {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)}


def is_upscaler(seen: Glance) -> bool:
    """Whether a file holds a network that enlarges, of those that run without another library; broken or not."""
    return _layout(_without(seen.shapes, _start(seen.shapes))) is not None


def open_upscaler(source: str | Path) -> UpscalerFile:
    """Open a network that enlarges: a file, "org/name" on the hub or "embedded:upscaler".

    Raises CheckpointError, in one sentence, for what is broken or none of these networks.
    """
    path = resolve(source)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; an upscaler is a file, .pth or .safetensors")
    with open_tensors(path) as file:
        everything = {name: file.shape(name) for name in file.names()}
    start = _start(everything)
    shapes = _without(everything, start)
    found = _layout(shapes)
    if found is None:
        told = named(everything) or f"a file of tensors called {', '.join(list(everything)[:3]) or 'nothing'}"
        raise CheckpointError(f"{path} is no upscaler but {told}")
    network, layout = found
    with sentences(str(path)):
        try:
            config: UpscalerConfig
            if network == "rrdb":
                config = _rrdb(shapes, layout)
            else:
                config = _compact(shapes) if network == "compact" else _span(shapes)
        except (KeyError, IndexError):
            raise CheckpointError(f"{path} holds parts of an upscaler only: download it again") from None
    weights = Weights(path, layout, start=start or None)
    return UpscalerFile(path=path, kind=config.architecture, configs={PART: config}, weights={PART: weights})


def _rrdb(shapes: Shapes, layout: Layout) -> RRDBConfig:
    if layout == "esrgan":
        first, dense, conv = "model.0", r"model\.1\.sub\.(\d+)\.RDB1\.", "model.1.sub.{}.RDB1.conv1.0.weight"
        last = max(int(match[1]) for name in shapes if (match := re.match(r"model\.(\d+)\.weight\Z", name)))
        end, doublings = f"model.{last}", (last - 4) // 3
        if last < 4 or (last - 4) % 3:
            raise ValueError(f"its last layer is model.{last}, where those of doublings end at 4, 7, 10, ...")
    else:
        trunk, rdb, up = ("RRDB_trunk", "RDB", "upconv") if layout == "bsrgan" else ("body", "rdb", "conv_up")
        first, dense, conv = "conv_first", rf"{trunk}\.(\d+)\.{rdb}1\.", f"{trunk}.{{}}.{rdb}1.conv1.weight"
        end = "conv_last"
        doublings = len({match[1] for name in shapes if (match := re.match(rf"{up}(\d+)\.", name))})
    blocks = sorted({int(match[1]) for name in shapes if (match := re.match(dense, name))})
    growth, width = shapes[conv.format(blocks[0])][:2]
    out_channels, seen = shapes[f"{end}.weight"][0], shapes[f"{first}.weight"][1]
    unshuffle = math.isqrt(seen // out_channels) if seen in (4 * out_channels, 16 * out_channels) else 1
    return RRDBConfig(
        in_channels=seen // unshuffle**2,
        out_channels=out_channels,
        width=width,
        growth=growth,
        blocks=blocks[-1] + 1,
        doublings=doublings,
        unshuffle=unshuffle,
        plus=any(".conv1x1." in name for name in shapes),
    )


def _compact(shapes: Shapes) -> CompactConfig:
    last = max(int(match[1]) for name in shapes if (match := _BODY.match(name)))
    width, channels = shapes["body.0.weight"][:2]
    out_channels, scale = _shuffled(shapes[f"body.{last}.weight"][0], channels)
    return CompactConfig(
        in_channels=channels, out_channels=out_channels, width=width, layers=max((last - 2) // 2, 1), scale=scale
    )


def _span(shapes: Shapes) -> SpanConfig:
    width, channels = shapes["conv_1.sk.weight"][:2]
    out_channels, scale = _shuffled(shapes["upsampler.0.weight"][0], channels)
    return SpanConfig(
        in_channels=channels, out_channels=out_channels, width=width, scale=scale, normalised="no_norm" not in shapes
    )


def _shuffled(channels: int, given: int) -> tuple[int, int]:
    """(channels of the result, scale) of a network that ends with so many channels before the pixel shuffle."""
    for out in dict.fromkeys((given, 3, 1, 4)):
        scale = math.isqrt(channels // out)
        if scale and out * scale**2 == channels:
            return out, scale
    raise ValueError(f"its last layer has {channels} channels, which are no whole number of squares")


def save_upscaler(path: str | Path, state: State, config: UpscalerConfig, dtype: torch.dtype | None = None) -> Path:
    """Write a network that enlarges as one .safetensors file, by Real-ESRGAN's names, which the ecosystem's tools open.

    `state` is in native names; `dtype` converts it. Whole or not at all. Raises CheckpointError.
    """
    target = Path(os.path.abspath(path))
    if target.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path}: an upscaler is written as safetensors; end the name in .safetensors")
    metadata = {
        "format": "pt",
        METADATA: json.dumps({PART: {"architecture": config.architecture, "scale": config.scale}}),
    }
    with whole_file(target) as draft:
        write_safetensors(draft, entries_of(PART, "basicsr", state, config, dtype, target), metadata)
    return target


def convert_upscaler(source: Path, target: Path, dtype: torch.dtype | None, variant: str | None = None) -> Path:
    """Write one anew, one tensor in memory at a time; arguments as in `artifact.convert`."""
    file = open_upscaler(source)
    config = file.upscaler_config
    with PartTensors(file, PART, native_shapes(config, str(file.path))) as tensors:
        return save_upscaler(target, tensors, config, dtype)
