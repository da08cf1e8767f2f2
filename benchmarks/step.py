"""One guided step of the U-Net, ours beside diffusers' and OpenVINO's, with the same random weights.

    python benchmarks/step.py [--architecture sd15] [--size 256] [--dtype bfloat16] [--yardstick] [--peers all]

A step is what sampling repeats: the prompt and the negative prompt through the U-Net as two rows, and guidance. All
run in one process, in turns, on the same weights in memory; how far each answer is from the first one's is printed
with the times. `--yardstick` puts diffusers in float32 first, so that bfloat16's speed and its error have one measure
for all. OpenVINO (`pip install openvino`) is called by hand on diffusers' U-Net. Needs diffusers (the extra `test`);
for sd15 with every peer about 14 GB of memory, with `--peers diffusers` about 5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, channels_last, compare, in_float32, networks, openvino
from torch import Tensor, nn

from darkroom.bench.networks import DTYPES, SCALE, SIGMA, UNETS, finished, guided_step, schedule, step_inputs
from darkroom.models.config import UNetConfig
from darkroom.models.unet import UNet


def steps(
    config: UNetConfig,
    size: int,
    device: str,
    dtype: torch.dtype,
    peers: tuple[str, ...] = ("diffusers",),
    yardstick: bool = False,
) -> dict[str, Callable[[], Tensor]]:
    """The contestants: each returns the guided denoised latent [1, C, h, w] float32 of the same noisy one."""
    ours, theirs = networks(config, device, dtype)
    assert isinstance(ours, UNet)
    x, texts = step_inputs(config, size, device, dtype)
    t = torch.tensor(schedule().sigma_to_t(SIGMA), device=device)

    def shown(dtype: torch.dtype) -> Tensor:
        return (torch.cat([x[None]] * 2) / (1 + SIGMA**2) ** 0.5).to(dtype)

    def guided(noise: Tensor) -> Tensor:
        positive, negative = noise.float().chunk(2)
        return finished(x[None] - SIGMA * (negative + SCALE * (positive - negative)))

    def diffusers_step(network: nn.Module, dtype: torch.dtype, form: Any = torch.contiguous_format) -> Any:
        def run() -> Tensor:
            with torch.inference_mode():
                seen = shown(dtype).contiguous(memory_format=form)
                return guided(network(seen, t, encoder_hidden_states=texts.to(dtype), return_dict=False)[0])

        return run

    found: dict[str, Callable[[], Tensor]] = {}
    if yardstick:
        found["diffusers float32"] = diffusers_step(in_float32(theirs), torch.float32)
    if "diffusers" in peers:
        found["diffusers"] = diffusers_step(theirs, dtype)
    if "diffusers-channels-last" in peers:
        found["diffusers channels-last"] = diffusers_step(channels_last(theirs), dtype, torch.channels_last)
    if "openvino" in peers:
        infer = openvino(_Plain(theirs), (shown(torch.float32), t.float(), texts), dtype)
        found["openvino by hand"] = lambda: guided(infer())
    found["darkroom"] = guided_step(config, size, device, dtype, ours)[0]
    return found


class _Plain(nn.Module):
    """diffusers' U-Net with tensors in and out, which is what can be traced."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, texts: Tensor) -> Tensor:
        answer: Tensor = self.unet(x, t, encoder_hidden_states=texts, return_dict=False)[0]
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="One guided step of the U-Net, ours beside its peers'.")
    given = arguments(parser, UNETS, rounds=7)
    contestants = steps(
        UNETS[given.architecture], given.size, given.device, DTYPES[given.dtype], given.peers, given.yardstick
    )
    compare("guided step", contestants, given)


if __name__ == "__main__":
    main()
