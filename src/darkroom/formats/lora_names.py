"""How LoRA files name things: which layer of which network a key speaks of, and what of that layer it holds.

lora_unet_down_blocks_0_attentions_0_..._attn1_to_q.lora_down.weight     kohya, LyCORIS (SDXL: LDM's names)
lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha               text encoders: lora_te_, lora_te1_, lora_te2_
unet.down_blocks.0...attn1.to_q.lora_A.weight                            diffusers, PEFT (base_model.model.unet...)
unet.down_blocks.0...attn1.processor.to_q_lora.down.weight               older diffusers, to_out_lora among them
text_encoder....mlp.fc1.lora_linear_layer.up.weight
text_encoders.clip_l.transformer.text_model.....lora_down.weight         ComfyUI: diffusion_model, clip_l, _g, _h
unet:12:up, text_encoder:0:down                                          cloneofsimo: layers by number, see `NUMBERED`
bundle_emb.cat.clip_l, bundle_emb.cat.string_to_param.*                  words that come with it, as A1111 bundles them
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from ..errors import CheckpointError
from .layouts import Layout, Part, prefix, table
from .tensors import TensorFile

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
    *(
        (f"{start}{name}.{middle}", part)  # ComfyUI's generic names, and OneTrainer's
        for start in ("text_encoders.", "")
        for middle in ("transformer.", "")
        for name, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"), ("clip_h", "text_encoder"))
    ),
)
# Cloneofsimo's numbers are the places among the modules of the networks as they were in 2022: U-Nets' blocks go down,
# up, middle, each transformer block's layers in this order (later files: the feed-forward last, or none of it).
NUMBERED = re.compile(r"(unet|text_encoder):([0-9]{1,4}):(up|down)\Z")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ATTN1, _ATTN2 = (tuple(f"attn{n}.{name}" for name in _ATTENTION) for n in (1, 2))
_ORDERS = {4: (*_ATTN1, "ff.net.0.proj", *_ATTN2), 8: (*_ATTN1, *_ATTN2, "ff.net.0.proj"), None: (*_ATTN1, *_ATTN2)}
_TEXT_ORDER = tuple(f"self_attn.{name}_proj" for name in ("k", "v", "q", "out"))
BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+?)\.(?P<vector>string_to_param\..+|[^.]+)\Z", re.DOTALL)
# Kinds that Darkroom doesn't draw, by a part of a name.
UNDRAWN = (
    ("lora_controlnet", "a Control-LoRA, a ControlNet as changes of a U-Net"),
    (".oft_diag", "an OFT as LyCORIS wrote it before 2.0"),
    (".oft_R", "an OFT in PEFT's form"),
    (".oft_r", "an OFT in PEFT's form"),
    (".boft_", "a BOFT"),
    (".ia3_l", "an IA3 in PEFT's form"),
    (".vera_lambda", "a VeRA"),
    (".lora_embedding_", "a LoRA of token embeddings"),
    (".hra_u", "an HRA"),
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
    # down, up, mid, alpha, magnitude, dora_scale, bias, diff, diff_b, hada_*, lokr_*, oft_blocks, rescale,
    # a1, a2, b1, b2, bm (GLoRA), ia3, on_input
    slot: str


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


# Names that say something together only: GLoRA's factors, OFT's blocks, IA3's weight beside its `on_input`.
_TOGETHER = re.compile(r"(?P<module>.+)\.(?:(?P<glora>a[12]|b[12m])\.weight|(?P<plain>oft_blocks|rescale|on_input))\Z")
_MARKS = {"a2", "oft_blocks", "on_input"}  # without which the others are nothing


def read_keys(names: Sequence[str]) -> dict[str, Key]:
    """What the names of a file say of a LoRA: those that `read_key` knows, and those that need one another. Numbers are
    told by `numbered`."""
    found = {name: Key(m["module"], m["glora"] or m["plain"]) for name in names if (m := _TOGETHER.match(name))}
    marked = {key.module for key in found.values() if key.slot in _MARKS}
    keys = {name: key for name, key in found.items() if key.module in marked}
    keys |= {f"{key.module}.weight": Key(key.module, "ia3") for key in found.values() if key.slot == "on_input"}
    keys |= {name: key for name in names if (key := read_key(name)) is not None}
    return {name: keys[name] for name in names if name in keys}


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
        self._numbered: dict[str, list[str]] = {}
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
        if ":" in module:
            return self._by_number(module)
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
        if "clip_g." in start and self.text_width == 1280:  # the refiner's only one is of this kind
            part = "text_encoder"
        return self._dotted.get((part, module))

    def _by_number(self, module: str) -> Home | None:
        """Of "unet:3.attn1.to_q", the layer in the fourth transformer block; blocks go down, up, middle."""
        part, _, rest = module.partition(":")
        number, _, layer = rest.partition(".")
        if part not in self._numbered:
            self._numbered[part] = _block_order(name for home, name in self.names.items() if home.part == part)
        blocks = self._numbered[part]
        return self._dotted.get((part, f"{blocks[int(number)]}.{layer}")) if int(number) < len(blocks) else None


def _block_order(names: Iterable[str]) -> list[str]:
    """What stands before `attn1` or `self_attn` in the layers' diffusers names, in cloneofsimo's order."""
    found = {match[1] for name in names if (match := re.match(r"(.+)\.(?:attn1|self_attn)\.", name))}

    def place(name: str) -> tuple[int, list[int]]:
        kind = next((i for i, start in enumerate(("down_", "up_", "mid_")) if name.startswith(start)), 0)
        return kind, [int(number) for number in re.findall(r"\d+", name)]

    return sorted(found, key=place)


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


# --- what needs the whole file


def bundled(file: TensorFile) -> dict[str, tuple[str, str]]:
    """Tensor -> (word, what the vectors are for), of the words that a LoRA brings along: A1111's bundles, and those
    that cloneofsimo's trainer marks in the metadata."""
    found: dict[str, tuple[str, str]] = {}
    for name in file.names():
        if match := BUNDLED.match(name):
            found[name] = match["word"], match["vector"]
        elif file.metadata.get(name) == "<embed>":
            found[name] = name, name
    return found


def numbered(file: TensorFile) -> dict[str, Key]:
    """Tensor -> key of cloneofsimo's numbers: "unet:12:up" -> `up` of "unet:1.attn1.to_v".

    Which order it is, is told by where the first gated feed-forward is: eight times as many outputs as inputs.
    """
    found = {name: match for name in file.names() if (match := NUMBERED.match(name))}
    if not found:
        return {}
    gated = set()
    for name, match in found.items():
        down = name.removesuffix(match[3]) + "down"
        pair = match[1] == "unet" and match[3] == "up" and down in file and len(file.shape(down)) > 1
        if pair and file.shape(name)[:1] == (8 * file.shape(down)[1],):
            gated.add(int(match[2]))
    order = _ORDERS.get(min(gated, default=None))
    if order is None:
        raise CheckpointError(
            f"{file.path} numbers the layers of a U-Net in an order that Darkroom does not know (the first gated one "
            f"is {min(gated)}): convert it with the trainer that wrote it"
        )
    keys = {}
    for name, match in found.items():
        layers = order if match[1] == "unet" else _TEXT_ORDER
        block, layer = divmod(int(match[2]), len(layers))
        keys[name] = Key(f"{match[1]}:{block}.{layers[layer]}", match[3])
    return keys
