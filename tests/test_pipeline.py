"""load() and generate() against diffusers' own pipeline, and as a user meets them."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import darkroom
from darkroom.arguments import grouped
from darkroom.engine import Progress
from darkroom.errors import CheckpointError, ImageError, RequestError
from darkroom.formats.picture import read_metadata
from darkroom.pipeline import Pipeline
from darkroom.request import Request
from darkroom.result import Result

MODULES = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "LMSDiscreteScheduler": "lms_discrete",
    "UniPCMultistepScheduler": "unipc_multistep",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}
CASES = [
    ("PNDMScheduler", {}, {}),
    ("PNDMScheduler", V, {"guidance_scale": 1.0}),
    ("DDIMScheduler", {"set_alpha_to_one": False}, {}),
    ("DDIMScheduler", ZERO, {"guidance_rescale": 0.7}),
    ("EulerDiscreteScheduler", {}, {"width": 72, "height": 56}),
    ("EulerDiscreteScheduler", V, {"guidance_rescale": 0.4, "seed": 5}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"negative_prompt": "blue car"}),
    ("DPMSolverMultistepScheduler", V, {"prompt": "a rocket to the left of a car", "steps": 11}),
    ("LMSDiscreteScheduler", {}, {"seed": 2**40}),
    ("LMSDiscreteScheduler", V, {"width": 40, "height": 64}),
    ("UniPCMultistepScheduler", {}, {"guidance_scale": 1.0, "seed": 3}),
    ("UniPCMultistepScheduler", V, {"prompt": ""}),
    ("HeunDiscreteScheduler", {}, {}),
    ("EulerAncestralDiscreteScheduler", {}, {"seed": 9}),
]


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder)


@pytest.mark.parametrize(("name", "flags", "wishes"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_the_picture_is_diffusers_picture(
    pipe: Pipeline, tiny_reference: Any, name: str, flags: dict[str, Any], wishes: dict[str, Any]
) -> None:
    kind = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}"), name)
    scheduler = kind.from_config({**pipe.scheduler_config, "_class_name": name, **flags})
    parts = tiny_reference.components | {"scheduler": scheduler}
    reference = type(tiny_reference)(**parts, requires_safety_checker=False)  # which corrects flags, as for any model
    reference.set_progress_bar_config(disable=True)
    ours = with_scheduler(pipe, dict(scheduler.config) | {"_class_name": name})

    wishes = {
        "prompt": "a large red fox on the green background",
        "steps": 7,
        "guidance_scale": 7.5,
        "seed": 1,
    } | wishes
    got = ours.generate(**grouped(wishes), output="pt").images
    theirs = dict(wishes)
    steps, seed = theirs.pop("steps"), theirs.pop("seed")
    generator = torch.Generator("cpu").manual_seed(seed)
    expected = reference(num_inference_steps=steps, generator=generator, output_type="pt", **theirs).images
    assert isinstance(got, torch.Tensor)
    assert got.shape == expected.shape
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def with_scheduler(pipe: Pipeline, config: dict[str, Any]) -> Pipeline:
    return Pipeline(
        unet=pipe.unet,
        autoencoder=pipe.autoencoder,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        scheduler_config=config,
        name="tiny",
    )


def test_latents_are_diffusers_latents(pipe: Pipeline, tiny_reference: Any) -> None:
    generator = torch.Generator("cpu").manual_seed(4)
    expected = tiny_reference("a fox", num_inference_steps=5, generator=generator, output_type="latent").images
    got = pipe.generate("a fox", steps=5, seed=4, output="latent").images
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    picture = pipe.generate("a fox", steps=5, seed=4).images[0]
    assert pipe.decode(expected)[0].size == (64, 64)
    assert difference(pipe.decode(got)[0], picture) == 0  # type: ignore[arg-type]


def test_encoded_pictures_and_prompts_are_diffusers_own(pipe: Pipeline, tiny_reference: Any) -> None:
    picture = noise_picture(48, 32)
    tensor = torch.from_numpy(as_array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = tiny_reference.vae.encode(tensor).latent_dist.mode() * tiny_reference.vae.config.scaling_factor
        text, _ = tiny_reference.encode_prompt("a red fox", "cpu", 1, False)
    got = pipe.encode_image(picture)
    assert got.shape == (1, 4, 4, 6)
    torch.testing.assert_close(got, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pipe.encode_prompt("a red fox"), text, rtol=1e-4, atol=1e-5)
    assert pipe.encode_prompt("fox " * 100).shape == (1, 154, 32)


def as_array(picture: Image.Image) -> Any:
    import numpy as np

    return np.asarray(picture).astype(np.float32)


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(abs(as_array(a) - as_array(b)).max())


def noise_picture(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def test_a_saved_model_draws_the_same_picture(pipe: Pipeline, tiny_reference: Any, tmp_path: Path) -> None:
    first = pipe.generate("a fox", steps=4, seed=1).images[0]
    for name in ("folder", "file.safetensors"):
        path = pipe.save(tmp_path / name)
        assert difference(darkroom.load(path).generate("a fox", steps=4, seed=1).images[0], first) == 0
    reopened = type(tiny_reference).from_pretrained(tmp_path / "folder")
    reopened.set_progress_bar_config(disable=True)
    theirs = reopened("a fox", num_inference_steps=4, generator=torch.Generator("cpu").manual_seed(1)).images[0]
    assert difference(theirs, first) <= 1


def test_bfloat16_comes_close(tiny_folder: Path, pipe: Pipeline) -> None:
    small = darkroom.load(tiny_folder, dtype="bfloat16")
    assert small.dtype == small.autoencoder.decoder.conv_in.weight.dtype == torch.bfloat16
    got = small.generate("a fox", steps=4, seed=1, output="pt").images
    expected = pipe.generate("a fox", steps=4, seed=1, output="pt").images
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.float32
    assert (got - expected).abs().mean() < 0.02  # type: ignore[operator]


# Without diffusers from here on -------------------------------------------------------------------------------------


def test_picture_i_uses_seed_plus_i(tiny_pipe: Pipeline) -> None:
    result = tiny_pipe.generate(["a fox", "a car"], num_images=2, seed=2**64 - 2, steps=2)
    assert [r.seed for r in result.requests] == [2**64 - 2, 2**64 - 1, 0, 1]
    assert [r.prompt for r in result.requests] == ["a fox", "a fox", "a car", "a car"]
    assert len(result) == len(result.images) == 4
    solo = tiny_pipe.generate("a car", seed=1, steps=2).images[0]
    assert difference(result.images[3], solo) == 0  # type: ignore[arg-type]
    assert difference(result.images[0], result.images[1]) > 0  # type: ignore[arg-type]


def test_a_list_of_negative_prompts(tiny_pipe: Pipeline) -> None:
    result = tiny_pipe.generate(["a fox", "a fox"], ["red", "blue"], seed=1, steps=2)
    assert [r.negative_prompt for r in result.requests] == ["red", "blue"]
    with pytest.raises(RequestError, match="1 negative prompts for 2 prompts"):
        tiny_pipe.generate(["a", "b"], ["c"])


def test_a_recipe_drawn_again_is_the_same_picture(tiny_pipe: Pipeline) -> None:
    for wishes in (
        {},
        {"sampler": "DPM++ 2M Karras", "steps": 5, "width": 50, "height": 33},
        {"sampler": "euler_ancestral", "schedule": "exponential", "guidance_interval": (0.5, 5.0)},
        {"sampler": "lcm", "guidance_scale": 1},
        {"sampler": "DPM2 a", "clip_skip": 2, "prompt_style": "plain", "guidance_rescale": 0.3},
    ):
        result = tiny_pipe.generate("a (red:1.2) fox", **grouped({"steps": 3, **wishes} if wishes else {}))
        recipe = result.requests[0]
        for name in ("width", "height", "steps", "guidance_scale", "sampler", "schedule", "seed", "version", "model"):
            assert getattr(recipe, name) is not None, name
        again = tiny_pipe.draw([Request.from_dict(recipe.to_dict())])
        assert again.requests == result.requests
        assert difference(again.images[0], result.images[0]) == 0  # type: ignore[arg-type]


def test_any_size_comes_out_as_asked(tiny_pipe: Pipeline) -> None:
    for width, height in ((8, 8), (9, 31), (100, 52)):
        assert tiny_pipe.generate("", width=width, height=height, steps=1, seed=0).images[0].size == (width, height)
    assert tiny_pipe.generate("", steps=1).images[0].size == (64, 64)
    wide = tiny_pipe.generate("", width=96, steps=2, seed=0, output="pt").images
    cropped = tiny_pipe.generate("", width=90, steps=2, seed=0, output="pt").images
    assert torch.equal(wide[:, :, :, :90], cropped)  # type: ignore[call-overload, index]


def test_outputs(tiny_pipe: Pipeline) -> None:
    kwargs: dict[str, Any] = {"num_images": 2, "seed": 1, "steps": 2}
    pictures = tiny_pipe.generate("a fox", **kwargs).images
    tensor = tiny_pipe.generate("a fox", **kwargs, output="pt").images
    latent = tiny_pipe.generate("a fox", **kwargs, output="latent").images
    assert tensor.shape == (2, 3, 64, 64)  # type: ignore[union-attr]
    assert tensor.min() >= 0  # type: ignore[union-attr]
    assert tensor.max() <= 1  # type: ignore[union-attr]
    assert latent.shape == (2, 4, 8, 8)  # type: ignore[union-attr]
    for decoded, picture in zip(tiny_pipe.decode(latent), pictures, strict=True):  # type: ignore[arg-type]
        assert difference(decoded, picture) == 0  # type: ignore[arg-type]


def test_a_result_is_a_sequence_of_its_pictures(tiny_pipe: Pipeline) -> None:
    result = tiny_pipe(["a fox", "a car"], num_images=2, steps=1, seed=7)  # generate, by a shorter name
    assert [*result] == result.images
    assert result[1] is result.images[1]
    assert result[-1] is result.images[3]
    some = result[1:3]
    assert (some.images, some.requests) == (result.images[1:3], result.requests[1:3])
    with pytest.raises(IndexError):
        result[4]
    assert repr(result) == "Result(4 of 64x64, seeds 7, 8, 9, 10)"
    tensors = tiny_pipe(["a fox"] * 8, steps=1, seed=7, output="pt")
    assert torch.equal(tensors[2], tensors.images[2])
    assert len([*tensors]) == 8
    assert repr(tensors[:7]) == "Result(7 of tensor [7, 3, 64, 64], seeds 7, 8, 9, ..., 13)"


def test_given_latents_take_the_place_of_the_seeds_noise(tiny_pipe: Pipeline) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(7))
    given = tiny_pipe.generate("a fox", latents=noise, seed=7, steps=3, sampler="euler_ancestral")
    drawn = tiny_pipe.generate("a fox", seed=7, steps=3, sampler="euler_ancestral")
    assert difference(given.images[0], drawn.images[0]) == 0  # type: ignore[arg-type]
    recipe = given.requests[0]
    assert recipe.latents is not None
    with pytest.raises(RequestError, match="began from noise that was given"):
        tiny_pipe.draw([recipe])
    assert difference(tiny_pipe.draw([recipe], [darkroom.Inputs(latents=noise[0])]).images[0], given.images[0]) == 0  # type: ignore[arg-type]
    for wrong, told in (
        (noise[0], r"\[N, C, h, w\]"),
        (noise.repeat(2, 1, 1, 1), "2 starting noises for 1"),
        (noise[..., :7], r"\[4, 8, 7\] a picture; this size needs \[4, 8, 8\]"),
        (noise * float("nan"), "not finite"),
    ):
        with pytest.raises(RequestError, match=told):
            tiny_pipe.generate("a fox", latents=wrong)


def test_progress_with_previews(tiny_pipe: Pipeline) -> None:
    seen: list[Progress] = []
    tiny_pipe.generate("a fox", num_images=2, seed=1, steps=3, width=60, on_progress=seen.append)
    assert sorted((p.index, p.step) for p in seen) == [(i, s) for i in (0, 1) for s in (1, 2, 3)]
    assert {p.steps for p in seen} == {3}
    assert seen[-1].preview().size == (60, 64)
    assert seen[-1].preview().mode == "RGB"


def test_an_interrupted_call_leaves_nothing_behind(tiny_pipe: Pipeline) -> None:
    expected = tiny_pipe.generate("a fox", seed=1, steps=3).images[0]

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_pipe.generate("a fox", seed=1, steps=3, on_progress=interrupt)
    assert difference(tiny_pipe.generate("a fox", seed=1, steps=3).images[0], expected) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": [3]}, "prompt is 3"),
        ({"prompt": ["a", None]}, "prompt is None"),
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": 1001}, "from 1 to 1000"),
        ({"prompt": ["a"] * 11, "num_images": 100}, "1,100 pictures"),
        ({"output": "np"}, "did you mean|pil, pt, latent"),
        ({"sampler": "eulr"}, "euler"),
        ({"schedule": "karas"}, "karras"),
        ({"steps": "20"}, "steps is '20'"),
        ({"clip_skip": 12}, "clip_skip"),
        ({"width": -512}, "width is -512"),
    ],
)
def test_what_is_wrong_is_told(tiny_pipe: Pipeline, wishes: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        tiny_pipe.generate(**grouped({"prompt": "a fox", **wishes}))


def test_results_are_saved_under_new_names_with_their_recipes(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    result = tiny_pipe.generate("a fox\nNegative prompt: ?", num_images=2, seed=1, steps=2)
    paths = [*result.save(tmp_path / "new" / "folder"), *result.save(tmp_path / "new" / "folder")]
    assert len(set(paths)) == 4
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(path.name for path in paths)
    recipe = read_metadata(paths[0]).recipe
    assert Request.from_dict(recipe) == result.requests[0]
    with Image.open(paths[3]) as picture:
        assert difference(picture.convert("RGB"), result.images[1]) == 0  # type: ignore[arg-type]
    tensors = tiny_pipe.generate("a fox\nNegative prompt: ?", seed=1, steps=2, output="pt").save(tmp_path / "pt")
    with Image.open(tensors[0]) as picture:
        assert difference(picture.convert("RGB"), result.images[0]) == 0  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="latents can't be saved"):
        tiny_pipe.generate("", steps=1, output="latent").save(tmp_path)


def test_a_folder_that_can_not_be_made(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    result = Result([Image.new("RGB", (8, 8))], [Request(prompt="a")])
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="can't be made"):
        result.save(tmp_path / "file" / "folder")
    with pytest.raises((RequestError, ImageError)):
        result.save(tmp_path / "file")


def test_wrong_tensors_and_pictures(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\[N, 4, h, w\]"):
        tiny_pipe.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(RequestError, match="not finite"):
        tiny_pipe.decode(torch.full((4, 8, 8), float("nan")))
    with pytest.raises(ImageError, match="does not exist"):
        tiny_pipe.encode_image(tmp_path / "none.png")


def test_devices_and_dtypes(tmp_path: Path) -> None:
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(RequestError, match="device is"):
            darkroom.load(tmp_path, device=device)
    with pytest.raises(RequestError, match="did you mean 'float32'"):
        darkroom.load(tmp_path, dtype="float3")
    with pytest.raises(RequestError, match="hundred times slower"):
        darkroom.load(tmp_path, device="cpu", dtype="float16")
    with pytest.raises(CheckpointError):
        darkroom.load(tmp_path)


def test_a_model_that_needs_a_picture_says_so(tiny_pipe: Pipeline) -> None:
    from dataclasses import replace

    from darkroom.models.unet import UNet

    inpainting = with_scheduler(tiny_pipe, tiny_pipe.scheduler_config)
    inpainting.unet = UNet(replace(tiny_pipe.unet.config, in_channels=9))
    with pytest.raises(RequestError, match="takes 9 channels where a latent has 4"):
        inpainting.generate("a fox")


def test_the_pieces_are_open(tiny_pipe: Pipeline) -> None:
    assert tiny_pipe.tokenizer.encode("a fox")
    assert not any(p.requires_grad for p in tiny_pipe.unet.parameters())
    assert tiny_pipe.size == (64, 64)
    assert "tiny" in repr(tiny_pipe)
    noise = torch.randn(1, 4, 8, 8)
    noised = tiny_pipe.add_noise(torch.zeros(1, 4, 8, 8), noise, 999)
    torch.testing.assert_close(noised, noise * tiny_pipe.schedule.sigma_max)


def test_a_model_is_one_value(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    """By its fields or as a value, a pipeline is the same; another of it shares all that isn't replaced."""
    model = tiny_pipe.model
    assert Pipeline(model).model is model
    other = dataclasses.replace(model, scheduler_config={"prediction_type": "v_prediction"}, defaults={"steps": 7})
    pipe = Pipeline(other)
    assert pipe.unet is tiny_pipe.unet
    assert pipe.schedule.prediction_type == "v_prediction"
    assert pipe.defaults == {"steps": 7}
    again = darkroom.load(pipe.save(tmp_path / "model"), device="cpu")
    assert again.model.defaults == {"steps": 7}
    assert again.model.checkpoint is again.checkpoint
    assert again.name == again.model.name == "model"
    with pytest.raises(TypeError, match="nonsense"):
        Pipeline(nonsense=1)
