"""The assignment is the best there is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from darkroom.training.objective import assign


@pytest.mark.parametrize("seed", range(20))
def test_small_assignments_are_the_best_of_all(seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(5, 5))
    if seed % 3 == 0:
        cost = np.round(cost)  # ties
    found = assign(cost)
    assert sorted(found) == list(range(5))
    best = min(cost[range(5), list(order)].sum() for order in permutations(range(5)))
    assert cost[range(5), found].sum() == pytest.approx(best)


@pytest.mark.parametrize("n", [1, 2, 40, 90])
def test_it_is_as_good_as_scipy_s(n: int) -> None:
    from scipy.optimize import linear_sum_assignment

    cost = np.random.default_rng(n).normal(size=(n, n)) * 100
    assert cost[range(n), assign(cost)].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())
