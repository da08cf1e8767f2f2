"""Scenes: captions say what the pictures show, and the held-out ones are never drawn for training."""

from __future__ import annotations

import re
from importlib import resources
from itertools import product

import numpy as np
import pytest
from PIL import Image

from darkroom.toy.glyphs import SHEET_COLUMNS, SHEET_SIDE
from darkroom.toy.objects import BACKGROUNDS, CANVAS, GRID, OBJECTS, RELATIONS, vocabulary, with_article
from darkroom.toy.scenes import (
    COLOURS,
    KINDS,
    MARGIN,
    NOUNS,
    PLACES,
    Placed,
    Scene,
    draw_collage,
    draw_scene,
    holds,
    render_scene,
    triple_held_out,
)

SCENES = [draw_scene(1, i, kind, held_out) for kind in KINDS for held_out in (False, True) for i in range(60)]
PLURALS = {"foxes": "fox", "wolves": "wolf", "leaves": "leaf", "buses": "bus", "peaches": "peach"}


def singular(word: str) -> str:
    """A noun from its plural, by English rules of our own."""
    for candidate in (word, word[:-1], word[:-2], word[:-3] + "y", word[:-3] + "f"):
        if candidate in OBJECTS:
            return candidate
    raise AssertionError(word)


def read(caption: str) -> dict[str, object]:
    """What a caption claims, read by a grammar written apart from the one that wrote it."""
    caption, _, tail = caption.partition(" on a")
    background = tail.removeprefix("n").removesuffix(" background").strip() or "white"
    claims: dict[str, object] = {"background": background, "relation": ""}
    pair = re.fullmatch(r"an? (.+?) (to the left of|to the right of|above|below) an? (.+)", caption)
    several = re.fullmatch(r"(two|three) (.+)", caption)
    if pair:
        return claims | {"nouns": (pair[1], pair[3]), "relation": pair[2], "side": 48}
    if several:
        return claims | {"nouns": (singular(several[2]),) * {"two": 2, "three": 3}[several[1]], "side": 48}
    single = re.fullmatch(r"an? (?:(large|small) )?(.+)", caption)
    assert single, caption
    return claims | {"nouns": (single[2],), "side": 48 if single[1] == "small" else 96}


def test_captions_say_what_the_pictures_show() -> None:
    for scene in SCENES:
        claims = read(scene.caption)
        assert claims["background"] == scene.background, scene
        assert claims["nouns"] == tuple(o.noun for o in scene.objects), scene
        assert {o.side for o in scene.objects} == {claims["side"]}, scene
        assert claims["relation"] == scene.relation, scene
        assert scene.kind == ("relation" if scene.relation else "count" if len(scene.objects) > 1 else "single")


def test_articles_are_right() -> None:
    for scene in SCENES:
        for article, word in re.findall(r"\b(an?) (\w+)", scene.caption):
            assert article == ("an" if re.match(r"[aeio]|u(?!ni)", word) else "a"), scene.caption


def test_objects_stand_on_the_grid_apart_and_inside() -> None:
    for scene in SCENES:
        for i, o in enumerate(scene.objects):
            assert o.x % GRID == o.y % GRID == 0
            assert min(o.x, o.y) >= MARGIN
            assert max(o.x, o.y) + o.side <= CANVAS - MARGIN
            for p in scene.objects[:i]:
                assert max(abs(o.x - p.x), abs(o.y - p.y)) >= o.side + MARGIN, scene


def test_relations_hold() -> None:
    for scene in (s for s in SCENES if s.relation):
        a, b = scene.objects
        assert {
            "to the left of": a.x + a.side <= b.x, "to the right of": b.x + b.side <= a.x,
            "above": a.y + a.side <= b.y, "below": b.y + b.side <= a.y,
        }[scene.relation], scene  # fmt: skip
        assert [r for r in RELATIONS if holds(a, r, b, slack=CANVAS)] == [scene.relation]


