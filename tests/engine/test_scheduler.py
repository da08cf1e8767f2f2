"""Which jobs move, and which rows share a call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from darkroom.engine.scheduler import pick, share


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
