"""Whose noise a picture is drawn with: A1111's, stable-diffusion.cpp's and ComfyUI's random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import darkroom
from darkroom import Engine, Finished, Hires, Inputs, Noise, Pipeline, Request
from darkroom.diffusion.noise import PhiloxNoise, SeededNoise, centred, slerp
from darkroom.engine.job import Job

SHAPE = (4, 8, 8)  # the latent of 64x64 pixels


def job_of(pipe: Pipeline, inputs: Inputs | None = None, **asked: Any) -> Job:
    engine = Engine(pipe)
    request = Request(**{"prompt": "a fox", "steps": 3, "seed": 7, "sampler": "euler_ancestral"} | asked)
    return engine.jobs[engine.add(request, inputs)]


def same(noise: Any, *expected: Tensor) -> bool:
    return all(torch.equal(noise(k), draw) for k, draw in enumerate(expected))


class Generator:
    """A1111's: each call draws a tensor, the next ones go on (its ImageRNG has one for each picture)."""

    def __init__(self, kind: Any, seed: int) -> None:
        self.kind, self.seed, self.drawn = kind, seed, 0

    def randn(self, shape: tuple[int, ...] = SHAPE) -> Tensor:
        self.drawn += 1
        draw: Tensor = self.kind(self.seed, shape)(self.drawn - 1)
        return draw


@pytest.mark.parametrize(("noise", "kind"), [("cpu", SeededNoise), ("nv", PhiloxNoise)])
def test_samplers_go_on_in_the_pictures_own_stream(tiny_pipe: Pipeline, noise: str, kind: Any) -> None:
    theirs = Generator(kind, 7)
    assert same(job_of(tiny_pipe, noise=noise).noise, *(theirs.randn() for _ in range(4)))
    varied = job_of(tiny_pipe, noise=noise, variation_seed=9, variation_strength=0.3)
    first = slerp(0.3, kind(7, SHAPE)(0), kind(9, SHAPE)(0))
    assert same(varied.noise, first, kind(7, SHAPE)(1), kind(7, SHAPE)(2))


def test_a_pictures_place_in_a_batch_says_nothing(tiny_pipe: Pipeline) -> None:
    """Picture i of a call is the picture of seed + i, as A1111's generators are one for each picture."""
    both = tiny_pipe.generate("a fox", steps=2, seed=7, num_images=2, noise="nv", output="pt")
    alone = tiny_pipe.generate("a fox", steps=2, seed=8, noise=Noise(source="nv"), output="pt")
    assert [request.noise for request in both.requests] == ["nv", "nv"]
    assert torch.equal(both.images[1], alone.images[0])  # type: ignore[arg-type]
    cpu = tiny_pipe.generate("a fox", steps=2, seed=8, output="pt")
    assert not torch.equal(cpu.images[0], alone.images[0])  # type: ignore[arg-type]
    assert torch.equal(tiny_pipe.draw(alone.requests, output="pt").images, alone.images)  # type: ignore[arg-type]


@pytest.mark.parametrize(("noise", "kind"), [("cpu", SeededNoise), ("nv", PhiloxNoise)])
def test_eta_noise_seed_delta(tiny_pipe: Pipeline, noise: str, kind: Any) -> None:
    """A1111: after the first noise there are new generators, of seed + delta."""
    theirs = Generator(kind, 7 + 31337)
    job = job_of(tiny_pipe, noise=noise, ensd=31337)
    assert same(job.noise, kind(7, SHAPE)(0), theirs.randn(), theirs.randn())
    assert same(job_of(tiny_pipe, ensd=-8, noise=noise).noise, kind(7, SHAPE)(0), kind(2**64 - 1, SHAPE)(0))


def test_seed_resize(tiny_pipe: Pipeline) -> None:
    """A1111: the small noise (varied, if it is) from generators of its own, the rest from the picture's."""
    small = (4, 4, 6)
    job = job_of(tiny_pipe, noise="nv", seed_resize=(48, 32), variation_seed=9, variation_strength=0.3)
    varied = slerp(0.3, PhiloxNoise(7, small)(0), PhiloxNoise(9, small)(0))
    theirs = Generator(PhiloxNoise, 7)
    assert same(job.noise, centred(varied, theirs.randn()), theirs.randn())


