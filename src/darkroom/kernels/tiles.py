"""Functions of pictures that look no further than so many pixels, computed tile by tile: the same answer, less memory.

A tile is given with as much of what is around it as the function may look at, and keeps its own part of the answer. At
the picture's border there is nothing around it, so that what the function makes of a border, it makes here too.

Shapes: N pictures, C channels, H W height and width, S how many times the answer is as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

SMALLEST = 32  # pixels a side of a tile's own part: with less of it, nearly all work is for what is around it


@dataclass(frozen=True, slots=True)
class Step:
    """A function of pictures of one size: what it may look at, and what it takes.

    Attributes:
        function: [N, C_i, H, W] each -> [N, C, S H, S W].
        reach: how many pixels away a pixel of the answer may depend on, in each direction.
        held: numbers that it holds at one time for each pixel of a given picture.
        scale: S.
        grid: tiles begin at multiples of this.
    """

    function: Callable[..., Tensor]
    reach: int
    held: int
    scale: int = 1
    grid: int = 1


Run = Callable[..., Tensor]
"""(step, *pictures) -> its answer, whole or in tiles."""


def whole(step: Step, *pictures: Tensor) -> Tensor:
    """A step's answer at once."""
    return step.function(*pictures)


def tiles(budget: int, tick: Callable[[], None] = lambda: None) -> Run:
    """A step's answer in tiles that hold about `budget` bytes each; at once where that is enough for the whole.

    `tick` is called before every tile, and may raise to end the work.
    """

    def run(step: Step, *pictures: Tensor) -> Tensor:
        height, width = pictures[0].shape[-2:]
        pixels = budget // max(step.held * pictures[0].element_size() * len(pictures[0]), 1)
        tick()
        if height * width <= pixels:
            return step.function(*pictures)
        side = max(math.isqrt(pixels) - 2 * step.reach, SMALLEST)
        side = max(side // step.grid * step.grid, step.grid)
        return _tiled(step, pictures, side, tick)

    return run


def _tiled(step: Step, pictures: tuple[Tensor, ...], side: int, tick: Callable[[], None]) -> Tensor:
    answer: Tensor | None = None
    height, width = pictures[0].shape[-2:]
    around = -(-step.reach // step.grid) * step.grid
    s = step.scale
    for top in range(0, height, side):
        bottom = min(top + side, height)
        for left in range(0, width, side):
            tick()
            right = min(left + side, width)
            y, x = max(top - around, 0), max(left - around, 0)
            seen = [picture[..., y : bottom + around, x : right + around] for picture in pictures]
            made = step.function(*seen)
            if answer is None:
                answer = made.new_empty((*made.shape[:-2], s * height, s * width))
            own = made[..., s * (top - y) : s * (bottom - y), s * (left - x) : s * (right - x)]
            answer[..., s * top : s * bottom, s * left : s * right] = own
    assert answer is not None
    return answer
