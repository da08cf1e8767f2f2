"""Multistep samplers, which extrapolate from the answers before: one question an interval.

LMS has exact weights, IPNDM and PNDM those of equal steps (Adams and Bashforth); they extrapolate
eps = (x - D) / sigma = dx/dsigma in sigma. DEIS is an exponential integrator that extrapolates in log sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import RequestError
from .state import Limit, Noise, SamplerState, arrive, limited, pause, stands

# Adams-Bashforth for equal steps, newest first (Liu et al. 2022, arXiv 2202.09778, eq. 12, for four).
EQUAL_STEPS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def weighted(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """sum(w * term), in the order given."""
    total = terms[0] * weights[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + term * weight
    return total


def lagrange(places: Sequence[float]) -> list[list[float]]:
    """The Lagrange basis polynomials on `places`, 1 at their own place and 0 at all others: lowest power first."""
    polynomials = []
    for j, place in enumerate(places):
        coefficients = [1.0]  # of prod (u - place_k) / (place - place_k)
        for k, other in enumerate(places):
            if k != j:
                shifted, kept = [0.0, *coefficients], [*(-other * c for c in coefficients), 0.0]
                coefficients = [(a + b) / (place - other) for a, b in zip(shifted, kept, strict=True)]
        polynomials.append(coefficients)
    return polynomials


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange basis polynomials on `nodes`: the exact Adams-Bashforth weights."""
    scale = end - start
    # In u = (s - start) / (end - start) the numbers stay near 1, whatever the noise level.
    polynomials = lagrange([(node - start) / scale for node in nodes])
    return [scale * sum(c / (power + 1) for power, c in enumerate(polynomial)) for polynomial in polynomials]


def exponential_integrals(levels: Sequence[float], after: float) -> list[float]:
    """Integrals over sigma, from levels[0] to `after`, of the Lagrange polynomials in log sigma on `levels`."""
    if len(levels) == 1 or stands(levels[0], after):
        return [after - levels[0], *[0.0] * (len(levels) - 1)]
    sigma = levels[0]
    # With v = log(s / sigma): ds = sigma e^v dv, and I_k = integral of v^k e^v = [v^k e^v] - k I_(k-1).
    end = math.log(after / sigma)
    moments = [math.expm1(end)]
    for power in range(1, len(levels)):
        moments.append(end**power * math.exp(end) - power * moments[-1])
    polynomials = lagrange([math.log(level / sigma) for level in levels])
    return [sigma * sum(c * m for c, m in zip(polynomial, moments, strict=True)) for polynomial in polynomials]


@dataclass(frozen=True, slots=True)
class LMS:
    """Linear multistep of up to `order` answers, with weights exact for uneven levels, as k-diffusion and diffusers.

    `sliced`: for a picture that begins in a later interval, weights of the order that one from the beginning would have
    there, for the fewer answers there are. They don't sum to the step; diffusers' image-to-image pictures have them.
    """

    order: int = 4
    sliced: bool = False

    def __post_init__(self) -> None:
        if self.order not in range(1, 9):
            raise RequestError(f"the order of LMS is {self.order!r}; it must be from 1 to 8")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        slopes = ((state.x - denoised) / state.sigma, *state.memory)[: self.order]
        reach = min(state.interval + 1, self.order) if self.sliced else len(slopes)
        levels = [sigmas[state.interval - k] for k in range(reach)]
        weights = lagrange_integrals(levels, state.sigma, sigmas[state.interval + 1])[: len(slopes)]
        return arrive(state, state.x + weighted(weights, slopes), sigmas, slopes[: self.order - 1])


@dataclass(frozen=True, slots=True)
class IPNDM:
    """Improved PNDM (Zhang and Chen 2022, arXiv 2204.13902): PNDM's weights, lower orders instead of a warm-up."""

    order: int = 4

    def __post_init__(self) -> None:
        if self.order not in range(1, 5):
            raise RequestError(f"the order of iPNDM is {self.order!r}; it must be from 1 to 4")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        slopes = ((state.x - denoised) / state.sigma, *state.memory)[: self.order]
        slope = weighted(EQUAL_STEPS[len(slopes) - 1], slopes)
        after = sigmas[state.interval + 1]
        return arrive(state, state.x + slope * (after - state.sigma), sigmas, slopes[: self.order - 1])


