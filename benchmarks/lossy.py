"""What is faster and lossy: how much faster, and how lossy, on the embedded model and at SD 1.5's size.

    python benchmarks/lossy.py [--prompts 8] [--count 25] [--rounds 3] [--dtype float32] [--no-model] [--smoke]
    python benchmarks/lossy.py --no-model --architecture sd15 --size 512 --dtype bfloat16

The first table is of whole pictures by the embedded model: seconds of one (drawn in turns), its latent's squared error
against the same prompt and noise in 500 steps (mean over `--prompts` random scenes; beside it, what separates two
seeds), and the fraction of `--count` pictures a category, seen and held out, that are right in all they should show.
The second is of one guided step of a U-Net with random weights, whose pictures would mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from common import alternate, machine
from torch import Tensor

import darkroom
from darkroom.accelerate.int8 import to_int8
from darkroom.accelerate.merging import merging
from darkroom.arguments import grouped
from darkroom.evaluate.judge import SEED, scenes_of, score
from darkroom.models.config import UNetConfig
from darkroom.models.presets import SD15_UNET
from darkroom.models.unet import CachedFeatures, UNet
from darkroom.pipeline import Pipeline
from darkroom.toy.scenes import KINDS, Scene

REFERENCE = 500  # steps
# Name -> the options of `generate`; "quantize" is load's.
OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    'quantize="int8"': {"quantize": "int8"},
    "cache_interval=2": {"cache_interval": 2},
    "cache_interval=3": {"cache_interval": 3},
    "cache_interval=5": {"cache_interval": 5},
    "token_merging=0.25": {"token_merging": 0.25},
    "token_merging=0.5": {"token_merging": 0.5},
    "token_merging=0.75": {"token_merging": 0.75},
    "guidance_interval=(0.3, inf)": {"guidance_interval": (0.3, float("inf"))},
    "guidance_interval=(1, inf)": {"guidance_interval": (1.0, float("inf"))},
    "guidance_interval=(0.3, 5)": {"guidance_interval": (0.3, 5.0)},
    "steps=15": {"steps": 15},
    "steps=10": {"steps": 10},
    "steps=10, dpmpp_2m": {"steps": 10, "sampler": "dpmpp_2m"},
    "steps=10, dpmpp_2m, karras": {"steps": 10, "sampler": "dpmpp_2m", "schedule": "karras"},
    "steps=10, dpmpp_2m, ays": {"steps": 10, "sampler": "dpmpp_2m", "schedule": "align_your_steps"},
    "steps=10, uni_pc": {"steps": 10, "sampler": "uni_pc"},
    "steps=8, dpmpp_2m": {"steps": 8, "sampler": "dpmpp_2m"},
    "steps=8, uni_pc": {"steps": 8, "sampler": "uni_pc"},
    "steps=5, dpmpp_2m": {"steps": 5, "sampler": "dpmpp_2m"},
    "steps=5, uni_pc": {"steps": 5, "sampler": "uni_pc"},
    "steps=10, interval above 0.3": {"steps": 10, "guidance_interval": (0.3, float("inf"))},
}
SMOKE = ("as it comes", 'quantize="int8"', "cache_interval=2", "token_merging=0.5", "steps=5, uni_pc")


def latents(pipe: Pipeline, scenes: list[Scene], **options: Any) -> Tensor:
    """The scenes' pictures as latents [N, C, h, w], in single precision."""
    answer = pipe.generate([s.caption for s in scenes], seed=7, output="latent", **grouped(options)).images
    assert isinstance(answer, Tensor)
    return answer


def right(pipe: Pipeline, count: int, **options: Any) -> tuple[int, int]:
    """How many pictures are right in all they should show, and how many were drawn."""
    good = total = 0
    for kind in KINDS:
        for held_out in (False, True):
            scenes = scenes_of(kind, held_out, count)
            captions = [s.caption for s in scenes]
            drawn = pipe.generate(captions, seed=SEED, deterministic=False, **grouped(options)).images
            good += round(score([np.asarray(picture) for picture in drawn], scenes).right * count)
            total += count
    return good, total


