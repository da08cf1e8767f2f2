"""A new object: known by the judge, drawn in scenes of its own, and scored before and after beside the old ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from darkroom.errors import RequestError, TrainingError
from darkroom.evaluate.judge import SEED, Known, NewObject, evaluate_object, look, scenes_of, score
from darkroom.toy import glyphs
from darkroom.toy.objects import BACKGROUNDS, SIZES
from darkroom.toy.scenes import draw_scene, render_scene


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """A picture of an object that is none of ours: three stripes and a disc on nothing."""
    picture = Image.new("RGBA", (200, 140))
    draw = ImageDraw.Draw(picture)
    for i, colour in enumerate(("teal", "brown", "gold")):
        draw.rectangle((20, 20 + 30 * i, 180, 49 + 30 * i), fill=colour)
    draw.ellipse((80, 45, 120, 85), fill="black")
    path = tmp_path / "flag.png"
    picture.save(path)
    return path


def test_the_judge_knows_a_new_object_and_still_the_old_ones(flag: Path) -> None:
    new = NewObject.of("flag", "<flag>", flag)
    known = Known.of(new.glyphs)
    scenes = new.scenes(40)
    assert {s.objects[0].side for s in scenes} == set(SIZES.values())
    assert len({s.background for s in scenes}) > len(BACKGROUNDS) // 2
    assert all("<flag>" in s.caption and s.objects[0].noun == "flag" for s in scenes)
    pictures = [render_scene(s, new.glyphs) for s in scenes]
    assert score(pictures, scenes, known).right == 1
    assert score(pictures, scenes).objects == 0  # a judge that was not told names another
    old = [draw_scene(21, i, "single") for i in range(30)]
    assert score([render_scene(s) for s in old], old, known).right >= 29 / 30
    assert look(pictures[0]).objects[0].noun != "flag"


class Pupil:
    """Draws a single object rightly; the new one only with what it was taught, and then a tenth of the old as new."""

    def __init__(self, new: NewObject, count: int) -> None:
        self.autoencoder = torch.nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.autoencoder.weight.copy_(torch.eye(3)[:, :, None, None])
        self.new = new
        self.known = {s.caption: s for s in [*scenes_of("single", False, count), *new.scenes(count)]}
        self.asked: list[dict[str, Any]] = []

    def generate(self, prompts: list[str], **options: Any) -> SimpleNamespace:
        self.asked.append(options)
        taught = bool(options.get("loras"))
        pictures = []
        for i, prompt in enumerate(prompts):
            scene = self.known[prompt]
            mistaken = scene.objects[0].noun == "flag" and not taught
            forgotten = scene.objects[0].noun != "flag" and taught and i % 10 == 0
            if mistaken or forgotten:
                scene = draw_scene(3, i, "count")
            pictures.append(Image.fromarray(render_scene(scene, self.new.glyphs)))
        return SimpleNamespace(images=pictures)


def test_before_and_after(flag: Path) -> None:
    new = NewObject.of("flag", None, flag)
    pupil, told = Pupil(new, 20), []
    rows = evaluate_object(pupil, new, 20, loras=["x"], progress=told.append, steps=3)  # type: ignore[arg-type]
    assert told == ["new, before", "new, after", "old, before", "old, after"]
    assert {name: row.right for name, row in rows.items()} == {
        "new, before": 0.0,
        "new, after": 1.0,
        "old, before": 1.0,
        "old, after": 0.9,
        "renders": 1.0,
        "reconstructions": 1.0,
    }
    assert all(asked["seed"] == SEED and asked["steps"] == 3 for asked in pupil.asked)
    assert [bool(asked.get("loras")) for asked in pupil.asked] == [False, True, False, True]


def test_a_learned_word_changes_no_old_picture_and_none_is_drawn_twice(flag: Path) -> None:
    new = NewObject.of("flag", "<flag>", flag)
    pupil = Pupil(new, 4)
    rows = evaluate_object(pupil, new, 4, embeddings=["word.safetensors"])  # type: ignore[arg-type]
    assert rows["old, after"] == rows["old, before"]
    assert [asked.get("embeddings") for asked in pupil.asked] == [None, ["word.safetensors"], None]


def test_a_model_that_learned_is_compared_with_the_one_before(flag: Path) -> None:
    new = NewObject.of("flag", None, flag)
    pupil, base = Pupil(new, 4), Pupil(new, 4)
    evaluate_object(pupil, new, 4, before=base)  # type: ignore[arg-type]
    assert (len(base.asked), len(pupil.asked)) == (2, 2)


def test_an_emoji_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def render(emoji: str, side: int, font: Path) -> Image.Image:
        drawn.append(emoji)
        return Image.new("RGBA", (side, side), "red")

    monkeypatch.setattr(glyphs, "render", render)
    monkeypatch.setattr(glyphs, "find_font", lambda: Path("font"))
    assert set(glyphs.new_glyphs("sloth")) == {("sloth", side) for side in SIZES.values()}
    glyphs.new_glyphs("mouse")
    glyphs.new_glyphs("rodent", "🐹")
    assert drawn == ["🦥", "🐁", "🐹"]


def test_what_is_no_new_object_is_said_in_a_sentence(flag: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole, broken = tmp_path / "whole.png", tmp_path / "broken.png"
    Image.new("RGB", (9, 9), "red").save(whole)
    broken.write_bytes(flag.read_bytes()[:60])
    for noun, source, said in (
        ("fox", None, "'fox' is one of the built-in objects"),
        ("blarg", None, "Unicode has no emoji called 'blarg'"),
        ("flag", "abc", "'abc' is no emoji and no .png or .webp file"),
        ("flag", "", "'' is no emoji"),
        ("flag", str(whole), "has no transparent ground"),
        ("flag", str(broken), "can't be read as a picture"),
        ("flag", "/nowhere.png", "/nowhere.png' can't be read"),
    ):
        with pytest.raises(TrainingError, match=said):
            NewObject.of(noun, None, source)
    monkeypatch.setattr(glyphs, "FONT_PLACES", ())
    with pytest.raises(TrainingError, match="install the package fonts-noto-color-emoji"):
        NewObject.of("sloth")


def test_a_glyph_fills_its_square(flag: Path) -> None:
    found = glyphs.new_glyphs("flag", flag)
    for side in SIZES.values():
        rows, columns = np.nonzero(found["flag", side][..., 3] > 0.5)
        assert columns.min() <= 1
        assert columns.max() >= side - 2
        assert rows.max() - rows.min() < 0.7 * side


def test_lessons_are_mostly_small_and_on_all_backgrounds(flag: Path) -> None:
    new = NewObject.of("flag", "<flag>", flag)
    lessons = new.samples(20, seed=5)
    assert len(set(lessons)) == 20
    small = [s for s in lessons if s.objects[0].side == SIZES["small"]]
    assert len(small) == 14
    assert {s.background for s in small} == set(BACKGROUNDS)
    assert len({s.background for s in lessons if s not in small}) == 6
    assert lessons != new.samples(20, seed=6)
    assert [len(new.samples(n)) for n in (1, 2)] == [1, 2]


def test_a_sheet_shows_true_pictures_before_and_after(flag: Path, tmp_path: Path) -> None:
    new = NewObject.of("flag", None, flag)
    path = tmp_path / "sheet.png"
    evaluate_object(Pupil(new, 3), new, 3, loras=["x"], sheet=path)  # type: ignore[arg-type]
    sheet = Image.open(path)
    assert sheet.width > 3 * 128
    assert sheet.height > 3 * 128
    with pytest.raises(RequestError, match=r"can't be written \(.*\); name another"):
        evaluate_object(Pupil(new, 3), new, 3, sheet=tmp_path / "sheet.xyz")  # type: ignore[arg-type]
