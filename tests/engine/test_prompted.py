"""Prompts that change over the steps, and prompts that are composed, as jobs ask them."""

import pytest
import torch

from darkroom.arguments import Guidance
from darkroom.diffusion.condition import Condition, Timeline
from darkroom.diffusion.guidance import ClassifierFree, Composed, Rescaled, Within
from darkroom.diffusion.scalings import Epsilon
from darkroom.engine.job import Inputs
from darkroom.engine.prepare import prepare
from darkroom.errors import RequestError
from darkroom.prompts.embeddings import LearnedWord
from darkroom.request import Request


def asked_texts(pipe, prompt, sampler="euler", steps=6, **more):
    """The first branch's texts of each evaluation, as (interval, index of the distinct text)."""
    job = prepare(pipe, Request(prompt=prompt, sampler=sampler, steps=steps, seed=1, guidance_scale=1.0, **more), "x")
    found, seen = [], {}
    while not job.done:
        (condition,) = job.guidance.branches(job.level)
        found.append((job.state.interval, seen.setdefault(id(condition), len(seen))))
        job.state = job.sampler.step(job.state, torch.zeros_like(job.state.x), job.sigmas, job.noise)
    return found


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpm_2_ancestral", "dpmpp_sde", "dpmpp_2m", "lms"])
def test_both_evaluations_of_a_step_have_its_text(tiny_pipe, sampler):
    found = asked_texts(tiny_pipe, "a [red:blue:2] [fox:car:0.75]", sampler)
    assert dict(found) == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    assert len(found) == len(set(found)) or sampler in ("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_sde")
    assert set(found) == {(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)}
    assert set(asked_texts(tiny_pipe, "[red|blue]", sampler)) == {(i, i % 2) for i in range(6)}


def test_a_text_is_encoded_once(tiny_pipe, monkeypatch):
    texts = []
    encode = tiny_pipe.prompts.encode

    def counting(text, **options):
        texts.append(text)
        return encode(text, **options)

    monkeypatch.setattr(tiny_pipe.prompts, "encode", counting)
    request = Request(prompt="[a|the] fox", negative_prompt="[red:blue:3]", steps=6, seed=1)
    job = prepare(tiny_pipe, request, "x")
    assert sorted(texts) == ["a fox", "blue", "red", "the fox"]
    assert isinstance(job.guidance.positive, Timeline)
    assert isinstance(job.guidance.negative, Timeline)
    texts.clear()
    prepare(tiny_pipe, Request(prompt="[a|the] fox", prompt_style="plain", steps=6, guidance_scale=1.0), "x")
    assert texts == ["[a|the] fox"]


def test_a_change_at_an_end_changes_nothing(tiny_pipe):
    def draw(prompt, **more):
        return tiny_pipe.generate(prompt, seed=1, steps=3, output="latent", **more).images

    assert torch.equal(draw("a [red:blue:3] fox"), draw("a red fox"))
    assert torch.equal(draw("a [red:blue:0] fox"), draw("a blue fox"))
    assert not torch.equal(draw("a [red:blue:1] fox"), draw("a red fox"))
    assert not torch.equal(draw("a fox", negative_prompt="[red:blue:1]"), draw("a fox", negative_prompt="red"))
    long = "[fox:" + "red " * 100 + ":1]"  # a text of one chunk becomes one of two
    assert draw(long).isfinite().all()


A, B, N = (Condition(torch.full((1, 2), float(i))) for i in range(3))
GENERATOR = torch.Generator().manual_seed(0)
X, D_A, D_B, D_N = (torch.randn(4, 8, 8, generator=GENERATOR) for _ in range(4))


def composed(weights, scale=7.5, wrap=lambda g: g):
    return Composed(tuple(wrap(ClassifierFree(p, N, scale)) for p in (A, B)), weights, N)


@pytest.mark.parametrize("weights", [(1.0, 1.2), (1.0, -0.5), (0.5, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("scale", [1.0, 0.5, 7.5])
def test_composition_is_the_sum(weights, scale):
    guidance = composed(weights, scale)
    rows = guidance.branches(2.0)
    balanced = scale <= 1 and sum(weights) == 1
    assert rows == ((A, B) if balanced else (A, B, N))
    answer = guidance.combine([D_A, D_B, D_N][: len(rows)], X, 2.0)
    expected = D_N + max(scale, 1.0) * (weights[0] * (D_A - D_N) + weights[1] * (D_B - D_N))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_composition_with_an_interval_and_rescale():
    inside = composed((1.0, 0.5), 7.5, lambda g: Within(Rescaled(g, 0.7, Epsilon()), (1.0, 3.0)))
    assert inside.branches(2.0) == inside.branches(5.0) == (A, B, N)
    prompted = D_N + (D_A - D_N) + 0.5 * (D_B - D_N)
    torch.testing.assert_close(inside.combine([D_A, D_B, D_N], X, 5.0), prompted, rtol=1e-4, atol=1e-4)
    one = Rescaled(ClassifierFree(A, N, 7.5), 0.7, Epsilon()).combine([prompted, D_N], X, 2.0)
    torch.testing.assert_close(inside.combine([D_A, D_B, D_N], X, 2.0), one, rtol=1e-4, atol=1e-4)


def test_composition_of_the_same_is_the_prompt(tiny_pipe):
    def draw(prompt, **more):
        return tiny_pipe.generate(prompt, seed=1, steps=3, output="latent", **more).images

    torch.testing.assert_close(draw("a fox :0.3 AND a fox :0.7"), draw("a fox"), rtol=1e-3, atol=1e-3)
    assert torch.equal(draw("a fox :1 AND a car :0", guidance_scale=1.0).isfinite(), torch.ones(1, 4, 8, 8).bool())
    assert not torch.allclose(draw("a fox AND a car"), draw("a fox"), atol=1e-3)
    assert draw("a [fox|car] AND a car :-0.5", guidance=Guidance(rescale=0.5)).isfinite().all()
    plain = prepare(tiny_pipe, Request(prompt="a AND b", prompt_style="plain", guidance_scale=1.0), "x")
    assert not isinstance(plain.guidance, Composed)


def test_learned_words_of_a_request(tiny_pipe):
    word = LearnedWord(("toy",), (torch.randn(2, 32),))
    request = Request(prompt="a toy", negative_prompt="", steps=2, seed=1)
    job = prepare(tiny_pipe, request, "x", Inputs(embeddings=(word,)))
    assert job.request.embeddings == (f"toy:{word.hash}",)
    assert Request.from_dict(job.request.to_dict()) == job.request
    assert prepare(tiny_pipe, request, "x").request.embeddings == ()
    unused = prepare(tiny_pipe, Request(prompt="a fox", steps=2), "x", Inputs(embeddings=(word,)))
    assert unused.request.embeddings == ()
    in_negative = prepare(tiny_pipe, Request(prompt="a", negative_prompt="[x|toy]"), "x", Inputs(embeddings=(word,)))
    assert in_negative.request.embeddings == (f"toy:{word.hash}",)
    with pytest.raises(RequestError, match="drawn with the embedding 'toy'"):
        prepare(tiny_pipe, job.request, "x")
    wide = LearnedWord(("toy",), (torch.zeros(1, 768),))
    with pytest.raises(RequestError, match=r"'toy' is for Stable Diffusion 1.x \(width 768\)"):
        prepare(tiny_pipe, request, "x", Inputs(embeddings=(wide,)))
