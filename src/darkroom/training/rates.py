"""The learning rate over a run."""

from __future__ import annotations

import math

from .config import LoopConfig


def rate(config: LoopConfig, step: int) -> float:
    """The learning rate's factor at `step`, between 0 and 1: a linear warm-up, then what the schedule says.

    A "stable" run (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395, sec. 4) falls linearly to 0 over its last
    `cooldown`, a fraction: until that begins, a longer run is the same run. "linear", "cosine" and "restarts"
    (Loshchilov & Hutter 2016, arXiv 1608.03983, with cycles of one length) fall to 0 from the end of the warm-up on.
    """
    c = config
    rising = (step + 1) / max(c.warmup, 1)
    done = min(max(0.0, (step - c.warmup) / max(c.steps - c.warmup, 1)), 1.0)  # of the way from warm-up to end
    if c.schedule == "stable":
        start = c.steps * (1 - c.cooldown)
        falling = (c.steps - step) / max(c.steps - start, 1) if step > start else 1.0
    elif c.schedule == "linear":
        falling = 1 - done
    elif c.schedule == "cosine":
        falling = 0.5 * (1 + math.cos(math.pi * done))
    elif c.schedule == "restarts":
        falling = 0.5 * (1 + math.cos(math.pi * (c.cycles * done % 1))) if done < 1 else 0.0
    else:
        falling = 1.0
    return max(0.0, min(1.0, rising, falling))
