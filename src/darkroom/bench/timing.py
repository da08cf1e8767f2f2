"""How time is taken: contestants in turns, medians, and the name of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    on_turn: Callable[[int, int], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round.

    In every round each runs once, in an order that turns from round to round, so that a machine that slows down or
    speeds up does so for all of them. The first `warm_up` rounds are not counted. `on_turn` is called after each turn
    with the turns done and all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(warm_up + rounds):
        for turn, name in enumerate(names[number % len(names) :] + names[: number % len(names)], 1):
            began = time.perf_counter()
            contestants[name]()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - began)
            if on_turn is not None:
                on_turn(number * len(names) + turn, (warm_up + rounds) * len(names))
    return seconds


def report(seconds: Mapping[str, list[float]], unit: str = "s") -> str:
    """A line for each contestant: median, least and most, and the ratio to the first one's median."""
    scale = {"s": 1.0, "ms": 1000.0}[unit]
    first = statistics.median(next(iter(seconds.values())))
    lines = []
    for name, values in seconds.items():
        median = statistics.median(values)
        span = f"{min(values) * scale:.3g} to {max(values) * scale:.3g}"
        lines.append(
            f"  {name:28} {median * scale:8.3g} {unit}   ({span}, {len(values)} rounds)   x {median / first:.2f}"
        )
    return "\n".join(lines)


def machine() -> str:
    """The processor, its cores, and how busy it was before we came."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {os.cpu_count()} cores{load}, Python {platform.python_version()}"
