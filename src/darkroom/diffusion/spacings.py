"""Spacings: which noise levels a sampler visits. Their names are in the package's own module.

Two kinds. Over timesteps: linspace, leading, trailing as diffusers writes them (Lin et al. 2023, arXiv 2305.08891,
table 2), and normal, sgm_uniform, simple, ddim_uniform, beta_timesteps as A1111 and ComfyUI do. Over noise levels:
karras, exponential, beta (by the beta distribution's quantile, in plain Python, at the end of the file), kl_optimal,
linear_quadratic, align_your_steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np

from ..errors import RequestError
from . import spacing_name
from .schedule import Floats, Schedule

# The published 10-step tables, 11 levels; the last one is where the final step would start from, were there one more.
_ALIGN_YOUR_STEPS = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
MAX_STEPS = 10_000
_UNEVEN = ("ddim_uniform", "beta_timesteps")  # as ComfyUI has them: of whole timesteps, as many as come of the rule


class Options(TypedDict, total=False):
    """Options of the spacings. Each uses what concerns it and ignores the rest."""

    steps_offset: int  # leading: added to every timestep (default 0; Stable Diffusion's files say 1)
    whole: bool  # linspace: timesteps rounded to whole ones (DDIM, PNDM, DPM-Solver, ...)
    spare: bool  # linspace, leading: space steps + 1 timesteps and leave the lowest out (DPM-Solver, UniPC, DEIS)
    sigma_min: float  # the lowest level but the last (default: the schedule's), for all but the first three and simple
    sigma_max: float  # the highest level (default: the schedule's), likewise
    rho: float  # karras (default 7)
    alpha: float  # beta (default 0.6)
    beta: float  # beta (default 0.6)
    table: str  # align_your_steps: "sd1" (default) or "sdxl"
    final: float  # the level the last step ends at (default 0)
    drop_penultimate: bool  # one more level is computed, and the last but one removed (A1111's option)


def sigmas(schedule: Schedule, steps: int, spacing: str, **options: Unpack[Options]) -> tuple[float, ...]:
    """steps + 1 noise levels, strictly descending (but for the last), the last 0 unless `final` says otherwise;
    ddim_uniform has more where the steps don't divide the training's, beta_timesteps fewer where two are one.

    Raises RequestError for an unknown spacing, or a number of steps that the spacing can't take: those over whole
    timesteps can't have more steps than there are timesteps.
    """
    return spaced(schedule, steps, spacing, **options)[0]


def timesteps(schedule: Schedule, steps: int, spacing: str, **options: Unpack[Options]) -> tuple[float, ...]:
    """The timestep of each of the `steps` levels the network is asked at (fractional where the spacing is)."""
    return spaced(schedule, steps, spacing, **options)[1]


def spaced(
    schedule: Schedule, steps: int, spacing: str, **options: Unpack[Options]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both: `sigmas` [steps + 1] and `timesteps` [steps]."""
    name = spacing_name(spacing)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise RequestError(f"the number of steps is {steps!r}; it must be a whole number from 1 to {MAX_STEPS}")
    drop = options.get("drop_penultimate", False)
    count = steps + 1 if drop else steps
    if name in ("linspace", "leading", "trailing") and schedule.prediction_type != "flow":
        ts = _diffusers_timesteps(schedule.steps, count, name, options)
        # Linear between whole timesteps, not log-linear: diffusers' choice, to be matched.
        levels = np.interp(ts, np.arange(schedule.steps), schedule.training_sigmas)
    else:
        levels = _levels(schedule, count, name, options)
        ts = np.array([schedule.sigma_to_t(float(s)) for s in levels])
    if drop:
        levels, ts = levels[:-1], ts[:-1]
    final = options.get("final", 0.0)
    if (
        (len(levels) != steps and name not in _UNEVEN)
        or not (np.diff(levels) < 0).all()
        or not levels[-1] >= final >= 0
        or not levels[-1] > 0
    ):
        raise RequestError(
            f"the schedule {name!r} can't place {steps} steps in {schedule.steps} training timesteps "
            f"from sigma {schedule.sigma_max:.4g} down to {final:.4g}; ask for fewer steps"
        )
    return (*levels.tolist(), float(final)), tuple(ts.tolist())


