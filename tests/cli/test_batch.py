"""`darkroom batch` with the real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import darkroom
from darkroom.cluster.batch import FAILED

Command = Callable[..., Any]  # see conftest.py


def listed(folder: Path, *lines: dict[str, Any]) -> str:
    path = folder / "list.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("??/*.png")}


def failed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FAILED).read_text().splitlines()]


def test_pictures_are_those_that_one_call_gives_and_a_second_run_draws_none(
    command: Command,
    tmp_path: Path,
) -> None:
    small: dict[str, Any] = {"width": 64, "height": 64, "steps": 3}
    lines: list[dict[str, Any]] = [
        {"prompt": "a large fox on a yellow background", "seed": 1, "id": "fox", **small},
        {"prompt": "a small owl", "sampler": "dpmpp_2m", "guidance_scale": 1, "id": "owl", **small},
        {"prompt": "a cat", "sampler": "euler_a", **small},
    ]
    file, folder = listed(tmp_path, *lines, {"prompt": "a fox", "steps": -1}), tmp_path / "out"
    answer = command("batch", file, "-o", folder, "--workers", 1, "--json")
    assert answer.code == 1
    assert answer.json == {"drawn": 3, "found": 0, "failed": 1, "folder": str(folder)}
    assert [(one["line"], "steps is -1" in one["error"]) for one in failed(folder)] == [(4, True)]
    pipe = darkroom.load(None, device="cpu")
    for path in folder.glob("??/*.png"):
        recipe = darkroom.read_recipe(path).request
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(pipe.draw([recipe]).images[0]))
    before = pictures(folder)
    assert len(before) == 3
    again = command("batch", listed(tmp_path, *lines), "-o", folder)
    assert (again.code, again.out) == (0, "0 drawn, 3 were there\n")
    assert pictures(folder) == before
    assert not (folder / FAILED).exists()
    lines[0]["prompt"] = "a small fox"  # the name is another picture's now
    assert command("batch", listed(tmp_path, *lines), "-o", folder).code == 1
    assert "was drawn with prompt" in failed(folder)[0]["error"]


def test_a_model_that_can_t_be_loaded_ends_the_batch(command: Command, tmp_path: Path) -> None:
    file = listed(tmp_path, {"prompt": "a fox"})
    answer = command("batch", file, "-o", tmp_path / "out", "--model", tmp_path / "none.safetensors", "--workers", 1)
    assert answer.code == 2
    assert "none.safetensors" in answer.sentence
