"""Recipes from files, in Python: what is followed, and that what isn't is said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import darkroom
from darkroom import Engine, Pipeline, RequestError
from darkroom.engine import Finished
from darkroom.request import Request

Command = Callable[..., Any]

THEIRS = "a fox\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 4, Size: 64x64, RNG: CPU, FreeU: True, Tiling: True"


def picture(folder: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(folder / "theirs.png", pnginfo=info)
    return folder / "theirs.png"


def test_what_is_not_followed_is_in_the_result(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    recipe = darkroom.read_recipe(picture(tmp_path, THEIRS))
    assert (recipe.source, recipe.unfollowed) == ("a1111", {"FreeU": "True", "Tiling": "True"})
    (sentence,) = recipe.warnings
    assert sentence.endswith("theirs.png' this is not followed: FreeU: True, Tiling: True")
    with pytest.warns(UserWarning, match="this is not followed: FreeU"):
        result = tiny_pipe.draw([recipe, recipe])
    assert result.warnings == recipe.warnings
    assert [request.seed for request in result.requests] == [4, 4]
    with pytest.raises(RequestError, match="can't be followed in full: FreeU: True"):
        darkroom.read_recipe(tmp_path / "theirs.png", strict=True)


def test_a_request_that_is_followed_warns_of_nothing(
    tiny_pipe: Pipeline, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    result = tiny_pipe.generate("a fox", steps=1, seed=1)
    again = tiny_pipe.draw(result.requests)
    (tmp_path / "recipe.json").write_text(json.dumps(result.requests[0].to_dict()))
    recipe = darkroom.read_recipe(tmp_path / "recipe.json")
    assert recipe.request == result.requests[0]
    assert (result.warnings, again.warnings, recipe.warnings) == ((), (), ())
    assert not [one for one in recwarn if one.category is UserWarning]


@pytest.mark.parametrize(
    ("recipe", "other"),
    [
        ({"model": "tiny", "model_hash": "0123456789"}, True),  # a hash decides, whatever the name
        ({"model": "SD/Other.safetensors"}, True),
        ({"model": "SD/Tiny.safetensors"}, False),
        ({"model": "tiny", "model_hash": "45dee52b"}, False),  # A1111's old hash, which says nothing of ours
        ({"vae": "other.pt"}, True),
        ({}, False),
    ],
)
def test_a_recipe_that_names_another_model_is_said(recipe: dict[str, str], other: bool, tiny_folder: Path) -> None:
    engine = Engine(darkroom.load(tiny_folder))
    engine.add(Request(prompt="a fox", steps=1, seed=1, **recipe))
    (job,) = engine.jobs.values()
    (finished,) = [event for event in engine.run() if isinstance(event, Finished)]
    assert finished.warnings == job.warnings == pickle.loads(pickle.dumps(job)).warnings
    assert len(job.warnings) == int(other)
    if other:
        assert " was d" in job.warnings[0]
        assert "; this " in job.warnings[0]


def test_a_word_that_no_prompt_uses_is_in_the_result(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    import torch

    file = tmp_path / "cat-toy.pt"
    width = tiny_pipe.text_encoder.config.hidden_size
    torch.save({"string_to_param": {"*": torch.zeros(1, width)}, "name": "cat-toy"}, file)
    with pytest.warns(UserWarning, match="cat-toy"):
        result = tiny_pipe.generate("a fox", steps=1, seed=1, embeddings=[file])
    assert len(result.warnings) == 1
    assert "cat-toy" in result.warnings[0]


def sentences(pipe: Pipeline, *prompts: str, **asked: Any) -> list[str]:
    engine = Engine(pipe)
    job = engine.jobs[engine.add(Request(prompt=" ".join(prompts), steps=1, seed=1, **asked))]
    return list(job.warnings)


def test_what_a_model_will_hardly_draw_is_said(tiny_pipe: Pipeline) -> None:
    assert tiny_pipe.size == (64, 64)
    assert sentences(tiny_pipe, "a {red|blue} fox")[0].startswith("'{red|blue}' in the prompt is read as plain text")
    assert sentences(tiny_pipe, "")[0].startswith("the prompt is empty")
    assert sentences(tiny_pipe, "", negative_prompt="fog") == []
    assert sentences(tiny_pipe, "a fox", width=160, height=128) == []
    assert "256x64 is far beyond the 64x64" in sentences(tiny_pipe, "a fox", width=256)[0]
    assert sentences(tiny_pipe, "a fox", width=256, tile=64) == []
    assert "64x16 is far below the 64x64" in sentences(tiny_pipe, "a fox", height=16)[0]


def test_the_first_frame_of_an_animation_is_said_in_the_result(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="its first frame is taken"):
        result = tiny_pipe.generate("a fox", image=tmp_path / "a.gif", steps=2, strength=0.5, seed=1)
    assert result.warnings == (f"image {str(tmp_path / 'a.gif')!r} is an animation: its first frame is taken",)
