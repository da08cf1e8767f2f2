"""Recipes: presets, overrides by name, and what is refused before hours are spent."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from darkroom.errors import TrainingError
from darkroom.training.embedded import check_embedded, embedded
from darkroom.training.kinds import PRESETS
from darkroom.training.recipe import check, keys, override


def test_the_presets_are_recipes_of_two_stages() -> None:
    for preset in PRESETS:
        recipe = embedded(preset)
        on_cpu = override(recipe, ["autoencoder.device=cpu", "unet.device=cpu"])
        check_embedded(on_cpu, 2)
    assert embedded("gpu").unet.device == "cuda"


def test_settings_are_read_by_their_types() -> None:
    recipe = override(
        embedded(),
        [
            "autoencoder.steps=10", "unet.lr=3e-4", "unet.widths=32,64", "unet.attention_levels=(false, True)",
            "unet.optimizer=adamw", "evaluate=0", "unet.lr = 4e-4",
        ],
    )  # fmt: skip
    assert (recipe.autoencoder.steps, recipe.unet.lr, recipe.unet.optimizer) == (10, 4e-4, "adamw")
    assert (recipe.unet.widths, recipe.unet.attention_levels, recipe.evaluate) == ((32, 64), (False, True), 0)
    assert dataclasses.replace(recipe.autoencoder, steps=embedded().autoencoder.steps) == embedded().autoencoder
    assert {"evaluate", "autoencoder.crop", "unet.gamma"} <= set(keys(recipe))
    assert override(embedded().unet, ["gamma=2"]).gamma == 2.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("steps", "'steps' is no setting; write key=value"),
        ("unet.stepz=1", "no setting 'unet.stepz'; did you mean 'unet.steps'?"),
        ("unett.lr=1", "no setting 'unett.lr'; did you mean 'unet.lr'?"),
        ("crop=1", "did you mean 'autoencoder.crop'?"),
        ("unet=1", "no setting 'unet'"),
        ("evaluate.x=1", "no setting 'evaluate.x'"),
        ("unet.steps=1.5", "unet.steps is '1.5'; it must be a whole number"),
        ("unet.lr=fast", "unet.lr is 'fast'; it must be a finite number"),
        ("unet.lr=nan", "it must be a finite number"),
        ("unet.lr=inf", "it must be a finite number"),
        ("unet.widths=1,x", "unet.widths is 'x'; it must be a whole number"),
        ("unet.attention_levels=yes", "unet.attention_levels is 'yes'; it must be true or false"),
        ("=1", "no setting ''"),
    ],
)
def test_wrong_settings_are_named(setting: str, said: str) -> None:
    with pytest.raises(TrainingError) as error:
        override(embedded(), [setting])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps is 0; it must be between 1 and 10^9"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be 'muon', 'adamw'"),
        ({"schedule": "exponential"}, "schedule is 'exponential'"),
        ({"accumulate": 3}, "accumulate is 3; 8 rows can't be computed in so many equal parts"),
        ({"ema_lengths": (0.1,)}, "ema_lengths is (0.1,); it must be none, or two or more"),
        ({"ema_length": 0.1}, "ema_length is 0.1, and no snapshots are kept"),
        ({"best": True}, "best is true and validate_every is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"precision": "float8"}, "precision is 'float8'"),
        ({"keep": 0}, "keep is 0"),
        ({"crop": 60}, "crop is 60; it must be a multiple of 8 for 4 widths"),
        ({"batch_size": 2}, "take a multiple of 8"),
        ({"batch_size": 15}, "batch_size is 15; 2 workers can't share it evenly"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"whole_from": 1.5}, "whole_from is 1.5"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], said: str) -> None:
    recipe = dataclasses.replace(embedded().autoencoder, **changes)
    with pytest.raises(TrainingError) as error:
        check(recipe, workers=2)
    assert said in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_at_once() -> None:
    with pytest.raises(TrainingError, match=r"autoencoder\.device is 'cuda', and no GPU was found"):
        check_embedded(embedded("gpu"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("unet.heads=7", "can't be built: attention_head_dim"),
        ("unet.widths=64,128", "can't be built"),
        ("unet.groups=48", "can't be built: norm_num_groups"),
        ("autoencoder.widths=16,32,64", "autoencoder.widths has 3 levels; it needs 4"),
        ("evaluate=-1", "evaluate is -1"),
        ("unet.dropout=2", "unet.dropout is 2.0"),
        ("unet.encode_precision=float16", "unet.encode_precision is 'float16'; it must be 'float32' or 'bfloat16'"),
    ],
)
def test_networks_that_can_t_be_built_are_refused_before_anything_is_trained(setting: str, said: str) -> None:
    with pytest.raises(TrainingError) as error:
        check_embedded(override(embedded(), [setting]))
    assert said in str(error.value)
