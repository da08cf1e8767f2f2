"""Random LoRA files in the forms that other tools write, for the networks of a diffusers pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ATTENTION = re.compile(r"attn[12]\.to_(q|k|v|out\.0)$|self_attn\.(q|k|v|out)_proj$")
TEXT_LINEAR = re.compile(r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$")


def layers(pipe: Any, which: re.Pattern[str] | None = ATTENTION) -> Iterator[tuple[str, str, nn.Module]]:
    """(part, diffusers' name, layer) of the linear layers and convolutions chosen."""
    for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and (which is None or which.search(name)):
                if part == "text_encoder" and not name.startswith("text_model."):
                    name = f"text_model.{name}"  # as all files have it
                yield part, name, layer


def factors(layer: nn.Module, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """down and up of a layer, neither of them zero."""
    out, inner, *kernel = layer.weight.shape  # type: ignore[union-attr, misc]
    down = torch.randn(rank, inner, *kernel, generator=generator) * 0.3
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kohya(pipe: Any, path: Path, *, rank: int = 3, alpha: float | None = 2.0, seed: int = 0, **options: Any) -> Path:
    """kohya's form: underscores, lora_down, lora_up, alpha."""
    tensors: dict[str, Tensor] = {}
    g = generator(seed)
    for part, name, layer in layers(pipe, **options):
        start = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + name.replace(".", "_")
        tensors[f"{start}.lora_down.weight"], tensors[f"{start}.lora_up.weight"] = factors(layer, rank, g)
        if alpha is not None:
            tensors[f"{start}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata={"ss_network_dim": str(rank), "ss_output_name": "ink"})
    return path


def renamed(pipe: Any, path: Path, spell: Callable[[str, str, str], str], *, seed: int = 0, rank: int = 3) -> Path:
    """Attention layers under the key that `spell` gives for (part, name, "down" or "up")."""
    tensors: dict[str, Tensor] = {}
    g = generator(seed)
    for part, name, layer in layers(pipe):
        down, up = factors(layer, rank, g)
        tensors[spell(part, name, "down")], tensors[spell(part, name, "up")] = down, up
    save_file(tensors, path)
    return path


def peft(part: str, name: str, factor: str) -> str:
    return f"{part}.{name}.{'lora_A' if factor == 'down' else 'lora_B'}.weight"


def wrapped(part: str, name: str, factor: str) -> str:
    return f"base_model.model.{part}.{name}.{'lora_A' if factor == 'down' else 'lora_B'}.default.weight"


def dotted(part: str, name: str, factor: str) -> str:
    return f"{part}.{name}.{'lora' if part == 'unet' else 'lora_linear_layer'}.{factor}.weight"


def processors(part: str, name: str, factor: str) -> str:
    """diffusers 0.12 to 0.20."""
    if part == "unet":
        front, last = name.rsplit(".to_", 1)
        return f"unet.{front}.processor.to_{last.removesuffix('.0')}_lora.{factor}.weight"
    front, last = name.rsplit(".", 1)
    return f"text_encoder.{front}.to_{last.removesuffix('_proj')}_lora.{factor}.weight"


def linear_layer(part: str, name: str, factor: str) -> str:
    if part == "unet":
        return processors(part, name, factor)
    return f"text_encoder.{name}.lora_linear_layer.{factor}.weight"
