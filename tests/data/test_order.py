"""The order of training pictures: every picture as often as it should come, in batches of one bucket, at any step."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.data.order import Order
from darkroom.errors import TrainingError

A, B, C = (64, 64), (64, 128), (128, 64)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 5)), min_size=1, max_size=20),
    st.integers(1, 7),
    st.integers(0, 5),
)
def test_every_picture_comes_its_repeats_times_a_round(
    rows: list[tuple[tuple[int, int], int]], batch: int, seed: int
) -> None:
    sizes, repeats = [size for size, _ in rows], [count for _, count in rows]
    order = Order(sizes, repeats, batch, seed)
    steps = sum(repeats)  # `batch` rounds: no bucket is left with a part of a batch
    counts: Counter[int] = Counter()
    for step in range(steps):
        drawn = order.rows(step)
        assert len(drawn) == batch
        assert len({sizes[i] for i in drawn}) == 1
        counts.update(drawn.tolist())
    assert counts == {i: batch * count for i, count in enumerate(repeats)}
    assert order.steps_a_round * batch == pytest.approx(sum(repeats))


def test_any_step_is_known_at_once_and_no_two_rounds_are_alike() -> None:
    make = lambda seed: Order([A] * 9 + [B] * 7, [1, 2, 3] * 5 + [1], 4, seed)  # noqa: E731
    order = make(1)
    all_rows = [order.rows(step) for step in range(40)]
    for step in (39, 3, 17, 0):
        assert np.array_equal(make(1).rows(step), all_rows[step])
    assert any(not np.array_equal(make(2).rows(step), all_rows[step]) for step in range(3))
    one = Order([A] * 8, [1] * 8, 8, 0)
    assert not np.array_equal(one.rows(0), one.rows(1))
    assert sorted(one.rows(0)) == sorted(one.rows(1)) == list(range(8))
    assert [one.round_of(step) for step in range(3)] == [0, 1, 2]


def test_a_picture_that_comes_often_comes_evenly() -> None:
    order = Order([A] * 11, [10] + [1] * 10, 1, 3)
    places = [step for step in range(20) if order.rows(step)[0] == 0]
    assert len(places) == 10
    assert max(b - a for a, b in itertools.pairwise(places)) <= 5


def test_a_bucket_that_fills_no_batch_waits_and_loses_nothing() -> None:
    order = Order([A] * 7 + [B], [1] * 8, 4, 0)
    found = [order.rows(step).tolist() for step in range(8)]  # four rounds
    assert found.count([7, 7, 7, 7]) == 1
    assert Counter(i for rows in found for i in rows if i < 7) == dict.fromkeys(range(7), 4)


def test_class_pictures_alternate_with_the_subjects() -> None:
    prior = [False] * 3 + [True] * 5
    order = Order([A] * 8, [7, 7, 7, 1, 1, 1, 1, 1], 2, 5, prior)
    counts: Counter[int] = Counter()
    for step in range(21 * 5):
        rows = order.rows(step).tolist()
        assert sorted(prior[i] for i in rows) == [False, True]
        counts.update(rows)
    assert counts == {0: 35, 1: 35, 2: 35} | dict.fromkeys(range(3, 8), 21)
    assert order.steps_a_round == 21


def test_class_pictures_of_several_buckets_are_as_many_as_the_subjects() -> None:
    prior = [False] * 4 + [True] * 3
    order = Order([A, A, B, B, A, B, B], [3] * 4 + [1] * 3, 4, 5, prior)
    counts = Counter(int(i) for step in range(600) for i in order.rows(step))
    assert abs(sum(counts[i] for i in range(4)) - 1200) < 8
    assert max(counts[i] for i in (4, 5, 6)) - min(counts[i] for i in (4, 5, 6)) < 8


def test_many_pictures_are_no_trouble() -> None:
    order = Order([A] * 100_000, np.ones(100_000, np.int64), 64, 0)  # type: ignore[arg-type]
    assert len(set(order.rows(10).tolist() + order.rows(12_345).tolist())) > 64


def test_what_has_no_order_is_told() -> None:
    with pytest.raises(TrainingError, match="class pictures"):
        Order([A], [1], 1, 0, [True])
    with pytest.raises(ValueError, match="repeats"):
        Order([A], [0], 1, 0)
    with pytest.raises(ValueError, match="step is -1"):
        Order([A], [1], 1, 0).rows(-1)
