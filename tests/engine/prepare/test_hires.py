"""The second pass: what it is made of, its progress, pickles between the passes, and what can't be done."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from darkroom import Hires
from darkroom.engine import Engine, Failed, Finished, Inputs, Progress
from darkroom.errors import RequestError
from darkroom.pipeline import Pipeline
from darkroom.request import Request


def request(**fields: Any) -> Request:
    return Request(**{"prompt": "a red fox", "steps": 4, "seed": 1, **fields})


def run(engine: Engine) -> tuple[Any, list[tuple[int, int]]]:
    """The one picture's result, and its progress."""
    steps, finished = [], None
    while engine.jobs:
        for event in engine.step():
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Progress):
                steps.append((event.step, event.steps))
                assert event.preview().size[0] >= 64
            if isinstance(event, Finished):
                finished = event
    assert finished is not None
    return finished, steps


def test_lanczos_is_image_to_image_over_the_first_picture(tiny_pipe: Pipeline) -> None:
    hires = Hires(scale=1.5, strength=0.5, steps=6, upscaler="lanczos")
    two = tiny_pipe.generate("a red fox", steps=4, seed=1, hires=hires, output="pt")
    first = tiny_pipe.generate("a red fox", steps=4, seed=1).images[0]
    second = tiny_pipe.generate(
        "a red fox", steps=6, seed=1, image=first, width=96, height=96, strength=0.5, output="pt"
    )
    assert torch.equal(two.images, second.images)
    recipe = two.requests[0]
    assert (recipe.width, recipe.height, recipe.steps, recipe.hires) == (64, 64, 4, hires)


def test_a_latent_is_enlarged_and_noised_as_the_plan_says(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    id = engine.add(request(hires=Hires(scale=2, strength=0.5)))
    while engine.jobs[id].before == 0:
        engine.step()
    job = engine.jobs[id]
    first = tiny_pipe.generate("a red fox", steps=4, seed=1, output="latent").images
    enlarged = F.interpolate(first, (16, 16), mode="bilinear")[0]
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert job.start == 2
    assert (job.state.x - enlarged - noise * job.state.sigma).abs().max() < 1e-3
    assert job.size == (128, 128)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_progress_counts_both_passes_and_a_job_can_be_pickled_in_either(tiny_pipe: Pipeline, upscaler: str) -> None:
    wanted = request(hires={"scale": 2, "strength": 0.75, "upscaler": upscaler}, sampler="euler_ancestral", tile=64)
    engine = Engine(tiny_pipe, deterministic=True)
    engine.add(wanted)
    expected, steps = run(engine)
    assert steps == [(i + 1, 7) for i in range(7)]
    assert expected.result.size == (128, 128)
    assert Request.from_dict(expected.request.to_dict()) == expected.request

    engine = Engine(tiny_pipe, deterministic=True)
    id = engine.add(expected.request)
    finished = None
    while engine.jobs:
        job = pickle.loads(pickle.dumps(engine.jobs[id]))
        engine.abort(id)
        engine.resume(job)
        for event in engine.step():
            finished = event if isinstance(event, Finished) else finished
    assert finished is not None
    assert finished.result.tobytes() == expected.result.tobytes()


def test_latents_come_out_large(tiny_pipe: Pipeline) -> None:
    images = tiny_pipe.generate("a fox", steps=2, seed=1, hires=Hires(strength=1), output="latent").images
    assert images.shape == (1, 4, 16, 16)


@pytest.mark.parametrize(
    ("hires", "words"),
    [
        ({"scale": 0}, "hires scale is 0"),
        ({"scale": float("nan")}, "hires scale is nan"),
        ({"scale": 17}, "hires scale is 17"),
        ({"strength": 2}, "hires strength is 2"),
        ({"steps": 0}, "hires steps is 0"),
        ({"upscaler": " "}, "latent, lanczos"),
        ({"factor": 2}, "give scale"),
        (2, "hires is 2"),
        ({"steps": 1, "strength": 0.3}, "less than one step"),
        ({"scale": 16, "strength": 1}, "600x600 pixels, 16 times"),
    ],
)
def test_what_cannot_be(tiny_pipe: Pipeline, hires: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Engine(tiny_pipe).add(request(hires=hires, width=600, height=600))


def test_given_pictures_are_enlarged_by_upscale(tiny_pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="upscale"):
        Engine(tiny_pipe).add(request(hires=Hires()), Inputs(image=Image.new("RGB", (64, 64))))


def test_a_second_pass_that_cannot_begin_fails_alone(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_pipe)
    broken = engine.add(request(hires=Hires(strength=0.5)))
    good = engine.add(request(seed=2))
    monkeypatch.setattr("darkroom.engine.prepare.second_pass", lambda *_: 1 / 0)
    events = [event for _ in range(20) if engine.jobs for event in engine.step()]
    assert [event.id for event in events if isinstance(event, Failed)] == [broken]
    assert [event.id for event in events if isinstance(event, Finished)] == [good]
