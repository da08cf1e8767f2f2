"""What a step costs outside the network: the engine's tick less the time inside the U-Net.

    python benchmarks/overhead.py [--rounds 5] [--step 2.35] [--smoke]

The embedded model draws one picture of 20 steps, at its own 128 px and at 512 px. What happens outside the network
(rows, conditions, guidance, sampler, checks) depends on the latent's size and not on the network's, so the second
figure is what a Stable Diffusion step of 512 px bears too, and is related to `--step`, the seconds of such a step (take
yours from benchmarks/step.py; 2.35 was measured with OpenVINO in bfloat16 on two cores). `deterministic` is what the
command line uses on a CPU; what that mode costs inside the network counts as the network's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import machine

import darkroom


def ticks(pipe: darkroom.Pipeline, size: int, deterministic: bool, steps: int) -> list[tuple[float, float]]:
    """(seconds of the tick, of which inside the U-Net) of each step of one picture, its decoding left out."""
    inside, began = 0.0, 0.0

    def enter(*_: object) -> None:
        nonlocal began
        began = time.perf_counter()

    def leave(*_: object) -> None:
        nonlocal inside
        inside += time.perf_counter() - began

    hooks = [pipe.unet.register_forward_pre_hook(enter), pipe.unet.register_forward_hook(leave)]
    try:
        engine = darkroom.Engine(pipe, deterministic=deterministic)
        prompt = "a large fox on a yellow background"
        request = darkroom.Request(prompt=prompt, width=size, height=size, steps=steps, seed=1)
        id = engine.add(request, output="latent")
        found = []
        while engine.jobs:
            last = engine.jobs[id].crossed == engine.jobs[id].steps - 1  # that tick ends with the decoding
            inside, start = 0.0, time.perf_counter()
            engine.step()
            if not last:
                found.append((time.perf_counter() - start, inside))
        return found
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step costs outside the network.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", type=float, default=2.35, help="seconds of a guided SD 1.5 step at 512 px")
    parser.add_argument("--smoke", action="store_true", help="one round of few steps")
    arguments = parser.parse_args()
    rounds, steps = (1, 4) if arguments.smoke else (arguments.rounds, 20)
    pipe = darkroom.load(dtype="float32")
    print(f"outside the network, float32, {torch.get_num_threads()} threads, {machine()}")
    cases = [(size, deterministic) for size in (128, 512) for deterministic in (False, True)]
    found: dict[tuple[int, bool], list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            told = ticks(pipe, *case, steps)
            found[case] += told if number else []
    for (size, deterministic), told in found.items():
        outside = sorted(whole - inside for whole, inside in told)
        middle, whole = statistics.median(outside), statistics.median(whole for whole, _ in told)
        mode = "deterministic" if deterministic else "plain"
        related = f"{middle / whole:.1%} of the embedded model's step of {whole * 1e3:.1f} ms"
        if size == 512:
            related = f"{middle / arguments.step:.2%} of an SD 1.5 step of {arguments.step:g} s"
        edge = len(outside) // 10
        span = f"{outside[edge] * 1e3:.2f} to {outside[-1 - edge] * 1e3:.2f}, middle 80%"
        print(f"  {size} px, {mode:13} {middle * 1e3:6.2f} ms a step ({span})   {related}")


if __name__ == "__main__":
    main()
