"""Inpainting: nine channels against diffusers inside the mask; known pixels byte-identical with any model."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import darkroom
from darkroom.arguments import Inpaint, grouped
from darkroom.engine import Engine, Inputs
from darkroom.errors import Error
from darkroom.models.unet import UNet
from darkroom.pipeline import Pipeline
from darkroom.request import Request

MODULES = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "LMSDiscreteScheduler": "lms_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
}
CASES = [
    ("PNDMScheduler", {}, {"strength": 1.0}),
    ("PNDMScheduler", {"skip_prk_steps": False}, {"strength": 0.8}),
    ("DDIMScheduler", {}, {"strength": 1.0, "guidance_scale": 1.0}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}, {"strength": 0.5}),
    ("DDIMScheduler", {"clip_sample": True}, {"strength": 1.0}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {"strength": 1.0}),
    ("EulerAncestralDiscreteScheduler", {}, {"strength": 0.99, "seed": 5}),
    ("EulerAncestralDiscreteScheduler", {}, {"strength": 1.0, "seed": 5}),
    ("LMSDiscreteScheduler", {}, {"strength": 0.7}),
    ("DPMSolverMultistepScheduler", {}, {"strength": 0.6}),
]


def colours(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


def blob(width: int, height: int) -> Image.Image:
    """A mask that touches neither border nor latent grid."""
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).ellipse((width // 4, height // 4, width * 3 // 4, height * 2 // 3), fill=255)
    return mask


def kept(result: Image.Image, picture: Image.Image, mask: Image.Image) -> bool:
    """Whether all known pixels are byte-identical, and some masked ones changed."""
    masked = np.asarray(mask) >= 128
    same = (np.asarray(result) == np.asarray(picture)).all(axis=2)
    return bool(same[~masked].all() and not same[masked].all())


@pytest.fixture(scope="module")
def nine(tiny_reference: Any) -> Any:
    """diffusers' U-Net of nine channels."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = {name: value for name, value in tiny_reference.unet.config.items() if not name.startswith("_")}
        return UNet2DConditionModel(**{**config, "in_channels": 9})


