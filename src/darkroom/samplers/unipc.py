"""UniPC: a multistep predictor and a corrector that costs no evaluation (Zhao et al. 2023, arXiv 2302.04867)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import RequestError
from .state import Limit, Noise, SamplerState, arrive, limited, log_snr, stands


@dataclass(frozen=True, slots=True)
class UniPC:
    """UniP-p and UniC-p with B(h) = h ("bh1") or e^h - 1 ("bh2").

    Args:
        order: p, at least 1; 2 is usual with guidance, 3 without.
        solver: "bh1" or "bh2".
        predict_x0: solve in x0 (as DPM-Solver++), or in eps.
        lower_order_final: the order falls to 1 towards the end.
        disable_corrector: intervals whose end is not corrected.
        limit: bound on the denoised answer, with predict_x0.

    An interval that ends at sigma 0 is always predicted with first order.
    """

    order: int = 2
    solver: str = "bh2"
    predict_x0: bool = True
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if self.solver not in ("bh1", "bh2"):
            raise RequestError(f"solver_type {self.solver!r} of UniPC is not bh1 or bh2")
        if not 1 <= self.order <= 9:
            raise RequestError(f"solver_order {self.order!r} of UniPC is not from 1 to 9")

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: Noise) -> SamplerState:
        i, x = state.interval, state.x
        answer = limited(self.limit, denoised) if self.predict_x0 else (x - denoised) / state.sigma
        # The answer that came in was asked at the predicted end of the interval before: it corrects that end, and then
        # predicts the next one. So the corrector costs no evaluation.
        before: tuple[Tensor, ...] = ()
        if state.memory:
            start, used, *kept = state.memory
            before = tuple(kept)
            if i - 1 not in self.disable_corrector:
                x = self._update(start, sigmas, i - 1, before[:used], answer)
        answers = (answer, *before)[: self.order]
        order = min(self.order, len(sigmas) - 1 - i) if self.lower_order_final else self.order
        order = 1 if sigmas[i + 1] == 0 else min(order, len(answers))
        return arrive(state, self._update(x, sigmas, i, answers[:order], None), sigmas, (x, order, *answers))

    def _update(
        self, x: Tensor, sigmas: Sequence[float], i: int, answers: Sequence[Tensor], corrected: Tensor | None
    ) -> Tensor:
        """Over interval i from x [C, H, W] there: eq. 3 (predictor), or with the answer at its end eq. 2 (corrector).

        answers: at the interval's start and before, newest first.
        """
        sigma, after = sigmas[i], sigmas[i + 1]
        if stands(sigma, after):
            return x
        h = log_snr(after) - log_snr(sigma)
        hh = -h if self.predict_x0 else h
        newest = answers[0]
        if self.predict_x0:
            base = newest * -math.expm1(hh) + x * (after / sigma) if after > 0 else newest * 1.0
            unit = 1.0
        else:
            base, unit = x - newest * (sigma - after), after
        places = [(log_snr(sigmas[i - k]) - log_snr(sigma)) / h for k in range(1, len(answers))]
        terms = [(old - newest) / place for old, place in zip(answers[1:], places, strict=True)]
        if corrected is not None:
            places, terms = [*places, 1.0], [*terms, corrected - newest]
        if not terms:
            return base
        b_of_h = hh if self.solver == "bh1" else math.expm1(hh)
        for weight, term in zip(_weights(places, hh, b_of_h), terms, strict=True):
            base = base - term * (unit * b_of_h * weight)
        return base


def _weights(places: Sequence[float], hh: float, b_of_h: float) -> list[float]:
    """Solve sum_m weight_m place_m^(k-1) = k! phi_(k+1)(hh) hh^k / (hh^(k-1) B) for k = 1 ... (theorem 3.1 there).

    A single weight is 1/2, which the paper allows: the equation's own would leave no freedom in B.
    """
    count = len(places)
    if count == 1:
        return [0.5]
    right, phi, factorial = [], math.expm1(hh) / hh - 1, 1.0
    for k in range(1, count + 1):
        right.append(phi * factorial / b_of_h)
        factorial *= k + 1
        phi = phi / hh - 1 / factorial
    matrix = np.vander(np.array(places), count, increasing=True).T
    weights: list[float] = np.linalg.solve(matrix, np.array(right)).tolist()
    return weights
