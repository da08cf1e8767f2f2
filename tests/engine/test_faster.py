"""Lossy options of a request: deep features reused, tokens merged; among other jobs, interrupted, carried on."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import darkroom
from darkroom.arguments import Speed, grouped
from darkroom.engine import Engine, Failed, Finished
from darkroom.errors import RequestError
from darkroom.pipeline import Pipeline
from darkroom.request import Request


def request(**fields: Any) -> Request:
    return Request(**{"prompt": "a red fox", "steps": 6, "seed": 1, **fields})


def run(engine: Engine) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    while engine.jobs:
        for event in engine.step():
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Finished):
                assert isinstance(event.result, Tensor)
                results[event.id] = event.result
    return results


def solo(pipe: Pipeline, wanted: Request) -> Tensor:
    engine = Engine(pipe, deterministic=True)
    id = engine.add(wanted, output="latent")
    return run(engine)[id]


@contextmanager
def counted(pipe: Pipeline) -> Iterator[list[bool]]:
    """For each call of the U-Net inside: whether its deep levels ran."""
    calls: list[bool] = []
    deep = pipe.unet.mid
    assert deep is not None
    handles = [
        pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(False)),
        deep.register_forward_hook(lambda *_: calls.__setitem__(-1, True)),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


MIXED = [
    request(cache_interval=2),
    request(seed=2, cache_interval=3, sampler="heun", prompt="a blue car"),
    request(seed=3),
    request(seed=4, cache_interval=2, sampler="dpmpp_2m", guidance_interval=(0.3, 4.0), steps=7),
    request(seed=5, cache_interval=3, pag_scale=2.0, width=72, height=40),
    request(seed=6, token_merging=0.5),
    request(seed=7, token_merging=0.5, cache_interval=2, sampler="euler_ancestral"),
    request(seed=8, cache_interval=4, prompt="a [red:blue:0.4] fox AND a car", tile=32),
]


def test_off_is_off_to_the_bit(tiny_pipe: Pipeline) -> None:
    plain = solo(tiny_pipe, request())
    assert torch.equal(solo(tiny_pipe, request(cache_interval=1, token_merging=0.0)), plain)
    again = solo(tiny_pipe, request(cache_interval=2, token_merging=0.5))
    assert not torch.equal(again, plain)
    assert torch.equal(solo(tiny_pipe, request()), plain)  # nothing remains


def test_every_nth_evaluation_runs_the_deep_levels(tiny_pipe: Pipeline) -> None:
    with counted(tiny_pipe) as calls:
        solo(tiny_pipe, request(steps=7, cache_interval=3))
    assert calls == [True, False, False, True, False, False, True]
    with counted(tiny_pipe) as calls:
        solo(tiny_pipe, request(steps=3, sampler="heun", cache_interval=2))  # five evaluations
    assert calls == [True, False, True, False, True]


def test_a_branch_that_was_not_asked_before_is_asked_in_full(tiny_pipe: Pipeline) -> None:
    """Guidance begins in the middle: the prompt's features are there, those of the negative prompt are not."""
    low = sorted(sigmas(tiny_pipe, request(steps=6)))[-2]
    with counted(tiny_pipe) as calls:
        solo(tiny_pipe, request(steps=6, cache_interval=100, guidance_interval=(0.0, low)))
    assert calls == [True, False, True, *[False] * 4]  # the second evaluation: one row reuses, another does not


def test_a_prompt_that_changes_is_asked_in_full(tiny_pipe: Pipeline) -> None:
    with counted(tiny_pipe) as calls:
        solo(tiny_pipe, request(prompt="a [red:blue:0.5] fox", steps=4, guidance_scale=1, cache_interval=100))
    assert calls == [True, False, True, False]


def sigmas(pipe: Pipeline, wanted: Request) -> tuple[float, ...]:
    engine = Engine(pipe)
    return engine.jobs[engine.add(wanted)].sigmas


