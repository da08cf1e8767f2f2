"""SA-Solver: a stochastic Adams method, predictor and corrector (Xue et al. 2023, arXiv 2309.05019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import RequestError
from .state import Limit, Noise, SamplerState, arrive, draw, limited, log_snr, stands


@dataclass(frozen=True, slots=True)
class SASolver:
    """s-step predictor (eq. 14 there) and corrector (eq. 17) of the reverse SDE whose noise has the share tau.

    Args:
        predictor_order, corrector_order: 1 to 4 answers each; 2 is usual with guidance, 3 without.
        predict_x0: solve in x0, or in eps.
        eta: tau where noise is drawn; 0 is the ODE.
        between: the noise levels (lowest, highest) where it is; elsewhere tau is 0.
        lower_order_final: the orders fall to 1 towards the end.
        limit: bound on the denoised answer.

    An interval that ends at sigma 0 goes to the answer itself.
    """

    predictor_order: int = 2
    corrector_order: int = 2
    predict_x0: bool = True
    eta: float = 1.0
    between: tuple[float, float] = (0.0, math.inf)
    lower_order_final: bool = True
    limit: Limit | None = None

    def __post_init__(self) -> None:
        for name in ("predictor_order", "corrector_order"):
            if getattr(self, name) not in (1, 2, 3, 4):
                raise RequestError(f"{name} {getattr(self, name)!r} of SA-Solver is not from 1 to 4")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        i, x, left = state.interval, state.x, len(sigmas) - 1 - state.interval
        answer = limited(self.limit, denoised)
        if not self.predict_x0:
            answer = (x - answer) / state.sigma
        answers = (answer, *state.memory[1:])  # newest first
        if sigmas[i + 1] == 0:
            return arrive(state, limited(self.limit, denoised), sigmas)
        if state.memory:  # the answer at the end of the interval before corrects that end, with the same noise
            order = min(self.corrector_order, len(answers))
            order = min(order, left + 2) if self.lower_order_final else order
            x = self._update(state.memory[0], sigmas, i - 1, i, answers[:order], noise, state.evaluations)
        order = min(self.predictor_order, len(answers))
        order = min(order, left) if self.lower_order_final else order
        there = self._update(x, sigmas, i, i, answers[:order], noise, state.evaluations + 1)
        kept = answers[: max(self.predictor_order, self.corrector_order - 1)]
        return arrive(state, there, sigmas, (x, *kept))

    def _update(
        self, x: Tensor, sigmas: Sequence[float], i: int, newest: int, answers: Sequence[Tensor], noise: Noise, k: int
    ) -> Tensor:
        """Over interval i from x [C, H, W] there, with draw k. answers: at level `newest` and before."""
        sigma, after = sigmas[i], sigmas[i + 1]
        if stands(sigma, after):
            return x
        tau = self.eta if self.between[0] <= sigma <= self.between[1] else 0.0
        h = log_snr(after) - log_snr(sigma)
        z = h * (1 + tau * tau) if self.predict_x0 else -h
        # Where the answers lie, in units of h from the interval's start.
        places = [(log_snr(sigmas[newest - j]) - log_snr(sigma)) / h for j in range(len(answers))]
        moments = _moments(z, len(answers))
        if len(answers) == 2 and self.predict_x0:
            moments[1] = z / 2  # the authors' choice for few steps: no lower order, as UniPC's B(h) = h
        weights = np.linalg.solve(np.vander(places, increasing=True).T, moments).tolist()
        if self.predict_x0:
            scale, unit = after / sigma * math.exp(-tau * tau * h), 1.0
            std = after * math.sqrt(-math.expm1(-2 * tau * tau * h))
        else:
            scale, unit = 1.0, (1 + tau * tau) * after
            std = tau * math.sqrt(sigma * sigma - after * after)
        x = x * scale
        for weight, answer in zip(weights, answers, strict=True):
            x = x + answer * (unit * weight)
        return x + draw(noise, k, x) * std if std > 0 else x


def _moments(z: float, count: int) -> list[float]:
    """z times the integral of e^(-z (1 - v)) v^j over v from 0 to 1, for j = 0 .. count - 1."""
    if abs(z) < 1:  # by the series of e^(z v): the recurrence would lose digits
        series = [z**n / math.factorial(n) for n in range(20)]
        return [z * math.exp(-z) * sum(term / (n + j + 1) for n, term in enumerate(series)) for j in range(count)]
    moments = [-math.expm1(-z)]
    for j in range(1, count):  # by parts
        moments.append(1 - j / z * moments[-1])
    return moments
