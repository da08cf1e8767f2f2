"""The words of the scenes, and the glyphs that show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.errors import TrainingError
from darkroom.toy import glyphs
from darkroom.toy.objects import BACKGROUNDS, OBJECTS, SIZES, plural, vocabulary, with_article
from darkroom.toy.scenes import draw_scene


def test_there_is_enough_to_draw() -> None:
    assert len(OBJECTS) >= 100
    assert len(set(OBJECTS.values())) == len(OBJECTS)
    names = ("white", "black", "red", "orange", "yellow", "green", "blue", "purple", "pink", "gray")
    assert tuple(BACKGROUNDS) == names
    assert len(set(BACKGROUNDS.values())) == 10
    plurals = [plural(noun) for noun in OBJECTS]
    assert len(set(plurals)) == len(plurals)


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        ("fox", "foxes"), ("balloon", "balloons"), ("wolf", "wolves"), ("fish", "fish"), ("sheep", "sheep"),
        ("butterfly", "butterflies"), ("strawberry", "strawberries"), ("leaf", "leaves"), ("ladybug", "ladybugs"),
        ("key", "keys"), ("monkey", "monkeys"), ("turkey", "turkeys"), ("bus", "buses"), ("peach", "peaches"),
        ("tomato", "tomatoes"), ("teddy bear", "teddy bears"), ("hat", "hats"), ("dress", "dresses"),
    ],
)  # fmt: skip
def test_plurals(noun: str, several: str) -> None:
    assert plural(noun) == several


@pytest.mark.parametrize(
    "words", ["an apple", "a unicorn", "an octopus", "a fox", "an orange background", "an umbrella"]
)
def test_articles(words: str) -> None:
    assert with_article(words.split(" ", 1)[1]) == words


def test_the_vocabulary_covers_every_caption_and_has_no_more() -> None:
    said = {word for i in range(1000) for word in draw_scene(5, i, held_out=None).caption.split()}
    assert said <= set(vocabulary())
    assert len(vocabulary()) == len(set(vocabulary()))
    singular = {word for noun in OBJECTS for word in noun.split()}
    assert singular <= set(vocabulary())


def test_every_glyph_is_there_in_every_size() -> None:
    found = glyphs.load_glyphs()
    assert set(found) == {(noun, side) for noun in OBJECTS for side in SIZES.values()}
    for (noun, side), glyph in found.items():
        assert glyph.shape == (side, side, 4)
        assert glyph.dtype == np.float32
        colour, alpha = glyph[..., :3], glyph[..., 3:]
        assert 0 <= glyph.min() <= glyph.max() <= 1
        assert (colour <= alpha + 1e-6).all(), noun  # premultiplied
        assert 0.1 < alpha.mean() < 0.95, noun
        ink = alpha[..., 0] > 0.1
        height, width = (np.ptp(np.nonzero(ink.any(axis=a))[0]) + 1 for a in (1, 0))
        assert max(height, width) >= 0.9 * side, noun  # fitted to its square


def test_no_two_glyphs_look_alike() -> None:
    found = glyphs.load_glyphs()
    flat = np.stack([found[noun, 48].ravel() for noun in OBJECTS])
    squares = np.square(flat).sum(axis=1)
    distances = (squares[:, None] + squares[None] - 2 * flat @ flat.T) / flat.shape[1]
    np.fill_diagonal(distances, 1)
    assert distances.min() > 1e-3


def test_without_a_font_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "FONT_PLACES", ("/nowhere/font.ttf",))
    with pytest.raises(TrainingError, match="fonts-noto-color-emoji"):
        glyphs.find_font()


@pytest.fixture(scope="module")
def font() -> Path:
    try:
        return glyphs.find_font()
    except TrainingError:
        pytest.skip("the emoji font is not installed")


def test_glyphs_are_rendered_from_the_font(font: Path) -> None:
    fox = glyphs.render("🦊", 48, font)
    assert (fox.size, fox.mode) == ((48, 48), "RGBA")
    shipped = glyphs.load_glyphs()["fox", 48]
    assert np.abs(glyphs.to_glyph(fox) - shipped).mean() < 0.05  # fonts differ in their edges from year to year
    with pytest.raises(TrainingError, match="no picture"):
        glyphs.render(" ", 48, font)


def test_other_emoji_are_none_of_ours(font: Path) -> None:
    others = glyphs.other_emoji(font, 24, ranges=[(ord("🦊") - 3, ord("🦊") + 3)])
    ours = [i for i in range(ord("🦊") - 3, ord("🦊") + 4) if chr(i) in "".join(OBJECTS.values())]
    assert 0 < len(others) <= 7 - len(ours)
    fox = glyphs.to_glyph(glyphs.render("🦊", 24, font))
    assert all(not np.array_equal(fox, other) for other in others)


def test_transparent_pixels_bleed_no_colour() -> None:
    """A white square with black, fully transparent surroundings stays white at every edge when it shrinks."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = 255
    glyph = glyphs.to_glyph(glyphs.fit(Image.fromarray(pixels), 20))
    alpha = glyph[..., 3]
    assert np.abs(glyph[..., 0] - alpha)[alpha > 0.02].max() < 0.02
