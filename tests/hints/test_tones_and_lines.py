"""Drawings, colours and depth, by what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from darkroom.errors import ImageError, RequestError
from darkroom.hints import HINTS, depth, invert, line_art, make, palette, recolour, scribble, tile


def drawing() -> Image.Image:
    """A dark line of three pixels on a bright ground that darkens slowly."""
    values = np.tile(np.linspace(240, 180, 80), (60, 1))
    values[:, 38:41] -= 120
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("hint", [line_art, scribble])
def test_lines_are_white_where_the_drawing_is_dark(hint) -> None:
    drawn = np.asarray(hint(drawing()))[..., 0]
    assert (drawn[:, 39] == 255).all()
    assert not drawn[:, :30].any()
    assert not drawn[:, 50:].any()
    assert not np.asarray(hint(Image.new("RGB", (20, 20), (10, 10, 10)))).any()


def test_scribbles_are_as_thick_as_asked() -> None:
    widths = [(np.asarray(scribble(drawing(), thickness=t))[30, :, 0] > 0).sum() for t in (0, 2, 5)]
    assert widths[1] == widths[0] + 4
    assert widths[2] == widths[0] + 10


def test_tile_keeps_the_colours_and_drops_the_detail() -> None:
    values = np.full((64, 96, 3), (200, 100, 50), np.uint8)
    values[::2, ::2] = (180, 120, 70)
    made = np.asarray(tile(Image.fromarray(values), factor=8)).astype(int)
    assert abs(made - values.reshape(-1, 3).mean(0)).max() <= 1
    assert np.array_equal(np.asarray(tile(Image.fromarray(values), factor=1)), values)


def test_palette_is_a_grid_of_mean_colours() -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 80, 3)).astype(np.uint8)
    made = np.asarray(palette(Image.fromarray(values), cells=4))
    for row in range(4):
        for column in range(8):
            cell = (slice(10 * row, 10 * row + 10), slice(10 * column, 10 * column + 10))
            assert abs(made[cell] - values[cell].reshape(-1, 3).mean(0)).max() <= 1
    assert palette(Image.new("RGB", (3, 700))).size == (3, 700)


@pytest.mark.parametrize("kind", ["8", "16", "file", "float"])
def test_depth_spreads_any_map_as_finely_as_it_is(kind: str, tmp_path) -> None:
    ramp = np.linspace(0, 1, 200)[None].repeat(4, 0)
    if kind == "8":
        picture = Image.fromarray((100 + 100 * ramp).astype(np.uint8))
    elif kind == "float":
        picture = Image.fromarray((0.2 + ramp / 1000).astype(np.float32))
    else:
        picture = Image.fromarray((30_000 + 900 * ramp).astype(np.uint16))  # 4 of 255 grays, were it cut to 8 bits
    if kind == "file":
        picture.save(tmp_path / "map.png")
        picture = tmp_path / "map.png"
    near = np.asarray(depth(picture))[0, :, 0].astype(int)
    assert (near[0], near[-1]) == (0, 255)
    assert len(np.unique(near)) > (90 if kind == "8" else 180)
    assert abs(near - 255 * np.linspace(0, 1, 200)).max() < 4
    assert abs(np.asarray(depth(picture, far_is_white=True))[0, :, 0] - (255 - near)).max() <= 1


def test_depth_of_odd_maps() -> None:
    assert not np.asarray(depth(Image.new("L", (5, 5), 77))).any()
    with pytest.raises(ImageError, match="not finite"):
        depth(Image.fromarray(np.array([[0.0, np.nan]], np.float32)))


def test_recolour() -> None:
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]]], np.uint8))
    lightness = np.asarray(recolour(colours))[0, :, 0] / 255 * 100
    assert lightness == pytest.approx([53.2, 87.7, 32.3, 53.6], abs=0.3)  # CIE L* of the primaries and of mid-gray
    assert np.asarray(recolour(colours, by="intensity"))[0, :, 0].tolist() == [255, 255, 255, 128]
    assert np.asarray(recolour(colours, by="intensity", gamma=2))[0, 3, 0] == 64


def test_invert() -> None:
    assert np.asarray(invert(Image.new("L", (2, 2), 10)))[0, 0].tolist() == [245] * 3


@pytest.mark.parametrize("name", HINTS)
def test_every_hint_takes_any_picture(name: str) -> None:
    for mode, size in (("RGBA", (1, 1)), ("P", (3, 300)), ("I;16", (40, 31))):
        made = make(name, Image.new(mode, size))
        assert (made.mode, made.size) == ("RGB", size)
    assert make(name.replace("-", "_"), Image.new("L", (4, 4))).size == (4, 4)


def test_names_and_options_that_can_not_be() -> None:
    picture = Image.new("L", (8, 8))
    with pytest.raises(RequestError, match="did you mean 'scribble'"):
        make("scribbel", picture)
    with pytest.raises(RequestError, match="no option 'sigmo'; did you mean 'sigma'"):
        make("canny", picture, sigmo=1)
    with pytest.raises(RequestError, match="cells is 0"):
        palette(picture, 0)
    with pytest.raises(RequestError, match="factor is nan"):
        tile(picture, float("nan"))
