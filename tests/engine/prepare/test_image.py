"""Image-to-image against diffusers' own pipeline, and as a user meets it."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import darkroom
from darkroom.arguments import grouped
from darkroom.engine import Engine, Finished, Inputs
from darkroom.errors import Error, ImageError, RequestError
from darkroom.images import open_picture, to_tensor
from darkroom.pipeline import Pipeline
from darkroom.request import Request

MODULES = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "DEISMultistepScheduler": "deis_multistep",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "LMSDiscreteScheduler": "lms_discrete",
    "UniPCMultistepScheduler": "unipc_multistep",
    "HeunDiscreteScheduler": "heun_discrete",
    "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}
CASES = [
    ("PNDMScheduler", {}, {}),
    ("PNDMScheduler", {}, {"strength": 0.9, "steps": 11}),
    ("PNDMScheduler", V, {"strength": 0.13, "steps": 8, "guidance_scale": 1.0}),
    ("DDIMScheduler", {"set_alpha_to_one": False}, {"strength": 0.5}),
    ("DDIMScheduler", ZERO, {"strength": 1.0}),
    ("EulerDiscreteScheduler", {}, {"strength": 0.3}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {"strength": 1.0}),
    ("EulerAncestralDiscreteScheduler", {}, {"strength": 0.7, "seed": 9}),
    ("HeunDiscreteScheduler", {}, {}),
    ("KDPM2DiscreteScheduler", V, {"strength": 0.6}),
    ("LMSDiscreteScheduler", {}, {"strength": 0.4, "steps": 10}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("DPMSolverMultistepScheduler", {}, {"strength": 0.8}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}, {"steps": 18}),
    ("UniPCMultistepScheduler", {}, {"strength": 0.55}),
    ("DEISMultistepScheduler", {}, {}),
]


def colours(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return Image.fromarray((fine[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Pipeline:
    return darkroom.load(tiny_folder)


def with_scheduler(pipe: Pipeline, config: dict[str, Any]) -> Pipeline:
    return Pipeline(
        unet=pipe.unet,
        autoencoder=pipe.autoencoder,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        scheduler_config=config,
        name="tiny",
    )


@pytest.mark.parametrize(("name", "flags", "wishes"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_the_picture_is_diffusers_picture(
    pipe: Pipeline, tiny_reference: Any, name: str, flags: dict[str, Any], wishes: dict[str, Any]
) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    kind = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[name]}"), name)
    scheduler = kind.from_config({**pipe.scheduler_config, "_class_name": name, **flags})
    parts = tiny_reference.components | {"scheduler": scheduler}
    reference = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    reference.set_progress_bar_config(disable=True)
    ours = with_scheduler(pipe, dict(scheduler.config) | {"_class_name": name})

    wishes = {"prompt": "a red fox", "steps": 7, "seed": 1, "strength": 0.75, "image": colours(72, 56)} | wishes
    got = ours.generate(**grouped(wishes), output="pt").images
    theirs = dict(wishes)
    steps, seed = theirs.pop("steps"), theirs.pop("seed")
    generator = torch.Generator("cpu").manual_seed(seed)
    expected = reference(num_inference_steps=steps, generator=generator, output_type="pt", **theirs).images
    assert isinstance(got, torch.Tensor)
    assert got.shape == expected.shape == (1, 3, 56, 72)
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_strength_0_gives_the_picture_back(tiny_pipe: Pipeline) -> None:
    picture = colours(61, 33)
    result = tiny_pipe.generate("a fox", image=picture, strength=0)
    assert result.images[0].tobytes() == picture.tobytes()
    latent = tiny_pipe.generate("a fox", image=picture, strength=0, seed=1, output="latent").images
    assert latent.shape == (1, 4, 5, 8)


def test_any_size_mode_and_turn(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    def size(**wishes: Any) -> tuple[int, int]:
        return tiny_pipe.generate("a fox", steps=2, seed=1, **wishes).images[0].size

    assert size(image=colours(61, 33)) == (61, 33)
    assert size(image=colours(61, 33), width=40) == (40, 22)
    assert size(image=colours(61, 33), height=66) == (122, 66)
    assert size(image=colours(61, 33), width=16, height=64) == (16, 64)
    assert size(image=colours(3, 1000), width=40, height=24) == (40, 24)
    assert size(image=Image.new("LA", (9, 17), (3, 4))) == (9, 17)
    exif = Image.Exif()
    exif[0x0112] = 6
    colours(40, 24).save(tmp_path / "turned.jpg", exif=exif)
    assert size(image=str(tmp_path / "turned.jpg")) == (24, 40)


def test_a_list_of_pictures_is_one_for_each_prompt(tiny_pipe: Pipeline) -> None:
    pictures = [colours(40, 40, 1), colours(48, 40, 2)]
    both = tiny_pipe.generate(["a fox", "a car"], image=pictures, num_images=2, steps=3, seed=4)
    assert [image.size for image in both.images] == [(40, 40)] * 2 + [(48, 40)] * 2
    alone = tiny_pipe.generate("a car", image=pictures[1], steps=3, seed=6).images[0]
    assert alone.tobytes() == both.images[2].tobytes()
    with pytest.raises(RequestError, match="3 pictures as image for 2 prompts"):
        tiny_pipe.generate(["a", "b"], image=[pictures[0]] * 3)


def test_exact_steps_are_all_taken(tiny_pipe: Pipeline) -> None:
    def job(**wishes: Any) -> Any:
        engine = Engine(tiny_pipe)
        request = Request(prompt="a fox", seed=1, **wishes)
        return engine.jobs[engine.add(request, Inputs(image=colours(32, 32)))]

    assert job(steps=10, strength=0.35).steps == 3
    exact = job(steps=10, strength=0.35, exact_steps=True)
    assert exact.steps == 10
    assert exact.state.sigma <= job(steps=100, strength=0.36).state.sigma
    assert exact.request.steps == 10
    for name in ("lms", "plms", "dpmpp_2m", "heun"):
        assert job(steps=7, strength=0.7, exact_steps=True, sampler=name).steps == 7
    assert job(steps=7, strength=1.0, exact_steps=True).start == 0


def test_its_recipe_gives_it_again(tiny_pipe: Pipeline) -> None:
    picture = colours(40, 24)
    first = tiny_pipe.generate("a fox", image=picture, steps=5, width=64, strength=0.6, guidance_scale=3.0)
    (recipe,) = first.requests
    assert (recipe.strength, recipe.width, recipe.height, recipe.steps) == (0.6, 64, 38, 5)
    assert recipe.image is not None
    assert len(recipe.image) == 16
    again = Request.from_dict(recipe.to_dict())
    second = tiny_pipe.draw([again], [Inputs(image=picture)])
    assert second.images[0].tobytes() == first.images[0].tobytes()
    assert second.requests == first.requests
    with pytest.raises(RequestError, match=f"fingerprint {recipe.image}.*give the same image again"):
        tiny_pipe.draw([again])
    assert tiny_pipe.generate("a fox", image=colours(40, 24, 1), steps=2).requests[0].image != recipe.image


def test_given_noise_is_used(tiny_pipe: Pipeline) -> None:
    generator = torch.Generator().manual_seed(8)
    torch.randn(4, 4, 5, generator=generator)  # the posterior's
    noise = torch.randn(1, 4, 4, 5, generator=generator)
    given = {"image": colours(40, 32), "steps": 4, "output": "pt", "sampler": "euler"}
    theirs = tiny_pipe.generate("a fox", seed=8, latents=noise, **given)
    torch.testing.assert_close(theirs.images, tiny_pipe.generate("a fox", seed=8, **given).images)
    assert theirs.requests[0].latents is not None
    assert not torch.allclose(theirs.images, tiny_pipe.generate("a fox", seed=8, latents=-noise, **given).images)


def test_mixed_tasks_travel_as_pickles(tiny_pipe: Pipeline) -> None:
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (10, 10, 30, 30))
    asked = [
        (Request(prompt="a fox", seed=1, steps=4), Inputs()),
        (Request(prompt="a car", seed=2, steps=6, strength=0.5, sampler="heun"), Inputs(image=colours(64, 64))),
        (Request(prompt="a car", seed=3, steps=5), Inputs(image=colours(40, 40), mask=mask)),
        (Request(prompt="a car", seed=4, steps=3, outpaint=(8, 0, 3, 0)), Inputs(image=colours(40, 40))),
    ]
    engine = Engine(tiny_pipe, deterministic=True)
    ids = [engine.add(*pair) for pair in asked]
    results: dict[str, Any] = {}
    while engine.jobs:
        results |= {event.id: event.result for event in engine.step() if isinstance(event, Finished)}
        jobs = pickle.loads(pickle.dumps(list(engine.jobs.values())))
        engine = Engine(tiny_pipe, deterministic=True)
        for job in jobs:
            engine.resume(job)
    for id, (request, inputs) in zip(ids, asked, strict=True):
        assert results[id].tobytes() == tiny_pipe.draw([request], [inputs], deterministic=True).images[0].tobytes()


def test_progress_counts_the_steps_that_are_taken(tiny_pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    tiny_pipe.generate(
        "a fox", image=colours(32, 40), steps=8, strength=0.5, on_progress=lambda p: seen.append((p.step, p.steps))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"strength": float("nan")}, "strength is nan; it must be from 0 to 1"),
        ({"strength": -1}, "strength is -1"),
        ({"strength": 2}, "strength is 2"),
        ({"strength": "half"}, "strength is 'half'"),
        ({"strength": 0.01}, "strength 0.01 of 30 steps is less than one step"),
        ({"strength": 0.001, "exact_steps": True}, "need a schedule of 30000 steps"),
        ({"exact_steps": 1}, "exact_steps is 1; it must be True or False"),
        ({"fill": "noise"}, "fill is 'noise', but there is no mask"),
        ({"only_masked": True}, "only_masked is True, but there is no mask"),
        ({"image": colours(1, 1)}, "1x1 pixels, and its sides must be from 8 to 8192"),
        ({"image": Image.new("RGB", (10_000, 3))}, "10000x3 pixels"),
        ({"image": "none.png"}, "'none.png' does not exist"),
        ({"image": 5}, "type int"),
        ({"image": []}, "0 pictures as image"),
        ({"image": None, "strength": 0.5}, "strength is 0.5, but there is no image"),
        ({"width": 5000, "height": 5000}, "5000x5000"),
    ],
)
def test_what_can_not_be_is_one_sentence(tiny_pipe: Pipeline, wishes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Error, match=sentence) as caught:
        tiny_pipe.generate("a fox", **grouped({"image": colours(32, 32), **wishes}))
    assert isinstance(caught.value, RequestError | ImageError)
    assert "\n" not in str(caught.value)


def test_a_picture_is_opened_by_the_engine_too(tiny_pipe: Pipeline) -> None:
    odd = colours(40, 32).convert("P")
    request = Request(prompt="a fox", seed=1, steps=3)
    plain = tiny_pipe.draw([request], [Inputs(image=open_picture(odd))])
    assert tiny_pipe.draw([request], [Inputs(image=odd)]).images[0].tobytes() == plain.images[0].tobytes()
    assert to_tensor(plain.images[0]).shape == (1, 3, 32, 40)
