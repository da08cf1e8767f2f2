"""Pictures that are nearly the same are found, and pictures of one shape in other colours are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from darkroom.data.duplicates import MOST, Miniature, groups, miniatures
from darkroom.data.folders import scan
from darkroom.toy.scenes import draw_scene, render_scene


def scene(i: int) -> Image.Image:
    return Image.fromarray(render_scene(draw_scene(7, i)))


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [scene(i) for i in range(40)]


def test_what_leaves_a_picture_nearly_the_same(scenes: list[Image.Image], tmp_path: Path) -> None:
    """Larger, in JPEG, a little darker; found in files as in memory. 40 scenes are all different."""
    a, b = scenes[0], scenes[1]
    a.save(tmp_path / "a.png")
    a.resize((300, 300), Image.Resampling.LANCZOS).save(tmp_path / "b.jpg", quality=70)
    ImageEnhance.Brightness(a).enhance(0.97).save(tmp_path / "c.png")
    b.save(tmp_path / "d.png")
    b.convert("P").save(tmp_path / "e.gif")
    scenes[2].save(tmp_path / "f.png")
    found = miniatures(scan(tmp_path).examples)
    assert groups(found) == [[0, 1, 2], [3, 4]]
    assert groups([Miniature.of(each) for each in scenes]) == []


def test_colour_tells_pictures_of_one_shape_apart() -> None:
    shapes = []
    for colour in ("red", "blue", "red"):
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste(colour, (20, 20, 40, 40))
        shapes.append(Miniature.of(picture))
    assert groups(shapes) == [[0, 2]]
    assert groups([shapes[0], None, shapes[2]]) == [[0, 2]]


def test_the_hash_is_that_of_neighbours() -> None:
    """Known answer: gray that rises to the right is all ones, one that falls all zeros; 1 in the first column alone is
    the highest bit of each of eight bytes."""
    ramp = np.broadcast_to(np.arange(0, 180, 20, dtype=np.uint8), (8, 9))
    assert Miniature.of(Image.fromarray(ramp.copy()).convert("RGB")).bits == 2**64 - 1
    assert Miniature.of(Image.fromarray(ramp[:, ::-1].copy()).convert("RGB")).bits == 0
    step = np.full((8, 9), 200, np.uint8)
    step[:, 0] = 10
    assert Miniature.of(Image.fromarray(step).convert("RGB")).bits == 0x8080808080808080


def test_many_are_compared_in_parts_and_the_first_only() -> None:
    """Across the blocks that are compared at once; a chain of likes is one group."""
    rng = np.random.default_rng(0)
    colours = np.zeros((8, 8, 3), np.uint8)
    bits = [int(b) for b in rng.integers(0, 2**63, 3000, dtype=np.uint64)]
    bits[2500], bits[1200] = bits[3] ^ 0b111111, bits[3] ^ 0b111111000000
    found = [Miniature(each, colours) for each in bits]
    assert groups(found) == [[3, 1200, 2500]]
    beyond: list[Miniature | None] = [None] * MOST
    assert groups([*beyond, found[0], found[0]]) == []
