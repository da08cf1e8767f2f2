"""Samplers that ask the network twice an interval: Heun, DPM2, DPM2 ancestral, DPM++ 2S ancestral, DPM++ SDE.

Between the two questions the state stays in its interval and `memory` holds the interval's start. Where an interval
ends at sigma 0 there is one question: Euler's step, which is exact there if the answer no longer changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .state import Limit, Noise, SamplerState, ancestral, arrive, draw, limited, pause


def _noised(x: Tensor, std: float, state: SamplerState, noise: Noise) -> Tensor:
    """x with the draw that belongs to the end of this two-evaluation interval."""
    return x + draw(noise, state.evaluations // 2 + 1, x) * std if std > 0 else x.clone()


@dataclass(frozen=True, slots=True)
class Heun:
    """Heun's second-order method (Karras et al. 2022, arXiv 2206.00364, algorithm 1). limit: bound on the answers."""

    limit: Limit | None = None

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        slope = (state.x - limited(self.limit, denoised)) / state.sigma
        if state.memory:
            x, first, sigma = state.memory
            return arrive(state, x + (first + slope) * (0.5 * (after - sigma)), sigmas)
        x = state.x + slope * (after - state.sigma)
        if after == 0:
            return arrive(state, x, sigmas)
        return pause(state, x, after, (state.x, slope, state.sigma))


@dataclass(frozen=True, slots=True)
class DPM2:
    """The midpoint method, the midpoint taken in log sigma: DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927)."""

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        slope = (state.x - denoised) / state.sigma
        if state.memory:
            x, sigma = state.memory
            return arrive(state, x + slope * (after - sigma), sigmas)
        if after == 0:
            return arrive(state, denoised.clone(), sigmas)
        middle = math.sqrt(state.sigma * after)
        return pause(state, state.x + slope * (middle - state.sigma), middle, (state.x, state.sigma))


@dataclass(frozen=True, slots=True)
class DPM2Ancestral:
    """DPM2 to an ancestral lower level, then noise up to the next. One draw an interval, as in diffusers."""

    eta: float = 1.0
    s_noise: float = 1.0

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        slope = (state.x - denoised) / state.sigma
        if state.memory:
            x, sigma = state.memory
            down, up = ancestral(sigma, after, self.eta)
            x = x + slope * (down - sigma)
            return arrive(state, _noised(x, up * self.s_noise, state, noise), sigmas)
        down, up = ancestral(state.sigma, after, self.eta)
        if down == 0:
            return arrive(state, _noised(denoised, up * self.s_noise, state, noise), sigmas)
        middle = math.sqrt(state.sigma * down)
        if middle == after:  # With eta = 1 it is, but for rounding; who looks up a level must find the end, not this.
            middle = math.nextafter(middle, math.inf)
        return pause(state, state.x + slope * (middle - state.sigma), middle, (state.x, state.sigma))


@dataclass(frozen=True, slots=True)
class DPMpp2SAncestral:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095, algorithm 1, r = 1/2) to an ancestral level, then noise."""

    eta: float = 1.0
    s_noise: float = 1.0

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        if state.memory:
            x, sigma = state.memory
            down, up = ancestral(sigma, after, self.eta)
            x = denoised + (x - denoised) * (down / sigma)
            return arrive(state, _noised(x, up * self.s_noise, state, noise), sigmas)
        down, up = ancestral(state.sigma, after, self.eta)
        if down == 0:
            return arrive(state, _noised(denoised, up * self.s_noise, state, noise), sigmas)
        middle = math.sqrt(state.sigma * down)
        x = denoised + (state.x - denoised) * (middle / state.sigma)
        return pause(state, x, middle, (state.x, state.sigma))


@dataclass(frozen=True, slots=True)
class DPMppSDE:
    """The two-evaluation stochastic DPM-Solver++ of k-diffusion (`sample_dpmpp_sde`), r the place of the midpoint.

    Its two noises are increments of one Brownian path over [sigma, middle] and [sigma, after], hence correlated; they
    are made here from two independent draws. diffusers' DPMSolverSDEScheduler follows the same formula with torchsde's
    path, so single pictures differ and their distribution doesn't; `diffusion.brownian` has that path.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    r: float = 0.5

    def spans(self, sigmas: Sequence[float]) -> list[tuple[float, float]]:
        """`Stochastic`'s: to the middle of an interval, and from there to its end."""
        found = []
        for start, end in pairwise(sigmas):
            if end > 0:
                middle = self._middle(start, end)
                found += [(start, middle), (middle, end)]
        return found

    def _middle(self, sigma: float, after: float) -> float:
        middle: float = sigma ** (1 - self.r) * after**self.r
        return middle

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        if not state.memory:
            if after == 0:
                return arrive(state, denoised.clone(), sigmas)
            middle = self._middle(state.sigma, after)
            down, up = ancestral(state.sigma, middle, self.eta)
            x = denoised + (state.x - denoised) * (down / state.sigma)
            path = None
            if up > 0:
                path = draw(noise, state.evaluations + 1, x)
                x = x + path * (up * self.s_noise)
            return pause(state, x, middle, (state.x, denoised, state.sigma, path))
        x, first, sigma, path = state.memory
        down, up = ancestral(sigma, after, self.eta)
        # The answer at the middle, extrapolated to the whole interval: the slope between both counts 1 / (2 r).
        mix = 1 / (2 * self.r)
        answer = first + (denoised - first) * mix
        x = answer + (x - answer) * (down / sigma)
        if up > 0 and path is not None:
            share = (sigma - state.sigma) / (sigma - after)  # of the path's variance that the first half saw
            path = path * math.sqrt(share) + draw(noise, state.evaluations + 1, x) * math.sqrt(1 - share)
            x = x + path * (up * self.s_noise)
        return arrive(state, x, sigmas)
