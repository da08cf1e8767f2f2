"""One tick, with a closed-form network: grouping, isolation, memory running out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.condition import Condition
from darkroom.diffusion.guidance import ClassifierFree, Unguided
from darkroom.diffusion.noise import SeededNoise
from darkroom.engine.advance import Moved, advance
from darkroom.engine.job import Job
from darkroom.errors import RequestError
from darkroom.request import Request
from darkroom.samplers import get
from darkroom.samplers.state import SamplerState

SIGMAS = (14.0, 7.0, 3.0, 1.0, 0.0)


def condition(value: float, tokens: int = 3) -> Condition:
    return Condition(torch.full((tokens, 2), value))


def make_job(id: str, *, guided: bool = True, size: int = 4, tokens: int = 3, sampler: str = "euler") -> Job:
    noise = SeededNoise(len(id) + ord(id[0]), (4, size, size))
    positive, negative = condition(1.0, tokens), condition(0.0, tokens)
    return Job(
        id=id,
        request=Request(prompt=id, width=8 * size, height=8 * size),
        sampler=get(sampler),
        sigmas=SIGMAS,
        state=SamplerState(noise(0) * SIGMAS[0], SIGMAS[0]),
        guidance=ClassifierFree(positive, negative, 2.0) if guided else Unguided(positive),
        noise=noise,
    )


class Network:
    """denoised = mean of the text / (1 + sigma), everywhere; remembers its calls and can be told to fail."""

    def __init__(self, fits: int = 1000) -> None:
        self.fits = fits
        self.calls: list[tuple[int, ...]] = []

    def __call__(
        self, x: Tensor, sigma: Sequence[float], conditions: Sequence[Condition], told: Sequence[float | None]
    ) -> Tensor:
        assert len(x) == len(sigma) == len(conditions) == len(told)
        self.told = list(told)
        self.calls.append(tuple(x.shape))
        if len(x) > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        if any(bool((c.text == 13).any()) for c in conditions):
            raise ValueError("the thirteenth")
        level = torch.tensor([float(c.text.mean()) / (1 + s) for c, s in zip(conditions, sigma, strict=True)])
        return level.reshape(-1, 1, 1, 1).expand(x.shape).clone()


def expected(job: Job) -> Tensor:
    """The next x by hand: guidance 2 doubles the answer of text 1 over text 0, then Euler."""
    s, after = job.state.sigma, job.sigmas[job.state.interval + 1]
    answer = (2.0 if len(job.guidance.branches(s)) == 2 else 1.0) / (1 + s)
    return answer + (job.state.x - answer) * (after / s)


def test_rows_of_all_jobs_share_a_call_and_come_back_to_their_own() -> None:
    jobs = [make_job("a"), make_job("b", guided=False), make_job("c")]
    jobs[2].state = SamplerState(jobs[2].state.x / 2, 7.0, 1, 1)
    network = Network()
    tick = advance(jobs, network, largest=16)
    assert network.calls == [(5, 4, 4, 4)]
    for job in jobs:
        torch.testing.assert_close(tick.moved[job.id].state.x, expected(job))
    assert tick.moved["c"].state.interval == 2
    assert not tick.failed


def test_shapes_and_text_lengths_split_calls() -> None:
    jobs = [make_job("a"), make_job("b", size=6), make_job("c", tokens=6), make_job("d", size=6)]
    network = Network()
    tick = advance(jobs, network, largest=16)
    assert sorted(network.calls) == [(2, 4, 4, 4), (2, 4, 4, 4), (4, 4, 6, 6)]
    assert set(tick.moved) == set("abcd")


def test_calls_are_at_most_as_wide_as_allowed() -> None:
    network = Network()
    tick = advance([make_job(c) for c in "abc"], network, largest=4)
    assert [shape[0] for shape in network.calls] == [4, 2]
    assert set(tick.moved) == set("abc")


def test_the_culprit_of_a_failing_call_fails_alone() -> None:
    jobs = [make_job(c) for c in "abc"]
    jobs[1].guidance = Unguided(condition(13.0))
    network = Network()
    tick = advance(jobs, network, largest=16)
    assert set(tick.moved) == {"a", "c"}
    assert str(tick.failed["b"]) == "step 1 of 4 failed: ValueError: the thirteenth"
    for id in "ac":
        job = next(job for job in jobs if job.id == id)
        torch.testing.assert_close(tick.moved[id].state.x, expected(job))


def test_running_out_of_memory_halves_the_call() -> None:
    jobs = [make_job(c) for c in "abcd"]
    network = Network(fits=3)
    tick = advance(jobs, network, largest=16)
    assert [shape[0] for shape in network.calls] == [8, 4, 2, 2, 4, 2, 2]
    assert tick.rows_that_fit == 2
    assert not tick.failed
    for job in jobs:
        torch.testing.assert_close(tick.moved[job.id].state.x, expected(job))


def test_a_row_that_does_not_fit_at_all_fails_its_job_with_advice() -> None:
    tick = advance([make_job("a")], Network(fits=0), largest=16)
    assert "memory ran out while drawing 32x32 pixels; ask for a smaller picture" in str(tick.failed["a"])


class Breaks:
    """A sampler that raises, or returns what it was told to."""

    def __init__(self, x: float | None) -> None:
        self.x = x

    def step(self, state: SamplerState, denoised: Tensor, sigmas: Sequence[float], noise: object) -> SamplerState:
        if self.x is None:
            raise ZeroDivisionError("no")
        x = state.x.clone()
        x[0, 0, 0] = self.x
        return SamplerState(x, sigmas[1], 1, 1)


@pytest.mark.parametrize(
    ("value", "told"), [(None, "ZeroDivisionError"), (float("nan"), "finite"), (float("-inf"), "finite")]
)
def test_a_step_that_raises_or_is_not_finite_fails_alone(value: float | None, told: str) -> None:
    jobs = [make_job(c) for c in "abc"]
    jobs[0].sampler = Breaks(value)
    tick = advance(jobs, Network(), largest=16)
    assert set(tick.moved) == {"b", "c"}
    assert told in str(tick.failed["a"])
    assert isinstance(tick.failed["a"], RequestError)
    assert isinstance(tick.moved["b"], Moved)


def test_jobs_are_left_as_they_were() -> None:
    jobs = [make_job("a"), make_job("b")]
    before = [(job.state, job.state.x.clone()) for job in jobs]
    advance(jobs, Network(), largest=16)
    for job, (state, x) in zip(jobs, before, strict=True):
        assert job.state is state
        assert torch.equal(job.state.x, x)


def test_an_interrupt_passes_through() -> None:
    def interrupted(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        advance([make_job("a")], interrupted, largest=16)


def test_rows_are_told_their_own_timesteps() -> None:
    jobs = [make_job("a"), make_job("b", guided=False)]
    jobs[0].timesteps = {14.0: 999.0, 7.0: 500.0}
    network = Network()
    advance(jobs, network, largest=16)
    assert network.told == [999.0, 999.0, None]
