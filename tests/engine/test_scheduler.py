"""Which jobs move, and which rows share a call."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from darkroom.engine.scheduler import Width, pick, rank, share


def test_jobs_move_in_order_of_arrival_within_the_budget() -> None:
    assert pick({"a": 2, "b": 2, "c": 2}.items(), 4) == ["a", "b"]
    assert pick({"a": 2, "b": 1, "c": 2}.items(), 4) == ["a", "b"]
    assert pick({}.items(), 4) == []


def test_the_first_moves_even_if_it_is_larger_than_the_budget() -> None:
    assert pick({"a": 3, "b": 1}.items(), 2) == ["a"]


def test_no_one_is_overtaken() -> None:
    assert pick({"a": 2, "large": 3, "small": 1}.items(), 4) == ["a"]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=20), st.integers(1, 12))
def test_nobody_starves(rows: list[int], budget: int) -> None:
    """Each job needs three moves and new ones keep arriving; the first ones still finish, in order."""
    left = dict.fromkeys(range(len(rows)), 3)
    finished: list[int] = []
    for tick in range(10 * len(rows)):
        asking = {job: rows[job % len(rows)] for job in left}
        moved = pick(asking.items(), budget)
        assert moved[0] == next(iter(left))
        assert sum(asking[job] for job in moved) <= budget or len(moved) == 1
        for job in moved:
            left[job] -= 1
            if not left[job]:
                finished.append(job)
                del left[job]
        left[len(rows) + tick] = 3  # a newcomer each tick
    assert set(range(len(rows))) <= set(finished)


@given(st.lists(st.sampled_from("xyz"), max_size=30), st.integers(1, 5))
def test_rows_of_equal_key_share_calls(keys: list[str], largest: int) -> None:
    calls = share(keys, largest)
    assert sorted(i for call in calls for i in call) == list(range(len(keys)))
    for call in calls:
        assert 1 <= len(call) <= largest
        assert len({keys[i] for i in call}) == 1
        assert call == sorted(call)
    for key in set(keys):
        assert len([c for c in calls if keys[c[0]] == key]) == -(-keys.count(key) // largest)


def test_short_jobs_and_people_with_little_unfinished_work_go_first() -> None:
    long, short = rank(100.0, 60.0, 0.0), rank(101.0, 2.0, 0.0)
    assert short < long
    busy, new = rank(100.0, 2.0, 300.0), rank(150.0, 2.0, 0.0)
    assert new < busy


def test_nobody_is_overtaken_for_ever() -> None:
    """Whoever comes later than the bound goes behind, however short it is."""
    mine = rank(100.0, 60.0, 30.0)
    assert all(rank(100.0 + 2 * 60 + 30 + later, 0.0, 0.0) >= mine for later in (0.0, 1.0, 1e6))


def test_a_width_comes_back_by_and_by() -> None:
    width = Width(32)
    width.ticked(5)
    assert width.rows == 5
    for _ in range(Width.PATIENCE - 1):
        width.ticked(None)
    assert width.rows == 5
    width.ticked(None)
    assert width.rows == 10
    width.ticked(4)  # too early: now it waits twice as long
    for _ in range(2 * Width.PATIENCE):
        assert width.rows == 4
        width.ticked(None)
    assert width.rows == 8
    for _ in range(20 * Width.PATIENCE):
        width.ticked(None)
    assert width.rows == 32


def test_it_needs_no_torch() -> None:
    code = "import sys, darkroom.engine.scheduler; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"
