"""Pictures a second: one wide batch, and 64 jobs of mixed samplers and steps against the rows of a call.

    python benchmarks/throughput.py [--device cuda] [--dtype bfloat16] [--compile] [--batch 1024] [--rows 2,8,32]

The embedded model, or `--model`. One batch: so many guided pictures of 20 Euler steps move through the U-Net together,
latents only; decoding is timed beside it. The curve: 64 requests with four samplers and 8 to 20 steps go through an
`Engine` of so many rows a call, from adding them to the last finished latent.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import torch
from torch import Tensor

import darkroom
from darkroom.bench.table import machine
from darkroom.diffusion.condition import Condition
from darkroom.engine import Engine, Failed, Finished
from darkroom.pipeline import Pipeline
from darkroom.request import Request

STEPS = 20
SCALE = 3.0
SAMPLERS = ("euler", "dpmpp_2m", "ddim", "heun")
THINGS = ("fox", "owl", "rocket", "car", "tree", "cat")


def one_batch(pipe: Pipeline, pictures: int) -> tuple[float, float]:
    """Seconds to draw the latents of so many pictures together, and to decode them."""
    side, channels = pipe.unet.config.sample_size, pipe.autoencoder.config.latent_channels
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures, channels, side, side, generator=generator).to(pipe.device)
    conditions = [Condition(pipe.encode_prompt(text)[0].to(pipe.device)) for text in ("a fox on a red background", "")]
    rows = [condition for condition in conditions for _ in range(pictures)]
    top = pipe.schedule.t_to_sigma(999.0)
    levels = [float(top * (1 - i / STEPS) ** 7 + 0.02) for i in range(STEPS)] + [0.0]  # any that fall: time is measured

    @torch.no_grad()
    def draw() -> Tensor:
        x = noise * levels[0]
        for now, then in pairwise(levels):
            positive, negative = pipe.denoiser(torch.cat([x, x]), now, rows).chunk(2)
            denoised = negative + SCALE * (positive - negative)
            x = denoised + (x - denoised) * (then / now)
        return _finished(x)

    @torch.no_grad()
    def decode(x: Tensor) -> Tensor:
        scaled = pipe.autoencoder.unscale(x).to(next(pipe.autoencoder.parameters()).dtype)
        return _finished(torch.cat([pipe.autoencoder.decode(part) for part in scaled.split(64)]))

    x = draw()  # warms up: code is compiled, graphs are recorded
    decode(x)
    began = time.perf_counter()
    x = draw()
    drawn = time.perf_counter()
    decode(x)
    return drawn - began, time.perf_counter() - drawn


def curve(pipe: Pipeline, jobs: int, rows: int, least: int, most: int) -> float:
    """Pictures a second of an engine of so many rows."""
    engine = Engine(pipe, max_rows=rows, deterministic=False)
    began, finished = time.perf_counter(), 0
    for number in range(jobs):
        engine.add(
            Request(
                prompt=f"a {THINGS[number % len(THINGS)]} on a red background",
                sampler=SAMPLERS[number % len(SAMPLERS)],
                steps=least + number * (most - least) // max(jobs - 1, 1),
                guidance_scale=SCALE,
                seed=number,
                width=pipe.size[0],
                height=pipe.size[1],
            ),
            output="latent",
        )
    while engine.jobs:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            finished += isinstance(event, Finished)
    return finished / (time.perf_counter() - began)


def _finished(x: Tensor) -> Tensor:
    if x.is_cuda:
        torch.cuda.synchronize()
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures a second: one wide batch, and mixed jobs against rows.")
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, help="pictures of the wide batch (default: 1024, on a CPU 16)")
    parser.add_argument("--rows", help="rows of a call, such as 2,8,32 (default: 2 to 128, on a CPU to 16)")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="few pictures and steps")
    given = parser.parse_args()
    pipe = darkroom.load(given.model, device=given.device, dtype=given.dtype, compile=given.compile)
    cpu = pipe.device.type == "cpu"
    batch = 2 if given.smoke else given.batch or (16 if cpu else 1024)
    jobs, least, most = (4, 2, 3) if given.smoke else (given.jobs, 8, 20)
    text = given.rows or ("2,4" if given.smoke else "2,4,8,16" if cpu else "2,4,8,16,32,64,128")
    place = machine() if cpu else torch.cuda.get_device_name() if pipe.device.type == "cuda" else str(pipe.device)
    print(f"{pipe}, {place}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    drawing, decoding = one_batch(pipe, batch)
    print(f"one batch of {batch} guided pictures, {STEPS} steps: {batch / drawing:.1f} latents a second")
    print(
        f"  decoding them: {batch / decoding:.1f} a second; both: {batch / (drawing + decoding):.1f} pictures a second"
    )
    print(f"{jobs} jobs, {', '.join(SAMPLERS)}, {least} to {most} steps, latents a second by rows of a call:")
    for rows in (int(number) for number in text.split(",")):
        if given.compile or not cpu:
            curve(pipe, jobs, rows, least, most)  # warms up: each number of rows is recorded once
        print(f"  {rows:4} rows: {curve(pipe, jobs, rows, least, most):8.2f}", flush=True)


if __name__ == "__main__":
    main()
