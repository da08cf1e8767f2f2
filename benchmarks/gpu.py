"""Guidance steps a second on a GPU: Stable Diffusion 1.5, random weights, ours in four ways beside diffusers compiled.

    python benchmarks/gpu.py [--size 512] [--batches 1,16] [--rounds 20] [--mode max-autotune-no-cudagraphs] [--smoke]

A step of a batch of n is 2 n rows through the U-Net, and guidance. All contestants run in turns in one process, on the
same weights. `plain` is uncompiled, `compiled` by blocks, `graphs` compiled and recorded as CUDA graphs, `fp8` that
with 8-bit linear layers; diffusers' U-Net is compiled whole, with torch's own CUDA graphs (mode "reduce-overhead"). The
share is of what a large product of this GPU in bfloat16 reaches; a first call's time is that of compiling. Needs CUDA
and diffusers (the extra `test`); `--smoke` runs a tiny network, on a CPU without compiling: it shows that the script
runs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from common import networks
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darkroom.accelerate.compiled import compile_blocks
from darkroom.accelerate.fp8 import fp8_problem, to_fp8
from darkroom.accelerate.graphs import record_calls
from darkroom.bench.networks import SIGMA, UNETS, finished, schedule
from darkroom.bench.table import alternate, machine, report
from darkroom.diffusion.condition import Condition
from darkroom.diffusion.denoiser import Denoiser
from darkroom.models.config import UNetConfig
from darkroom.models.unet import UNet

SCALE = 7.5
DTYPE = torch.bfloat16
Step = Callable[[], Tensor]


def ceiling(side: int = 8192, rounds: int = 20) -> float:
    """Operations a second of a product of two square matrices in bfloat16."""
    a, b = (torch.randn(side, side, device="cuda", dtype=DTYPE) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / 10)
    return 2 * side**3 / statistics.median(seconds)


def question(config: UNetConfig, size: int, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Latents at noise level SIGMA [n, C, h, w] float32; texts [2 n, T, D], prompts' and then negative ones'."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, size // 8, size // 8, generator=random) * (1 + SIGMA**2) ** 0.5
    texts = torch.randn(2 * batch, 77, config.cross_attention_dim, generator=random)
    return x.to(device), texts.to(device, DTYPE)


def ours(unet: UNet, x: Tensor, texts: Tensor) -> Step:
    denoiser, rows = Denoiser(unet, schedule()), [Condition(text) for text in texts]

    @torch.no_grad()
    def step() -> Tensor:
        positive, negative = denoiser(torch.cat([x, x]), SIGMA, rows).chunk(2)
        return finished(negative + SCALE * (positive - negative))

    return step


def theirs(unet: Callable[..., tuple[Tensor, ...]], x: Tensor, texts: Tensor) -> Step:
    t = torch.tensor(schedule().sigma_to_t(SIGMA), device=x.device)

    @torch.no_grad()
    def step() -> Tensor:
        shown = (torch.cat([x, x]) / (1 + SIGMA**2) ** 0.5).to(DTYPE)
        positive, negative = unet(shown, t, encoder_hidden_states=texts, return_dict=False)[0].float().chunk(2)
        return finished(x - SIGMA * (negative + SCALE * (positive - negative)))

    return step


def contestants(config: UNetConfig, mode: str | None, cuda: bool) -> dict[str, nn.Module]:
    """The networks, all with the same weights; without CUDA only what needs none of it."""
    plain, peer = networks(config, "cuda" if cuda else "cpu", DTYPE)
    assert isinstance(plain, UNet)
    found: dict[str, nn.Module] = {"diffusers": peer}
    if cuda:
        fast = copy.deepcopy(peer).to(memory_format=torch.channels_last)
        fast.compile(mode="reduce-overhead" if mode is None else "max-autotune")
        found["diffusers compiled"] = fast
    found["darkroom plain"] = plain
    ways = ["compiled", "graphs", *(["fp8"] if fp8_problem(torch.device("cuda")) is None else [])] if cuda else []
    for way in ways:
        unet = copy.deepcopy(plain)
        if way == "fp8":
            to_fp8(unet)
        compile_blocks(unet, mode)
        if way != "compiled":
            record_calls(unet)
        found[f"darkroom {way}"] = unet
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Guidance steps a second on a GPU, ours beside diffusers'.")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--batches", default="1,16", help="pictures of a step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--mode", help="torch.compile's, for ours (default: its own)")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, and a CPU will do")
    given = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not given.smoke:
        sys.exit("this measures a CUDA GPU, and torch finds none here; --smoke shows that the script runs")
    size, rounds = (64, 2) if given.smoke else (given.size, given.rounds)
    config = UNETS["tiny" if given.smoke else "sd15"]
    top = ceiling() if cuda else 0.0
    print(f"{torch.cuda.get_device_name() if cuda else machine()}, torch {torch.__version__}")
    print(f"a large product in bfloat16: {top / 1e12:.0f} TFLOP/s" if cuda else "no GPU: its ceiling is not measured")
    named = contestants(config, given.mode, cuda)
    if cuda and "darkroom fp8" not in named:
        print(f"no fp8: {fp8_problem(torch.device('cuda'))}")
    for batch in (int(n) for n in given.batches.split(",")):
        x, texts = question(config, size, batch, "cuda" if cuda else "cpu")
        steps = {
            name: (ours if isinstance(network, UNet) else theirs)(network, x, texts)  # type: ignore[operator]
            for name, network in named.items()
        }
        with FlopCounterMode(display=False) as counter:
            first = steps["diffusers"]()
        work = counter.get_total_flops()
        print(f"\n{batch} pictures of {size} px a step, {work / 1e9:.4g} GFLOP; first calls and what they differ by:")
        for name, step in steps.items():
            began = time.perf_counter()
            answer = step()
            apart = float((answer - first).norm() / first.norm())
            print(f"  {name:28} {time.perf_counter() - began:8.1f} s   {apart:.1e}")
        seconds = alternate(steps, rounds, warm_up=3)
        print(report(seconds, "ms"))
        for name, values in seconds.items():
            median = statistics.median(values)
            share = f", {work / median / top:.0%} of the ceiling" if cuda else ""
            print(f"  {name:28} {1 / median:8.1f} steps/s, {batch / median:.1f} guided rows/s{share}")


if __name__ == "__main__":
    main()
