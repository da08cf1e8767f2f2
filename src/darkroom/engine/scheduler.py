"""Which jobs move in a tick, and which of their rows share a U-Net call. No tensors here, and no torch.

A row is one question to the U-Net: a job asks one, two or three at a time, one for each branch of its guidance. What a
tick costs is counted in units: rows times the pixels of their latents.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Waiting = TypeVar("Waiting")

CPU_ROWS, CPU_UNITS = 32, 32 * 16 * 16  # of a tick: beyond these a CPU gains next to nothing (docs/benchmarks.md)
ACCELERATOR_ROWS, ACCELERATOR_UNITS = 16, 16 * 64 * 64
TICK = 1.0  # seconds that a server's tick takes at most, where one job alone allows it: so long may a late one wait
ADMITTED = 2  # so many ticks' worth of jobs are prepared; the others wait as requests


def rank(now: float, own: float, unfinished: float) -> float:
    """A job's place in the order, given once, when it is taken in; the lowest goes first.

    Short jobs go first, keys are fair, and waiting is bounded: nobody who comes later than now + 2 own + unfinished
    goes before it.

    Args:
        now: seconds, of a clock that all jobs share.
        own: seconds that the job takes by itself.
        unfinished: seconds of the unfinished work of the same key (person).
    """
    return now + 2 * own + unfinished


def pick(rows: Iterable[tuple[Waiting, float]], budget: float) -> list[Waiting]:
    """The jobs that move in this tick: in their order, as long as what they ask for fits into the budget.

    `rows` are jobs, the first to go first, with what they ask for (rows, or units); those behind the budget are not
    looked at. The first job always moves, even if it alone asks for more than the budget. Nobody is overtaken for being
    large: the first that doesn't fit ends the tick's list. So every job's waiting ends when those before it end (no
    starvation), and the mean time to a finished picture is shorter than if all took turns.
    """
    chosen: list[Waiting] = []
    for job, count in rows:
        if chosen and count > budget:
            break
        chosen.append(job)
        budget -= count
    return chosen


def share(keys: Sequence[Hashable], largest: int) -> list[list[int]]:
    """Group the rows of a tick into U-Net calls: rows of equal key share a call, of `largest` rows at most.

    Returns indices into `keys`; every index is in exactly one call, in order.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return [group[i : i + largest] for group in groups.values() for i in range(0, len(group), largest)]


class Width:
    """How many rows a tick may have: `most`, fewer for a while after memory ran out.

    After `PATIENCE` ticks without that it is twice as many again; each time memory runs out anew, it waits longer.
    """

    PATIENCE, LONGEST = 64, 4096  # ticks

    def __init__(self, most: int) -> None:
        self.most = self.rows = most
        self._wait = self._left = self.PATIENCE

    def ticked(self, fitted: int | None) -> None:
        """After a tick; `fitted` is the widest call that memory allowed, None where it never ran out."""
        if fitted is not None:
            self.rows = min(self.rows, fitted)
            self._left, self._wait = self._wait, min(2 * self._wait, self.LONGEST)
        elif self.rows < self.most:
            self._left -= 1
            if self._left <= 0:
                self.rows, self._left = min(2 * self.rows, self.most), self._wait
