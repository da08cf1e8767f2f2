"""Guidance as a request asks for it, against diffusers' pipelines, and the pieces together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import darkroom
from darkroom.arguments import grouped
from darkroom.errors import RequestError
from darkroom.pipeline import Pipeline

PROMPT = "a large red fox"


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder)


def draw(pipe: Pipeline, **wishes: Any) -> torch.Tensor:
    images = pipe.generate(PROMPT, negative_prompt="blue car", steps=5, seed=3, output="pt", **grouped(wishes)).images
    assert isinstance(images, torch.Tensor)
    return images


@pytest.mark.parametrize(
    ("levels", "wishes"),
    [
        (None, {"pag_scale": 3.0, "guidance_scale": 7.5}),
        (None, {"pag_scale": 3.0, "guidance_scale": 1.0}),
        (None, {"pag_scale": 2.0, "guidance_scale": 5.0, "guidance_rescale": 0.7}),
        (None, {"pag_scale": 4.0, "guidance_scale": 0.0, "guidance_rescale": 0.7}),
        (None, {"pag_scale": 6.0, "guidance_scale": 5.0, "pag_adaptive_scale": 0.01}),
        ({"down.0": "down_blocks.0"}, {"pag_scale": 3.0, "guidance_scale": 5.0}),
        ({"mid": "mid", "up.1": "up_blocks.1"}, {"pag_scale": 3.0, "guidance_scale": 5.0}),
    ],
)
def test_perturbed_attention_is_diffusers_own(
    pipe: Pipeline, tiny_reference: Any, levels: dict[str, str] | None, wishes: dict[str, float]
) -> None:
    from diffusers.pipelines.pag.pipeline_pag_sd import StableDiffusionPAGPipeline

    theirs = list((levels or {"mid": "mid"}).values())
    parts = {name: part for name, part in tiny_reference.components.items() if part is not None}
    optional = {"safety_checker": None, "feature_extractor": None}
    peer = StableDiffusionPAGPipeline(**parts, **optional, requires_safety_checker=False, pag_applied_layers=theirs)
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        PROMPT,
        negative_prompt="blue car",
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **wishes,
    ).images
    got = draw(pipe, **wishes, pag_levels=None if levels is None else tuple(levels))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    plain = draw(pipe, **{name: value for name, value in wishes.items() if not name.startswith("pag")})
    assert (got - plain).abs().max() > 0.01  # else nothing was tested


def test_nothing_asked_for_is_the_plain_picture_to_the_bit(pipe: Pipeline) -> None:
    plain = draw(pipe)
    for nothing in (
        {"pag_scale": 0.0, "pag_levels": ["down.0"]},
        {"guidance_projection": 0.0},
        {"threshold": 0.9, "threshold_mimic": 7.5},
        {"pag_scale": 3.0, "threshold": 0.9, "guidance_projection": 1.0, "guidance_interval": (900.0, 1000.0)},
    ):
        reference = plain if "guidance_interval" not in nothing else draw(pipe, guidance_scale=1.0)
        assert torch.equal(draw(pipe, **nothing), reference), nothing


def test_all_at_once_differs_from_each_and_stays_a_picture(pipe: Pipeline) -> None:
    wishes = {
        "guidance_rescale": 0.5,
        "pag_scale": 2.0,
        "guidance_projection": 0.5,
        "threshold": 0.9,
        "guidance_interval": (0.5, 10.0),
    }
    together = draw(pipe, **wishes)
    assert bool(together.isfinite().all())
    for name in wishes:
        fewer = draw(pipe, **{other: value for other, value in wishes.items() if other != name})
        assert (together - fewer).abs().max() > 1e-4, name


def test_the_recipe_draws_it_again(pipe: Pipeline) -> None:
    wanted = darkroom.Guidance(pag_scale=2, pag_levels=["mid", "up.1"], threshold=0.95)
    first = pipe.generate(PROMPT, steps=3, seed=1, guidance=wanted)
    (recipe,) = first.requests
    again = darkroom.Request.from_dict(recipe.to_dict())
    assert again == recipe
    assert again.pag_levels == ("mid", "up.1")
    assert pipe.draw([again]).images[0].tobytes() == first.images[0].tobytes()


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"pag_scale": float("nan")}, "pag_scale is nan"),
        ({"pag_scale": -1}, "pag_scale is -1"),
        ({"pag_scale": 3, "pag_levels": ["middle"]}, "pag_levels has 'middle'"),
        ({"pag_scale": 3, "pag_levels": []}, "pag_levels is"),
        ({"pag_scale": 3, "pag_levels": ["down.1"]}, "down.1.*no self-attention.*mid, down.0, up.1"),
        ({"pag_levels": ["mid"]}, "pag_levels is given without pag_scale"),
        ({"threshold": 99.5}, "threshold is 99.5"),
        ({"threshold_mimic": 5}, "threshold_mimic is given without threshold"),
        ({"threshold": 0.9, "threshold_mimic": 0.5}, "threshold_mimic is 0.5"),
        ({"guidance_projection": "a lot"}, "guidance_projection is 'a lot'"),
    ],
)
def test_nonsense_is_told_in_a_sentence(pipe: Pipeline, wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        draw(pipe, **wishes)
