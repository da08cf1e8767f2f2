"""Freed memory: kept for the next activations, and given back where it would make a process grow."""

from __future__ import annotations

import pytest

from darkroom.kernels import heap

GROWTH = 2 * heap.SMALL


class Library:
    """glibc, as far as it is asked: trimming takes `gaps` bytes from what is resident."""

    def __init__(self, gaps: int) -> None:
        self.resident, self.gaps, self.trimmed = 10 * GROWTH, gaps, 0

    def malloc_trim(self, _pad: int) -> None:
        self.trimmed += 1
        self.resident -= self.gaps


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library(GROWTH)
    monkeypatch.setattr(heap, "_glibc", lambda: made)
    monkeypatch.setattr(heap, "_resident", lambda: made.resident)
    return made


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        @staticmethod
        def cache_info() -> object:
            return type("Info", (), {"currsize": 1})

    monkeypatch.setattr(heap, "keep_freed_memory", Kept)


def test_gaps_are_given_back_where_a_process_would_outgrow_its_bound(library: Library) -> None:
    bound = heap.Bound(GROWTH)
    library.resident += GROWTH
    bound.keep()
    assert library.trimmed == 0
    library.resident += 1
    bound.keep()
    assert library.trimmed == 1
    bound.keep()
    assert library.trimmed == 1  # it is below now


def test_memory_that_is_held_is_not_asked_for_again_and_again(library: Library) -> None:
    library.gaps = 0
    bound = heap.Bound(GROWTH)
    library.resident += 2 * GROWTH
    for _ in range(5):
        bound.keep()
    assert library.trimmed == 1
    library.resident += GROWTH
    bound.keep()
    assert library.trimmed == 2


def test_a_small_growth_bothers_nobody(library: Library) -> None:
    bound = heap.Bound(1)
    library.resident += heap.SMALL
    bound.keep()
    assert library.trimmed == 0


def test_the_real_library_is_asked_without_harm() -> None:
    bound = heap.Bound(1)
    bound.limit = -1
    bound.keep()
