"""A function in tiles is the function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darkroom.kernels.tiles import Step, tiles


def blurred(x: Tensor) -> Tensor:
    """Sees three pixels around, and nothing beyond the border."""
    return F.conv2d(x, torch.arange(49.0).reshape(1, 1, 7, 7) / 49, padding=3)


@pytest.mark.parametrize("size", [(100, 90), (33, 200), (5, 5)])
@pytest.mark.parametrize("budget", [0, 20_000, 10**9])
def test_tiles_make_the_same_picture(size: tuple[int, int], budget: int) -> None:
    x = torch.rand(1, 1, *size)
    answer = tiles(budget)(Step(blurred, reach=3, held=2), x)
    assert torch.allclose(answer, blurred(x), atol=1e-5)


def test_a_reach_that_is_too_short_shows() -> None:
    x = torch.rand(1, 1, 90, 90)
    answer = tiles(0)(Step(blurred, reach=2, held=2), x)
    assert not torch.allclose(answer, blurred(x), atol=1e-3)


def test_no_tile_is_larger_than_its_budget() -> None:
    seen: list[int] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.shape[-1] * x.shape[-2])
        return F.interpolate(x, scale_factor=2.0)

    x = torch.rand(1, 1, 300, 1000)
    answer = tiles(4 * 10 * 5000)(Step(watched, reach=4, held=10, scale=2), x)
    assert torch.equal(answer, F.interpolate(x, scale_factor=2.0))
    assert max(seen) <= 5000
    assert len(seen) < 120


def test_a_tick_may_end_it() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiles(0, stop)(Step(blurred, reach=3, held=2), torch.rand(1, 1, 90, 90))
