"""The examples and the benchmark run, on a model that is small enough."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from darkroom.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {  # name -> further arguments, and the size of what comes out of a model of 64 x 64 pixels
    "compare_samplers": (["a red fox"], (4 * 64, 6 * 64)),
    "own_guidance": (["a red fox", "a blue car", "--steps", "3"], (64, 64)),
    "watch_it_develop": (["a red fox", "--steps", "3"], (64, 64)),
}


@pytest.fixture(scope="module")
def model(tiny_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipe.save(tmp_path_factory.mktemp("model") / "tiny")


def test_every_example_is_here() -> None:
    assert set(EXAMPLES) == {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, size = EXAMPLES[name]
    output = tmp_path / ("out.webp" if name == "watch_it_develop" else "out.png")
    script = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--model", str(model), "--output", str(output)])
    runpy.run_path(script, run_name="__main__")
    with Image.open(output) as picture:
        assert picture.size == size
        assert getattr(picture, "n_frames", 1) >= (3 if name == "watch_it_develop" else 1)


def test_both_sides_of_the_step_benchmark_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is the same work: shared weights, equal answers."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    step = runpy.run_path(str(ROOT / "benchmarks" / "step.py"))
    for name in ("tiny", "embedded"):
        theirs, ours = (f() for f in step["steps"](step["UNETS"][name], 64, "cpu", torch.float32).values())
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
