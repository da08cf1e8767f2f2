"""The memory of a training run, estimated and measured, with random weights of Stable Diffusion 1.5's size.

    python benchmarks/memory.py [--training lora] [--size 512] [--set checkpointing=true] [--set optimizer=adamw8bit]

The measured figure is this process's largest resident size (ru_maxrss), or what CUDA's allocator held at most. Only the
networks that learn, or that gradients go through, are there: latents and texts are random, as if cached. Full training
in float32 takes about 20 GB.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine
from torch import Tensor, nn

from darkroom.adapters import init_lora
from darkroom.models.config import UNetConfig
from darkroom.models.layers import set_checkpointing
from darkroom.models.presets import SD15_UNET
from darkroom.models.unet import UNet
from darkroom.training import memory
from darkroom.training.loop import Trainer
from darkroom.training.parallel import Rank
from darkroom.training.recipe import LoopConfig, override
from darkroom.training.stage import Stage

TINY = UNetConfig(
    sample_size=16, block_out_channels=(32, 64), layers_per_block=(1, 1), attention_levels=(True, True),
    only_cross_attention=(False, False), transformer_layers=(1, 1), heads=(4, 4), cross_attention_dim=768,
    norm_num_groups=16,
)  # fmt: skip


class Step(Stage):
    """A U-Net's training step, or a LoRA's, on random latents."""

    def __init__(self, config: LoopConfig, unet: UNet, training: str, size: int) -> None:
        self.config, self.unet, self.size = config, unet, size
        set_checkpointing(unet, config.checkpointing)
        self.modules: dict[str, nn.Module] = {"unet": unet}
        if training == "lora":
            unet.requires_grad_(False)
            lora = init_lora(unet, 4, 4.0, "attention")
            lora.attach(unet)
            self.modules = {"lora": lora}

    def batch(self, step: int, rank: Rank) -> tuple[Tensor, Tensor, Tensor]:
        n = self.config.batch_size // rank.world_size
        side = self.size // 8
        return torch.ones(n, 4, side, side), torch.full((n,), 500.0), torch.ones(n, 77, 768)

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        x, t, text = (y.to(self.config.device) for y in batch)
        return self.unet(x, t, text).float().square().mean(), {}


def random_unet(config: UNetConfig, device: str) -> UNet:
    """A U-Net of small weights; what they are changes no memory, and drawing them takes longer than a step."""
    with torch.device("meta"):
        unet = UNet(config)
    unet.to_empty(device=device)
    with torch.no_grad():
        for p in unet.parameters():
            p.fill_(0.001)
    return unet


def main() -> None:
    parser = argparse.ArgumentParser(description="The memory of a training run, estimated and measured.")
    parser.add_argument("--training", choices=("lora", "full"), default="lora")
    parser.add_argument("--architecture", choices=("sd15", "tiny"), default="sd15")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the loop")
    parser.add_argument("--estimate", action="store_true", help="estimate only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start = LoopConfig(steps=arguments.steps, batch_size=1, lr=1e-5, optimizer="adamw", ema=0.0, warmup=0)
    config = override(start, arguments.set)
    architecture = SD15_UNET if arguments.architecture == "sd15" else TINY
    with memory.Sketch().inside():
        step = Step(config, UNet(architecture), arguments.training, arguments.size)
        batch = step.batch(0, Rank(0, config.accumulate))
        estimate = memory.estimate(config, step.modules, [step.unet], lambda: step.loss(batch, 0, Rank())[0])
    answer: dict[str, Any] = {**vars(arguments), "estimate": estimate.total, "parts": str(estimate)}
    if not arguments.estimate:
        before = time.monotonic()
        unet = random_unet(architecture, config.device)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(Step(config, unet, arguments.training, arguments.size), Path(folder))
            for number in range(arguments.steps):  # steps alone: a checkpoint of full training is 10 GB
                trainer._advance([trainer.stage.batch(number, trainer.parts[0])], lambda: False, False)
        answer |= {"measured": peak(config.device), "seconds": round(time.monotonic() - before, 1)}
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    told = f"{arguments.training} of {arguments.architecture}, {arguments.size} px"
    print(", ".join([told, *arguments.set, machine()]))
    print(f"estimated {estimate}")
    if "measured" in answer:
        print(f"measured  {memory.gigabytes(answer['measured'])} GB at most ({answer['seconds']} s)")


def peak(device: str) -> int:
    """The most bytes that this process held."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
