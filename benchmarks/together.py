"""Mixed jobs together, byte-exact, against one at a time: pictures a second, mean latency, and the bytes compared.

    python benchmarks/together.py [--jobs 32] [--rows 8,32] [--threads N] [--smoke]

The embedded model, 8 to 20 steps, four samplers, guidance 1 and 3, two sizes. One at a time plain, one at a time exact,
and together and exact by rows of a tick, in turns. CPU seconds are told beside wall seconds: on a machine that isn't
quiet only they mean something. At the end the curve of a call's seconds by its rows, which `benchmarks/simulate.py`
takes, and what that makes of the same jobs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import machine
from simulate import Job, Machine, by_arrival, simulate
from torch import Tensor

import darkroom
from darkroom.kernels.exact import SameBits

SAMPLERS = ("euler", "dpmpp_2m", "euler_ancestral", "uni_pc")
Told = tuple[list[Tensor], float, float, float]


def wanted(count: int, least: int, most: int) -> list[darkroom.Request]:
    return [
        darkroom.Request(
            prompt=f"a large {('fox', 'car', 'rocket', 'tree')[i % 4]} on a blue background",
            seed=i,
            steps=least + i * (most - least) // max(count - 1, 1),
            sampler=SAMPLERS[i % 4],
            guidance_scale=3.0 if i % 3 else 1.0,
            **({"width": 96, "height": 96} if i % 5 == 4 else {}),
        )
        for i in range(count)
    ]


def draw(pipe: darkroom.Pipeline, requests: list[darkroom.Request], exact: bool, rows: int | None) -> Told:
    """(pictures, wall seconds, CPU seconds, mean seconds to a picture); rows None: one job after another."""
    engine = darkroom.Engine(pipe, deterministic=exact, max_rows=rows)
    found: dict[str, Tensor] = {}
    ended: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for several in [requests] if rows else [[request] for request in requests]:
        ids = [engine.add(request, id=str(request.seed), output="pt") for request in several]
        for event in engine.run():
            if isinstance(event, darkroom.Failed):
                raise event.error
            if isinstance(event, darkroom.Finished):
                assert isinstance(event.result, Tensor)
                found[event.id] = event.result
                ended.append(time.perf_counter() - wall)
        assert found.keys() >= set(ids)
    took = time.perf_counter() - wall, time.process_time() - cpu
    return [found[str(request.seed)] for request in requests], *took, statistics.fmean(ended)


@torch.no_grad()
def curve(pipe: darkroom.Pipeline, rows: list[int]) -> Machine:
    """CPU seconds of a call by its rows, and of a decode."""
    side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    found = []
    with SameBits():
        for n in rows:
            given = torch.randn(n, 4, side, side), torch.full((n,), 500.0), torch.randn(n, 77, width)
            seconds = []
            for _ in range(3):
                began = time.process_time()
                pipe.unet(*given)
                seconds.append(time.process_time() - began)
            found.append((n, min(seconds)))
        began = time.process_time()
        pipe.decode(torch.randn(4, side, side))
    return Machine(found, time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mixed jobs together against one at a time.")
    parser.add_argument("--jobs", type=int, default=32)
    parser.add_argument("--rows", default="8,32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--smoke", action="store_true", help="few jobs of few steps")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    requests = wanted(4, 2, 3) if given.smoke else wanted(given.jobs, 8, 20)
    pipe = darkroom.load(dtype="float32")
    draw(pipe, requests[:2], True, 4)  # warms up
    print(f"{len(requests)} jobs, {torch.get_num_threads()} threads, {machine()}")
    _, wall, cpu, _ = draw(pipe, requests, False, None)
    exact, *took, latency = draw(pipe, requests, True, None)
    print(f"one at a time, plain: {wall:.1f} s, CPU {cpu:.1f} s; exact: {took[0]:.1f} s, CPU {took[1]:.1f} s")
    for rows in map(int, given.rows.split(",")):
        found, *now, mean = draw(pipe, requests, True, rows)
        same = sum(torch.equal(a, b) for a, b in zip(exact, found, strict=True))
        print(
            f"together, exact, {rows} rows: {now[0]:.1f} s, CPU {now[1]:.1f} s: {cpu / now[1]:.2f} times plain, "
            f"{took[1] / now[1]:.2f} times exact; mean latency {mean / latency:.2f} of one at a time; "
            f"{same} of {len(found)} pictures have the same bytes"
        )
    measured = curve(pipe, [1, 2, 4] if given.smoke else [1, 2, 4, 8, 16, 32])
    print("a call's ms by rows:", ", ".join(f"{n}: {1e3 * s:.1f}" for n, s in measured.curve), end="; ")
    print(f"a decode {1e3 * measured.decode:.1f} ms")
    jobs = [Job(0.0, 0, 2 if r.guidance_scale == 3.0 else 1, r.steps or 1) for r in requests]
    drawn = simulate(jobs, 1, measured, by_arrival)
    print(f"the simulation of the last: {max(job.finish for job in drawn):.1f} s")


if __name__ == "__main__":
    main()