@pytest.fixture(scope="module")
def nine_pipe(tiny_reference: Any, nine: Any, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from diffusers import StableDiffusionInpaintPipeline

    parts = tiny_reference.components | {"unet": nine}
    folder = tmp_path_factory.mktemp("models") / "nine"
    StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return darkroom.load(folder)


@pytest.mark.parametrize(("name", "flags", "wishes"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_nine_channels_are_diffusers_picture_inside_the_mask(
    nine_pipe: Pipeline, tiny_reference: Any, nine: Any, name: str, flags: dict[str, Any], wishes: dict[str, Any]
) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    kind = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}"), name)
    scheduler = kind.from_config({**nine_pipe.scheduler_config, "_class_name": name, **flags})
    parts = tiny_reference.components | {"scheduler": scheduler, "unet": nine}
    config = dict(scheduler.config) | {"_class_name": name}
    reference = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    reference.set_progress_bar_config(disable=True)
    ours = with_parts(nine_pipe, scheduler_config=config)

    picture, mask = colours(72, 56), blob(72, 56)
    wishes = {"prompt": "a red fox", "seed": 1, "image": picture} | wishes
    got = ours.generate(**wishes, steps=7, mask=mask, inpaint=Inpaint(mask_blur=0), output="pt").images
    theirs = dict(wishes)
    generator = torch.Generator("cpu").manual_seed(theirs.pop("seed"))
    size = {"width": 72, "height": 56}
    expected = reference(
        mask_image=mask, num_inference_steps=7, generator=generator, output_type="pt", **size, **theirs
    ).images
    masked = torch.from_numpy(np.asarray(mask) >= 128).expand_as(expected)
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got[masked], expected[masked], rtol=0, atol=1e-3)
    original = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    assert torch.equal(got[~masked], original[~masked])


def with_parts(pipe: Pipeline, **parts: Any) -> Pipeline:
    own = {name: getattr(pipe, name) for name in ("unet", "autoencoder", "text_encoder", "tokenizer")}
    return Pipeline(**{**own, "scheduler_config": pipe.scheduler_config, "name": "tiny", **parts})


SIZES = [(64, 64), (61, 33), (8, 8), (100, 17), (9, 200)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"strength": 1, "mask_blur": 0, "sampler": "euler_ancestral"},
        {"fill": "fill", "mask_blur": 9, "only_masked": True, "mask_padding": 3},
        {"fill": "noise", "strength": 1, "only_masked": True, "output": "pt"},
    ],
    ids=["plain", "anew", "filled", "noise"],
)
def test_known_pixels_come_back_byte_by_byte(
    tiny_pipe: Pipeline, size: tuple[int, int], wishes: dict[str, Any]
) -> None:
    picture, mask = colours(*size), blob(*size)
    result = tiny_pipe.generate("a fox", image=picture, mask=mask, steps=3, seed=1, **grouped(wishes)).images
    if isinstance(result, torch.Tensor):
        original = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        known = torch.from_numpy(np.asarray(mask) < 128).expand_as(original)
        assert torch.equal(result[0][known], original[known])
        result = [Image.fromarray((result[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())]
    assert kept(result[0], picture, mask)


def test_a_configuration_that_says_nothing_of_clipping_clips_nothing(nine_pipe: Pipeline) -> None:
    """As the published ones, and as diffusers corrects it for pictures from texts; its class's default would clip."""
    silent = {**nine_pipe.scheduler_config, "_class_name": "DDIMScheduler"}
    silent.pop("clip_sample", None)
    drawn = []
    for told in ({}, {"clip_sample": False}, {"clip_sample": True}):
        pipe = with_parts(nine_pipe, scheduler_config=silent | told)
        given = {"image": colours(64, 64), "mask": blob(64, 64), "steps": 4, "seed": 1, "output": "latent"}
        drawn.append(pipe.generate("a fox", **given).images)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_nine_channels_keep_known_pixels_of_any_size(nine_pipe: Pipeline) -> None:
    picture, mask = colours(61, 43), blob(61, 43)
    for wishes in ({}, {"only_masked": True}, {"fill": "fill", "strength": 1}, {"fill": "noise"}):
        result = nine_pipe.generate("a fox", image=picture, mask=mask, steps=3, seed=1, **grouped(wishes)).images[0]
        assert kept(result, picture, mask)


@pytest.mark.parametrize("sampler", ["lms", "plms", "dpmpp_2m", "dpmpp_sde", "uni_pc", "ddim", "heun"])
def test_the_known_latent_is_kept(tiny_pipe: Pipeline, sampler: str) -> None:
    """At every step x = latent + sigma * noise where it is known, for samplers without noise of their own."""
    picture, mask = colours(64, 64), Image.new("L", (64, 64), 0)
    mask.paste(255, (17, 9, 24, 23))  # touches latent pixels (1..2, 2)
    engine = Engine(tiny_pipe)
    request = Request(prompt="a fox", seed=1, steps=9, sampler=sampler, strength=0.7)
    id = engine.add(request, Inputs(image=picture, mask=mask), output="latent")
    job = engine.jobs[id]
    assert job.known is not None
    places = job.known.mask[0]
    assert places[1:3, 2].all()
    assert places.sum() == 2
    while not job.done:
        engine.tick()
        if sampler != "dpmpp_sde":
            expected = job.known.latent + job.state.sigma * job.noise(0)
            torch.testing.assert_close(job.state.x[:, places == 0], expected[:, places == 0], rtol=1e-3, atol=1e-3)
    (event,) = engine.step()
    assert torch.equal(event.result[:, places == 0], job.known.latent[:, places == 0])  # type: ignore[union-attr]


def test_nothing_and_all_of_a_picture(tiny_pipe: Pipeline) -> None:
    picture = colours(40, 24)
    black, white = Image.new("L", (40, 24), 0), Image.new("L", (40, 24), 255)
    for wishes in ({}, {"only_masked": True}, {"fill": "fill"}, {"strength": 1, "fill": "noise"}):
        wishes |= {"image": picture, "seed": 1, "steps": 4}
        same = tiny_pipe.generate("a fox", mask=black, **grouped(wishes)).images[0]
        assert same.tobytes() == picture.tobytes()
        other = tiny_pipe.generate("a fox", mask=white, **grouped(wishes)).images[0]
        assert (np.asarray(other) != np.asarray(picture)).mean() > 0.9
    assert tiny_pipe.generate("a fox", image=picture, mask=white, strength=0).images[0].tobytes() == picture.tobytes()


def test_at_strength_1_the_masked_part_is_not_seen(tiny_pipe: Pipeline) -> None:
    """Unless it is asked for: another picture under the mask gives the same result."""
    picture, mask = colours(64, 64), Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 40, 40))
    other = picture.copy()
    other.paste((0, 255, 0), (16, 16, 40, 40))
    # The autoencoder's view reaches beyond the mask, so the known latents differ a little: fill is what begins there.
    wishes = {"mask": mask, "inpaint": Inpaint(fill="fill"), "seed": 1, "steps": 4}
    filled = [tiny_pipe.generate("a fox", image=p, **wishes) for p in (picture, other)]
    inner = [np.asarray(result.images[0])[20:36, 20:36].astype(int) for result in filled]
    assert np.abs(inner[0] - inner[1]).max() <= 2
    original = [tiny_pipe.generate("a fox", image=p, mask=mask, seed=1, steps=4) for p in (picture, other)]
    inner = [np.asarray(result.images[0])[20:36, 20:36].astype(int) for result in original]
    assert np.abs(inner[0] - inner[1]).max() > 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_any_mode_and_size(tiny_pipe: Pipeline, mode: str) -> None:
    picture, mask = colours(48, 32), blob(48, 32)
    if mode == "I;16":
        odd = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):  # strokes on nothing
        odd = Image.new(mode, mask.size, 0)
        odd.paste(Image.new(mode, mask.size, "white"), mask=mask)
    else:
        odd = mask.convert(mode)
    wishes = {"image": picture, "steps": 2, "seed": 1}
    plain = tiny_pipe.generate("a fox", mask=mask, **wishes)
    result = tiny_pipe.generate("a fox", mask=odd, **wishes)
    assert result.images[0].tobytes() == plain.images[0].tobytes()
    assert result.requests == plain.requests
    large = tiny_pipe.generate("a fox", mask=mask.resize((96, 64), Image.Resampling.NEAREST), **wishes).images[0]
    assert kept(large, picture, mask)


