"""Upscaling: the x4 upscaler against diffusers, refinement in windows, and what can't be done."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darkroom
from darkroom.engine import Engine, Inputs
from darkroom.errors import Error, RequestError
from darkroom.pipeline import Pipeline
from darkroom.request import Request


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture with some structure."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    colours = np.stack([np.sin(3 * x + y), np.cos(2 * y * x), np.sin(x - 2 * y)], axis=-1)
    return Image.fromarray(((colours + 1) * 127).astype(np.uint8))


@pytest.fixture(scope="module")
def reference(tiny_reference: Any) -> Any:
    """diffusers' upscaling pipeline with random networks of the published ones' shape."""
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
    from diffusers import StableDiffusionUpscalePipeline as Reference

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=7,
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            only_cross_attention=(True, False),
            cross_attention_dim=32,
            norm_num_groups=8,
            num_class_embeds=1000,
            use_linear_projection=True,
        )
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
            scaling_factor=0.08333,
        )
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    pipe = Reference(
        unet=unet,
        vae=autoencoder,
        text_encoder=tiny_reference.text_encoder,
        tokenizer=tiny_reference.tokenizer,
        low_res_scheduler=DDPMScheduler(**betas),
        scheduler=DDIMScheduler(
            **betas,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def upscaler(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("models") / "upscaler"
    reference.save_pretrained(folder)
    return darkroom.load(folder)


@pytest.mark.parametrize(
    ("size", "seed", "level", "guidance", "scheduler"),
    [
        ((16, 12), 1, 20, 9.0, "DDIMScheduler"),
        ((8, 20), 7, 0, 1.0, "DDIMScheduler"),
        ((12, 16), 5, 350, 4.0, "EulerAncestralDiscreteScheduler"),
    ],
)
def test_the_picture_is_diffusers_picture(
    upscaler: Pipeline,
    reference: Any,
    size: tuple[int, int],
    seed: int,
    level: int,
    guidance: float,
    scheduler: str,
) -> None:
    import diffusers

    small = picture(*size)
    parts = reference.components | {"scheduler": getattr(diffusers, scheduler).from_config(reference.scheduler.config)}
    theirs = type(reference)(**parts)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red fox",
        image=small,
        num_inference_steps=5,
        guidance_scale=guidance,
        noise_level=level,
        negative_prompt="blue car",
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="pt",
    ).images
    result = upscaler.upscale(
        small,
        "a red fox",
        negative_prompt="blue car",
        steps=5,
        guidance_scale=guidance,
        noise_level=level,
        seed=seed,
        sampler=None if scheduler == "DDIMScheduler" else scheduler,
        output="pt",
    )
    assert isinstance(result.images, torch.Tensor)
    assert result.images.shape == expected.shape == (1, 3, 4 * size[1], 4 * size[0])
    assert (result.images - expected).abs().max() < 1e-3
    recipe = result.requests[0]
    assert (recipe.width, recipe.height, recipe.noise_level) == (4 * size[0], 4 * size[1], level)
    again = upscaler.draw([Request.from_dict(recipe.to_dict())], [Inputs(image=small)], output="pt").images
    assert torch.equal(again, result.images)


def test_an_upscaler_takes_any_size_whole_or_in_windows(upscaler: Pipeline) -> None:
    small = picture(13, 9)
    whole, tiled = (
        upscaler.upscale(small, steps=2, seed=3, tile=tile, overlap=overlap, output="pt").images
        for tile, overlap in ((None, None), (32, 16))
    )
    assert whole.shape == tiled.shape == (1, 3, 36, 52)
    assert not torch.equal(whole, tiled)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"scale": 2}, "4 times"),
        ({"strength": 0.5}, "strength is 0.5"),
        ({"noise_level": 351}, "noise_level is 351"),
        ({"overlap": 8}, "overlap is given without tile"),
        ({"image": picture(1, 1)}, "1x1 pixels, 4 times as large 4x4"),
        ({"mask": picture(8, 8)}, "mask"),
    ],
)
def test_what_an_upscaler_cannot_do(upscaler: Pipeline, wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(Error, match=words):
        upscaler.upscale(**{"image": picture(8, 8), "steps": 1, **wishes})


def test_an_upscaler_needs_a_picture(upscaler: Pipeline) -> None:
    with pytest.raises(RequestError, match="give an image"):
        upscaler.generate("a fox", steps=1)


@pytest.mark.parametrize(
    ("size", "wishes", "words"),
    [
        ((8, 8), {"scale": 0}, "scale is 0"),
        ((8, 8), {"scale": math.nan}, "scale is nan"),
        ((8, 8), {"scale": "2"}, "scale is '2'"),
        ((500, 400), {"scale": 100}, "50000x40000"),
        ((1, 1), {}, "1x1 pixels, 2 times as large 2x2"),
        ((10000, 3), {}, "20000x6"),
        ((8, 8), {"tile": 7}, "tile is 7"),
        ((8, 8), {"tile": 16, "overlap": 16}, "below tile"),
        ((8, 8), {"noise_level": 20}, "only upscaling models"),
        ((8, 8), {"width": 16}, "use scale"),
    ],
)
def test_what_refinement_cannot_do(
    tiny_pipe: Pipeline, size: tuple[int, int], wishes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as told:
        tiny_pipe.upscale(picture(*size), **wishes)
    assert "\n" not in str(told.value)


def test_refinement_in_one_window_is_image_to_image(tiny_pipe: Pipeline) -> None:
    small = picture(20, 30)
    wishes = {"steps": 4, "seed": 2, "output": "pt", "prompt": "a fox"}
    refined = tiny_pipe.upscale(small, scale=2, strength=0.5, **wishes)
    plain = tiny_pipe.generate(image=small, width=40, height=60, strength=0.5, **wishes)
    assert torch.equal(refined.images, plain.images)
    assert refined.requests[0].tile == 64


def test_windows_share_calls_and_keep_their_bits(tiny_pipe: Pipeline) -> None:
    """All windows move in one step; alone, in company, and after a pickle in the middle."""
    request = Request(
        prompt="a fox", seed=4, steps=3, width=96, height=80, tile=48, overlap=16, sampler="euler_ancestral"
    )
    small = picture(50, 40)

    def drawn(engine: Engine, others: int = 0) -> torch.Tensor:
        id = engine.add(request, Inputs(image=small), output="latent")
        for seed in range(others):
            engine.add(Request(prompt="a car", seed=seed, steps=2))
        results = {}
        while engine.jobs:
            if id in engine.jobs:
                job = pickle.loads(pickle.dumps(engine.jobs[id]))
                assert job.windows.count == 6
                assert job.done or job.rows == 12
                engine.abort(id)
                engine.resume(job)
            for event in engine.step():
                results[event.id] = getattr(event, "result", None)
        return results[id]

    alone = drawn(Engine(tiny_pipe, deterministic=True))
    assert torch.equal(alone, drawn(Engine(tiny_pipe, deterministic=True), others=2))
    assert (alone - drawn(Engine(tiny_pipe, max_rows=5), others=2)).abs().max() < 1e-4
    plain = tiny_pipe.draw(
        [Request.from_dict({**request.to_dict(), "tile": None, "overlap": None})], [Inputs(image=small)]
    )
    assert plain.images[0].size == (96, 80)


def test_no_seam_at_the_borders_of_windows(tiny_pipe: Pipeline) -> None:
    """Columns at window borders change no more than others do, in a picture the windows drew from noise alone."""
    request = Request(prompt="a fox", seed=1, steps=4, width=256, height=64, tile=64, overlap=32)
    engine = Engine(tiny_pipe)
    id = engine.add(request, output="latent")
    borders = sorted({edge for place in engine.jobs[id].windows.places for edge in place[2:]} - {0, 32})
    assert len(borders) == 7
    answers: list[torch.Tensor] = []
    while engine.jobs:
        for event in engine.step():
            if hasattr(event, "result"):
                answers.append(event.result)
    steps = answers[0].diff(dim=2).abs().mean(dim=(0, 1))  # column to column
    inside = [float(steps[i]) for i in range(len(steps)) if i + 1 not in borders]
    assert max(float(steps[edge - 1]) for edge in borders) < max(inside) * 1.1


def test_4096_pixels_need_windows_of_the_models_size(tiny_pipe: Pipeline) -> None:
    """The rows of a call stay small whatever the picture's size."""
    engine = Engine(tiny_pipe)
    seen: list[tuple[int, ...]] = []
    denoise = engine._denoise

    def spy(x: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return denoise(x, *others)

    engine._denoise = spy  # type: ignore[method-assign]
    engine.add(
        Request(prompt="", seed=1, steps=1, guidance_scale=1.0, width=1024, height=512, tile=64), output="latent"
    )
    engine.step()
    assert {shape[2:] for shape in seen} == {(8, 8)}
    assert max(shape[0] for shape in seen) <= engine.max_rows
    assert sum(shape[0] for shape in seen) == 11 * 21
