"""DPM-Solver and DPM-Solver++, multistep and singlestep, deterministic and stochastic.

Sources: Lu et al. 2022, arXiv 2206.00927 (DPM-Solver, in eps) and arXiv 2211.01095 (DPM-Solver++, in x0). With
lambda = -log sigma and h = lambda' - lambda both integrate exactly the linear part of the ODE, or of the SDE, and
extrapolate the network's answer as a polynomial in lambda.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from ..errors import RequestError
from .state import Limit, Noise, SamplerState, arrive, draw, limited, log_snr, stands

ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")


def _differences(answers: Sequence[Tensor], lambdas: Sequence[float], h: float) -> tuple[Tensor | None, Tensor | None]:
    """First and second divided differences of the answers (newest first) in units of h, at the newest."""
    if len(answers) == 1:
        return None, None
    # h is the interval to come, and the r are the past ones in units of it.
    r0 = (lambdas[0] - lambdas[1]) / h
    newest = (answers[0] - answers[1]) / r0
    if len(answers) == 2:
        return newest, None
    r1 = (lambdas[1] - lambdas[2]) / h
    bend = (newest - (answers[1] - answers[2]) / r1) / (r0 + r1)
    return newest + bend * r0, bend


@dataclass(frozen=True, slots=True)
class DPMMultistep:
    """DPM++ 2M, 2M SDE, 3M SDE, and whatever diffusers' DPMSolverMultistepScheduler can be asked for.

    Args:
        order: 1, 2 or 3 answers.
        algorithm: "dpmsolver++" (in x0), "dpmsolver" (in eps), or "sde-" before either for the reverse SDE.
        solver: how the second-order term is weighted, "midpoint" or "heun". The third order is always "heun"'s.
        eta, s_noise: of "sde-dpmsolver++", share of the SDE's noise (0 is the ODE) and deviation of the draws.
        lower_order_final: with fewer than 15 intervals the last is of first and the last but one of second order.
        euler_at_final: the last interval is of first order, however many there are.
        full_third_order: put in the factor 2 that the published third-order term lacks. arXiv 2211.01095's multistep
            formula, diffusers and k-diffusion take the second divided difference where the expansion needs twice it, so
            their order 3 converges with order 2 (measured); False is their formula.
        limit: bound on the denoised answer.

    An interval that ends at sigma 0 is always of first order.
    """

    order: int = 2
    algorithm: str = "dpmsolver++"
    solver: Literal["midpoint", "heun"] = "midpoint"
    eta: float = 1.0
    s_noise: float = 1.0
    lower_order_final: bool = True
    euler_at_final: bool = False
    full_third_order: bool = False
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise RequestError(f"algorithm_type {self.algorithm!r} is not one of {', '.join(ALGORITHMS)}")
        if self.solver not in ("midpoint", "heun"):
            raise RequestError(f"solver_type {self.solver!r} of a DPM solver is not midpoint or heun")
        if self.order not in (1, 2, 3) or (self.order == 3 and self.algorithm == "sde-dpmsolver"):
            most = 2 if self.algorithm == "sde-dpmsolver" else 3
            raise RequestError(f"solver_order {self.order!r} of {self.algorithm} is not from 1 to {most}")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        answer = limited(self.limit, denoised)
        if not self.algorithm.endswith("++"):
            answer = (state.x - answer) / state.sigma
        answers = (answer, *state.memory)[: self.order]
        memory = answers[: self.order - 1]
        if stands(state.sigma, after):
            return arrive(state, state.x, sigmas, memory)
        used = self._order(len(answers), state.interval, sigmas)
        lambdas = [log_snr(sigmas[state.interval - k]) for k in range(used)]
        h = log_snr(after) - lambdas[0]
        d1, d2 = _differences(answers[:used], lambdas, h)
        if d2 is not None and self.full_third_order:
            d2 = d2 * 2
        heun = self.solver == "heun" or d2 is not None
        terms, start = (answer, d1, d2), (state.x, state.sigma)
        return arrive(state, _solved(self, start, after, terms, heun, noise, state.evaluations + 1), sigmas, memory)

    def spans(self, sigmas: Sequence[float]) -> list[tuple[float, float]]:
        """`Stochastic`'s: one an interval; none for the ODE's algorithms."""
        return [pair for pair in pairwise(sigmas) if pair[1] > 0] if self.algorithm.startswith("sde-") else []

    def _order(self, known: int, interval: int, sigmas: Sequence[float]) -> int:
        left = len(sigmas) - 1 - interval
        if sigmas[interval + 1] == 0 or (left == 1 and self.euler_at_final):
            return 1
        return min(known, left) if self.lower_order_final and len(sigmas) <= 15 else known


@dataclass(frozen=True, slots=True)
class DPMSinglestep:
    """DPM++ 2S, and whatever diffusers' DPMSolverSinglestepScheduler can be asked for.

    Intervals are taken in groups of `order`: the first goes one interval with first order, the second two from the
    group's start with second order, the third three with third order. What lies between only serves to ask there.

    Args:
        order: 1, 2 or 3 intervals a group.
        algorithm: "dpmsolver++" (in x0), "dpmsolver" (in eps), or "sde-dpmsolver++".
        solver: how the last term is weighted, "midpoint" or "heun". "midpoint" of third order leaves the curvature out.
        eta, s_noise: of "sde-dpmsolver++", share of the SDE's noise (0 is the ODE) and deviation of the draws.
        lower_order_final: where the groups come out even, the last interval is of first order, nevertheless.
        limit: bound on the denoised answer.

    An interval that ends at sigma 0 is always of first order. With "sde-dpmsolver++", "heun" and order 3
    diffusers has a half of the second difference with the wrong sign, as in its multistep class; here it is right.
    """

    order: int = 2
    algorithm: str = "dpmsolver++"
    solver: Literal["midpoint", "heun"] = "midpoint"
    eta: float = 1.0
    s_noise: float = 1.0
    lower_order_final: bool = False
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS[:3]:
            raise RequestError(f"algorithm_type {self.algorithm!r} is not one of {', '.join(ALGORITHMS[:3])}")
        if self.solver not in ("midpoint", "heun"):
            raise RequestError(f"solver_type {self.solver!r} of a DPM solver is not midpoint or heun")
        if self.order not in (1, 2, 3):
            raise RequestError(f"solver_order {self.order!r} of a singlestep solver is not from 1 to 3")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        after = sigmas[state.interval + 1]
        answer = limited(self.limit, denoised)
        if not self.algorithm.endswith("++"):
            answer = (state.x - answer) / state.sigma
        order = self._order(state, sigmas)
        if order == 1:
            start, answers = state.x, [answer]
        else:
            start, kept = state.memory[0], state.memory[1:]
            answers = [*kept[1 - order :], answer]  # oldest first
        first = sigmas[state.interval + 1 - order]
        if stands(first, after):
            return arrive(state, state.x, sigmas, (start, *answers))
        h = log_snr(after) - log_snr(first)
        # Where the later answers lie, in units of h from the group's start.
        places = [(log_snr(sigmas[state.interval + k - order + 1]) - log_snr(first)) / h for k in range(1, order)]
        slopes = [(later - answers[0]) / place for later, place in zip(answers[1:], places, strict=True)]
        d1, d2 = slopes[-1] if slopes else None, None
        if order == 3 and self.solver == "heun":
            d2 = (slopes[1] - slopes[0]) * (2 / (places[1] - places[0]))
            d1 = slopes[0] - d2 * (places[0] / 2)
        heun = self.solver == "heun" or order == 3
        x = _solved(self, (start, first), after, (answers[0], d1, d2), heun, noise, state.evaluations + 1)
        return arrive(state, x, sigmas, (start, *answers))

    def _order(self, state: SamplerState, sigmas: Sequence[float]) -> int:
        """Of this interval; less in a group whose start was left out, or that has an interval without length."""
        i, count = state.interval, len(sigmas) - 1
        last = i == count - 1 and self.lower_order_final and count % self.order == 0
        if last or sigmas[i + 1] == 0:
            return 1
        order = min(i % self.order + 1, max(len(state.memory), 1))
        return 1 if any(stands(*pair) for pair in pairwise(sigmas[i + 1 - order : i + 1])) else order


def _solved(
    sampler: DPMMultistep | DPMSinglestep,
    start: tuple[Tensor, float],
    after: float,
    terms: tuple[Tensor, Tensor | None, Tensor | None],
    heun: bool,
    noise: Noise,
    k: int,
) -> Tensor:
    """x [C, H, W] at level `after`, from x and its level at the start.

    terms: the answer there and its first and second differences, each in units of the way; heun: the first one is
    integrated exactly, instead of with the way's middle; k: the noise's draw.
    """
    (x, sigma), sde = start, sampler.algorithm.startswith("sde-")
    h = log_snr(after) - log_snr(sigma)
    if sampler.algorithm.endswith("++"):
        eta = sampler.eta if sde else 0.0
        std = after * math.sqrt(-math.expm1(-2 * h * eta)) if eta > 0 and after > 0 else 0.0
        x = _in_x0(x, sigma, after, h, terms, heun, eta)
    else:
        std = math.sqrt(max(sigma * sigma - after * after, 0.0)) if sde and after > 0 else 0.0
        x = _in_eps(x, sigma, after, h, terms, heun, 2.0 if sde else 1.0)
    return x + draw(noise, k, x) * (std * sampler.s_noise) if std > 0 else x


def _in_x0(
    x: Tensor,
    sigma: float,
    after: float,
    h: float,
    terms: tuple[Tensor, Tensor | None, Tensor | None],
    heun: bool,
    eta: float,
) -> Tensor:
    """DPM-Solver++: eta = 0 integrates e^-h, the SDE e^-(1 + eta)h (arXiv 2211.01095, section 5, for eta = 1)."""
    d0, d1, d2 = terms
    g = h * (1 + eta)
    # 1 - e^-g, without the loss of digits for small steps.
    gain = -math.expm1(-g)
    # At sigma 0 h is infinite: e^-h is 0, and all that is left is the answer.
    x = x * (after / sigma * math.exp(-h * eta)) + d0 * gain if after > 0 else d0 * 1.0
    if d1 is not None:
        x = x + d1 * (1 - gain / g if heun else gain / 2)
    return x if d2 is None else x - d2 * ((1 - gain / g) / g - 0.5)


def _in_eps(
    x: Tensor,
    sigma: float,
    after: float,
    h: float,
    terms: tuple[Tensor, Tensor | None, Tensor | None],
    heun: bool,
    times: float,
) -> Tensor:
    """DPM-Solver; after * (e^h - 1) = sigma - after stays finite at sigma 0. The SDE counts every term twice."""
    d0, d1, d2 = terms
    growth = sigma - after
    x = x - d0 * (times * growth)
    if d1 is not None:
        x = x - d1 * (times * (growth / h - after if heun else growth / 2))
    return x if d2 is None else x - d2 * ((growth / h - after) / h - after / 2)
