"""Which jobs move in a tick, and which of their rows share a U-Net call. No tensors here.

A row is one question to the U-Net: a job asks one, two or three at a time, one for each branch of its guidance.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Waiting = TypeVar("Waiting")


def pick(rows: Iterable[tuple[Waiting, int]], budget: int) -> list[Waiting]:
    """The jobs that move in this tick: in order of arrival, as long as their rows fit into the budget.

    `rows` are jobs, in order of arrival, with the rows they ask for; those behind the budget are not looked at. The
    first job always moves, even if it alone asks for more than the budget. Nobody is overtaken for being large: the
    first that doesn't fit ends the tick's list. So every job's waiting ends when those before it end (no starvation),
    and the mean time to a finished picture is shorter than if all took turns.
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
