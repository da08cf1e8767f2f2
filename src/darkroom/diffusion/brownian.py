"""Noise of a Brownian path, as k-diffusion's SDE samplers draw it: `torchsde`'s tree, one path for each picture.

Independent draws have the same distribution (see `noise`), and that is all a new picture needs. To draw again what
A1111 or ComfyUI drew with DPM++ SDE, 2M SDE or 3M SDE, the path itself is needed: a binary tree of midpoints, each
drawn from a seed of its own, which `torchsde` (an extra) defines.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError
from . import has_torchsde

DIGITS, POOL = 6, 24  # torchsde's own defaults for a tree: of a place on the path, and of its seeds' entropy

First = Callable[[int, tuple[int, ...]], Tensor]
"""(seed, shape) -> the first draw of that seed: whose random numbers the path is made of."""


@cache
def _intervals(first: First) -> ModuleType:
    """torchsde's module of paths with `first` for its random numbers: a copy, so that other users of torchsde keep
    theirs. Raises RequestError where torchsde is missing."""
    spec = importlib.util.find_spec("torchsde._brownian.brownian_interval") if has_torchsde() else None
    if spec is None or spec.loader is None:
        raise RequestError(
            "brownian is True, and torchsde, which makes Brownian paths, is not installed; "
            "pip install 'darkroom-diffusion[torchsde]', or leave it out"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def randn(size: Sequence[int], dtype: torch.dtype, device: Any, seed: Any) -> Tensor:
        return first(int(seed), tuple(size)).to(dtype)

    module._randn = randn  # type: ignore[attr-defined]
    return module


class BrownianNoise:
    """k -> the path's increment over the k-th span, divided by the root of its length: unit variance.

    Draw 0 is `rest`'s. Pickles as its arguments.

    Args:
        seed: the picture's.
        shape: (C, H, W).
        ends: the lowest level above 0 and the highest: where the path begins and ends.
        spans: (from, to) in noise levels, from > to, for the draws 1, 2, ...
        rest: k -> the k-th draw, for draw 0 and for those beyond the spans.
        first: whose random numbers.
    """

    def __init__(
        self,
        seed: int,
        shape: tuple[int, ...],
        ends: tuple[float, float],
        spans: Sequence[tuple[float, float]],
        rest: Callable[[int], Tensor],
        first: First,
    ) -> None:
        self._arguments = seed, tuple(shape), ends, tuple(spans), rest, first
        self._ends = tuple(round(_single(end), DIGITS) for end in ends)  # as the path rounds them itself
        self._path = _intervals(first).BrownianInterval(
            t0=_single(ends[0]), t1=_single(ends[1]), size=tuple(shape), dtype=torch.float32, device="cpu",
            entropy=seed, tol=10.0**-DIGITS, pool_size=POOL, halfway_tree=True,
        )  # fmt: skip

    def __call__(self, k: int) -> Tensor:
        """The k-th draw (k >= 0). The tensor is the caller's own."""
        _, _, _, spans, rest, _ = self._arguments
        if not 1 <= k <= len(spans):
            return rest(k)
        high, low = map(_single, spans[k - 1])
        increment: Tensor = self._path(max(low, self._ends[0]), min(high, self._ends[1]))
        # The samplers walk down the path, so its increments count backwards.
        return increment / -math.sqrt(high - low)

    def __reduce__(self) -> tuple[type[BrownianNoise], tuple[Any, ...]]:
        return BrownianNoise, self._arguments


def _single(level: float) -> float:
    """A level in the float32 that k-diffusion has it in."""
    return float(torch.tensor(level, dtype=torch.float32))