def test_a_diagonal_is_no_relation() -> None:
    a, b = Placed("fox", 48, 0, 0), Placed("car", 48, 60, 60)
    assert not any(holds(a, r, b, slack=CANVAS) for r in RELATIONS)


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    forwards = [draw_scene(7, i) for i in range(40)]
    backwards = [draw_scene(7, i) for i in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [draw_scene(8, i) for i in range(40)]
    assert len({scene.caption for scene in forwards}) > 30
    first, again = (render_scene(draw_scene(7, 3)) for _ in range(2))
    assert np.array_equal(first, again)


def test_every_noun_colour_and_relation_is_drawn() -> None:
    scenes = [draw_scene(2, i) for i in range(1500)]
    assert {o.noun for s in scenes for o in s.objects} == set(NOUNS)
    assert {s.background for s in scenes} == set(COLOURS)
    assert {s.relation for s in scenes} == {"", *RELATIONS}
    share = {kind: sum(s.kind == kind for s in scenes) / len(scenes) for kind in KINDS}
    assert all(value > 0.2 for value in share.values()), share


def pair(noun: str, colour: str) -> Scene:
    return Scene("single", "", colour, (Placed(noun, 96, 8, 8),))


def test_a_tenth_of_the_pairs_and_of_the_triples_is_held_out() -> None:
    pairs = [pair(noun, colour).held_out for noun, colour in product(NOUNS, COLOURS)]
    assert 0.07 < np.mean(pairs) < 0.13
    triples = [triple_held_out(a, r, b) for a, r, b in product(NOUNS, RELATIONS, NOUNS) if a != b]
    assert 0.09 < np.mean(triples) < 0.11


def test_training_never_draws_a_held_out_combination() -> None:
    """Checked from the words alone, not through Scene.held_out."""
    left = {(noun, colour) for noun, colour in product(NOUNS, COLOURS) if pair(noun, colour).held_out}
    for i in range(500):
        scene = draw_scene(3, i)
        nouns = [o.noun for o in scene.objects]
        assert not left & {(noun, scene.background) for noun in nouns}
        if scene.relation:
            assert not triple_held_out(nouns[0], scene.relation, nouns[1])
    for scene in (draw_scene(3, i, held_out=True) for i in range(40)):
        nouns = [o.noun for o in scene.objects]
        held = bool(left & {(noun, scene.background) for noun in nouns})
        assert held or triple_held_out(nouns[0], scene.relation, nouns[1])


@pytest.mark.parametrize(("relation", "mirror"), [("to the left of", "to the right of"), ("above", "below")])
def test_a_triple_and_its_mirror_share_their_fate(relation: str, mirror: str) -> None:
    for a, b in product(NOUNS[:40], NOUNS[-40:]):
        assert triple_held_out(a, relation, b) == triple_held_out(b, mirror, a)


def by_pillow(scene: Scene) -> Image.Image:
    """The scene composed by Pillow from the shipped sheet."""
    with resources.files("darkroom.toy").joinpath("glyphs.webp").open("rb") as f:
        sheet = Image.open(f).convert("RGBA")
    picture = Image.new("RGBA", (CANVAS, CANVAS), (*BACKGROUNDS[scene.background], 255))
    for o in scene.objects:
        row, column = divmod(NOUNS.index(o.noun), SHEET_COLUMNS)
        at = (column * SHEET_SIDE, row * SHEET_SIDE)
        glyph = sheet.crop((*at, at[0] + SHEET_SIDE, at[1] + SHEET_SIDE))
        if o.side != SHEET_SIDE:
            glyph = glyph.convert("RGBa").resize((o.side, o.side), Image.Resampling.LANCZOS).convert("RGBA")
        picture.alpha_composite(glyph, (o.x, o.y))
    return picture.convert("RGB")


@pytest.mark.parametrize("index", range(0, len(SCENES), 36))
def test_a_picture_is_what_pillow_composes(index: int) -> None:
    ours = render_scene(SCENES[index])
    assert (ours.shape, ours.dtype) == ((CANVAS, CANVAS, 3), np.uint8)
    difference = np.abs(ours.astype(int) - np.asarray(by_pillow(SCENES[index]), int))
    assert difference.max() <= 1


def test_collages_are_reproducible_and_unlike_scenes() -> None:
    picture = draw_collage(1, 2, [])
    assert (picture.shape, picture.dtype) == ((CANVAS, CANVAS, 3), np.uint8)
    assert np.array_equal(picture, draw_collage(1, 2, []))
    assert not np.array_equal(picture, draw_collage(1, 3, []))
    other = np.zeros((96, 96, 4), np.float32)
    assert all(draw_collage(1, i, [other]).std() >= 0 for i in range(40))  # glyphs beyond every border


def test_a_pair_is_also_told_by_its_places() -> None:
    told = {scene.relation: scene for i in range(60) if (scene := draw_scene(3, i, "relation")).relation}
    assert set(told) == set(RELATIONS)
    for relation, scene in told.items():
        first, second = scene.objects
        usual, placed = scene.captions
        here, there = PLACES[relation]
        assert usual == scene.caption
        assert f"{here} {with_article(first.noun)}" in placed
        assert f"{there} {with_article(second.noun)}" in placed
        assert placed.partition(" on a")[2] == usual.partition(" on a")[2]
        # The picture keeps what it says.
        axis = "x" if here in ("left", "right") else "y"
        assert (getattr(first, axis) < getattr(second, axis)) == (here in ("left", "above"))
        assert set(placed.split()) <= set(vocabulary())


def test_other_scenes_have_one_caption() -> None:
    for kind in ("single", "count"):
        scene = draw_scene(3, 1, kind)
        assert scene.captions == (scene.caption,)
