"""`darkroom data`: scenes and glyphs as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darkroom.data.glyphs import find_font
from darkroom.data.objects import OBJECTS
from darkroom.data.scenes import draw_scene, render_scene, triple_held_out
from darkroom.errors import TrainingError

Command = Callable[..., Any]  # see conftest.py


def test_pictures_captions_and_metadata(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    answer = command("data", "render", "--count", 5, "-o", folder, "--seed", 3)
    assert (answer.code, answer.paths) == (0, [folder])
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert len(list(folder.iterdir())) == 11
    for i, row in enumerate(rows):
        scene = draw_scene(3, i)
        assert np.array_equal(np.asarray(Image.open(folder / row["file_name"])), render_scene(scene))
        assert (folder / f"{i:06d}.txt").read_text() == scene.caption + "\n"
        assert row["text"] == scene.caption
        assert [o["noun"] for o in row["objects"]] == [o.noun for o in scene.objects]


def test_a_kind_and_the_held_out(command: Command, tmp_path: Path) -> None:
    assert command("data", "render", "-n", 8, "-o", tmp_path / "x", "--kind", "relation", "--held-out").code == 0
    rows = [json.loads(line) for line in (tmp_path / "x" / "metadata.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"relation"}
    seen = draw_scene(0, 0, "relation", held_out=True)
    assert rows[0]["text"] == seen.caption
    assert seen.held_out
    assert any(triple_held_out(r["objects"][0]["noun"], r["relation"], r["objects"][1]["noun"]) for r in rows)


def test_nothing_is_overwritten_unasked(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    for extra, code in (([], 0), ([], 2), (["--overwrite"], 0)):
        answer = command("data", "render", "-n", 2 - len(extra), "-o", folder, *extra)
        assert answer.code == code
    assert len(list(folder.glob("*.png"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    answer = command("data", "render", "-n", 1, "-o", tmp_path / "mine", "--overwrite")
    assert answer.code == 2
    assert "is not empty" in answer.sentence
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "--count", "0"], "--count is 0"),
        (["render", "--count", "x"], "'x' is not a whole number"),
        (["render", "--seed", "-1"], "--seed is -1"),
        (["render", "--kind", "singel"], "did you mean 'single'?"),
        (["glyphs", "--font", "/nowhere.ttf"], "there is no font '/nowhere.ttf'"),
    ],
)
def test_what_can_t_be_is_one_sentence(arguments: list[str], said: str, command: Command, tmp_path: Path) -> None:
    answer = command("data", *arguments, "-o", tmp_path / "x.webp")
    assert answer.code == 2
    assert said in answer.sentence
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_of_glyphs(command: Command, tmp_path: Path) -> None:
    try:
        find_font()
    except TrainingError:
        pytest.skip("the emoji font is not installed")
    assert command("data", "glyphs", "-o", tmp_path / "sheet.webp").code == 0
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.size == (12 * 96, -(-len(OBJECTS) // 12) * 96)
    assert "exists already" in command("data", "glyphs", "-o", tmp_path / "sheet.webp").sentence
    assert "must end in .webp" in command("data", "glyphs", "-o", tmp_path / "sheet.png").sentence
    (tmp_path / "font.ttf").write_bytes(b"no font")
    answer = command("data", "glyphs", "-o", tmp_path / "other.webp", "--font", tmp_path / "font.ttf")
    assert answer.code == 2
    assert "is no font" in answer.sentence
    assert not (tmp_path / "other.webp").exists()