def test_a_result_of_another_size(tiny_pipe: Pipeline) -> None:
    picture, mask = colours(48, 32), blob(48, 32)
    result = tiny_pipe.generate("a fox", image=picture, mask=mask, width=96, steps=2, seed=1).images[0]
    assert result.size == (96, 64)
    enlarged = picture.resize((96, 64), Image.Resampling.LANCZOS)
    assert kept(result, enlarged, mask.resize((96, 64), Image.Resampling.LANCZOS))


def test_its_recipe_gives_it_again(tiny_pipe: Pipeline) -> None:
    inputs = Inputs(image=colours(48, 32), mask=blob(48, 32))
    request = Request(prompt="a fox", seed=1, steps=3, only_masked=True, width=60)
    first = tiny_pipe.draw([request], [inputs])
    (recipe,) = first.requests
    assert (recipe.fill, recipe.mask_blur, recipe.mask_padding, recipe.strength) == ("original", 4, 32, 0.75)
    again = tiny_pipe.draw([Request.from_dict(recipe.to_dict())], [inputs])
    assert again.images[0].tobytes() == first.images[0].tobytes()
    assert again.requests == first.requests
    with pytest.raises(Error, match="made with a mask that was given"):
        tiny_pipe.draw([recipe], [Inputs(image=inputs.image)])


