"""Switching a LoRA on a warm model: a new file read, attached, taken off; merged into the weights and out again.

    python benchmarks/lora.py [--architecture sd15] [--rank 32] [--rounds 5] [--smoke]

Stable Diffusion's U-Net and text encoder with meaningless weights; LoRAs on their attention layers, as files in
float16. That nothing is left of a merged LoRA is checked to the bit. sd15 needs about 6 GB of memory; `--smoke` is a
small shape.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from common import alternate, machine, report
from torch import nn

from darkroom.adapters import Adapter, Lora, Merged, attached, init_lora
from darkroom.formats.lora_save import save_lora
from darkroom.formats.lora_store import LoraStore
from darkroom.models.presets import SD15_TEXT_ENCODER, SD15_UNET
from darkroom.models.text_encoder import TextEncoder
from darkroom.models.unet import UNet

SHAPES = {
    "sd15": (SD15_UNET, SD15_TEXT_ENCODER),
    "tiny": (
        replace(SD15_UNET, block_out_channels=(32, 32, 64, 64), cross_attention_dim=32),
        replace(SD15_TEXT_ENCODER, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    ),
}


def networks(architecture: str) -> dict[str, nn.Module]:
    """Ours, on the CPU, in float32."""
    unet, text_encoder = SHAPES[architecture]
    with torch.device("meta"):
        parts = {"unet": UNet(unet), "text_encoder": TextEncoder(text_encoder)}
    for network in parts.values():
        network.to_empty(device="cpu").requires_grad_(False)
        for parameter in network.parameters():
            parameter.fill_(0.01)
    return parts


def write_lora(path: Path, parts: dict[str, nn.Module], rank: int) -> Path:
    """A LoRA of the attention layers of all parts, not zero."""
    updates = {}
    for part, network in parts.items():
        lora = init_lora(network, rank, float(rank))
        for factor in lora.parameters():
            nn.init.normal_(factor, std=0.01)
        updates.update(lora.adapter(part).parts)
    return save_lora(path, Adapter(updates, name=path.stem), parts, dtype=torch.float16)


def contestants(parts: dict[str, nn.Module], files: Iterator[Path]) -> dict[str, Callable[[], object]]:
    """What is timed; each new file is one that the store has not seen."""
    store = LoraStore(parts)
    path = next(files)
    known = store.get(Lora(path))

    def attach() -> None:
        with ExitStack() as stack:
            for part, network in parts.items():
                stack.enter_context(attached(network, part, [[known]]))

    def merge() -> None:
        Merged(parts, [known]).undo()

    return {
        "a new file, read": lambda: store.get(Lora(next(files))),
        "the same file again": lambda: store.get(Lora(path)),
        "attached and taken off": attach,
        "merged and taken out": merge,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How long switching a LoRA takes.")
    parser.add_argument("--architecture", choices=SHAPES, default="sd15")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="Only that it runs: a tiny shape, two rounds.")
    given = parser.parse_args()
    architecture, rank, rounds = ("tiny", 2, 2) if given.smoke else (given.architecture, given.rank, given.rounds)
    print(f"LoRA of rank {rank} on {architecture}, {machine()}")
    parts = networks(architecture)
    before = [parameter.clone() for parameter in parts["unet"].parameters()]
    with tempfile.TemporaryDirectory() as folder:
        names = (Path(folder) / f"lora-{number}.safetensors" for number in itertools.count())
        files = iter([write_lora(next(names), parts, rank) for _ in range(rounds + 2)])
        print(report(alternate(contestants(parts, files), rounds)))
        size = (Path(folder) / "lora-0.safetensors").stat().st_size / 1e6
    same = all(torch.equal(a, b) for a, b in zip(before, parts["unet"].parameters(), strict=True))
    print(f"  files of {size:.1f} MB; weights afterwards {'unchanged, bit for bit' if same else 'CHANGED'}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
