"""Training a network that enlarges: it learns, it resumes bit for bit, and others open what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from enlargers import spandrel
from PIL import Image
from safetensors.torch import load_file

from darkroom.errors import TrainingError
from darkroom.formats.upscaler import PART, open_upscaler
from darkroom.training.kinds import Source
from darkroom.training.parallel import Rank
from darkroom.training.run import run
from darkroom.training.upscaler import UpscalerRecipe, UpscalerStage, made_small, turned

TINY = UpscalerRecipe(
    steps=4, batch_size=2, lr=1e-3, optimizer="adamw", width=4, layers=1, scale=2, crop=8, crops=2, size=64,
    precision="float32", warmup=0,
)  # fmt: skip


def stage(recipe: UpscalerRecipe, source: Source | None = None) -> UpscalerStage:
    return UpscalerStage.open(recipe, source or Source(), Path("nowhere"))


def test_a_crop_is_of_the_picture_that_was_made_small() -> None:
    recipe = replace(TINY, filters=("box",), degraded=0.0)
    for shown in stage(recipe).batch(3, Rank()):
        for (y, x), turn, large in zip(shown.corners, shown.turns, shown.large, strict=True):
            small = turned(shown.small[:, y : y + 8, x : x + 8], turn)
            assert large.shape == (3, 16, 16)
            assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().max() < 1.5 / 255


def test_a_batch_is_a_function_of_its_step_and_shared_by_ranks() -> None:
    whole = stage(TINY).batch(5, Rank())
    halves = [stage(TINY).batch(5, Rank(i, 2))[0] for i in range(2)]
    for one, other in zip(whole, halves, strict=True):
        assert torch.equal(one.small, other.small)
        assert torch.equal(one.large, other.large)
    assert not torch.equal(whole[0].small, stage(TINY).batch(6, Rank())[0].small)


def test_harm_is_what_the_recipe_says() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[18:50, 18:50] = 200
    rng = lambda: np.random.default_rng(1)  # noqa: E731
    plain = made_small(picture, replace(TINY, filters=("box",)), rng(), harmed=False)
    assert plain.shape == (32, 32, 3)
    assert set(np.unique(plain)) == {0, 200}
    for only in ({"noise": 0.0, "jpeg": 100}, {"blur": 0.0, "jpeg": 100}, {"blur": 0.0, "noise": 0.0, "jpeg": 5}):
        harmed = made_small(picture, replace(TINY, filters=("box",), **only), rng(), harmed=True)
        assert len(np.unique(harmed)) > 2


def test_turns_are_eight() -> None:
    picture = torch.arange(12).reshape(1, 3, 4)
    assert len({str(turned(picture, n).tolist()) for n in range(8)}) == 8


def test_it_learns_what_a_filter_can_not_do() -> None:
    recipe = replace(TINY, steps=60, lr=5e-3, width=8, layers=2, degraded=0.0)
    training = stage(recipe)
    optimizer = torch.optim.AdamW(training.upscaler.parameters(), lr=5e-3)
    first, last = [], []
    for step in range(60):
        loss, _ = training.loss(training.batch(step, Rank()), step, Rank())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        (first if step < 10 else last if step >= 50 else []).append(loss.item())
    assert sum(last) < 0.8 * sum(first)


def test_a_run_that_was_stopped_equals_one_that_was_not(tmp_path: Path) -> None:
    recipe = replace(TINY, schedule="constant", reconstructed=0.5, perceptual=0.1)
    run(recipe, Source(), tmp_path / "whole")
    run(replace(recipe, steps=2), Source(), tmp_path / "begun")
    written = run(recipe, Source(), tmp_path / "begun")
    assert written.name == "upscaler.safetensors"
    whole, resumed = (load_file(tmp_path / name / "upscaler.safetensors") for name in ("whole", "begun"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_one_goes_on_from_a_finished_network_on_own_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        pixels = rng.integers(0, 256, (40 + 7 * i, 61, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    first = run(replace(TINY, steps=1), Source(), tmp_path / "first")
    more = replace(TINY, steps=1, size=16, scale=4)  # the network says the scale
    file = run(more, Source(str(first), str(tmp_path / "pictures")), tmp_path / "second")
    assert open_upscaler(file).upscaler_config.scale == 2
    theirs = spandrel().ModelLoader().load_from_file(str(file))
    x = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert torch.allclose(
            open_upscaler(file).build(PART, dtype=torch.float32)(x), theirs.model.float()(x), atol=1e-5
        )
    assert theirs.scale == 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"crop": 128}, "crop is 128"),
        ({"glyphs": "nowhere"}, "glyphs is 'nowhere'"),
        ({"l1": 0.0}, "all 0"),
    ],
)
def test_what_can_not_be_trained_is_refused(changed: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=sentence):
        run(replace(TINY, **changed), Source(), tmp_path)  # type: ignore[arg-type]
