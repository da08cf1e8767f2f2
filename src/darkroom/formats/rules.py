"""Rules: how the names of other people's files become ours, and back.

A rule says what a native module (`down.{l}.resnets.{i}`) is called in a file (`down_blocks.{l}.resnets.{i}`) and which
rules hold inside it. Rules translate one way, native to foreign; `layouts.table` does so for every name of a network,
and reading goes through the same table turned round. So whatever can be read can be written, and a key that no native
tensor claims is known to be extra. The rules themselves are in `layouts`.

Which network a configuration is of, and the names and shapes of its tensors, stand here too: nothing else in `formats`
knows the networks' classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch

from ..errors import CheckpointError
from ..models.config import (
    AutoencoderConfig,
    ControlNetConfig,
    InceptionConfig,
    LpipsConfig,
    TextEncoderConfig,
    TinyAutoencoderConfig,
    UNetConfig,
    VisionEncoderConfig,
)
from ..models.upscaler import CLASSES, UpscalerConfig

ToldConfig: TypeAlias = UNetConfig | AutoencoderConfig | TextEncoderConfig | VisionEncoderConfig
"""What a `config.json` describes."""
Config: TypeAlias = ToldConfig | InceptionConfig | LpipsConfig | UpscalerConfig
Numbering: TypeAlias = Callable[[Config, int, int], Mapping[str, int]]  # (config, l, i) -> more template fields


@dataclass(frozen=True, slots=True)
class Place:
    """Where a native tensor lies in a file."""

    name: str
    third: int | None = None  # 0, 1, 2: the query, key or value of a fused tensor, cut along dimension 0
    pointwise: bool = False  # linear layer or 1x1 convolution: the same numbers, [out, in] or [out, in, 1, 1]
    as_convolution: bool = False  # and this layout writes it as a convolution, whatever it is natively
    transposed: bool = False  # a matrix the other way round


@dataclass(frozen=True, slots=True)
class Rule:
    """One module's names. Templates know the fields l (level), i (layer) and j (block); `numbers` computes more."""

    native: str
    foreign: str
    inside: tuple[Rule, ...] = ()  # rules for the modules within; none: a module with parameters of its own
    numbers: Numbering | None = None
    third: int | None = None
    pointwise: bool = False
    as_convolution: bool = False
    transposed: bool = False


def translate(name: str, rules: Iterable[Rule], config: Config) -> Place | None:
    """Where the native tensor `name` lies by these rules; None if no rule speaks of it."""
    for rule in rules:
        match = _pattern(rule.native).match(name)
        if match is None:
            continue
        fields = {key: int(value) for key, value in match.groupdict().items() if key != "rest"}
        if rule.numbers is not None:
            fields.update(rule.numbers(config, fields.get("l", 0), fields.get("i", 0)))
        foreign, rest = rule.foreign.format(**fields), match["rest"]
        if not rule.inside:
            weight = rest == "weight"
            whole = foreign if rest is None else f"{foreign}.{rest}"
            return Place(whole, rule.third, rule.pointwise and weight, rule.as_convolution and weight, rule.transposed)
        inner = translate(rest, rule.inside, config) if rest else None
        if inner is not None:
            return replace(inner, name=f"{foreign}.{inner.name}")
    return None


def restore(name: str, rules: Iterable[Rule], places: Mapping[int, Mapping[str, int]]) -> str | None:
    """The native name of a file's `name`, `translate` turned round; None if no rule speaks of it.

    `places`: the template fields behind a number that a rule computes. A tensor cut in three is taken for its first.
    """
    for rule in sorted(rules, key=lambda rule: -len(rule.foreign)):  # a name may begin with a shorter one
        match = _pattern(rule.foreign).match(name)
        if match is None:
            continue
        fields = {key: int(value) for key, value in match.groupdict().items() if key != "rest"}
        number = fields.pop("n", None)
        if number is not None and number not in places:
            continue
        native, rest = rule.native.format(**fields, **(places[number] if number is not None else {})), match["rest"]
        if not rule.inside:
            return native if rest is None else f"{native}.{rest}"
        inner = restore(rest, rule.inside, places) if rest else None
        if inner is not None:
            return f"{native}.{inner}"
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template at the beginning of a name, ending at a dot or with it."""
    escaped = re.sub(r"\\{(\w)\\}", r"(?P<\1>[0-9]+)", re.escape(template))
    return re.compile(rf"{escaped}(?:\.(?P<rest>.+))?\Z")


# --- the networks that the names belong to --------------------------------------------------------------------------


def network_class(config: Config) -> Any:
    """The network that a configuration is of."""
    network: Any
    if isinstance(config, UpscalerConfig):
        return CLASSES[type(config)]
    if isinstance(config, ControlNetConfig):
        from ..models.controlnet import ControlNet as network
    elif isinstance(config, UNetConfig):
        from ..models.unet import UNet as network
    elif isinstance(config, TinyAutoencoderConfig):
        from ..models.autoencoder import TinyAutoencoder as network
    elif isinstance(config, AutoencoderConfig):
        from ..models.autoencoder import Autoencoder as network
    elif isinstance(config, VisionEncoderConfig):
        from ..models.clip import VisionEncoder as network
    elif isinstance(config, InceptionConfig):
        from ..models.inception import Inception as network
    elif isinstance(config, LpipsConfig):
        from ..models.lpips import Lpips as network
    else:
        from ..models.text_encoder import TextEncoder as network
    return network


def native_shapes(config: Config, where: str = "the configuration") -> dict[str, torch.Size]:
    """Native tensor name -> shape of the network of `config`. CheckpointError, naming `where`, if it can't be built."""
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in network_class(config)(config).state_dict().items()}
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
