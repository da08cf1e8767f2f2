"""`darkroom.evaluate`: what the command measures, in Python."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import darkroom
from darkroom.errors import CheckpointError, RequestError
from darkroom.pipeline import Pipeline


@pytest.fixture(scope="module")
def model(tiny_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipe.save(tmp_path_factory.mktemp("model") / "tiny")


def test_a_model_is_measured(tiny_pipe: Pipeline, model: Path, tmp_path: Path) -> None:
    tiny_pipe.generate("a fox", steps=1)[0].save(tmp_path / "fox.png")
    seen: list[darkroom.EvaluationProgress] = []
    found = darkroom.evaluate(tiny_pipe, count=1, steps=1, on_progress=seen.append)
    assert set(found["categories"]) == {"single", "count", "relation"}
    assert found["pictures_a_category"] == 1
    assert "the autoencoder reconstructs with" in str(found)
    assert seen[0].task == "loading the model"
    assert [(p.done, p.total) for p in seen[1:]] == [(i, 6) for i in range(1, 7)]
    assert dict(found) == dict(darkroom.evaluate(model, ["adherence"], count=1, steps=1))
    assert darkroom.evaluate(model, "reconstruction", data=tmp_path)["reconstruction"]["pictures"] == 1


def test_a_new_object(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    sheet, glyph = tmp_path / "sheet.png", tmp_path / "coin.png"
    picture = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(picture).ellipse((10, 10, 90, 90), fill="teal")
    picture.save(glyph)
    found = darkroom.evaluate(tiny_pipe, object="coin", glyph=glyph, count=1, steps=1, sheet=sheet)
    assert (found["object"], found["word"], found["pictures_a_row"]) == ("coin", "coin", 1)
    assert sheet.is_file()


def test_what_a_callback_raises_ends_it_and_what_was_drawn_is_whole(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    for i in range(3):
        tiny_pipe.generate("a fox", steps=1, seed=i)[0].save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a red fox")
    asked: dict[str, Any] = {"metrics": "memorisation", "data": tmp_path, "keep": tmp_path / "kept", "steps": 2}

    class Enough(Exception):
        pass

    def stop(progress: darkroom.EvaluationProgress) -> None:
        if progress.task == "drawing" and progress.done >= 3:
            raise Enough

    with pytest.raises(Enough):
        darkroom.evaluate(tiny_pipe, **asked, on_progress=stop)
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} <= {".json", ".png"}
    found = darkroom.evaluate(tiny_pipe, **asked)  # goes on
    assert found["memorisation"]["pictures"] == 3


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"metrics": "fud"}, "metrics is 'fud'; it must be one of adherence"),
        ({"metrics": ()}, "metrics is empty; name one or more"),
        ({"count": 0}, "count is 0; it must be from 1"),
        ({"data": "x"}, "data is of no use to adherence"),
        ({"glyph": "x.png"}, "glyph tells of a new object; name it, too: object"),
        ({"model": "x", "pictures": "y"}, "pictures are there already, and 'x' would draw others"),
        ({"resize": "bicubic"}, "resize is 'bicubic'"),
    ],
)
def test_what_can_not_be_measured_is_said_before_anything_is_loaded(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        darkroom.evaluate(**asked)


def test_a_network_that_is_missing_is_named() -> None:
    with pytest.raises(CheckpointError, match="fid needs a network that is not given"):
        darkroom.evaluate(metrics="fid")


def test_the_call_and_the_package_have_one_name() -> None:
    code = (
        "import darkroom; darkroom.evaluate; import darkroom.evaluate.judge; import inspect;"
        "print(callable(darkroom.evaluate), 'model' in inspect.signature(darkroom.evaluate).parameters)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True\n"
    assert list(inspect.signature(darkroom.evaluate).parameters)[:2] == ["model", "metrics"]