def pictures(names: list[str], prompts: int, count: int, rounds: int, dtype: str, reference: int) -> None:
    """Print the table of the embedded model."""
    pipes = {quantize: darkroom.load(dtype=dtype, quantize=quantize) for quantize in (None, "int8")}

    def of(name: str) -> tuple[Pipeline, dict[str, Any]]:
        options = dict(OPTIONS[name])
        return pipes[options.pop("quantize", None)], options

    scenes = [scenes_of(KINDS[i % len(KINDS)], False, i + 1)[i] for i in range(prompts)]
    exact = latents(pipes[None], scenes, steps=reference)
    between = float((exact - exact.roll(1, 0)).square().mean()) if prompts > 1 else float("nan")

    def draw(name: str) -> Callable[[], object]:
        pipe, options = of(name)
        return lambda: latents(pipe, scenes[:1], **options)

    seconds = alternate({name: draw(name) for name in names}, rounds)
    first = statistics.median(seconds[names[0]])
    print(f"the embedded model, {dtype}, {machine()}, {torch.get_num_threads()} threads")
    print(f"two of the pictures are {between:.3f} apart (mean squared difference of latents)")
    print(f"{'':32} {'s a picture (least to most)':28} {'speed':>6} {'latent MSE':>11}  right")
    for name in names:
        pipe, options = of(name)
        error = float((latents(pipe, scenes, **options) - exact).square().mean())
        good, total = right(pipe, count, **options)
        times = seconds[name]
        median = statistics.median(times)
        span = f"{median:.3f} ({min(times):.3f} to {max(times):.3f})"
        print(f"{name:32} {span:28} {first / median:5.2f}x {error:11.5f}  {good}/{total}", flush=True)


def steps(config: UNetConfig, size: int, dtype: torch.dtype, rounds: int, threads: int) -> None:
    """Print the table of one guided step (two rows) of a U-Net with random weights."""
    torch.manual_seed(0)
    unet = UNet(config).to(dtype).eval().requires_grad_(False)
    side = size // 8
    x = torch.randn(2, config.in_channels, side, side)
    t, text = torch.tensor([500.0]), torch.randn(2, 77, config.cross_attention_dim)

    def step(cached: CachedFeatures | None = None, ratio: float = 0.0) -> Tensor:
        with merging(unet, ratio, (side, side)):
            answer: Tensor = unet(x, t, text, cached=cached)
        return answer

    def median(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        return {name: statistics.median(times) for name, times in alternate(contestants, rounds).items()}

    with torch.inference_mode():
        kept = CachedFeatures()
        step(kept)
        found = median(
            {
                "as it comes": step,
                "a step that reuses deep features": lambda: step(kept),
                **{f"token_merging={ratio}": (lambda ratio=ratio: step(ratio=ratio)) for ratio in (0.25, 0.5, 0.75)},
            }
        )
        plain, short = found["as it comes"], found.pop("a step that reuses deep features")
        for n in (2, 3, 5):
            found[f"cache_interval={n}"] = (plain + (n - 1) * short) / n
        to_int8(unet)
        found['quantize="int8"'] = median({"": step})[""]
    print(f"\none guided step, {size} px, {dtype}, random weights, {machine()}, {threads} threads")
    for name, value in found.items():
        print(f"{name:32} {value * 1000:10.1f} ms  {plain / value:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="of the latents' error")
    parser.add_argument("--count", type=int, default=25, help="pictures a category, seen and held out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--architecture", choices=["none", "sd15", "tiny"], default="none", help="of the second table")
    parser.add_argument("--size", type=int, default=512, help="in pixels, of the second table")
    parser.add_argument("--no-model", action="store_true", help="leave out the first table")
    parser.add_argument("--only", help="options of the first table that have this in their name")
    parser.add_argument("--smoke", action="store_true", help="in seconds: that it runs, not what it says")
    arguments = parser.parse_args()
    names = [name for name in OPTIONS if arguments.only is None or arguments.only in name or name == "as it comes"]
    if arguments.smoke:
        pictures(list(SMOKE), prompts=2, count=1, rounds=1, dtype="float32", reference=30)
        arguments.architecture, arguments.size, arguments.rounds = "tiny", 64, 1
    elif not arguments.no_model:
        pictures(names, arguments.prompts, arguments.count, arguments.rounds, arguments.dtype, REFERENCE)
    if arguments.architecture != "none":
        config = SD15_UNET if arguments.architecture == "sd15" else darkroom.load().unet.config
        dtype = getattr(torch, arguments.dtype)
        steps(config, arguments.size, dtype, arguments.rounds, torch.get_num_threads())


if __name__ == "__main__":
    main()
