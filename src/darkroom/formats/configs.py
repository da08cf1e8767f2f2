"""Reading configurations that strangers wrote: JSON with limits, and values that a network can be built from."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..models.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from .layouts import TITLES, Part
from .rules import Config

MAX_JSON = 1 << 20  # bytes of a configuration file; published ones have about 2000

_CLASSES: dict[Part, type[Config]] = {
    "unet": UNetConfig,
    "autoencoder": AutoencoderConfig,
    "text_encoder": TextEncoderConfig,
}
# The largest value of a whole number: far above any published network, and low enough to be built on the meta device.
_LIMITS = {
    "layers_per_block": 64,
    "transformer_layers": 64,
    "num_hidden_layers": 128,
    "in_channels": 1024,
    "out_channels": 1024,
    "latent_channels": 1024,
    "vocab_size": 1 << 22,
    "num_class_embeds": 1 << 20,
}
_LIMIT = 1 << 16
_MAX_LEVELS = 8
_MAY_BE_ZERO = {"freq_shift", "bos_token_id", "eos_token_id", "pad_token_id", "num_hidden_layers"}
_UNBOUNDED = {"bos_token_id", "eos_token_id", "pad_token_id", "projection_dim"}  # no tensor has this size


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. CheckpointError if it is anything else."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size:,} bytes; a configuration has at most {limit:,}.")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    return parse_json(raw, str(path))


def parse_json(raw: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object in `raw`. CheckpointError, naming `where`, if it is anything else."""
    try:
        content = json.loads(raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}): download it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} holds a JSON {type(content).__name__}; a configuration is an object.")
    return content


def network_config(part: Part, content: dict[str, Any], where: str) -> Any:
    """The checked configuration of one network from its `config.json`. CheckpointError names `where` and the value."""
    if part == "text_encoder" and isinstance(content.get("text_config"), dict):
        content = content["text_config"]  # a whole CLIP's configuration
    try:
        config = _CLASSES[part].from_diffusers(content)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}.") from None
    except (TypeError, AttributeError, KeyError, OverflowError):
        raise CheckpointError(
            f"{where} has a value of a wrong type; it is not a {TITLES[part]}'s configuration."
        ) from None
    check_config(config, where)
    return config


def check_config(config: Config, where: str) -> None:
    """CheckpointError, naming `where` and the value, unless a network can be built from `config`."""
    for field in fields(config):
        value, kind = getattr(config, field.name), str(field.type)
        if value is None and "None" in kind:
            continue
        values = value if kind.startswith("tuple") else (value,)
        if not isinstance(values, tuple) or not 1 <= len(values) <= _MAX_LEVELS:
            raise CheckpointError(f"{where}: {field.name} is {_show(value)}; expected 1 to {_MAX_LEVELS} values.")
        for one in values:
            if problem := _problem(field.name, kind, one):
                raise CheckpointError(f"{where}: {field.name} is {_show(value)}; expected {problem}.")
    if isinstance(config, UNetConfig):
        _check_unet(config, where)
    elif isinstance(config, AutoencoderConfig):
        _check_groups(config.block_out_channels, config.norm_num_groups, where)
    elif config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{where}: hidden_size {config.hidden_size} can't be shared by {config.num_attention_heads} heads."
        )


def _problem(name: str, kind: str, value: Any) -> str | None:
    if "bool" in kind:
        return None if isinstance(value, bool) else "true or false"
    if "str" in kind:
        return None if isinstance(value, str) else "a text"
    if "float" in kind:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if good and (value > 0 or name == "shift_factor") else "a finite number above 0"
    low, high = int(name not in _MAY_BE_ZERO), _LIMITS.get(name, _LIMIT)
    if name in _UNBOUNDED:
        low, high = -1, 1 << 31
    return None if type(value) is int and low <= value <= high else f"a whole number from {low} to {high}"


def _check_unet(config: UNetConfig, where: str) -> None:
    levels = len(config.block_out_channels)
    for name in ("layers_per_block", "attention_levels", "only_cross_attention", "transformer_layers", "heads"):
        if len(getattr(config, name)) != levels:
            raise CheckpointError(f"{where}: {name} has {len(getattr(config, name))} values for {levels} levels.")
    _check_groups(config.block_out_channels, config.norm_num_groups, where)
    middle = config.mid_block and config.mid_block_attention
    for level, (width, heads) in enumerate(zip(config.block_out_channels, config.heads, strict=True)):
        attends = config.attention_levels[level] or (middle and level == levels - 1)
        if attends and width % heads:
            raise CheckpointError(f"{where}: {width} channels can't be shared by {heads} attention heads.")


def _check_groups(widths: tuple[int, ...], groups: int, where: str) -> None:
    for width in widths:
        if width % groups:
            raise CheckpointError(f"{where}: {width} channels can't be divided into {groups} normalisation groups.")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
