"""Depth-to-image, against diffusers' StableDiffusionDepth2ImgPipeline given the same map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom.engine.prepare.extra_channels import depth_channel
from darkroom.errors import ImageError, RequestError
from darkroom.pipeline import Pipeline

PROMPT = "a large red fox"


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def peer(tiny_reference: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_depth2img import (
        StableDiffusionDepth2ImgPipeline,
    )
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(tiny_reference.unet.config, in_channels=5)
    parts = {name: tiny_reference.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    small = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    estimator = DPTForDepthEstimation(
        DPTConfig(
            **small, image_size=32, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4] * 4, fusion_hidden_size=4
        )
    )  # never asked: the map is given
    pipe = StableDiffusionDepth2ImgPipeline(
        **parts, unet=unet, depth_estimator=estimator, feature_extractor=DPTImageProcessor()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(peer: Any, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("depth") / "depth"
    peer.save_pretrained(folder)
    return darkroom.load(folder)


@pytest.mark.parametrize(
    ("size", "wishes"),
    [
        ((30, 20), {"strength": 0.8}),
        ((9, 7), {"strength": 0.5, "guidance_scale": 1.0}),
        ((72, 56), {"strength": 1.0, "negative_prompt": "blue car"}),
    ],
)
def test_the_picture_is_diffusers_own(pipe: Pipeline, peer: Any, size: tuple[int, int], wishes: dict[str, Any]) -> None:
    image = picture(72, 56)
    depth = torch.rand(size[::-1], generator=torch.Generator().manual_seed(1)) * 900 + 3
    expected = peer(
        PROMPT,
        image=image,
        depth_map=depth[None],
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **wishes,
    ).images
    got = pipe.generate(PROMPT, image=image, depth=depth, steps=6, seed=3, output="pt", **wishes).images
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_maps_of_every_form_are_one_map(pipe: Pipeline, tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 256, (20, 30)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "depth.png")
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    forms: list[Any] = [
        values,
        values.astype(np.float64) / 255,
        torch.from_numpy(values).float(),
        Image.fromarray(values),
        deep,
        tmp_path / "depth.png",
        str(tmp_path / "depth.png"),
    ]
    pictures = [pipe.generate(PROMPT, depth=form, steps=2, seed=1, output="pt").images for form in forms]
    for other in pictures[1:]:
        torch.testing.assert_close(other, pictures[0], rtol=0, atol=1e-4)
    turned = pipe.generate(PROMPT, depth=255 - values, steps=2, seed=1, output="pt").images
    assert (turned - pictures[0]).abs().max() > 1e-3  # type: ignore[operator]


def test_the_channel_spans_its_range() -> None:
    depth = torch.rand(50, 40) * 7 + 100
    channel = depth_channel(depth, 8, 6)
    assert channel.shape == (1, 8, 6)
    assert (float(channel.min()), float(channel.max())) == (-1.0, 1.0)
    assert torch.equal(depth_channel(torch.full((5, 5), 3.0), 8, 6), torch.zeros(1, 8, 6))


def test_without_a_picture_it_begins_with_noise(pipe: Pipeline) -> None:
    depth = np.arange(64.0).reshape(8, 8)
    result = pipe.generate(PROMPT, depth=depth, steps=2, seed=1, width=50, height=40)
    assert result.images[0].size == (50, 40)
    (recipe,) = result.requests
    assert recipe.depth is not None
    with pytest.raises(RequestError, match=r"with a depth that was given .fingerprint"):
        pipe.draw([recipe])


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({}, "draws after a depth map; give one as depth"),
        ({"image": picture(64, 64)}, "draws after a depth map; give one as depth"),
        ({"depth": np.zeros((4, 4, 3))}, r"depth is of shape \[4, 4, 3\]"),
        ({"depth": np.zeros((0, 4))}, r"depth is of shape \[0, 4\]"),
        ({"depth": np.full((4, 4), np.nan)}, "not finite"),
        ({"depth": np.array([["near"]])}, "give numbers"),
        ({"depth": "nothing.png"}, "does not exist"),
        ({"depth": 3}, "of type int"),
        ({"depth": np.eye(4), "image": picture(64, 64), "mask": picture(64, 64)}, "leave out the mask"),
        ({"depth": np.eye(4), "strength": 0.5}, "there is no image"),
    ],
)
def test_what_it_can_not_do_is_said(pipe: Pipeline, wishes: dict[str, Any], words: str) -> None:
    with pytest.raises((RequestError, ImageError), match=words):
        pipe.generate(PROMPT, steps=1, **wishes)


def test_other_models_take_no_depth(tiny_folder: Path) -> None:
    with pytest.raises(RequestError, match="takes no depth map"):
        darkroom.load(tiny_folder).generate(PROMPT, depth=np.eye(4), steps=1)
