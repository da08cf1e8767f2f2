"""The k-th noise draw of a picture, as a function of (seed, k) alone.

Independent draws are all that any sampler here needs, so there is no Brownian tree. Samplers that draw once an
interval (Euler a, DDIM, DPM2 a, DPM++ 2M SDE, 3M SDE, ...) look at increments of a Brownian path over disjoint
intervals, which are independent. DPM++ SDE looks at two overlapping increments, over [sigma, mid] and over
[sigma, next]; the second is the first plus an independent one over [mid, next]:

    W(sigma, next) = sqrt(sigma - mid) n1 + sqrt(mid - next) n2,

so two independent draws an interval give it the joint distribution a Brownian tree would.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SeededNoise:
    """k -> the k-th sequential `torch.randn` of a CPU generator seeded with `seed`, [C, H, W] float32 on the CPU.

    k = 0 is the starting noise, exactly the latent that diffusers draws from `torch.Generator("cpu").manual_seed(seed)`
    for one picture, and k = 1, 2, ... are what its ancestral schedulers draw next from that generator.
    Sequential access costs one draw each; going back starts again from the seed. Pickles as its arguments.

    Args:
        seed: -2**63 to 2**64 - 1, torch's own range.
        shape: (C, H, W).
        before: the shape of a draw that comes before draw 0, for something else than this noise.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], before: tuple[int, ...] | None = None) -> None:
        self.seed = seed
        self.shape = tuple(shape)
        self.before = before
        self._rewind()

    def _rewind(self) -> None:
        self._generator = torch.Generator("cpu").manual_seed(self.seed)
        if self.before is not None:
            torch.randn(self.before, generator=self._generator, dtype=torch.float32)
        self._drawn = 0  # draws taken from the generator so far
        self._last: Tensor | None = None  # draw number _drawn - 1

    def __call__(self, k: int) -> Tensor:
        """The k-th draw (k >= 0). The tensor is the caller's own."""
        if k < 0:
            raise ValueError(f"noise draws are numbered from 0, not {k}")
        if k < self._drawn - 1:
            self._rewind()
        while self._drawn <= k:
            self._last = torch.randn(self.shape, generator=self._generator, dtype=torch.float32)
            self._drawn += 1
        assert self._last is not None
        return self._last.clone()

    def __reduce__(self) -> tuple[type[SeededNoise], tuple[int, tuple[int, ...], tuple[int, ...] | None]]:
        return SeededNoise, (self.seed, self.shape, self.before)

    def __repr__(self) -> str:
        return f"SeededNoise(seed={self.seed}, shape={self.shape})"