@dataclass(frozen=True, slots=True)
class PNDM:
    """Pseudo numerical methods (Liu et al. 2022, arXiv 2202.09778): PLMS, or F-PNDM with a Runge-Kutta warm-up.

    Args:
        warm_up: False is PLMS (diffusers' `skip_prk_steps`): the first interval is asked twice, and its two answers
            are averaged. True is F-PNDM: four questions in each of the first three intervals.
        prediction: "epsilon", or "v_prediction" to average the v of a v-prediction network as diffusers does.
        targets: the level each interval lands at, where that isn't sigmas[i + 1] (see DDIM).
        sources: for each question the level at which an averaged first step of PLMS that ends there starts, where that
            isn't the level of the question before.
        halves: for each interval of the warm-up the level its first stage lands at and the level asked next;
            without them the middle of the interval, the classical Runge-Kutta method.
        sliced: a picture that begins in interval k > 0 begins as diffusers' image-to-image pictures do, whose list of
            timesteps holds the second one twice and is cut after that: the two questions of the first step are asked
            at sigmas[k - 1] (for k = 1 at sigmas[1]) and sigmas[k], and where it lands is read as sigmas[k + 1].
    """

    warm_up: bool = False
    prediction: str = "epsilon"
    targets: tuple[float, ...] | None = None
    sources: tuple[float, ...] | None = None
    halves: tuple[tuple[float, float], ...] | None = None
    sliced: bool = False

    def questions(self, interval: int) -> tuple[int, int]:
        """Where a picture that begins in `interval` asks its first step's two questions: places in sigmas."""
        if self.sliced and interval > 0:
            return max(interval - 1, 1), interval
        return interval, interval + 1

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        output = self._output(state.x, state.sigma, denoised)
        stage = state.memory[0] if state.memory else "first"
        # An interval that ends at 0 is not warmed up in: its last question would be asked there.
        if self.warm_up and state.interval < 3 and sigmas[state.interval + 1] > 0:
            return self._warm_up(state, output, sigmas)
        if stage == "first":
            return self._first(state, output, sigmas)
        if stage == "average":
            _, sample, before = state.memory
            _, again = self.questions(state.interval)
            source = sigmas[again - 1] if self.sources is None else self.sources[again]
            x = self._transfer(sample, source, sigmas[again], (output + before) / 2)
            return arrive(state, x * math.hypot(1.0, sigmas[state.interval + 1]), sigmas, ("plms", before))
        outputs = (output, *state.memory[1:])[:4]
        return self._plms(state, weighted(EQUAL_STEPS[len(outputs) - 1], outputs), sigmas, ("plms", *outputs[:3]))

    def _first(self, state: SamplerState, output: Tensor, sigmas: Sequence[float]) -> SamplerState:
        asked, again = self.questions(state.interval)
        sample = state.x / math.hypot(1.0, state.sigma)
        target = sigmas[asked + 1] if self.targets is None else self.targets[asked]
        x = self._transfer(sample, state.sigma, target, output) * math.hypot(1.0, sigmas[again])
        if again == len(sigmas) - 1:
            return arrive(state, x, sigmas, ("plms", output))
        return pause(state, x, sigmas[again], ("average", sample, output))

    def _plms(
        self, state: SamplerState, output: Tensor, sigmas: Sequence[float], memory: tuple[Any, ...]
    ) -> SamplerState:
        after = sigmas[state.interval + 1]
        target = after if self.targets is None else self.targets[state.interval]
        x = self._transfer(state.x / math.hypot(1.0, state.sigma), state.sigma, target, output)
        return arrive(state, x * math.hypot(1.0, after), sigmas, memory)

    def _warm_up(self, state: SamplerState, output: Tensor, sigmas: Sequence[float]) -> SamplerState:
        """The four stages of Runge-Kutta; memory is (name, stage, sample, weighted sum so far, *answers before)."""
        start, after = sigmas[state.interval], sigmas[state.interval + 1]
        landing, middle = self.halves[state.interval] if self.halves else ((start + after) / 2,) * 2
        if not state.memory or state.memory[0] == "plms":
            sample = state.x / math.hypot(1.0, state.sigma)
            x = self._transfer(sample, start, landing, output)
            kept = (output, *state.memory[1:])[:3]
            return pause(state, x * math.hypot(1.0, middle), middle, ("runge-kutta", 1, sample, output / 6, *kept))
        _, stage, sample, total, *before = state.memory
        if stage == 3:
            x = self._transfer(sample, start, after, total + output / 6)
            return arrive(state, x * math.hypot(1.0, after), sigmas, ("plms", *before))
        level = middle if stage == 1 else after
        x = self._transfer(sample, start, level, output) * math.hypot(1.0, level)
        return pause(state, x, level, ("runge-kutta", stage + 1, sample, total + output / 3, *before))

    def _output(self, x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
        """The network's own output again: eps, or v = (x / (1 + sigma^2) - D) sqrt(1 + sigma^2) / sigma."""
        if self.prediction == "v_prediction":
            return (x / (1 + sigma * sigma) - denoised) * (math.hypot(1.0, sigma) / sigma)
        return (x - denoised) / sigma

    def _transfer(self, sample: Tensor, sigma: float, target: float, output: Tensor) -> Tensor:
        """A variance-preserving sample from one level to another (eq. 11 there); output is eps, or v at `sigma`."""
        root = math.hypot(1.0, sigma)
        eps = output / root + sample * (sigma / root) if self.prediction == "v_prediction" else output
        return (sample * root + eps * (target - sigma)) / math.hypot(1.0, target)


@dataclass(frozen=True, slots=True)
class DEIS:
    """Up to `order` (1 to 3) answers eps, extrapolated in log sigma (Zhang and Chen 2022, arXiv 2204.13902, tAB-DEIS).

    Args:
        lower_order_final: with fewer than 15 intervals the last is of first and the last but one of second order.
        limit: bound on the denoised answer, before eps is taken from it.

    An interval that ends at sigma 0 is always of first order: log sigma has no end there.
    """

    order: int = 2
    lower_order_final: bool = True
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.order not in range(1, 4):
            raise RequestError(f"the order of DEIS is {self.order!r}; it must be from 1 to 3")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        eps = (state.x - limited(self.limit, denoised)) / state.sigma
        answers = (eps, *state.memory)[: self.order]
        after, left = sigmas[state.interval + 1], len(sigmas) - 1 - state.interval
        order = min(len(answers), left) if self.lower_order_final and len(sigmas) <= 15 else len(answers)
        order = 1 if after == 0 else order
        weights = exponential_integrals([sigmas[state.interval - k] for k in range(order)], after)
        return arrive(state, state.x + weighted(weights, answers[:order]), sigmas, answers[: self.order - 1])
