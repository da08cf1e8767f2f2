"""Editing by instruction, against diffusers' StableDiffusionInstructPix2PixPipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom.arguments import grouped
from darkroom.errors import ImageError, RequestError
from darkroom.pipeline import Pipeline

PROMPT = "turn the fox red"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def peer(tiny_reference: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
        StableDiffusionInstructPix2PixPipeline,
    )

    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_config(tiny_reference.unet.config, in_channels=8)
    pipe = StableDiffusionInstructPix2PixPipeline(
        **{**tiny_reference.components, "unet": unet}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def editor(peer: Any, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("editor") / "pix2pix"
    peer.save_pretrained(folder)
    return darkroom.load(folder)


@pytest.mark.parametrize(
    "wishes",
    [
        {"guidance_scale": 7.5, "image_guidance_scale": 1.5},
        {"guidance_scale": 4.0, "image_guidance_scale": 1.0},
        {"guidance_scale": 7.5, "image_guidance_scale": 0.5},  # below 1 nothing guides, as in diffusers
        {"guidance_scale": 1.0, "image_guidance_scale": 2.0},
        {"guidance_scale": 7.5, "image_guidance_scale": 2.5, "negative_prompt": "blue car"},
    ],
)
def test_the_picture_is_diffusers_own(editor: Pipeline, peer: Any, wishes: dict[str, Any]) -> None:
    image = picture(72, 56)
    expected = peer(
        PROMPT,
        image=image,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **wishes,
    ).images
    got = editor.generate(PROMPT, image=image, steps=4, seed=3, output="pt", **grouped(wishes)).images
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_the_usual_scale_and_the_recipe(editor: Pipeline) -> None:
    wishes: dict[str, Any] = {"image": picture(50, 41), "steps": 2, "seed": 1}
    result = editor.generate(PROMPT, **wishes)
    recipe = result.requests[0]
    assert result.images[0].size == (50, 41)
    assert recipe.image_guidance_scale == 1.5
    for scale in (1.5, 1.2):
        guided = editor.generate(PROMPT, **wishes, guidance=darkroom.Guidance(image_scale=scale))
        assert (guided.images[0].tobytes() == result.images[0].tobytes()) == (scale == 1.5)
    assert recipe.image is not None
    with pytest.raises(RequestError, match="give the same image again"):
        editor.draw([recipe])


def test_it_goes_with_the_other_pieces_of_guidance(editor: Pipeline) -> None:
    wishes: dict[str, Any] = {"image": picture(64, 64), "steps": 2, "seed": 1, "output": "pt"}
    plain = editor.generate(PROMPT, **wishes).images
    for more in ({"pag_scale": 2.0}, {"guidance_rescale": 0.7}, {"threshold": 0.9}, {"guidance_interval": (0.0, 1.0)}):
        other = editor.generate(PROMPT, **grouped(wishes | more)).images
        assert not torch.equal(other, plain), more  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({}, "give the picture to edit as image"),
        ({"image": picture(64, 64), "mask": picture(64, 64)}, "leave out the mask"),
        ({"image": picture(64, 64), "strength": 0.5}, "strength is 0.5.*image_guidance_scale"),
        ({"image": picture(64, 64), "depth": np.zeros((4, 4))}, "no depth map"),
        ({"image": picture(64, 64), "image_guidance_scale": float("nan")}, "image_guidance_scale is nan"),
        ({"image": picture(64, 64), "image_guidance_scale": -1}, "image_guidance_scale is -1"),
    ],
)
def test_what_it_can_not_do_is_said(editor: Pipeline, wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        editor.generate(PROMPT, steps=1, **grouped(wishes))
    with pytest.raises(RequestError, match="leave out AND"):
        editor.generate("a fox AND a car", image=picture(64, 64), steps=1)


def test_only_editors_take_its_scale(tiny_folder: Path) -> None:
    plain = darkroom.load(tiny_folder)
    with pytest.raises(RequestError, match=r"image_guidance_scale is 1.5, which only editing models take"):
        plain.generate(PROMPT, image=picture(64, 64), guidance=darkroom.Guidance(image_scale=1.5))
    with pytest.raises(ImageError, match="image"):
        plain.generate(PROMPT, image="nothing.png")
