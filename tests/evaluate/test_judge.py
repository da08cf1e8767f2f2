"""The judge: right about true pictures, and not to be fooled by others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from darkroom.evaluate.judge import components, judge, look
from darkroom.toy.objects import BACKGROUNDS, CANVAS, RELATIONS, SIZES
from darkroom.toy.scenes import COLOURS, NOUNS, Placed, Scene, draw_scene, render_scene

WHITE = (255, 255, 255)


def single(noun: str, colour: str, size: str) -> Scene:
    return Scene("single", "", colour, (Placed(noun, SIZES[size], 16, 16),))


def fraction_right(scenes: list[Scene]) -> float:
    return float(np.mean([judge(render_scene(s), s).right for s in scenes]))


def test_every_noun_is_known() -> None:
    sizes, colours = tuple(SIZES), len(COLOURS)
    scenes = [single(noun, COLOURS[i % colours], sizes[i // 2 % 2]) for i, noun in enumerate(NOUNS)]
    assert fraction_right(scenes) >= 0.97


@pytest.mark.parametrize("colour", COLOURS)
def test_every_background_is_known(colour: str) -> None:
    assert all(look(render_scene(single(noun, colour, "large"))).background == colour for noun in NOUNS[::40])


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_are_seen(relation: str) -> None:
    drawn = (draw_scene(11, i, "relation", held_out=None) for i in range(120))
    scenes = [scene for scene in drawn if scene.relation == relation][:12]
    assert len(scenes) == 12
    assert fraction_right(scenes) >= 11 / 12


def test_counts_are_seen() -> None:
    assert fraction_right([draw_scene(12, i, "count", held_out=None) for i in range(20)]) >= 0.95


def test_the_wrong_picture_is_wrong() -> None:
    """Every claim, broken by itself, is noticed, and the others stand."""
    fox, car = Placed("fox", 48, 8, 40), Placed("car", 48, 72, 40)
    scene = Scene("relation", "", "white", (fox, car), "to the left of")
    assert judge(render_scene(scene), scene).right
    swapped = replace(scene, objects=(replace(fox, x=72), replace(car, x=8)))
    verdict = judge(render_scene(swapped), scene)
    assert (verdict.background, verdict.objects, verdict.layout, verdict.right) == (True, True, False, False)
    recoloured = judge(render_scene(replace(scene, background="blue")), scene)
    assert (recoloured.background, recoloured.objects, recoloured.layout) == (False, True, True)
    for objects in ((fox,), (fox, replace(car, noun="taxi")), (fox, fox)):
        verdict = judge(render_scene(replace(scene, objects=objects)), scene)
        assert (verdict.background, verdict.objects, verdict.right) == (True, False, False)


def test_size_counts_for_a_single_object() -> None:
    for asked, drawn in (("large", "small"), ("small", "large")):
        verdict = judge(render_scene(single("fox", "white", drawn)), single("fox", "white", asked))
        assert (verdict.objects, verdict.layout) == (True, False)


def test_three_are_not_two() -> None:
    three = Scene("count", "", "black", tuple(Placed("heart", 48, x, y) for x, y in ((8, 8), (72, 8), (40, 72))))
    two = replace(three, objects=three.objects[:2])
    assert judge(render_scene(three), three).right
    assert not judge(render_scene(three), two).right
    assert not judge(render_scene(two), three).right


def test_chance_is_low() -> None:
    scenes = [draw_scene(13, i, held_out=None) for i in range(25)]
    others = [draw_scene(14, i, held_out=None) for i in range(25)]
    assert np.mean([judge(render_scene(s), other).right for s, other in zip(scenes, others, strict=True)]) < 0.05


def flat(colour: tuple[int, int, int] = WHITE) -> NDArray[np.uint8]:
    return np.full((CANVAS, CANVAS, 3), colour, np.uint8)


def test_an_empty_picture_shows_nothing() -> None:
    for name, colour in BACKGROUNDS.items():
        found = look(flat(colour))
        assert (found.background, found.objects) == (name, ())
    assert not judge(flat(), single("fox", "white", "large")).right


def test_noise_is_judged_without_complaint_and_wrong() -> None:
    noise = np.random.default_rng(0).integers(256, size=(CANVAS, CANVAS, 3), dtype=np.uint8)
    assert not judge(noise, single("fox", "white", "large")).right


def test_a_little_blur_and_noise_change_nothing() -> None:
    rng = np.random.default_rng(1)
    scenes = [draw_scene(15, i, "single") for i in range(8)]
    worse = [np.clip(render_scene(s) + rng.normal(0, 6, (CANVAS, CANVAS, 3)), 0, 255).astype(np.uint8) for s in scenes]
    assert np.mean([judge(p, s).right for p, s in zip(worse, scenes, strict=True)]) >= 7 / 8


def test_components() -> None:
    cells = np.zeros((8, 8), bool)
    cells[0:2, 0:3] = True
    cells[2, 3] = True  # touches by a corner
    cells[5:7, 5:7] = True
    cells[7, 0] = True  # a speck
    found = components(cells)
    assert [int(part.sum()) for part in found] == [7, 4]
    assert components(np.zeros((4, 4), bool)) == []
    assert components(np.ones((3, 3), bool))[0].all()
