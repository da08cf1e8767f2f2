"""`darkroom sweep`: files, options, refusals, interruption."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.formats.picture import read_metadata

Command = Callable[..., Any]  # see conftest.py


@pytest.fixture
def sweep(command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command("sweep", *arguments, "--model", model)


def pixels(path: str | Path, box: Any = None) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").crop(box).tobytes()


def test_a_sheet_its_json_and_its_cells(sweep: Command, command: Command, model: Path) -> None:
    options = ["--seed", 5, "--guidance", 2, "--negative", "car", "--size", "40x32"]
    answer = sweep("a fox", "--x", "steps=1,2", "--y", "sampler=lms,euler", "-o", "out", "--save-cells", *options)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.split() == ["out/sweep-a-fox-5.png", "out/sweep-a-fox-5.json"]
    told = json.loads(Path("out/sweep-a-fox-5.json").read_text())
    assert len(told["cells"]) == 4
    for cell in told["cells"]:
        single = Path("out") / cell["file"]
        recipe = read_metadata(single).recipe
        assert recipe == {"schema": 1} | cell["recipe"]
        assert pixels(single) == pixels("out/sweep-a-fox-5.png", cell["box"])
        assert cell["values"].items() <= recipe.items()
        assert recipe["negative_prompt"] == "car"
    assert command("verify", "out/sweep-a-fox-5/x2-y1.png", "--model", model).out == "identical\n"
    drawn = command(
        "generate", "a fox", "--steps", 2, "--sampler", "lms", "--model", model, "-o", "alone.png", *options
    )
    assert drawn.code == 0
    assert pixels("alone.png") == pixels("out/sweep-a-fox-5/x2-y1.png")
    again = sweep("a fox", "--x", "steps=1", "--seed", 5, "-o", "out")
    assert again.out.split()[0] == "out/sweep-a-fox-5-2.png"
    assert sorted(os.listdir("out/sweep-a-fox-5")) == ["x1-y1.png", "x1-y2.png", "x2-y1.png", "x2-y2.png"]


@pytest.mark.parametrize("name", ["grid.png", "grid.jpg", "grid.webp"])
def test_into_one_file(name: str, sweep: Command) -> None:
    answer = sweep("a fox", "--x", "steps=1,2", "-o", name, "--json").json
    assert answer["paths"] == [name, "grid.json"]
    assert (answer["complete"], len(answer["cells"])) == (True, 2)
    assert read_metadata(name).recipe["sweep"] == [{"axis": "x", "name": "steps", "values": [1, 2]}]
    refused = sweep("a fox", "--x", "steps=1,2", "-o", name)
    assert (refused.code, "exists already" in refused.sentence) == (2, True)
    assert sweep("a fox", "--x", "steps=1,2", "-o", name, "--overwrite").code == 0


def test_a_sheet_is_no_single_picture(sweep: Command, command: Command, model: Path) -> None:
    sweep("a fox", "--x", "steps=1,2", "-o", "grid.png", "--seed", 1)
    answer = command("verify", "grid.png", "--model", model)
    assert (answer.code, answer.sentence) == (
        2,
        "'grid.png' is a sheet of several pictures: take one of them instead",
    )
    assert "X Values  1, 2" in command("info", "grid.png").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a fox"], "missing option '--x'"),
        (["--x", "steps=1"], "missing argument 'PROMPT'"),
        (["a fox", "--x", "steps=1,0"], "axis x, steps=0: steps is 0"),
        (["a fox", "--x", "steps"], "axis x is 'steps'; give a name and values"),
        (["a fox", "--x", "steps=1", "--y", "stepz=1"], "axis y is 'stepz'"),
        (["a fox", "--x", "prompt=owl,cat"], "which the prompt doesn't hold"),
        (["a fox", "--x", "seed=1,2", "--steps", "0"], "--steps is 0"),
        (["x" * 32_001, "--x", "seed=1,2"], "prompt has 32,001 characters"),
        (["a fox", "--x", "seed=1,2", "-o", "a.gif"], "pictures are written as .png, .jpg or .webp"),
        (["a fox", "--x", "seed=1,2", "-o", "none/a.png"], "there is no folder 'none'"),
        (["a fox", "--x", "seed=1,2", "-o", "taken.png"], "'taken.json' exists already"),
        (["a fox", "--x", "seed=1..40", "--y", "steps=1..25", "--size", "1024x1024"], "the sheet would be"),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(
    arguments: list[str], said: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    import darkroom.loading

    monkeypatch.setattr(darkroom.loading, "load", load)
    monkeypatch.setattr(darkroom, "load", load)
    monkeypatch.chdir(tmp_path)
    Path("taken.json").touch()
    answer = command("sweep", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.sentence
    assert os.listdir() == ["taken.json"]


def test_ctrl_c_keeps_what_is_drawn(sweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, pressed = os.fsync, []

    def interrupted(handle: int) -> None:
        fsync(handle)
        if not pressed and list(Path("grid").glob("*.png")):
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupted)
    answer = sweep("a fox", "--x", "seed=1..6", "--steps", 2, "-o", "grid.png", "--save-cells")
    assert answer.code == 130
    told = json.loads(answer.paths[0].with_suffix(".json").read_text())
    drawn = [cell for cell in told["cells"] if cell["drawn"]]
    assert 1 <= len(drawn) < 6
    assert not told["complete"]
    assert answer.sentence == f"interrupted; {len(drawn)} of 6 pictures are drawn, and the sheet shows those"
    assert not [name for name in os.listdir() if name.endswith(".part")]
    for cell in drawn:
        assert pixels(answer.paths[0], cell["box"]) == pixels(answer.paths[0].parent / cell["file"])