def _diffusers_timesteps(total: int, count: int, name: str, options: Options) -> Floats:
    """Descending timesteps [count], with diffusers' own rounding (in float32 where it spaces in float32)."""
    spare = int(options.get("spare", False))
    if name == "linspace":
        if options.get("whole", False):
            ts = np.linspace(0, total - 1, count + spare).round()
        else:
            ts = np.linspace(0, total - 1, count + spare, dtype=np.float32).astype(np.float64)
        return ts[::-1][:count]
    if name == "leading":
        ts = np.arange(count + spare, dtype=np.float64) * (total // (count + spare)) + options.get("steps_offset", 0)
        # Above the last timestep there is nothing: two equal ones, which the caller reports.
        return ts[::-1][:count].clip(max=total - 1)
    # np.arange may return one too many by rounding (61 steps of 1000, for one); diffusers then asks for timestep -1.
    return np.arange(total, 0, -total / count).round()[:count] - 1


def _levels(schedule: Schedule, count: int, name: str, options: Options) -> Floats:
    """Noise levels [count], descending, for the spacings that need no rounding rules."""
    low = float(options.get("sigma_min", schedule.sigma_min))
    high = float(options.get("sigma_max", schedule.sigma_max))
    if not 0 < low <= high < math.inf:
        raise RequestError(f"the schedule's sigma_min {low!r} and sigma_max {high!r} must be 0 < sigma_min < sigma_max")
    ramp = np.linspace(0.0, 1.0, count)
    if name in ("linspace", "leading", "trailing"):
        return _flow_levels(schedule, count, name)
    if name in ("normal", "sgm_uniform"):
        start, stop = schedule.sigma_to_t(high), schedule.sigma_to_t(low)
        ts = np.linspace(start, stop, count) if name == "normal" else np.linspace(start, stop, count + 1)[:-1]
        return np.array([schedule.t_to_sigma(float(t)) for t in ts])
    if name == "simple":
        stride = schedule.steps / count
        return np.array([schedule.training_sigmas[-1 - int(i * stride)] for i in range(count)])
    if name == "karras":
        rho = _positive(options.get("rho", 7.0), "rho")
        return np.asarray((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)
    if name == "exponential":
        return np.exp(np.linspace(math.log(high), math.log(low), count))
    if name == "beta":
        a, b = _positive(options.get("alpha", 0.6), "alpha"), _positive(options.get("beta", 0.6), "beta")
        return np.array([low + beta_quantile(float(p), a, b) * (high - low) for p in 1 - ramp])
    if name == "ddim_uniform":
        return schedule.training_sigmas[1 :: max(schedule.steps // count, 1)][::-1]
    if name == "beta_timesteps":
        a, b = _positive(options.get("alpha", 0.6), "alpha"), _positive(options.get("beta", 0.6), "beta")
        last = schedule.steps - 1
        places = [round(beta_quantile(1 - i / count, a, b) * last) for i in range(count)]
        return schedule.training_sigmas[list(dict.fromkeys(places))]
    if name == "linear_quadratic":
        way = _linear_quadratic(count)
        if schedule.prediction_type != "flow":
            return high * way
        left = way * (high / (1 + high))  # of the line between picture and noise, whose very end has no sigma
        return np.asarray(left / (1 - left))
    if name == "kl_optimal":
        return np.asarray(np.tan(ramp * math.atan(low) + (1 - ramp) * math.atan(high)))
    table = options.get("table", "sd1")
    if table not in _ALIGN_YOUR_STEPS:
        raise RequestError(f"there is no Align Your Steps table {table!r}; there are {', '.join(_ALIGN_YOUR_STEPS)}")
    return _log_linear(_ALIGN_YOUR_STEPS[table], count + 1)[:-1]


_THRESHOLD = 0.025  # of the way, which the linear half goes


def _linear_quadratic(count: int) -> Floats:
    """What is left of the way before each step: it begins with straight ones, and goes on as steep along a parabola."""
    if count == 1:
        return np.ones(1)
    straight = count // 2
    slope = _THRESHOLD / straight
    i = np.arange(count, dtype=np.float64)
    bent = np.maximum(i - straight, 0)
    curve = (1 - slope * count) / (count - straight) ** 2
    left: Floats = 1 - slope * i - curve * bent**2
    return left


def _flow_levels(schedule: Schedule, count: int, name: str) -> Floats:
    """A flow model's s evenly spaced before its shift: from 1 to 1/T (linspace), or to one interval above 0."""
    if name == "leading":
        raise RequestError("a flow model has no 'leading' schedule; use 'linspace', 'trailing' or 'simple'")
    s = np.linspace(1.0, 1.0 / schedule.steps, count) if name == "linspace" else np.linspace(1.0, 0.0, count + 1)[:-1]
    s = schedule.shift * s / (1 + (schedule.shift - 1) * s)
    with np.errstate(divide="ignore"):
        return np.minimum(s / (1 - s), schedule.sigma_max)


def _log_linear(levels: Sequence[float], count: int) -> Floats:
    """`count` levels along a descending table, log sigma linear between its entries; its own entries if as many."""
    if count == len(levels):
        return np.array(levels)
    return np.exp(np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(levels)), np.log(levels)))


def _positive(value: float, name: str) -> float:
    if not 0 < value < math.inf:
        raise RequestError(f"the schedule's {name} is {value!r}; it must be a positive number")
    return float(value)


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
