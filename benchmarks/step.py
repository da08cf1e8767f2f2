"""One guided step of the U-Net, ours beside diffusers', with the same random weights.

    python benchmarks/step.py [--architecture sd15] [--size 256] [--dtype float32] [--rounds 7]

A step is what sampling repeats: the prompt and the negative prompt through the U-Net as two rows, and guidance. Both
sides run in one process, in turns, on shared weights; the difference of their answers is printed with the times. Needs
diffusers (the extra `test`), and for sd15 about 5 GB of memory in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import alternate, machine, report
from torch import Tensor, nn

from darkroom.diffusion.condition import Condition
from darkroom.diffusion.denoiser import Denoiser
from darkroom.diffusion.guidance import ClassifierFree
from darkroom.diffusion.schedule import Schedule
from darkroom.formats.layouts import table
from darkroom.models.config import SD2_UNET, SD15_UNET, UNetConfig
from darkroom.models.unet import UNet

EMBEDDED_UNET = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 128, 192),
    layers_per_block=(1, 1, 1),
    attention_levels=(False, True, True),
    only_cross_attention=(False, False, False),
    transformer_layers=(1, 1, 1),
    heads=(4, 4, 4),
    cross_attention_dim=192,
    norm_num_groups=16,
)
ARCHITECTURES = {
    "sd15": SD15_UNET,
    "sd2": SD2_UNET,
    "embedded": EMBEDDED_UNET,
    "tiny": replace(EMBEDDED_UNET, block_out_channels=(16, 32, 48), cross_attention_dim=32),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE = 7.5
SIGMA = 1.6  # about timestep 475 of Stable Diffusion's schedule


def networks(config: UNetConfig, device: str, dtype: torch.dtype) -> tuple[UNet, nn.Module]:
    """Our U-Net with random weights, and diffusers' on the same tensors."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    ours = UNet(config).to(device=device, dtype=dtype).eval().requires_grad_(False)
    state = ours.state_dict()
    places = table("unet", "diffusers", {name: tuple(t.shape) for name, t in state.items()}, config)
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(config.to_diffusers())
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    shared = {place.name: state[name].view(shapes[place.name]) for name, place in places.items()}
    theirs.load_state_dict(shared, strict=True, assign=True)
    return ours, theirs.eval().requires_grad_(False)


def steps(config: UNetConfig, size: int, device: str, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The two contestants: each returns the guided denoised latent [1, C, h, w] float32 of the same noisy one."""
    ours, theirs = networks(config, device, dtype)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(config.in_channels, size // 8, size // 8, generator=random) * (1 + SIGMA**2) ** 0.5
    texts = torch.randn(2, 77, config.cross_attention_dim, generator=random)
    x, texts = x.to(device), texts.to(device=device, dtype=dtype)
    schedule = Schedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    denoiser = Denoiser(ours, schedule)
    guidance = ClassifierFree(Condition(texts[0]), Condition(texts[1]), scale=SCALE)
    t = torch.tensor(schedule.sigma_to_t(SIGMA), device=device)

    @torch.inference_mode()
    def darkroom_step() -> Tensor:
        rows = guidance.branches(SIGMA)
        answers = denoiser(torch.stack([x] * len(rows)), SIGMA, rows)
        return _finished(guidance.combine(list(answers), x, SIGMA)[None])

    @torch.inference_mode()
    def diffusers_step() -> Tensor:
        shown = (torch.cat([x[None]] * 2) / (1 + SIGMA**2) ** 0.5).to(dtype)
        noise = theirs(shown, t, encoder_hidden_states=texts, return_dict=False)[0].float()
        positive, negative = noise.chunk(2)
        return _finished(x[None] - SIGMA * (negative + SCALE * (positive - negative)))

    return {"diffusers": diffusers_step, "darkroom": darkroom_step}


def _finished(answer: Tensor) -> Tensor:
    if answer.is_cuda:
        torch.cuda.synchronize()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="One guided step of the U-Net, ours beside diffusers'.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="sd15")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    contestants = steps(
        ARCHITECTURES[arguments.architecture], arguments.size, arguments.device, DTYPES[arguments.dtype]
    )
    a, b = (contestant() for contestant in contestants.values())
    apart = float((a - b).norm() / a.norm())
    place = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else machine()
    seconds = alternate(contestants, arguments.rounds)
    if arguments.json:
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        answer: dict[str, Any] = {**vars(arguments), "machine": place, "seconds": medians, "relative_difference": apart}
        print(json.dumps(answer, indent=2))
        return
    print(f"guided step, {arguments.architecture}, {arguments.size} px, {arguments.dtype}, {place}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; the answers differ by {apart:.1e} (relative)")
    print(report(seconds, "ms"))


if __name__ == "__main__":
    main()
