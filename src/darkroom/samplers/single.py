"""Samplers that ask the network once an interval and remember nothing: Euler, Euler ancestral, DDIM, DDPM, LCM, TCD.

In the coordinates x = x0 + sigma * noise, with eps = (x - D) / sigma, the probability-flow ODE is dx/dsigma = eps
(Karras et al. 2022, arXiv 2206.00364, eq. 1), DDIM with eta = 0 is Euler's method, and DDPM is an ancestral step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .state import Limit, Noise, SamplerState, ancestral, arrive, draw, limited


def _rescale(x: Tensor, landed: float, read: float) -> Tensor:
    """A variance-preserving sample that landed at one level, read as a sample of another (the same x_vp)."""
    return x if landed == read else x * (math.hypot(1.0, read) / math.hypot(1.0, landed))


@dataclass(frozen=True, slots=True)
class Euler:
    """Euler's method, with the optional churn of Karras et al. 2022, algorithm 2.

    Args:
        s_churn: noise put back before a question raises sigma by min(s_churn / intervals, sqrt(2) - 1); 0 is the ODE.
        s_tmin, s_tmax: only levels within are churned.
        s_noise: standard deviation of the noise put back.

    The first question is asked at sigmas[0] as it stands: its x is fresh noise already, and a higher level would leave
    the range the network was trained on.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        x = state.x + (state.x - denoised) * ((after - state.sigma) / state.sigma)
        arrived = arrive(state, x, sigmas)
        count = len(sigmas) - 1
        if self.s_churn <= 0 or after == 0 or arrived.interval == count or not self.s_tmin <= after <= self.s_tmax:
            return arrived
        raised = after * (1 + min(self.s_churn / count, math.sqrt(2.0) - 1))
        std = self.s_noise * math.sqrt(raised * raised - after * after)
        x = x + draw(noise, arrived.evaluations, x) * std
        return SamplerState(x, raised, arrived.interval, arrived.evaluations)


@dataclass(frozen=True, slots=True)
class EulerAncestral:
    """Euler's method to a lower level than the next, then noise up to it; eta scales that noise, s_noise its deviation.

    The same draws as diffusers' EulerAncestralDiscreteScheduler: one an interval.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        down, up = ancestral(state.sigma, sigmas[state.interval + 1], self.eta)
        x = state.x + (state.x - denoised) * ((down - state.sigma) / state.sigma)
        if up > 0:
            x = x + draw(noise, state.evaluations + 1, x) * (up * self.s_noise)
        return arrive(state, x, sigmas)


@dataclass(frozen=True, slots=True)
class DDIM:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12; eta = 0 is deterministic, eta = 1 adds DDPM's noise.

    Args:
        eta: share of the ancestral noise, 0 to 1.
        limit: bound on the denoised answer. As in diffusers, the noise direction keeps the unbounded one.
        targets: the level each interval lands at, where that isn't sigmas[i + 1]: diffusers steps from timestep t to
            t - T // steps even when the next question is asked at another timestep. The variance-preserving sample
            stays as it is and is then read at the next level.
    """

    eta: float = 0.0
    limit: Limit | None = None
    targets: tuple[float, ...] | None = None

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        target = after if self.targets is None else self.targets[state.interval]
        down, up = ancestral(state.sigma, target, self.eta)
        x = limited(self.limit, denoised) + (state.x - denoised) * (down / state.sigma)
        if up > 0:
            x = x + draw(noise, state.evaluations + 1, x) * up
        return arrive(state, _rescale(x, target, after), sigmas)


@dataclass(frozen=True, slots=True)
class DDPM:
    """Ancestral sampling of Ho et al. 2020 (arXiv 2006.11239), algorithm 2.

    Args:
        variance: "fixed_small" is the forward posterior's variance, "fixed_large" is beta's (section 3.2 there).
        limit: bound on the denoised answer.
        noise_at_end: with "fixed_large", whether the last step adds its noise too (as diffusers does except at t = 0).
    """

    variance: str = "fixed_small"
    limit: Limit | None = None
    noise_at_end: bool = False

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        sigma, after = state.sigma, sigmas[state.interval + 1]
        bounded = limited(self.limit, denoised)
        x = bounded + (state.x - bounded) * (after / sigma) ** 2
        gap = max(sigma * sigma - after * after, 0.0)
        if self.variance == "fixed_small":
            std = after * math.sqrt(gap) / sigma
        else:
            last = state.interval + 2 == len(sigmas)
            std = 0.0 if last and not self.noise_at_end else math.sqrt(gap * (1 + after * after) / (1 + sigma * sigma))
        if std > 0:
            x = x + draw(noise, state.evaluations + 1, x) * std
        return arrive(state, x, sigmas)


@dataclass(frozen=True, slots=True)
class LCM:
    """Multistep sampling of a consistency model (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

    Args:
        limit: bound on the denoised answer.
        timesteps: the timestep of each interval's question, for the boundary-condition scalings c_skip and c_out
            (section 4.1 there); None leaves them at 0 and 1, from which they differ by less than 1e-3 above t = 2.
        timestep_scaling, sigma_data: the constants of those scalings.
    """

    limit: Limit | None = None
    timesteps: tuple[float, ...] | None = None
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        x = limited(self.limit, denoised)
        if self.timesteps is not None:
            scaled = self.timesteps[state.interval] * self.timestep_scaling
            total = math.hypot(scaled, self.sigma_data)
            x = x * (scaled / total) + state.x * ((self.sigma_data / total) ** 2 / math.hypot(1.0, state.sigma))
        if after > 0:
            x = x + draw(noise, state.evaluations + 1, x) * after
        return arrive(state, x, sigmas)


@dataclass(frozen=True, slots=True)
class TCD:
    """Strategic stochastic sampling of a trajectory consistency model (Zheng et al. 2024, arXiv 2402.19159, alg. 4).

    Args:
        eta: the paper's gamma, 0 to 1: how far below the next level each step lands, before noise leads up to it.
        targets: the level each interval lands at: that of (1 - eta) times the next timestep; None: (1 - eta) times the
            next level, where no timesteps are known.
    """

    eta: float = 0.3
    targets: tuple[float, ...] | None = None

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        down = after * (1 - self.eta) if self.targets is None else self.targets[state.interval]
        x = denoised + (state.x - denoised) * (down / state.sigma)
        if after > down:
            x = x + draw(noise, state.evaluations + 1, x) * math.sqrt(after * after - down * down)
        return arrive(state, x, sigmas)
