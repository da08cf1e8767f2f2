"""What a sampler is, a pure function from one state to the next, and what several samplers share.

Samplers see x, sigma and a denoised answer, nothing else. All of them work in one coordinate system,
x = x0 + sigma * noise (Karras et al. 2022, arXiv 2206.00364, with s(t) = 1), on x [C, H, W] of any float dtype (the
engine uses float32), and return new tensors. Coefficients are Python floats, so they are computed in float64 and never
promote the tensors they multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Noise = Callable[[int], Tensor]
"""k -> the k-th unit-variance draw [C, H, W] of this picture; k = 0 is the starting noise, samplers draw from k = 1."""


@dataclass(frozen=True, slots=True)
class SamplerState:
    """The next question to the network, and what the solver remembers. Picklable at any moment."""

    x: Tensor  # [C, H, W] float32: where the network must look next; x = x0 + sigma * noise
    sigma: float  # its noise level, a host float (no device sync)
    interval: int = 0  # sigmas[interval] -> sigmas[interval + 1]
    evaluations: int = 0  # network evaluations so far; the key of the next noise draw
    memory: tuple[Any, ...] = ()  # the solver's own history


class Sampler(Protocol):
    """A frozen dataclass of options; it holds no state.

    `step` takes the denoised answer to the state's question and returns the next state. The picture is done when
    `state.interval == len(sigmas) - 1`; then `state.x` is the result.
    """

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState: ...


@runtime_checkable
class Stochastic(Protocol):
    """A sampler of a stochastic differential equation, whose draws are increments of one Brownian path."""

    def spans(self, sigmas: Sequence[float]) -> list[tuple[float, float]]:
        """(from, to): the noise levels between which its draws 1, 2, ... lie, from > to, on the way down `sigmas`."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Clamp the denoised answer to -bound..bound (diffusers' `clip_sample`, `clip_sample_range`)."""

    bound: float = 1.0

    def __call__(self, denoised: Tensor) -> Tensor:
        return denoised.clamp(-self.bound, self.bound)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3), for pixel-space models.

    The `ratio` quantile of |x0|, at least 1 and at most `maximum`, becomes the bound; the answer is clamped to it and
    divided by it.
    """

    ratio: float = 0.995
    maximum: float = 1.0

    def __call__(self, denoised: Tensor) -> Tensor:
        magnitudes = denoised.abs().flatten()
        # torch.quantile refuses more than 2**24 numbers and wants float32 or more; sort does neither.
        ordered = magnitudes.float().sort().values
        position = self.ratio * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        bound = torch.lerp(ordered[low], ordered[high], position - low).clamp(1.0, self.maximum).to(denoised)
        return torch.clamp(denoised, -bound, bound) / bound


Limit = Clip | Threshold


def limited(limit: Limit | None, denoised: Tensor) -> Tensor:
    """The denoised answer under a limit, or as it is."""
    return denoised if limit is None else limit(denoised)


def arrive(state: SamplerState, x: Tensor, sigmas: Sequence[float], memory: tuple[Any, ...] = ()) -> SamplerState:
    """The state at the end of the current interval."""
    after = state.interval + 1
    return SamplerState(x, sigmas[after], after, state.evaluations + 1, memory)


def pause(state: SamplerState, x: Tensor, sigma: float, memory: tuple[Any, ...]) -> SamplerState:
    """The state inside the current interval where a multi-evaluation solver wants to look next."""
    return SamplerState(x, sigma, state.interval, state.evaluations + 1, memory)


def draw(noise: Noise, k: int, like: Tensor) -> Tensor:
    """The k-th draw, with the device and dtype of `like`."""
    return noise(k).to(like)


def ancestral(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """(down, up): step to `down` without noise, then add noise of `up`; down^2 + up^2 = after^2.

    eta = 1 is the posterior of the forward process (Ho et al. 2020, arXiv 2006.11239, eq. 7, in these coordinates),
    eta = 0 is deterministic.
    """
    if eta == 0 or after == 0 or after >= sigma:
        return after, 0.0
    up = min(after, eta * math.sqrt(after * after * (sigma * sigma - after * after)) / sigma)
    return math.sqrt(max(after * after - up * up, 0.0)), up


def stands(sigma: float, after: float) -> bool:
    """Whether an interval has no length but for rounding: schedules may repeat their last level."""
    return math.isclose(sigma, after, rel_tol=1e-6)


def log_snr(sigma: float) -> float:
    """lambda = log(alpha / sigma_vp) = -log(sigma); infinite at sigma 0."""
    return math.inf if sigma == 0 else -math.log(sigma)
