"""LoRA files out, in diffusers' (PEFT's) form or kohya's; and from one form to the other, number by number."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..embedded import MODEL
from ..errors import CheckpointError, clip
from ..files import whole_file
from .lora import PEFT_METADATA, Alphas, LoraFile, layer_tensors, lora_path, read_words, scan_lora, unmatched_sentence
from .lora_names import Home, Homes
from .tensors import open_tensors
from .writer import Entry, write_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..adapters import Adapter

Form: TypeAlias = Literal["diffusers", "kohya"]
FORMS: tuple[Form, ...] = ("diffusers", "kohya")

# slot -> what stands behind a layer's name
_DIFFUSERS = {
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "bias": "lora_B.bias",
    "mid": "lora_mid.weight",
    "magnitude": "lora_magnitude_vector",
    "dora_scale": "lora_magnitude_vector",
}
_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "magnitude": "dora_scale"}
_LYCORIS = {  # in both forms
    "ia3": "weight",
    "constraint": "alpha",
    **{name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")},
}
_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}


@dataclass(frozen=True, slots=True)
class _Layer:
    home: Home
    tensors: Mapping[str, Tensor]  # by slot, without alpha
    alpha: float | None  # None: there is no rank to compare it with

    @property
    def rank(self) -> int | None:
        names = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2")
        return next((self.tensors[name].shape[0] for name in names if name in self.tensors), None)


def save_lora(
    path: str | Path,
    adapter: Adapter,
    networks: Mapping[str, nn.Module],
    form: Form = "diffusers",
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an adapter as a .safetensors file that the ecosystem's tools open; whole or not at all.

    Args:
        networks: those that the adapter was read or made for, by part; their layers' names are the keys.
        form: "diffusers" (PEFT's names; an alpha other than the rank is in the metadata) or "kohya" (for A1111, ...).
        dtype: to convert the numbers to; None: each keeps its own.
        metadata: texts to note in the file, beside the adapter's own.
    """
    import torch

    layers = []
    for part, updates in adapter.parts.items():
        for native, update in updates.items():
            tensors = dict(update.factors)
            if "ia3" in tensors:
                by_input = tensors["ia3"].shape[0] == 1
                tensors = {"ia3": _ia3(tensors["ia3"]), "on_input": torch.tensor(float(by_input))}
            if update.magnitude is not None:
                tensors["magnitude"] = update.magnitude
            alpha = None if update.rank is None else update.factor * update.rank
            if update.bias is not None:
                plain = "down" in tensors and form == "diffusers"  # there the bias is multiplied by alpha / r too
                tensors["bias" if plain else "diff_b"] = update.bias / update.factor if plain else update.bias
            layers.append(_Layer(Home(part, native), tensors, alpha))
    notes = {**adapter.metadata, **(metadata or {})}
    return _write(path, layers, Homes(networks), form, notes, dtype, adapter.words)


def _ia3(vector: Tensor) -> Tensor:
    """As LyCORIS has it: [dim], or [1, dim, 1, 1] for a convolution."""
    return vector.flatten() if vector.ndim == 2 else vector.reshape(1, -1, *[1] * (vector.ndim - 2))


def convert_lora(
    source: str | Path, target: str | Path, form: Form | None = None, networks: Mapping[str, nn.Module] | None = None
) -> Path:
    """Write a LoRA file anew in the other form (or in `form`), its numbers untouched.

    Args:
        networks: the model's, whose layers the names belong to; None: Stable Diffusion's (1.x and 2.x), SDXL's, or the
            embedded model's, whichever has all layers.
    """
    target = Path(target)
    if target.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{target}: a LoRA is written as safetensors; end the name in .safetensors")
    with open_tensors(lora_path(source)) as file:
        scan: LoraFile = scan_lora(file)
        alphas = Alphas(file)
        homes = _homes_of(scan) if networks is None else Homes(networks)
        wanted: Form = form or ("diffusers" if scan.form == "kohya" and not scan.words else "kohya")
        unmatched, layers = list(scan.strangers), []
        for module, slots in scan.slots.items():
            home = homes.find(module)
            if home is None:
                unmatched += slots.values()
                continue
            tensors, alpha = layer_tensors(file, module, slots)
            layer = _Layer(home, tensors, None)
            if layer.rank is not None:
                factor = alphas.factor(module, alpha, layer.rank)
                layer = _Layer(home, tensors, factor * layer.rank)
            layers.append(layer)
        if unmatched:
            raise CheckpointError(unmatched_sentence(scan.path, unmatched, bool(layers)))
        return _write(target, layers, homes, wanted, scan.metadata, None, read_words(file, scan))


def _homes_of(scan: LoraFile) -> Homes:
    """The layers of the first model family that has all those of a file; of the first of all if there is none."""
    found: list[Homes] = []
    for networks in published_networks():
        found.append(Homes(networks))
        if all(found[-1].find(module) is not None for module in scan.slots):
            return found[-1]
    return found[0]


