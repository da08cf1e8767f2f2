"""One step of training a U-Net, or a LoRA of it, ours beside that of diffusers' own script.

    python benchmarks/train_step.py [--architecture embedded] [--size 128] [--batch 16] [--precision bfloat16] [--lora]

diffusers' side is the step of its examples/text_to_image/train_text_to_image.py, written out: UNet2DConditionModel,
DDPMScheduler.add_noise, F.mse_loss, the loss read for the log, clipping, torch.optim.AdamW, EMAModel; autocast stands
where accelerate puts it. Ours is what `darkroom train` does in a step (training/loop.py, training/objective.py). With
`--lora` it is the step of train_text_to_image_lora.py: PEFT's rank 4 on the attention's layers of a network whose
frozen weights that script casts to bfloat16, without an average. Both have their latents and texts in memory, start
from the same weights and run in one process, in turns. Needs diffusers, and PEFT for `--lora`
(the extra `test`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import alternate, machine, networks, report
from torch import Tensor, nn

from darkroom.adapters import init_lora
from darkroom.bench.networks import UNETS
from darkroom.diffusion.condition import Batch
from darkroom.diffusion.denoiser import Denoiser
from darkroom.diffusion.schedule import Schedule
from darkroom.models.config import UNetConfig
from darkroom.training.loop import Trainer
from darkroom.training.objective import DenoisingRecipe, denoising_loss
from darkroom.training.parallel import Rank
from darkroom.training.stage import Stage

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LR, DECAY, WEIGHT_DECAY, CLIP = 1e-5, 0.9999, 1e-2, 1.0
RANK = 4


class Step(Stage):
    """The loop's stage: a U-Net on latents and texts that are there already."""

    def __init__(self, config: DenoisingRecipe, unet: nn.Module, latents: Tensor, texts: Tensor, lora: bool) -> None:
        self.config, self.latents, self.texts = config, latents, texts
        self.modules: dict[str, nn.Module] = {"unet": unet.train().requires_grad_(not lora)}
        if lora:
            self.modules = {"lora": (learns := init_lora(unet, RANK, RANK, "attention"))}
            learns.attach(unet)
        self.unet = unet
        self.denoiser = Denoiser(unet, Schedule.from_config(BETAS))

    @property
    def compiled(self) -> list[nn.Module]:
        return [self.unet]  # what gradients go through

    def batch(self, step: int, rank: Rank) -> Any:
        return rank.of(self.latents), rank.of(self.texts)

    def loss(self, batch: Any, step: int, rank: Rank) -> tuple[Tensor, dict[str, Tensor]]:
        latents, texts = batch
        return denoising_loss(self.denoiser, latents, Batch(texts), rank, self.config)


def darkroom_step(
    unet: nn.Module, latents: Tensor, texts: Tensor, precision: str, lora: bool, folder: Path
) -> Callable[[], None]:
    config = DenoisingRecipe(
        steps=10**6, batch_size=len(latents), lr=LR, optimizer="adamw", weight_decay=WEIGHT_DECAY, clip=CLIP, ema=DECAY,
        precision=precision, warmup=0, device=str(latents.device),
    )  # fmt: skip
    trainer = Trainer(Step(config, unet, latents, texts, lora), folder)

    def step() -> None:
        trainer._advance([trainer.stage.batch(trainer.step, trainer.parts[0])], lambda: False, False)
        _wait(latents)

    return step


def diffusers_step(unet: Any, latents: Tensor, texts: Tensor, precision: str, lora: bool) -> Callable[[], None]:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    unet.train().requires_grad_(not lora)
    if lora:
        from peft import LoraConfig

        dtype = getattr(torch, precision)
        unet.to(dtype)
        latents, texts = latents.to(dtype), texts.to(dtype)
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=layers))
    learning = [p for p in unet.parameters() if p.requires_grad]
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, **BETAS)
    optimizer = torch.optim.AdamW(learning, lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    average = None if lora else EMAModel(learning, decay=DECAY, model_cls=type(unet), model_config=unet.config)
    if average is not None:
        average.to(latents.device)
    logged: list[float] = []

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(latents.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def step() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        with autocast():
            answer = unet(noisy, timesteps, texts, return_dict=False)[0]
        loss = F.mse_loss(answer.float(), noise.float(), reduction="mean")
        logged.append(loss.repeat(len(latents)).mean().item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if average is not None:
            average.step(learning)
        _wait(latents)

    return step


def contestants(
    config: UNetConfig, size: int, batch: int, precision: str, lora: bool, device: str, folder: Path
) -> dict[str, Callable[[], None]]:
    """The two steps, on networks of the same weights."""
    ours, shared = networks(config, device, torch.float32)
    theirs = deepcopy(shared)  # until now on the very tensors of ours
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, config.in_channels, size // 8, size // 8, generator=random).to(device)
    texts = torch.randn(batch, 77, config.cross_attention_dim, generator=random).to(device)
    return {
        "diffusers": diffusers_step(theirs, latents, texts, precision, lora),
        "darkroom": darkroom_step(ours, latents, texts, precision, lora, folder),
    }


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description="One step of training a U-Net, ours beside diffusers' script's.")
    parser.add_argument("--architecture", choices=UNETS, default="embedded")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--lora", action="store_true", help="of a LoRA instead of the whole network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = UNETS[arguments.architecture]
    with tempfile.TemporaryDirectory() as folder:
        steps = contestants(
            config,
            arguments.size,
            arguments.batch,
            arguments.precision,
            arguments.lora,
            arguments.device,
            Path(folder),
        )
        seconds = alternate(steps, arguments.rounds, warm_up=2)
    place = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else machine()
    speed = {name: arguments.batch / statistics.median(values) for name, values in seconds.items()}
    if arguments.json:
        print(json.dumps({**vars(arguments), "machine": place, "samples_per_second": speed}, indent=2))
        return
    print(
        f"training step{' of a LoRA' if arguments.lora else ''}, {arguments.architecture}, "
        f"{arguments.batch} pictures of {arguments.size} px, {arguments.precision}, {place}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(report(seconds, "ms"))
    told = ", ".join(f"{name} {value:.1f}" for name, value in speed.items())
    print(f"samples a second: {told}; ours / theirs {speed['darkroom'] / speed['diffusers']:.2f}")


if __name__ == "__main__":
    main()