def test_comfyuis_samplers_draw_on_the_gpu_from_the_beginning(tiny_pipe: Pipeline) -> None:
    job = job_of(tiny_pipe, sampler_noise="nv", sgm_noise_multiplier=True, schedule="karras")
    assert same(job.noise, SeededNoise(7, SHAPE)(0), PhiloxNoise(7, SHAPE)(0), PhiloxNoise(7, SHAPE)(1))
    top = job.sigmas[0]
    torch.testing.assert_close(job.state.x, job.noise(0) * (1 + top**2) ** 0.5)
    plain = job_of(tiny_pipe, schedule="karras")
    torch.testing.assert_close(plain.state.x, plain.noise(0) * top)


def test_the_gpus_noise_gives_no_draws_to_other_things(tiny_pipe: Pipeline) -> None:
    """diffusers' image-to-image takes a draw to sample the picture's latent; A1111's noise is the first."""
    given = Inputs(image=Image.new("RGB", (64, 64), "red"))
    assert same(job_of(tiny_pipe, given, noise="nv").noise, PhiloxNoise(7, SHAPE)(0), PhiloxNoise(7, SHAPE)(1))
    assert same(job_of(tiny_pipe, given).noise, SeededNoise(7, SHAPE)(1), SeededNoise(7, SHAPE)(2))


def test_a_second_pass_begins_the_stream_anew(tiny_pipe: Pipeline) -> None:
    engine = Engine(tiny_pipe)
    hires = Hires(scale=1.5, strength=0.7)
    id = engine.add(Request(prompt="a fox", steps=3, seed=7, sampler="euler_ancestral", noise="nv", hires=hires))
    while engine.jobs[id].next is not None:
        engine.step()
    assert same(engine.jobs[id].noise, PhiloxNoise(7, (4, 12, 12))(0), PhiloxNoise(7, (4, 12, 12))(1))


def test_the_last_level_but_one(tiny_pipe: Pipeline) -> None:
    kept, left_out, usual = (
        job_of(tiny_pipe, sampler="dpm_2", schedule="karras", discard_penultimate=discard).sigmas
        for discard in (False, True, None)
    )
    assert left_out == usual
    assert kept[-2] < usual[-2]
    assert len(kept) == len(usual)


def test_brownian_noise_is_along_the_pictures_levels(tiny_pipe: Pipeline) -> None:
    pytest.importorskip("torchsde")
    job = job_of(tiny_pipe, sampler="dpmpp_2m_sde", schedule="karras", brownian=True, noise="nv")
    free = job_of(tiny_pipe, sampler="dpmpp_2m_sde", schedule="karras", noise="nv")
    assert torch.equal(job.noise(0), free.noise(0))
    path = sum(
        job.noise(k) * (job.sigmas[k - 1] - job.sigmas[k]) ** 0.5 for k in range(1, len(job.sigmas) - 1)
    )  # all increments of the path are the whole path, whose variance is its length
    length = job.sigmas[0] - job.sigmas[-2]
    assert isinstance(path, Tensor)
    assert float(path.std()) == pytest.approx(length**0.5, rel=0.2)
    assert not torch.equal(job.noise(1), free.noise(1))
    assert same(job_of(tiny_pipe, brownian=True, sampler="euler").noise, SeededNoise(7, SHAPE)(0))


def test_eta_is_the_share_of_noise_on_the_way(tiny_pipe: Pipeline) -> None:
    """At 0 an ancestral step is Euler's (Karras et al. 2022, algorithm 2 without noise); at its own it is as it was."""

    def drawn(**fields: Any) -> Tensor:
        engine = Engine(tiny_pipe)
        engine.add(Request(prompt="a fox", steps=3, seed=7, schedule="karras", **fields), output="latent")
        (result,) = [event.result for event in engine.run() if isinstance(event, Finished)]
        assert isinstance(result, Tensor)
        return result

    still = drawn(sampler="euler_ancestral", eta=0.0)
    torch.testing.assert_close(still, drawn(sampler="euler"))
    own = drawn(sampler="euler_ancestral")
    assert torch.equal(drawn(sampler="euler_ancestral", eta=1.0), own)
    assert not torch.equal(still, own)
    with pytest.raises(darkroom.RequestError, match=r"eta is 0\.5, and the sampler euler has none"):
        drawn(sampler="euler", eta=0.5)


def test_what_is_no_noise_is_said(tiny_pipe: Pipeline) -> None:
    with pytest.raises(darkroom.RequestError, match="noise is 'gpu'; it must be one of cpu, nv"):
        tiny_pipe.generate("a fox", noise="gpu")
    with pytest.raises(darkroom.RequestError, match="seed_resize is 65536x65536; ask for"):
        Request(prompt="a fox", seed_resize=(65536, 65536))
