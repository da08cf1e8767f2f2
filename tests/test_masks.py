"""Masks: soft edges inside, colours spread inwards, boxes around."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from darkroom.errors import RequestError
from darkroom.masks import (
    Composite,
    bounds,
    extended,
    fitting,
    on_latents,
    soft_edge,
    spread,
    surroundings,
    working_size,
)


def rectangle(width: int, height: int, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., top:bottom, left:right] = 1
    return mask


def test_the_edge_rises_inside_the_mask() -> None:
    edge = soft_edge(rectangle(40, 40, 10, 10, 30, 30), 3)[0, 0]
    assert edge[20, 8:16].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert edge[20, 25:32].tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert torch.equal(soft_edge(rectangle(9, 9, 2, 2, 5, 5), 0), rectangle(9, 9, 2, 2, 5, 5))


def test_thin_strokes_and_the_pictures_border_stay() -> None:
    assert soft_edge(rectangle(40, 40, 10, 0, 11, 40), 8)[0, 0, 20, 9:12].tolist() == [0, 1, 0]
    assert soft_edge(rectangle(40, 40, 10, 0, 13, 40), 8)[0, 0, 20, 9:14].tolist() == [0, 0.5, 1, 0.5, 0]
    assert soft_edge(rectangle(40, 40, 0, 0, 20, 40), 3)[0, 0, 0].tolist() == [1] * 17 + [0.75, 0.5, 0.25] + [0] * 20
    assert torch.equal(soft_edge(torch.ones(1, 1, 5, 7), 100), torch.ones(1, 1, 5, 7))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1), st.integers(0, 12))
def test_edges_and_fillings_of_any_mask(width: int, height: int, seed: int, share: float, blur: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, 1, height, width, generator=generator) < share).float()
    edge = soft_edge(mask, blur)
    assert torch.equal(edge > 0, mask > 0)
    assert edge.max() <= 1
    picture = torch.rand(1, 3, height, width, generator=generator)
    filled = spread(picture, mask)
    known = (mask == 0).expand_as(picture)
    assert torch.equal(filled[known], picture[known])
    assert filled.isfinite().all()
    if known.any():
        for channel, full in zip(picture[0], filled[0], strict=True):
            seen = channel[mask[0, 0] == 0]
            assert seen.min() - 1e-5 <= full.min()
            assert full.max() <= seen.max() + 1e-5
    latent = on_latents(mask, 8)
    assert latent.shape == (1, -(-height // 8), -(-width // 8))
    wide = latent.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., :height, :width]
    assert bool((wide >= mask[0]).all())


def test_colours_spread_from_where_they_are() -> None:
    picture = torch.zeros(1, 3, 32, 64)
    picture[:, 0, :, 48:] = 1
    filled = spread(picture, rectangle(64, 32, 16, 0, 48, 32))
    assert torch.equal(filled[:, 1:], torch.zeros(1, 2, 32, 64))
    row = filled[0, 0, 16]
    assert row[17] < 0.3
    assert row[46] > 0.7


def test_boxes() -> None:
    assert bounds(torch.zeros(1, 1, 4, 4)) is None
    assert bounds(rectangle(40, 30, 5, 6, 8, 9)) == (5, 6, 8, 9)
    assert surroundings((10, 10, 20, 20), 5, (100, 100), (64, 64)) == (5, 5, 25, 25)
    assert surroundings((0, 10, 40, 20), 5, (100, 100), (64, 64)) == (0, 0, 45, 45)
    assert surroundings((90, 40, 100, 50), 0, (100, 100), (64, 32)) == (80, 40, 100, 50)
    assert surroundings((0, 0, 50, 10), 0, (50, 12), (64, 64)) == (0, 0, 50, 12)
    assert working_size((0, 0, 45, 45), (64, 64), 8) == (64, 64)
    assert working_size((0, 0, 300, 300), (64, 64), 8) == (64, 64)
    assert working_size((0, 0, 100, 25), (64, 64), 8) == (128, 32)
    assert working_size((0, 0, 8000, 1), (64, 64), 8) == (256, 8)


def test_a_canvas_holds_the_picture_and_its_colours() -> None:
    picture = Image.new("RGB", (6, 4), (10, 200, 30))
    canvas, mask = extended(picture, (3, 1, 0, 2))
    assert canvas.size == (9, 7)
    assert canvas.getcolors() == [(9 * 7, (10, 200, 30))]
    assert bounds(1 - mask) == (3, 1, 9, 5)


def test_masks_must_have_the_pictures_shape() -> None:
    mask = Image.new("L", (32, 24), 255)
    assert fitting(mask, (16, 12), (64, 48)).shape == (1, 1, 12, 16)
    assert fitting(Image.new("L", (21, 16)), (64, 48), (64, 48)).shape == (1, 1, 48, 64)  # rounded
    with pytest.raises(RequestError, match="32x24 pixels and the image 64x64"):
        fitting(mask, (64, 64), (64, 64))


def test_a_composite_travels() -> None:
    picture, edge = Image.new("RGB", (8, 8), (1, 2, 3)), Image.new("L", (8, 8), 0)
    edge.paste(255, (2, 2, 6, 6))
    composite = pickle.loads(pickle.dumps(Composite(picture, edge, (1, 1, 7, 7), (12, 12))))
    result = composite.put(torch.full((3, 12, 12), 0.5))
    assert torch.equal(result[:, 0, 0] * 255, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(result[:, 3, 3], torch.full((3,), 0.5))