def test_outpainting(tiny_pipe: Pipeline) -> None:
    picture = colours(40, 27)
    for margins in ({"left": 16, "bottom": 5}, (16, 0, 0, 5), [0, 9, 33, 0], {"top": 1}):
        for fill, strength in ((None, None), ("noise", 1)):
            inpaint = Inpaint(outpaint=margins, fill=fill)
            result = tiny_pipe.generate("a fox", image=picture, inpaint=inpaint, steps=2, seed=1, strength=strength)
            left, top, right, bottom = result.requests[0].outpaint or ()
            image = result.images[0]
            assert image.size == (40 + left + right, 27 + top + bottom)
            assert image.crop((left, top, left + 40, top + 27)).tobytes() == picture.tobytes()
            (recipe,) = result.requests
            assert (recipe.width, recipe.height) == image.size
            again = tiny_pipe.draw([Request.from_dict(recipe.to_dict())], [Inputs(image=picture)])
            assert again.images[0].tobytes() == image.tobytes()
    inpaint = Inpaint(outpaint=(20, 0, 0, 0))
    wide = tiny_pipe.generate("a fox", image=picture, inpaint=inpaint, width=100, steps=2).images[0]
    assert wide.size == (100, 54)
    assert wide.crop((20, 0, 100, 54)).tobytes() == picture.resize((80, 54), Image.Resampling.LANCZOS).tobytes()


WRONG = [
    ({"image": None, "mask": blob(32, 32)}, "a mask is given without an image"),
    ({"image": None, "outpaint": (8, 0, 0, 0)}, "outpaint is given without an image"),
    ({"mask": blob(32, 32), "outpaint": (8, 0, 0, 0)}, "leave one of them out"),
    ({"mask": blob(64, 32)}, "64x32 pixels and the image 32x32"),
    ({"mask": blob(32, 32), "fill": "orginal"}, "did you mean 'original'"),
    ({"mask": blob(32, 32), "mask_blur": -1}, "mask_blur is -1"),
    ({"mask": blob(32, 32), "mask_blur": 2.5}, "mask_blur is 2.5"),
    ({"mask": blob(32, 32), "mask_padding": 8}, "only_masked"),
    ({"mask": "none.png"}, "mask 'none.png' does not exist"),
    ({"mask": blob(32, 32), "strength": 0.01}, "less than one step"),
    ({"outpaint": {"left": -8}}, "outpaint left is -8"),
    ({"outpaint": {"middle": 8}}, "no side 'middle'"),
    ({"outpaint": (0, 0, 0, 0)}, "0 pixels on every side"),
    ({"outpaint": "left"}, "outpaint is 'left'"),
    ({"outpaint": (8000, 0, 8000, 0)}, "16032x32"),
    ({"outpaint": (8, 0, 0, 0), "fill": "original"}, "around the picture there is none"),
    ({"outpaint": (50, 0, 0, 0), "width": 40}, "outpaint alone takes 50"),
]


@pytest.mark.parametrize(("wishes", "sentence"), WRONG, ids=range(len(WRONG)))
def test_what_can_not_be_is_one_sentence(tiny_pipe: Pipeline, wishes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Error, match=sentence) as caught:
        tiny_pipe.generate("a fox", **grouped({"image": colours(32, 32), **wishes}))
    assert "\n" not in str(caught.value)


def test_models_that_need_something_else(nine_pipe: Pipeline, tiny_pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(Error, match="this model repaints parts of pictures; give a mask too"):
        nine_pipe.generate("a fox", image=colours(32, 32))
    with pytest.raises(Error, match="from a text alone"):
        nine_pipe.generate("a fox")
    seven = with_parts(tiny_pipe, unet=UNet(replace(tiny_pipe.unet.config, in_channels=7)))
    with pytest.raises(Error, match="can't repaint"):
        seven.generate("a fox", image=colours(32, 32), mask=blob(32, 32))
