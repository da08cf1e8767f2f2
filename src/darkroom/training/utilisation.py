"""How much of what a device could compute, a training does compute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def operations(work: Callable[[], object]) -> int:
    """The floating-point operations of `work`, a product and its sum counting as two."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@torch.no_grad()
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product: what the device (with this process's threads) gets to."""
    n = 1024 if device.type == "cpu" else 8192
    x = torch.full((n, n), 0.01, device=device, dtype=dtype)
    best, started = math.inf, time.perf_counter()
    for _ in range(4):
        began = time.perf_counter()
        float((x @ x)[0, 0])  # which waits for the device
        best = min(best, time.perf_counter() - began)
        if time.perf_counter() - started > 0.5:
            break  # such as float16 on a CPU
    return 2 * n**3 / best
