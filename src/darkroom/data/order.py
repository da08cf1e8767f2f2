"""The order of training pictures: which of them make up the batch of any global step.

A picture comes `repeats` times in a round. Every batch is of one bucket (pictures of one size). All of it is a pure
function of the arguments, for any step at once: a run that goes on needs to know nothing but its step.

Each bucket has an endless sequence of draws, round after round, and its batches are this sequence cut into pieces of
`batch_size`. What is left of a bucket's round when no whole batch remains begins its next one: nothing is dropped and
nothing comes twice. A round's batches come in a new order each time, those of all buckets among each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError

KEPT = 4  # arrays kept in memory for each bucket: two rounds (a batch may begin in one and end in the next), and more


class Order:
    """Rows for every step.

    Args:
        sizes: of each picture, (width, height): its bucket.
        repeats: how often each comes in a round.
        batch_size: rows in a batch.
        seed: another seed, another order.
        prior: which are class pictures (DreamBooth). In every round these are drawn as often, all together, as all
            others are, alternating with the others of their bucket; `repeats` weighs them against each other.

    Safe to call from one thread at a time. Raises TrainingError where there is nothing to draw.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        repeats: Sequence[int],
        batch_size: int,
        seed: int,
        prior: Sequence[bool] = (),
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        classes = np.asarray(prior, bool) if len(prior) else np.zeros(len(sizes), bool)
        counts = np.asarray(repeats, np.int64)
        if not len(sizes) == len(counts) == len(classes):
            raise ValueError(f"{len(sizes)} sizes, {len(counts)} repeats and {len(classes)} prior are no one order")
        if batch_size < 1 or (counts < 1).any():
            raise ValueError(f"batch_size {batch_size} and all repeats must be 1 or more")
        places: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            places.setdefault((int(size[0]), int(size[1])), []).append(i)
        self._own: list[NDArray[np.int64]] = []  # rows of each bucket, each as often as it comes in a round
        self._prior: list[NDArray[np.int64]] = []  # class pictures of each bucket, as often as they weigh
        self._ranks: list[NDArray[np.int64]] = []  # of each entry of `_own`: its number among its picture's, and
        self._of: list[NDArray[np.int64]] = []  # how many those are
        for size in sorted(places):
            rows = np.asarray(places[size], np.int64)
            own = rows[~classes[rows]]
            self._own.append(np.repeat(own, counts[own]))
            self._of.append(np.repeat(counts[own], counts[own]))
            starts = np.repeat(np.cumsum(counts[own]) - counts[own], counts[own])
            self._ranks.append(np.arange(len(starts)) - starts)
            others = rows[classes[rows]]
            self._prior.append(np.repeat(others, counts[others]))
        self._draws = sum(len(own) for own in self._own)  # of a round, without class pictures
        self._weight = sum(len(others) for others in self._prior)
        if not self._draws:
            raise TrainingError("there is no picture to learn from beside the class pictures; add the subject's")
        self._kept: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    @property
    def steps_a_round(self) -> float:
        """Batches in which every picture comes `repeats` times, on average over many rounds."""
        return self._draws * (2 if self._weight else 1) / self.batch_size

    def rows(self, step: int) -> NDArray[np.int64]:
        """The rows of the batch of a global step, [batch_size], all of one bucket."""
        if step < 0:
            raise ValueError(f"step is {step}; it must be 0 or more")
        number = self.round_of(step)
        before = [self._batches(b, number) for b in range(len(self._own))]
        after = [self._batches(b, number + 1) for b in range(len(self._own))]
        # The batches that end in this round, in its own order.
        counts = np.asarray(after) - np.asarray(before)
        place = self._shuffled(number, int(counts.sum()))[step - sum(before)]
        ends = np.cumsum(counts)
        bucket = int(np.searchsorted(ends, place, side="right"))
        batch = before[bucket] + int(place - (ends[bucket] - counts[bucket]))
        return self._slice(bucket, batch * self.batch_size, self.batch_size)

    def round_of(self, step: int) -> int:
        """The number of the round (from 0) in which the batch of a step comes."""
        low, high = 0, 1
        while self._steps_before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._steps_before(middle) <= step else (low, middle)
        return low

    def _steps_before(self, number: int) -> int:
        return sum(self._batches(b, number) for b in range(len(self._own)))

    def _batches(self, bucket: int, number: int) -> int:
        """Whole batches of a bucket in the first `number` rounds."""
        return (number * len(self._own[bucket]) + self._prior_draws(bucket, number)) // self.batch_size

    def _prior_draws(self, bucket: int, number: int) -> int:
        """How many class pictures of a bucket come in the first `number` rounds."""
        return number * self._draws * len(self._prior[bucket]) // self._weight if self._weight else 0

    def _slice(self, bucket: int, start: int, count: int) -> NDArray[np.int64]:
        """Draws start, ..., start + count - 1 of a bucket's endless sequence."""
        a_round = len(self._own[bucket]) + self._prior_draws(bucket, 1)
        number = max(0, start // max(a_round + 1, 1) - 1)
        while self._begin(bucket, number + 1) <= start:
            number += 1
        parts: list[NDArray[np.int64]] = []
        missing, skip = count, start - self._begin(bucket, number)
        while missing:
            part = self._round(bucket, number)[skip : skip + missing]
            parts.append(part)
            missing, skip, number = missing - len(part), 0, number + 1
        return np.concatenate(parts)

    def _begin(self, bucket: int, number: int) -> int:
        return number * len(self._own[bucket]) + self._prior_draws(bucket, number)

    def _round(self, bucket: int, number: int) -> NDArray[np.int64]:
        """A bucket's draws of one round, in their order."""
        key = (bucket, number)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        rng = np.random.default_rng((self.seed, bucket, number, 7))
        own = self._own[bucket]
        # A picture that comes r times comes once in each r-th of the round.
        own = own[np.argsort((self._ranks[bucket] + rng.random(len(own))) / self._of[bucket], kind="stable")]
        first, last = self._prior_draws(bucket, number), self._prior_draws(bucket, number + 1)
        if last > first:
            others = np.asarray([self._class_picture(bucket, k) for k in range(first, last)], np.int64)
            at = np.concatenate(
                [np.arange(len(own)) / max(len(own), 1), (np.arange(last - first) + 0.5) / (last - first)]
            )
            own = np.concatenate([own, others])[np.argsort(at, kind="stable")]
        self._kept[key] = own
        while len(self._kept) > KEPT * (len(self._own) + 1):
            self._kept.popitem(last=False)
        return own

    def _class_picture(self, bucket: int, k: int) -> int:
        """The k-th class picture that a bucket draws: all of them once, in a new order, and again."""
        others = self._prior[bucket]
        number, place = divmod(k, len(others))
        key = (-1 - bucket, number)
        if key not in self._kept:
            self._kept[key] = others[np.random.default_rng((self.seed, bucket, number, 8)).permutation(len(others))]
        return int(self._kept[key][place])

    def _shuffled(self, number: int, count: int) -> NDArray[np.int64]:
        """The order of a round's batches."""
        key = (len(self._own), number)
        if key not in self._kept:
            self._kept[key] = np.random.default_rng((self.seed, number, 9)).permutation(count)
        self._kept.move_to_end(key)
        return self._kept[key]
