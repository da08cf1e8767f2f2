"""How LoRA files name things: which layer of which network a key speaks of, and what of that layer it holds.

lora_unet_down_blocks_0_attentions_0_..._attn1_to_q.lora_down.weight     kohya, LyCORIS (SDXL: LDM's names)
lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha               text encoders: lora_te_, lora_te1_, lora_te2_
unet.down_blocks.0...attn1.to_q.lora_A.weight                            diffusers, PEFT (base_model.model.unet...)
unet.down_blocks.0...attn1.processor.to_q_lora.down.weight               older diffusers, to_out_lora among them
text_encoder....mlp.fc1.lora_linear_layer.up.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from .layouts import Layout, Part, prefix, table

if TYPE_CHECKING:
    from torch import nn

_KEY = re.compile(
    r"""(?P<module>.+?)(?:
      [._]lora(?:_linear_layer|_conv_layer)?[._](?P<factor>down|up|mid)(?:\.[\w-]+)?\.weight
    | \.lora_(?P<letter>[AB])(?:\.[\w-]+)?\.(?P<of>weight|bias)
    | \.(?:dora_scale|lora_(?P<vector>magnitude_vector)(?:\.[\w-]+)?)
    | \.(?P<plain>alpha|diff|diff_b|w_norm|b_norm|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.default)?
    )\Z""",
    re.VERBOSE,
)
_PLAIN = {"w_norm": "diff", "b_norm": "diff_b"}  # LyCORIS' names for the differences of a norm

_JOINED: tuple[tuple[str, str], ...] = (
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
)
_DOTTED: tuple[tuple[str, str], ...] = (
    ("unet.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
)
_OLDER = (  # of diffusers' attention processors
    (re.compile(r"\.processor\b"), ""),
    (re.compile(r"(\.attn[12]\.to_out)\Z"), r"\1.0"),
    (re.compile(r"(\.self_attn\.)to_(q|k|v|out)\Z"), r"\1\2_proj"),
)


@dataclass(frozen=True, slots=True)
class Key:
    """What a key says before any model is known."""

    module: str  # the layer, as the file spells it
    slot: str  # down, up, mid, alpha, magnitude, dora_scale, bias, diff, diff_b, hada_*, lokr_*


def read_key(name: str) -> Key | None:
    """The layer and the slot in a tensor's name; None if it is no LoRA's."""
    match = _KEY.match(name)
    if match is None:
        return None
    if match["factor"]:
        return Key(match["module"], match["factor"])
    if match["letter"]:
        slot = "down" if match["letter"] == "A" else "up"
        if match["of"] == "bias":
            return Key(match["module"], "bias") if slot == "up" else None
        return Key(match["module"], slot)
    if match["plain"]:
        return Key(match["module"], _PLAIN.get(match["plain"], match["plain"]))
    return Key(match["module"], "magnitude" if match["vector"] else "dora_scale")


@dataclass(frozen=True, slots=True)
class Home:
    """A layer of the model."""

    part: str
    path: str  # native


class Homes:
    """All layers of a model's networks, under every name that files have for them."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.layers: dict[Home, nn.Module] = {}
        self.names: dict[Home, str] = {}  # diffusers' own, without the part
        self.ldm_names: dict[Home, str] = {}
        self._dotted: dict[tuple[str, str], Home] = {}
        self._joined: dict[tuple[str, str], Home] = {}
        for part, network in networks.items():
            for layout, path, spelled in _spellings(part, network):
                home = Home(part, path)
                self.layers[home] = network.get_submodule(path)
                for name in spelled:
                    self._dotted.setdefault((part, name), home)
                    self._joined.setdefault((part, name.replace(".", "_")), home)
                if layout == "diffusers":
                    self.names[home] = spelled[0]
                elif layout == "ldm":
                    self.ldm_names[home] = spelled[0]

    @property
    def text_width(self) -> int | None:
        """The width of the text that the U-Net attends to; None where there is no U-Net, or it attends to none."""
        cross = (layer for home, layer in self.layers.items() if home.part == "unet" and home.path.endswith("attn2.k"))
        layer: Any = next(cross, None)
        return None if layer is None else int(layer.weight.shape[1])

    def find(self, module: str) -> Home | None:
        """The layer that a file's `module` means; None if the model has none of that name."""
        if "." not in module:
            for start, part in _JOINED:
                if module.startswith(start) and (home := self._joined.get((part, module.removeprefix(start)))):
                    return home
            return None
        while module.startswith("base_model.model."):
            module = module.removeprefix("base_model.model.")
        named = next(((part, start) for start, part in _DOTTED if module.startswith(start)), None)
        if named is None:
            for pattern, spelling in _OLDER:
                module = pattern.sub(spelling, module)
            found = (self._dotted.get((part, module)) for part in dict.fromkeys(home.part for home in self.layers))
            return next((home for home in found if home is not None), None)
        part, start = named
        module = module.removeprefix(start)
        for pattern, spelling in _OLDER:
            module = pattern.sub(spelling, module)
        return self._dotted.get((part, module))


def _spellings(part: str, network: Any) -> Iterator[tuple[Layout, str, tuple[str, ...]]]:
    """(layout, native path, names in files) of every layer of a network."""
    from ..adapters.updates import LAYERS

    paths = [path for path, layer in network.named_modules() if isinstance(layer, LAYERS)]
    rules: Part = part  # type: ignore[assignment]  # a part without rules has no names, and nothing is found in it
    for layout in get_args(Layout):
        try:
            places = table(rules, layout, [f"{path}.weight" for path in paths], network.config)
        except KeyError:  # the layout is none of this part's
            continue
        for path in paths:
            place = places[f"{path}.weight"]
            if place.third is None:
                name = place.name.removesuffix(".weight").removeprefix(prefix(rules, layout))
                yield layout, path, _with_and_without("text_model.", name) if part.startswith("text") else (name,)


def _with_and_without(start: str, name: str) -> tuple[str, ...]:
    """Both ways in which text encoders are spelled, the longer first; a projection lies outside of `text_model`."""
    name = name.removeprefix(start)
    return (name,) if name.startswith("text_projection") else (start + name, name)