@pytest.mark.parametrize("max_rows", [1, 5, 64])
def test_mixed_jobs_equal_their_solo_runs(tiny_pipe: Pipeline, max_rows: int) -> None:
    engine = Engine(tiny_pipe, max_rows=max_rows)
    ids = [engine.add(wanted, output="latent") for wanted in MIXED]
    together = run(engine)
    for id, wanted in zip(ids, MIXED, strict=True):
        torch.testing.assert_close(together[id], solo(tiny_pipe, wanted), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("wanted", MIXED)
def test_a_job_that_travels_goes_on_with_the_same_bits(tiny_pipe: Pipeline, wanted: Request) -> None:
    engine = Engine(tiny_pipe, deterministic=True)
    id = engine.add(wanted, output="latent")
    result = None
    while engine.jobs:
        for event in engine.step():
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Finished):
                result = event.result
        jobs = pickle.loads(pickle.dumps(list(engine.jobs.values())))
        engine = Engine(tiny_pipe, deterministic=True)
        for job in jobs:
            engine.resume(job)
    assert result is not None
    assert torch.equal(result, solo(tiny_pipe, wanted)), id


def test_a_step_that_is_interrupted_is_taken_again(tiny_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request(cache_interval=3)
    engine = Engine(tiny_pipe, deterministic=True)
    id = engine.add(wanted, output="latent")
    plain: Callable[..., Tensor] = engine._denoise
    asked = 0

    def denoise(*inputs: Any) -> Tensor:
        nonlocal asked
        asked += 1
        answer = plain(*inputs)
        if asked in (1, 3):  # the answer is there, and is lost
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(engine, "_denoise", denoise)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(engine)
    assert torch.equal(run(engine)[id], solo(tiny_pipe, wanted))


def test_loras_stay_on_in_both_kinds_of_steps(tiny_pipe: Pipeline) -> None:
    from darkroom.adapters import Adapter, Scaled
    from darkroom.adapters.updates import Update
    from darkroom.engine import Inputs

    g = torch.Generator().manual_seed(0)
    update = Update({"down": torch.randn(4, 16, generator=g), "up": torch.randn(16, 4, generator=g)})
    adapter = Adapter({"unet": {"up.1.attentions.1.blocks.0.attn1.q": update}})
    pictures = []
    for loras in ((), (Scaled(adapter, 1.0),)):
        engine = Engine(tiny_pipe, deterministic=True)
        id = engine.add(request(cache_interval=3, token_merging=0.5), Inputs(loras=loras), output="latent")
        pictures.append(run(engine)[id])
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-3)


def test_the_embedded_model_stays_near_its_picture() -> None:
    """Modest settings: the error is well below what separates two seeds, and grows with the settings."""
    pipe = darkroom.load(dtype="float32")

    def draw(**wishes: Any) -> Tensor:
        given = grouped({"seed": 1} | wishes)
        answer = pipe.generate("a large fox on a yellow background", steps=12, output="latent", **given)
        assert isinstance(answer.images, Tensor)
        return answer.images

    def apart(**wishes: Any) -> float:
        return float((draw(**wishes) - plain).square().mean())

    plain = draw()
    other = apart(seed=2)
    cached = [apart(cache_interval=n) for n in (2, 4)]
    merged = [apart(token_merging=ratio) for ratio in (0.25, 0.75)]
    assert 0 < cached[0] < cached[1] < other
    assert 0 < merged[0] < merged[1] < other
    assert cached[0] < other / 3
    assert merged[0] < other / 5


def test_a_recipe_tells_it_and_draws_the_same_again(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    speed = Speed(cache_interval=2, token_merging=0.25)
    result = tiny_pipe.generate("a red fox", steps=4, seed=1, speed=speed, output="pt")
    recipe = result.requests[0]
    assert (recipe.cache_interval, recipe.token_merging) == (2, 0.25)
    again = tiny_pipe.draw([Request.from_dict(recipe.to_dict())], output="pt")
    assert torch.equal(again.images, result.images)


def test_controlnets_and_reuse_are_refused_together(tiny_pipe: Pipeline) -> None:
    from PIL import Image

    control = darkroom.Control("embedded:edges", Image.new("RGB", (64, 64)))
    with pytest.raises(RequestError, match="cache_interval is 2, which doesn't go with ControlNets"):
        tiny_pipe.generate("a red fox", steps=2, speed=Speed(cache_interval=2), controls=[control])
