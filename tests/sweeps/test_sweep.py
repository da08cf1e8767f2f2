"""Grids drawn: each cell is the picture that would have come alone, and the JSON tells all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import darkroom
from darkroom.errors import RequestError
from darkroom.formats.infotext import parse_infotext
from darkroom.formats.picture import read_metadata
from darkroom.sweeps.sheet import EMPTY

if TYPE_CHECKING:
    from darkroom.pipeline import Pipeline

PROMPT = "a red fox"


def test_each_cell_is_the_solo_picture(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    seen = []
    grid = tiny_pipe.sweep(
        PROMPT, "steps=1,3", "sampler=lms,dpmpp_2m_sde", "size=64x64,40x24", seed=9, guidance_scale=3.0,
        on_progress=seen.append,
    )  # fmt: skip
    assert len(grid.cells) == 8
    assert {event.index for event in seen} == set(range(8))
    picture, table = grid.save(tmp_path / "grid.png")
    told = json.loads(table.read_text())
    with Image.open(picture) as image:
        assert list(image.size) == told["size"]
        for cell in told["cells"]:
            width, height = cell["values"]["size"]
            alone = tiny_pipe.generate(
                PROMPT, seed=9, guidance_scale=3.0, steps=cell["values"]["steps"], sampler=cell["values"]["sampler"],
                width=width, height=height, deterministic=True,
            )  # fmt: skip
            assert image.crop(cell["box"]).tobytes() == alone.images[0].tobytes()
            assert darkroom.Request.from_dict(cell["recipe"]) == alone.requests[0]
            assert cell["drawn"]


def test_the_json_is_complete_and_positions_are_the_values(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    grid = tiny_pipe.sweep(PROMPT, "seed=4,5,6", ("prompt", ["fox", "car"]), steps=1)
    _, table = grid.save(tmp_path / "a.webp")
    told = json.loads(table.read_text())
    assert (told["schema"], told["sheet"], told["complete"]) == (1, "a.webp", True)
    assert told["axes"] == [
        {"axis": "x", "name": "seed", "values": [4, 5, 6]},
        {"axis": "y", "name": "prompt", "values": ["fox", "car"]},
    ]
    assert [(c["x"], c["y"], c["z"]) for c in told["cells"]] == [(x, y, 0) for y in range(2) for x in range(3)]
    lefts = [c["box"][0] for c in told["cells"][:3]]
    assert lefts == sorted(lefts)
    assert told["cells"][3]["box"][1] > told["cells"][0]["box"][3]
    for cell in told["cells"]:
        assert cell["values"] == {"seed": 4 + cell["x"], "prompt": ("fox", "car")[cell["y"]]}
        assert cell["recipe"]["prompt"] == f"a red {cell['values']['prompt']}"
        assert cell["recipe"]["seed"] == cell["values"]["seed"]
        assert cell["recipe"]["model"] == "tiny"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_the_sheet_says_what_it_is(name: str, tiny_pipe: Pipeline, tmp_path: Path) -> None:
    grid = tiny_pipe.sweep(PROMPT, "prompt=fox,car", "guidance=1,2.5", steps=2, seed=3)
    found = read_metadata(grid.save(tmp_path / name)[0])
    assert found.source == "darkroom"
    assert (found.recipe["prompt"], found.recipe["steps"], found.recipe["seed"]) == (PROMPT, 2, 3)
    assert "guidance_scale" not in found.recipe
    assert found.recipe["sweep"][1] == {"axis": "y", "name": "guidance_scale", "values": [1.0, 2.5]}
    other_tools = parse_infotext(found.texts["parameters"])
    assert (other_tools["prompt"], other_tools["extra"]["X Values"]) == (PROMPT, "fox, car")


def test_one_seed_is_drawn_for_all(tiny_pipe: Pipeline) -> None:
    grid = tiny_pipe.sweep(PROMPT, "steps=1,2", "sampler=lms,euler")
    assert len({request.seed for request in grid.requests.values()}) == 1
    assert len({request.seed for request in tiny_pipe.sweep(PROMPT, "seed=-1,-1", steps=1).requests.values()}) == 2


def test_what_the_model_cannot_draw_is_refused_before_the_first_picture(
    tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from darkroom.engine import Engine

    def step(_: object) -> list[Any]:
        raise AssertionError("something is drawn")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(RequestError, match=r"the cell steps=2, schedule=karas can't be drawn: .*'karras'"):
        tiny_pipe.sweep(PROMPT, "steps=2,3", "schedule=karras,karas")
    with pytest.raises(RequestError, match="the sheet would be"):
        tiny_pipe.sweep(PROMPT, "seed=1..30", "steps=1..30", width=512, height=512)
    with pytest.raises(RequestError, match="a request has no field 'stepz'"):
        tiny_pipe.sweep(PROMPT, "seed=1,2", stepz=3)
    with pytest.raises(RequestError, match="axis x, steps=0"):
        tiny_pipe.sweep(PROMPT, "steps=0")


def test_a_cell_that_fails_is_gray_and_says_why(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from darkroom.engine import engine

    finish = engine.finish

    def broken(autoencoder: Any, job: Any, *more: Any) -> Any:
        if job.request.seed == 2:
            raise RequestError("this one is broken")
        return finish(autoencoder, job, *more)

    monkeypatch.setattr(engine, "finish", broken)
    grid = tiny_pipe.sweep(PROMPT, "seed=1,2,3", steps=1)
    told = grid.to_dict()
    assert [cell["drawn"] for cell in told["cells"]] == [True, False, True]
    assert (told["complete"], told["cells"][1]["error"]) == (False, "this one is broken")
    assert grid.image.crop(told["cells"][1]["box"]).getcolors() == [(64 * 64, EMPTY)]
    assert len(grid.image.crop(told["cells"][2]["box"]).getcolors(64 * 64) or []) > 10


def test_existing_files_are_kept(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    grid = tiny_pipe.sweep(PROMPT, "seed=1,2", steps=1)
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(darkroom.ImageError, match="exists already"):
        grid.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "mine"
    assert grid.save(tmp_path / "a.png", overwrite=True) == [tmp_path / "a.png", tmp_path / "a.json"]
