"""DEIS: an exponential integrator with extrapolation in log rho (Zhang and Chen 2022, arXiv 2204.13902, tAB-DEIS)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import RequestError
from .common import Limit, arrive, limited, stands
from .multistep import weighted
from .state import Noise, SamplerState


def _weights(levels: Sequence[float], after: float) -> list[float]:
    """Integrals over sigma, from levels[0] to `after`, of the Lagrange polynomials in log sigma on `levels`."""
    if len(levels) == 1 or stands(levels[0], after):
        return [after - levels[0], *[0.0] * (len(levels) - 1)]
    sigma = levels[0]
    # With v = log(s / sigma): ds = sigma e^v dv, and I_k = integral of v^k e^v = [v^k e^v] - k I_(k-1).
    end = math.log(after / sigma)
    moments = [math.expm1(end)]
    for power in range(1, len(levels)):
        moments.append(end**power * math.exp(end) - power * moments[-1])
    places = [math.log(level / sigma) for level in levels]
    weights = []
    for j, place in enumerate(places):
        coefficients = [1.0]
        for k, other in enumerate(places):
            if k != j:
                shifted, kept = [0.0, *coefficients], [*(-other * c for c in coefficients), 0.0]
                coefficients = [(a + b) / (place - other) for a, b in zip(shifted, kept, strict=True)]
        weights.append(sigma * sum(c * m for c, m in zip(coefficients, moments, strict=True)))
    return weights


@dataclass(frozen=True, slots=True)
class DEIS:
    """Multistep of up to `order` (1 to 3) answers eps.

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
            raise RequestError(f"The order of DEIS is {self.order!r}; it must be from 1 to 3.")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        eps = (state.x - limited(self.limit, denoised)) / state.sigma
        answers = (eps, *state.memory)[: self.order]
        after, left = sigmas[state.interval + 1], len(sigmas) - 1 - state.interval
        order = min(len(answers), left) if self.lower_order_final and len(sigmas) <= 15 else len(answers)
        order = 1 if after == 0 else order
        weights = _weights([sigmas[state.interval - k] for k in range(order)], after)
        return arrive(state, state.x + weighted(weights, answers[:order]), sigmas, answers[: self.order - 1])