def published_networks() -> Iterator[dict[str, nn.Module]]:
    """The networks of Stable Diffusion (1.x and 2.x share their layers' names), the embedded model and SDXL, on `meta`,
    for the names of their layers."""
    import torch

    from ..models import presets
    from ..models.text_encoder import TextEncoder
    from ..models.unet import UNet
    from .checkpoint import open_checkpoint

    with torch.device("meta"):
        yield {"unet": UNet(presets.SD15_UNET), "text_encoder": TextEncoder(presets.SD15_TEXT_ENCODER)}
    embedded = open_checkpoint(MODEL)
    with torch.device("meta"):
        unet, text_encoder = UNet(embedded.unet_config), TextEncoder(embedded.text_encoder_config)
        yield {"unet": unet, "text_encoder": text_encoder}
        first, second = TextEncoder(presets.SD15_TEXT_ENCODER), TextEncoder(presets.SDXL_TEXT_ENCODER_2)
        yield {"unet": UNet(presets.SDXL_UNET), "text_encoder": first, "text_encoder_2": second}


def _write(
    path: str | Path,
    layers: Sequence[_Layer],
    homes: Homes,
    form: Form,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    words: Mapping[str, Sequence[Tensor]],
) -> Path:
    target = Path(os.path.abspath(path))
    if words and form == "diffusers":
        raise CheckpointError(
            f"{path}: the LoRA brings {len(words)} words along ({clip(', '.join(words))}), for which diffusers' form "
            f"has no place: write it in kohya's form"
        )
    notes = {key: text for key, text in metadata.items() if key != PEFT_METADATA} | {"format": "pt"}
    entries = []
    for layer in layers:
        name = homes.names[layer.home]
        start = f"{layer.home.part}.{name}" if form == "diffusers" else _joined(homes, layer.home)
        entries += [_entry(start, slot, tensor, form, dtype) for slot, tensor in layer.tensors.items()]
        if layer.alpha is not None and (form == "kohya" or "down" not in layer.tensors):
            entries.append(_scalar(f"{start}.alpha", layer.alpha))
    for word, parts in words.items():
        slots = ("string_to_param.*",) if len(parts) == 1 else ("clip_l", "clip_g")
        entries += [_of(f"bundle_emb.{word}.{slot}", part) for slot, part in zip(slots, parts, strict=True)]
    if form == "diffusers":
        config = _peft_config(layers, homes)
        if config:
            notes[PEFT_METADATA] = json.dumps(config, indent=2, sort_keys=True)
    else:
        notes |= _kohya_notes(layers)
    with whole_file(target) as draft:
        write_safetensors(draft, entries, notes)
    return target


def _joined(homes: Homes, home: Home) -> str:
    """kohya's name of a layer: diffusers' joined by underscores, or LDM's for the U-Net of SDXL."""
    name = homes.names[home]
    if home.part == "unet" and homes.text_width == 2048:
        name = homes.ldm_names[home]
    start = _PREFIXES[home.part]
    if home.part == "text_encoder" and homes.text_width == 2048:
        start = "lora_te1_"
    return start + name.replace(".", "_")


def _entry(start: str, slot: str, tensor: Tensor, form: Form, dtype: torch.dtype | None) -> Entry:
    if form == "diffusers" and slot in ("magnitude", "dora_scale"):
        # PEFT has [O] for a linear layer and [1, O, 1, 1] for a convolution
        tensor = tensor.flatten() if tensor.ndim < 4 else tensor.transpose(0, 1)
    elif form == "kohya" and slot == "magnitude":
        tensor = tensor.reshape(-1, 1) if tensor.ndim < 3 else tensor.reshape(-1, 1, 1, 1)
    names = _LYCORIS | (_DIFFUSERS if form == "diffusers" else _KOHYA)
    if slot == "bias" and form == "kohya":
        slot = "diff_b"
    tensor = tensor.contiguous()
    return Entry(f"{start}.{names.get(slot, slot)}", tuple(tensor.shape), dtype or tensor.dtype, lambda: tensor)


def _of(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _scalar(name: str, value: float) -> Entry:
    import torch

    return Entry(name, (), torch.float32, lambda: torch.tensor(value))


def _peft_config(layers: Iterable[_Layer], homes: Homes) -> dict[str, Any]:
    """What PEFT needs beside the factors, by part; nothing where every alpha is its layer's rank, as it assumes."""
    config: dict[str, Any] = {}
    by_part: dict[str, list[tuple[str, _Layer]]] = {}
    for layer in layers:
        if "down" in layer.tensors:
            name = homes.names[layer.home].removeprefix("text_model.")  # as newer transformers call it
            by_part.setdefault(layer.home.part, []).append((name, layer))
    if all(layer.alpha == layer.rank for named in by_part.values() for _, layer in named):
        return {}
    for part, named in by_part.items():
        rank = Counter(layer.rank for _, layer in named).most_common(1)[0][0]
        alpha = Counter(layer.alpha for _, layer in named).most_common(1)[0][0]
        config |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": alpha,
            f"{part}.rank_pattern": {name: layer.rank for name, layer in named if layer.rank != rank},
            f"{part}.alpha_pattern": {name: layer.alpha for name, layer in named if layer.alpha != alpha},
            f"{part}.target_modules": sorted(name for name, _ in named),
            f"{part}.use_dora": any({"magnitude", "dora_scale"} & layer.tensors.keys() for _, layer in named),
            f"{part}.lora_bias": any("bias" in layer.tensors for _, layer in named),
        }
    return config


def _kohya_notes(layers: Iterable[_Layer]) -> dict[str, str]:
    """The rank and alpha that most layers have, as kohya's own files say them."""
    ranks = Counter((layer.rank, layer.alpha) for layer in layers if layer.rank is not None)
    if not ranks:
        return {}
    rank, alpha = ranks.most_common(1)[0][0]
    return {"ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}", "ss_network_module": "networks.lora"}
