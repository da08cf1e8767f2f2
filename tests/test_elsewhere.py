"""Other programs' names: one table, the same on the command line, in Python and in `--set`."""

from __future__ import annotations

import pytest
import torch

from darkroom.elsewhere import DRAWING, TRAINING, by_our_names, plain
from darkroom.errors import RequestError, TrainingError, closest, distance
from darkroom.pipeline import Pipeline
from darkroom.request import Request
from darkroom.settings import settings
from darkroom.sweeps.axes import parse_axis
from darkroom.training.kinds import KINDS
from darkroom.training.recipe import keys, override

# What is no setting but an option of commands.
OPTIONS = {"output", "prompts", "model", "vae", "dtype", "lora", "lora_dir", "embedding_dir", "data", "workers"}
OPTIONS |= {"num_images", "image", "mask", "depth", "hires_steps", "hires_upscaler", "hires_strength"}


def test_the_tables_hold_our_names_and_each_of_theirs_once() -> None:
    trained = {name for kind in KINDS.values() for name in keys(kind.recipe_of())}
    for table, known in ((DRAWING, set(settings(Request))), (TRAINING, trained)):
        assert set(table.same) <= known | OPTIONS
        theirs = [name for names in table.same.values() for name in names]
        assert len(theirs) == len(set(theirs))
        assert not set(theirs) & set(table.other)
        for name in (*theirs, *table.other):
            assert name == plain(name)
            assert name not in table.same  # it would never be read as theirs
            assert name not in known


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"num_inference_steps": 3, "cfg_scale": 2.0, "noise_seed": 5}, {"steps": 3, "guidance_scale": 2.0, "seed": 5}),
        ({"steps": 2, "num_images_per_prompt": 2, "sampler_name": "Euler", "seed": 1},
         {"steps": 2, "num_images": 2, "sampler": "euler", "seed": 1}),
    ],
)  # fmt: skip
def test_a_call_by_their_names_draws_the_same(tiny_pipe: Pipeline, theirs: dict, ours: dict) -> None:
    there = tiny_pipe.generate("a fox", **theirs, output="pt")
    here = tiny_pipe.generate("a fox", **ours, output="pt")
    assert torch.equal(there.images, here.images)
    assert there.requests == here.requests


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_inference_steps": 3, "steps": 4}, "num_inference_steps is steps, which is given too"),
        ({"generator": None}, "there is no argument 'generator': give the seed itself"),
        ({"crops_coords_top_left": (0, 0)}, r"write it as crop \(left, top\); there it is \(top, left\)"),
        ({"zebra": 1}, "there is no argument 'zebra'$"),
        ({"num_inference_stepz": 1}, "did you mean 'steps'"),
    ],
)
def test_what_is_not_the_same_is_said(tiny_pipe: Pipeline, given: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        tiny_pipe.generate("a fox", **given)


def test_settings_of_a_training_by_their_names() -> None:
    recipe = KINDS["lora"].recipe_of()
    theirs = ["learning_rate=0.002", "max_train_steps=7", "network_dim=8", "network_alpha=2", "train_batch_size=1"]
    assert override(recipe, theirs) == override(recipe, ["lr=0.002", "steps=7", "rank=8", "alpha=2", "batch_size=1"])
    for wrong, said in (
        ("gradient_accumulation_steps=2", "set batch_size=ALL and accumulate=PARTS"),
        ("learning_ratee=1", "did you mean 'lr'"),
        ("zebra=1", "there are steps, "),
    ):
        with pytest.raises(TrainingError, match=said):
            override(recipe, [wrong])


def test_axes_by_their_names() -> None:
    assert parse_axis("x", "num_inference_steps=1,2").name == "steps"
    assert parse_axis("x", "Denoising strength=0.1").name == "strength"


def test_arguments_are_renamed_where_ours_are_known() -> None:
    assert by_our_names({"cfg": 2, "other": 1}, {"guidance_scale"}) == {"guidance_scale": 2, "other": 1}
    assert by_our_names({"cfg": 2}, {"steps"}) == {"cfg": 2}


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [("", "", 0), ("seed", "sede", 1), ("canny", "cany", 1), ("abc", "", 3), ("kitten", "sitting", 3)],
)
def test_distance(a: str, b: str, apart: int) -> None:
    assert distance(a, b) == distance(b, a) == apart


@pytest.mark.parametrize(
    ("written", "known", "meant"),
    [
        ("genrate", ["generate", "gallery"], "generate"),
        ("negative-prompt", ["negative-crop", "negative"], None),  # far, though many letters are the same
        ("width", ["depth"], None),
        ("cfg", ["pag"], None),
        ("quiet", ["size"], None),
        ("learning_rate", ["enlarge"], None),
        ("dpm++ 2m karas", ["dpmpp_2m_sde", "dpm++ 2m karras"], "dpm++ 2m karras"),
        ("x" * 10_000, ["euler"], None),
    ],
)
def test_a_guess_is_made_at_slips_alone(written: str, known: list[str], meant: str | None) -> None:
    assert closest(written, known) == meant
