"""Guidance of one's own: two prompts at once, each pulling with its own strength, away from the empty prompt.

    python examples/own_guidance.py "a large fox" "on a purple background" [--model MODEL] [--output two.png]

A guidance is any object with `branches` (what to ask at a noise level) and `combine` (how the answers become one). The
engine batches its rows like everybody else's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import darkroom
from darkroom.diffusion.condition import Condition
from darkroom.engine.prepare import text_to_image


@dataclass(frozen=True)
class TwoPrompts:
    """negative + scale * (first - negative) + scale * (second - negative)."""

    first: Condition
    second: Condition
    negative: Condition
    scale: float = 4.0

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        return self.first, self.second, self.negative

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        first, second, negative = denoised
        return negative + self.scale * (first - negative) + self.scale * (second - negative)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw with two prompts at once.")
    parser.add_argument("first", nargs="?", default="a large fox")
    parser.add_argument("second", nargs="?", default="a large owl on a purple background")
    parser.add_argument("--model", help="a folder, a file or a hub id (default: the embedded model)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", default="two.png")
    arguments = parser.parse_args()

    pipe = darkroom.load(arguments.model)
    job = text_to_image(pipe, darkroom.Request(prompt=arguments.first, steps=arguments.steps, seed=1), id="two")
    first, second, negative = (
        Condition(pipe.encode_prompt(text)[0]) for text in (arguments.first, arguments.second, "")
    )
    job.guidance = TwoPrompts(first, second, negative)
    engine = darkroom.Engine(pipe)
    engine.resume(job)
    while engine.jobs:
        for event in engine.step():
            if isinstance(event, darkroom.Failed):
                raise event.error
            if isinstance(event, darkroom.Finished):
                event.image.save(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
