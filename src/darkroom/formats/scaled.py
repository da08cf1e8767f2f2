"""Weights in 8 bits that have a scale beside them, as ComfyUI's tools write them ("scaled fp8").

    X.weight          float8, [O, I, ...]
    X.scale_weight    or, in newer files, X.weight_scale: one number, or one for each of the O outputs
    X.scale_input     or X.input_scale: for products in 8 bits; not needed here
    X.comfy_quant     JSON as bytes: {"format": "float8_e4m3fn"}
    scaled_fp8        a mark that the file is of this kind, perhaps after the network's prefix

The weight meant is float8 times scale. Source: ComfyUI's QUANTIZATION.md; the older names by published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ..errors import CheckpointError
from .storage import Slot, clip

_SCALES = (".scale_weight", ".weight_scale")
_BESIDE = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"


def take_scales(slots: Mapping[str, Slot]) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """(the tensors of a file without what belongs to their scaling, a scaled weight's name -> its scale).

    Raises CheckpointError for weights that are quantized in any other way (int8, 4 bits, blocks).
    """
    scales: dict[str, Slot] = {}
    beside: set[str] = set()
    for name, slot in slots.items():
        layer, dot, last = name.rpartition(".")
        if f".{last}" in _SCALES and dot and f"{layer}.weight" in slots:
            scales[f"{layer}.weight"] = _checked(slot, slots[f"{layer}.weight"])
            beside.add(name)
        elif last == _MARK:
            beside.add(name)
    beside |= {name[: -len(".weight")] + end for name in scales for end in _BESIDE}
    return {name: slot for name, slot in slots.items() if name not in beside}, scales


def _checked(scale: Slot, weight: Slot) -> Slot:
    one_each = weight.shape[:1] == (scale.elements,) and prod(scale.shape[:1]) == scale.elements
    eighth = weight.dtype.startswith("float8") and len(weight.shape) > 1
    if not eighth or "float" not in scale.dtype or (scale.elements != 1 and not one_each):
        raise CheckpointError(
            f"{weight.source.path} is quantized in a way that Darkroom does not read ({clip(weight.name)} is "
            f"{weight.dtype} with scales {list(scale.shape)}): use the model in float16, or in plain or scaled float8."
        )
    return scale
