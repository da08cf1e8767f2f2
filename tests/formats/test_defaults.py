"""The settings that a model's folder recommends: read, obeyed where a request names none, kept, and checked."""

import json
import shutil

import pytest
from PIL import Image

import darkroom
from darkroom.errors import CheckpointError
from darkroom.formats.checkpoint import open_checkpoint


@pytest.fixture
def folder(tiny_folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_folder, copy)
    (copy / "darkroom.json").write_text(json.dumps({"steps": 3, "guidance_scale": 2.5}))
    return copy


def test_a_folder_without_the_file_has_none(tiny_folder):
    assert open_checkpoint(tiny_folder).defaults == {}


def test_they_hold_where_a_request_names_none(folder):
    pipe = darkroom.load(folder)
    (request,) = pipe.generate("a fox", seed=1, output="latent").requests
    assert (request.steps, request.guidance_scale) == (3, 2.5)
    (request,) = pipe.generate("a fox", seed=1, steps=2, guidance_scale=0.0, output="latent").requests
    assert (request.steps, request.guidance_scale) == (2, 0.0)


def test_refinement_has_a_strength_of_its_own(folder):
    photo = Image.new("RGB", (64, 64), "red")
    assert darkroom.load(folder).upscale(photo, steps=10, seed=1, output="latent").requests[0].strength == 0.3
    (folder / "darkroom.json").write_text(json.dumps({"refine_strength": 0.1}))
    pipe = darkroom.load(folder)
    assert pipe.upscale(photo, steps=10, seed=1, output="latent").requests[0].strength == 0.1
    assert pipe.upscale(photo, steps=10, seed=1, strength=0.2, output="latent").requests[0].strength == 0.2
    assert pipe.generate("a fox", image=photo, steps=2, seed=1, output="latent").requests[0].strength == 0.75


@pytest.mark.parametrize("name", ["again", "again.safetensors"])
def test_saving_keeps_them(folder, tmp_path, name):
    saved = darkroom.load(folder).save(tmp_path / name)
    assert open_checkpoint(saved).defaults == {"steps": 3, "guidance_scale": 2.5}


@pytest.mark.parametrize(
    "content",
    [
        '{"steps": 0}',
        '{"steps": 2.5}',
        '{"steps": true}',
        '{"guidance_scale": NaN}',
        '{"guidance_scale": "7"}',
        '{"refine_strength": 1.1}',
        '{"x": 1}',
        "[1]",
    ],
)
def test_nonsense_is_refused(folder, content):
    (folder / "darkroom.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"darkroom\.json"):
        open_checkpoint(folder)
