"""Guidance: which conditions the network is asked, and how its denoised answers become one.

It acts on denoised predictions. Where it is linear, that equals acting on the network's outputs, because both are
the same affine map of each other for every branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from darkroom.diffusion.condition import Condition, Prompted
from darkroom.diffusion.scalings import Scaling
from darkroom.errors import RequestError


class Guidance(Protocol):
    """One picture's guidance. Picklable; may ask for other branches at another noise level."""

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        """The conditions to ask at this noise level: 1, 2 or 3 rows."""
        ...

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        """The guided answer from one denoised answer a branch, each [C, H, W] float32, asked at x [C, H, W]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Unguided:
    """The condition alone."""

    condition: Prompted

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        return (self.condition.at(sigma),)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        (answer,) = denoised
        return answer


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): negative + scale * (positive - negative).

    Args:
        positive, negative: the two conditions; branches in this order.
        scale: at 1 or below (diffusers' rule) there is no guidance, and one branch is asked.
        rescale: phi of Lin et al. 2023 (arXiv 2305.08891, sec. 3.4, eq. 15 and 16), 0 to 1: how far the network
            output's standard deviation is brought back to the positive branch's. diffusers' `guidance_rescale`.
        interval: (low, high) in sigma; guidance acts for low < sigma <= high only, elsewhere the positive branch
            alone is asked (Kynkaanniemi et al. 2024, arXiv 2404.07724, eq. 6).
        scaling: the denoiser's; needed when rescale is not 0, because that acts on the network's own output.
    """

    positive: Prompted
    negative: Prompted
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise RequestError(f"The guidance scale is {self.scale!r}; it must be a finite number, such as 7.5.")
        if not 0.0 <= self.rescale <= 1.0:
            raise RequestError(f"The guidance rescale is {self.rescale!r}; it must be between 0 and 1.")
        low, high = self.interval
        if not 0.0 <= low <= high:
            raise RequestError(f"The guidance interval is {self.interval!r}; it must be (low, high), 0 <= low <= high.")
        if self.rescale and self.scaling is None:
            raise ValueError("rescale acts on the network's own output: pass the denoiser's scaling")

    def guides(self, sigma: float) -> bool:
        """Whether the negative branch is needed at this noise level."""
        return self.scale > 1.0 and self.interval[0] < sigma <= self.interval[1]

    def branches(self, sigma: float) -> tuple[Condition, ...]:
        asked = (self.positive, self.negative) if self.guides(sigma) else (self.positive,)
        return tuple(prompted.at(sigma) for prompted in asked)

    def combine(self, denoised: Sequence[Tensor], x: Tensor, sigma: float) -> Tensor:
        if not self.guides(sigma):
            (answer,) = denoised
            return answer
        positive, negative = denoised
        guided = negative + self.scale * (positive - negative)
        if not self.rescale or self.scaling is None:
            return guided
        # The network's output is F = (D - c_skip x) / c_out; c_out falls out of the ratio of the deviations.
        skip = self.scaling.c_skip(sigma) * x
        output = guided - skip
        wanted, present = (f.std(dim=(-3, -2, -1), keepdim=True) for f in (positive - skip, output))
        ratio = torch.where(present > 0, wanted / present, torch.ones_like(present))
        return skip + output * (self.rescale * ratio + (1.0 - self.rescale))
