"""The beta distribution's quantile, for the beta spacing, in plain Python."""

from __future__ import annotations

import math


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1, a and b positive.

    By the continued fraction of DLMF 8.17.22 (Lentz's evaluation), which converges fast for x < (a + 1) / (a + b + 2);
    beyond that by I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if d != 0 else tiny)
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if d != 0 else tiny)
            c = 1.0 + term / c
            c = c if c != 0 else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return front * value


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, for 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"probability {p} is not between 0 and 1")
    if p in (0.0, 1.0):
        return p
    if p > beta_cdf(0.5, a, b):
        return 1.0 - _lower_quantile(1.0 - p, b, a)
    return _lower_quantile(p, a, b)


def _lower_quantile(p: float, a: float, b: float) -> float:
    """The x <= 1/2 with I_x(a, b) = p.

    Newton's method in u = x^a, in which I is nearly a straight line for small x, kept inside a shrinking bracket.
    """
    scale = a * math.exp(_log_beta(a, b))  # u = scale * p to first order
    low, high = 0.0, 0.5**a
    u = min(scale * p, high)
    for _ in range(200):
        x = u ** (1 / a)
        error = beta_cdf(x, a, b) - p
        if error > 0:
            high = u
        else:
            low = u
        step = error * scale * (1 - x) ** (1 - b)
        new = u - step
        if not low <= new <= high:
            new = (low + high) / 2
        if abs(new - u) <= 1e-16 * u:
            break
        u = new
    return float(u ** (1 / a))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
