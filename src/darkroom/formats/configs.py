"""Configurations that strangers wrote, checked: faults as sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import CheckpointError
from ..models.config import (
    AutoencoderConfig,
    ControlNetConfig,
    TextEncoderConfig,
    TinyAutoencoderConfig,
    UNetConfig,
    VisionEncoderConfig,
)
from .layouts import Part
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
        raise CheckpointError(f"{where} has defaults {content!r}; they are an object.")
    known = {"steps": 1000, "guidance_scale": 100, "refine_strength": 1}
    for name, value in content.items():
        whole = name == "steps"
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if name not in known or not number or not int(whole) <= value <= known[name]:
            raise CheckpointError(
                f"{where} has the default {name}={value!r}; there may be steps (1 to 1000), guidance_scale (0 to 100), "
                f"refine_strength (0 to 1)."
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
        raise CheckpointError(f"{where}: {error}.") from None
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{where} has a value of a wrong type ({error}).") from None
